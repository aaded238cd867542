"""How often the gate lets a policy through that it should stop, and one that it should not.

Many small worlds of the platform, each with its own listeners, log, models, DPO policy, stress and verdict.
In null and trap worlds nothing of what the judge can promise comes true; in the others it does, by effect
size and number of users.
"""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, NamedTuple

from amrs.config.graph import Config
from amrs.config.groups import ModelConfig, ParentsConfig
from amrs.config.stages import (
    BcConfig,
    DpoConfig,
    EvaluateConfig,
    PreferencesConfig,
    StressConfig,
    WorldModelConfig,
)
from amrs.report import Report, Row, load
from amrs.runs import Run, RunError
from amrs.stress.harm import lower_bound, upper_bound

USERS, TRACKS, ARTISTS = 400, 500, 60
"""Size of a world; of the users a tenth are tested."""
TRAPS: dict[str, dict[str, Any]] = {
    "no_track_effect": {"variant": "no_track_effect"},
    "confounded": {"variant": "confounded", "effect": 0.0},
    "drift": {"variant": "drift"},
    "late_harm": {"variant": "late_harm"},
}
"""Worlds in which no policy may pass, by the platform's settings. confounded: tracks do nothing, and a hidden
cause makes it look as if they did; drift: what tracks do after the logs has nothing to do with before;
late_harm: the gain is paid for in later sessions."""
EFFECTS: dict[str, dict[str, Any]] = {
    "effect=1": {"effect": 1.0},
    "effect=2": {"effect": 2.0},
    "effect=2,users=800": {"effect": 2.0, "users": 2 * USERS},
}
"""Worlds in which the promised gain is there."""


class World(NamedTuple):
    """One small world."""

    kind: str
    number: int

    @property
    def name(self) -> str:
        """As a parent of the study."""
        return f"{self.kind}_{self.number}"


def worlds(config: Config) -> list[World]:
    """Kinds take turns, so that a study that is stopped has seen all of them."""
    return [World(kind, k) for k in range(config.evaluate.gate_worlds) for kind in (*TRAPS, *EFFECTS)]


def parts(config: Config) -> dict[str, Config]:
    """A small stress for each world: every world is made, resumed and reused like any run."""
    if config.data.name != "platform":
        raise RunError(
            f"evaluate.study=gate makes small worlds of the platform, not of data={config.data.name}: "
            "give data=platform"
        )
    return {world.name: _small(config, world) for world in worlds(config)}


def _small(config: Config, world: World) -> Config:
    size = {"users": USERS, "tracks": TRACKS, "artists": ARTISTS}
    settings = size | (TRAPS | EFFECTS)[world.kind] | {"seed": 1000 + world.number}
    data = replace(
        config.data, platform=replace(config.data.platform, **settings),
        split=replace(config.data.split, seed=world.number),
    )  # fmt: skip
    return replace(
        config, stage="stress", seed=world.number, data=data, parents=ParentsConfig(),
        model=ModelConfig(width=32, layers=1, heads=2, history=64),
        world_model=WorldModelConfig(members=1, max_steps=200), bc=BcConfig(max_steps=150),
        preferences=PreferencesConfig(min_pairs=20), dpo=DpoConfig(max_steps=100, kl_sessions=16),
        evaluate=EvaluateConfig(sessions=80, policies=["dpo"]),
        stress=StressConfig(
            policies=["dpo"], sessions=80, perturbed=1, histories=4, candidates=1, variants=1
        ),
    )  # fmt: skip


def rows(run: Run) -> list[Row]:
    """Share of the worlds of each kind whose DPO policy passes, with Clopper and Pearson's interval."""
    passed: dict[str, list[bool]] = {}
    for world in worlds(run.config):
        verdict = load(run.parents[world.name].folder).one(section="gate", subject="dpo", metric="verdict")
        if verdict is not None:
            passed.setdefault(world.kind, []).append(verdict.value == 1)
    passed["all_traps"] = [each for kind in TRAPS for each in passed.get(kind, [])]
    passed["all_effects"] = [each for kind in EFFECTS for each in passed.get(kind, [])]
    return [_rate(kind, each) for kind, each in passed.items() if each]


def _rate(kind: str, passed: Sequence[bool]) -> Row:
    cases, count = sum(passed), len(passed)
    return Row("gate", "dpo", "all", "pass_rate", "mean", f"world:{kind}", cases / count,
               lower_bound(cases, count), upper_bound(cases, count), count, "fraction of worlds")  # fmt: skip


def notes(run: Run) -> list[str]:
    """Traps that passed, with what was promised there and what came true; and what stopped the others."""
    found, stopped = [], dict[str, int]()
    for world in worlds(run.config):
        report = load(run.parents[world.name].folder)
        verdict = report.one(section="gate", subject="dpo", metric="verdict")
        if verdict is None or world.kind not in TRAPS:
            continue
        if verdict.value == 1:
            found.append(f"The trap {world.name} passed: {_promise(report)}.")
        for row in report.rows:
            mine = (row.section, row.subject) == ("gate", "dpo") and row.metric != "verdict"
            if mine and row.value < 0:
                stopped[row.metric] = stopped.get(row.metric, 0) + 1
    by = ", ".join(f"{name} {count}" for name, count in sorted(stopped.items(), key=lambda item: -item[1]))
    return [*found, f"Thresholds that trap worlds failed, and how often: {by or 'none'}."]


def _promise(report: Report) -> str:
    gains = {
        section: report.one(section=section, subject="dpo", signal="valence", metric="gain")
        for section in ("stress", "realised")
    }
    said = {name: "unknown" if row is None else f"{row.value:+.4f}" for name, row in gains.items()}
    return f"the judge promised {said['stress']} in valence, {said['realised']} came true in that session"
