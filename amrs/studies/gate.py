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
    OffPolicyConfig,
    PreferencesConfig,
    StressConfig,
    WorldModelConfig,
)
from amrs.report import Report, Row, load
from amrs.runs import Run, RunError
from amrs.stress.harm import lower_bound, upper_bound

USERS, TRACKS, ARTISTS = 300, 500, 60
"""Size of a world."""
TESTED = 0.2
"""Share of its users who are tested: with a tenth, the bound on harm among their clinical third would be too
high in every other world, whatever the policy does."""
TRAPS: dict[str, dict[str, Any]] = {
    "no_track_effect": {"variant": "no_track_effect"},
    "confounded": {"variant": "confounded", "effect": 0.0},
    "drift": {"effect": 2.0},
    "late_harm": {"variant": "late_harm", "effect": 2.0, "late_harm": 2.4},
}
"""Worlds in which no policy may pass, by the platform's settings. confounded: tracks do nothing, and a hidden
cause makes it look as if they did; drift: what tracks do after the logs has nothing to do with before;
late_harm: the gain is paid for in later sessions, so that from the eleventh on listeners are worse off. At
the platform's own strength (.8) few of these worlds are traps: over twenty sessions more is gained than lost.

The platform's drift leaves the log as it was, and a verdict reads nothing else: every drift world has the
verdict of the world with an effect that drifts, so the two share their runs."""
PAID_LATER, HARMLESS = "late_harm", "late_harm_without_harm"
"""The trap whose harm is measured, and where it counts when there is none: a policy that rightly passes."""
UNSEEN, PLAIN = "drift", "effect=2"
"""The trap of which no log holds a trace, and the effect that drifts."""
EFFECTS: dict[str, dict[str, Any]] = {
    PLAIN: TRAPS[UNSEEN],
    "effect=1": {"effect": 1.0},
    "effect=2,users=600": {"effect": 2.0, "users": 2 * USERS},
}
"""Worlds in which the promised gain is there; the platform's own effect is 1."""


class World(NamedTuple):
    """One small world."""

    kind: str
    number: int

    @property
    def name(self) -> str:
        """As a parent of the study."""
        return f"{self.kind}_{self.number}"


def worlds(config: Config) -> list[World]:
    """Traps and the effect that drifts take turns, then the other effects: what stops has seen most."""
    section, others = config.evaluate, [kind for kind in EFFECTS if kind != PLAIN]
    first = [World(kind, k) for k in range(section.gate_worlds) for kind in (*TRAPS, PLAIN)]
    return first + [World(kind, k) for k in range(section.gate_effects) for kind in others]


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
    # Kinds share no listener, so that worlds are independent; but drift is the effect that drifts later.
    kind = PLAIN if world.kind == UNSEEN else world.kind
    seed = world.number + 1000 * (1 + list(TRAPS | EFFECTS).index(kind))
    settings = size | (TRAPS | EFFECTS)[world.kind] | {"seed": seed}
    data = replace(
        config.data, platform=replace(config.data.platform, **settings),
        split=replace(config.data.split, seed=seed, test=TESTED),
    )  # fmt: skip
    return replace(
        config, stage="stress", seed=seed, data=data, parents=ParentsConfig(),
        model=ModelConfig(width=32, layers=1, heads=2, history=64),
        world_model=WorldModelConfig(members=1, max_steps=40), bc=BcConfig(max_steps=100),
        preferences=PreferencesConfig(min_pairs=20, histories=2000),
        dpo=DpoConfig(max_steps=60, kl_sessions=16),
        evaluate=EvaluateConfig(
            chapters=["policies"], sessions=60, policies=["dpo"], off_policy=OffPolicyConfig(policies=[])
        ),
        stress=StressConfig(
            policies=["dpo"], sessions=60, perturbed=1, histories=4, candidates=1, variants=1
        ),
    )  # fmt: skip


def rows(run: Run) -> list[Row]:
    """Share of the worlds of each kind whose DPO policy passes, with Clopper and Pearson's interval."""
    passed: dict[str, list[bool]] = {}
    for world in worlds(run.config):
        report = load(run.parents[world.name].folder)
        verdict = report.one(section="gate", subject="dpo", metric="verdict")
        if verdict is not None:
            passed.setdefault(_kind(world, report), []).append(verdict.value == 1)
    passed["all_traps"] = [each for kind in TRAPS for each in passed.get(kind, [])]
    passed["traps_in_the_log"] = [each for kind in TRAPS if kind != UNSEEN for each in passed.get(kind, [])]
    passed["all_effects"] = [each for kind in EFFECTS for each in passed.get(kind, [])]
    return [_rate(kind, each) for kind, each in passed.items() if each]


def _kind(world: World, report: Report) -> str:
    """The world's kind; harm that does not come is no trap."""
    to_come = report.one(section="realised", subject="dpo", signal="valence", metric="later_gain")
    harmless = world.kind == PAID_LATER and to_come is not None and to_come.value >= 0
    return HARMLESS if harmless else world.kind


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
        if verdict is None or _kind(world, report) not in TRAPS:
            continue
        if verdict.value == 1:
            found.append(f"The trap {world.name} passed: {_promise(report, world.kind)}.")
        for row in report.rows:
            mine = (row.section, row.subject) == ("gate", "dpo") and row.metric != "verdict"
            if mine and row.value < 0:
                stopped[row.metric] = stopped.get(row.metric, 0) + 1
    by = ", ".join(f"{name} {count}" for name, count in sorted(stopped.items(), key=lambda item: -item[1]))
    return [*found, f"Thresholds that trap worlds failed, and how often: {by or 'none'}."]


def _promise(report: Report, kind: str) -> str:
    def said(section: str, metric: str) -> str:
        row = report.one(section=section, subject="dpo", signal="valence", metric=metric)
        return "unknown" if row is None else f"{row.value:+.4f}"

    promised = f"the judge promised {said('stress', 'gain')} in valence"
    if kind == UNSEEN:
        return f"{promised}; what drifts afterwards is not in any log"
    return (
        f"{promised}, {said('realised', 'gain')} came true in that session and "
        f"{said('realised', 'later_gain')} in the eleventh to twentieth"
    )
