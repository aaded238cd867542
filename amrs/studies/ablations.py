"""What each part of the world model contributes: models trained without it, scored on the same test users."""

from dataclasses import replace
from typing import Any

from amrs.config.graph import Config
from amrs.fidelity import model_table
from amrs.predictions import fit_rows
from amrs.report import Row
from amrs.runs import Run
from amrs.stages import world_model
from amrs.stages.prepare import open_data

VARIANTS: dict[str, dict[str, Any]] = {
    "positions_learned": {"model": {"positions": "learned"}},
    "positions_rope": {"model": {"positions": "rope"}},
    "history_8": {"model": {"history": 8}},
    "history_32": {"model": {"history": 32}},
    "one_member": {"world_model": {"members": 1}},
}
"""Settings by section that make each variant of the world model; its subject is `ablation:<name>`."""


def parts(config: Config) -> dict[str, Config]:
    """One world model for each variant."""
    return {name: variant(config, changes) for name, changes in VARIANTS.items()}


def variant(config: Config, changes: dict[str, Any]) -> Config:
    """A world model on all training users with some settings changed, as a command of its own."""
    sections = {name: replace(getattr(config, name), **values) for name, values in changes.items()}
    return replace(config, stage="world_model", **sections)


def rows(run: Run) -> list[Row]:
    """Fit of each variant on test users; the whole model's stands in the report under `world_model`."""
    section, found = run.config.evaluate, []
    for name in VARIANTS:
        part = run.parents[name]
        data = open_data(part)
        frame = model_table(f"ablation:{name}", world_model.load(part.folder, data), data)
        found += fit_rows(frame, section.bootstrap, run.config.seed)
    return found
