"""Studies: questions about a world model or a policy that need runs or simulations of their own.

A study is one file here with `rows(run) -> list[Row]`, and its entry in `STUDIES`; its name stands in
`StudyName` of amrs/config/stages.py. `python train.py stage=evaluate evaluate.study=NAME` makes it in a run
folder of its own; `evaluate.studies=[NAME,...]` merges its rows into a report, so they must have keys that
no other row has. `run.parents[NAME].folder` is the finished folder of each parent and part.
"""

from collections.abc import Callable
from dataclasses import dataclass

from amrs.config.graph import Config
from amrs.report import Row
from amrs.runs import Run
from amrs.studies import (
    ablations,
    calibration,
    ceilings,
    choosing,
    cold_start,
    effects,
    front,
    gate,
    ignorance,
    missing,
    off_policy,
    optimism,
    rollouts,
)  # fmt: skip


def _no_parts(config: Config) -> dict[str, Config]:
    return {}


def _no_notes(run: Run) -> list[str]:
    return []


@dataclass(frozen=True)
class Study:
    """What a study computes, and what it stands on."""

    rows: Callable[[Run], list[Row]]
    """Its figures, of test users, under split "mean"."""
    parents: tuple[str, ...] = ("prepare", "world_model")
    """Roles (`ROLES` in amrs/runs.py) with the settings of the command."""
    notes: Callable[[Run], list[str]] = _no_notes
    """What cannot be said in figures."""
    parts: Callable[[Config], dict[str, Config]] = _no_parts
    """Further runs by name, each with settings of its own: `replace(config, stage="world_model", ...)`.
    They are ordinary runs: made where they are missing, resumed, never made twice."""


_POLICIES = ("prepare", "labeller", "judge", "bc", "preferences")
STUDIES: dict[str, Study] = {
    "ablations": Study(ablations.rows, parts=ablations.parts),
    "calibration": Study(calibration.rows),
    "ignorance": Study(ignorance.rows, parts=ignorance.parts),
    "rollouts": Study(rollouts.rows, ("prepare", "world_model", "bc")),
    "missing": Study(missing.rows, parts=missing.parts),
    "off_policy": Study(off_policy.rows, parents=()),
    "choosing": Study(choosing.rows, parents=_POLICIES),
    "optimism": Study(optimism.rows, parents=(*_POLICIES, "dpo"), parts=optimism.parts),
    "ceilings": Study(ceilings.rows, parts=ceilings.parts),
    "cold_start": Study(cold_start.rows, parts=cold_start.parts),
    "effects": Study(effects.rows, parents=(), parts=effects.parts),
    "front": Study(front.rows, parents=("prepare", "judge", "bc"), parts=front.parts),
    "gate": Study(gate.rows, parents=(), notes=gate.notes, parts=gate.parts),
}
