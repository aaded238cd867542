"""The study of the gate: its worlds are what they are said to be, and its rates are shares of worlds."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from amrs.config import load
from amrs.platform import draw_platform
from amrs.report import Report, Row
from amrs.runs import Run, plan
from amrs.studies import gate
from amrs.studies.gate import EFFECTS, PLAIN, TRAPS, parts, rows, worlds


def test_a_hundred_worlds_are_null_or_traps_by_default() -> None:
    config = load(["stage=evaluate", "evaluate.study=gate"])
    kinds = [world.kind for world in worlds(config)]
    assert sum(kind in TRAPS for kind in kinds) == 100 and kinds.count(PLAIN) == 25
    assert {kind: kinds.count(kind) for kind in EFFECTS if kind != PLAIN} == {
        "effect=1": 8, "effect=2,users=600": 8,
    }  # fmt: skip
    assert set(kinds[: len(TRAPS) + 1]) == {*TRAPS, PLAIN}, "kinds take turns"


def test_no_trap_lets_a_track_do_what_the_log_says_for_good() -> None:
    made = parts(load(["stage=evaluate", "evaluate.study=gate", "evaluate.gate_worlds=2"]))
    platform = {name: config.data.platform for name, config in made.items()}
    assert platform["no_track_effect_0"].strength == 0 and platform["confounded_1"].strength == 0
    assert platform["confounded_1"].variant == "confounded" and platform["late_harm_0"].variant == "late_harm"
    assert platform["effect=2_0"].strength == 2 * platform["effect=1_0"].strength > 0
    assert platform["drift_1"].seed == platform["effect=2_1"].seed
    assert len({p.seed for p in platform.values()}) == len(platform) - 2, "the others share no listener"


def test_a_log_before_drift_is_the_log_without_drift() -> None:
    """So a drift world has the verdict of the world with an effect, and is no run of its own."""
    settings = parts(load(["stage=evaluate", "evaluate.study=gate"]))["drift_0"].data.platform
    small = replace(settings, users=30)
    before, after = (draw_platform(replace(small, variant=variant)) for variant in (None, "drift"))
    assert before[1].equals(after[1])
    assert not torch.equal(before[0].catalogue.affect_after_K2, after[0].catalogue.affect_after_K2)


def test_every_log_is_a_stress_of_its_own_in_the_plan() -> None:
    few = ["evaluate.gate_worlds=1", "evaluate.gate_effects=1"]
    runs = plan(load(["stage=evaluate", "evaluate.study=gate", *few]))
    stress = [run for run in runs if run.stage == "stress"]
    assert len({run.fingerprint for run in stress}) == len(TRAPS) + len(EFFECTS) - 1
    assert runs[-1].parents["drift_0"].fingerprint == runs[-1].parents["effect=2_0"].fingerprint
    assert set(runs[-1].parents) == {world.name for world in worlds(runs[-1].config)}


def test_the_rate_is_the_share_of_worlds_with_its_exact_interval(monkeypatch: pytest.MonkeyPatch) -> None:
    config = load(["stage=evaluate", "evaluate.study=gate", "evaluate.gate_worlds=5"])
    verdict = Row("gate", "dpo", "all", "verdict", "mean", "all", 0.0, None, None, 18, "1 passed")

    def load_world(folder: Path) -> Report:
        passed = folder.name.startswith("effect") or folder.name == "drift_0"
        return Report([replace(verdict, value=float(passed))], {})

    parents = {w.name: Run("stress", "stress", config, {}, w.name, Path(w.name)) for w in worlds(config)}
    monkeypatch.setattr(gate, "load", load_world)
    found = {row.group: row for row in rows(Run("evaluate", "evaluate", config, parents, "f", Path("f")))}
    assert found["world:drift"].value == 0.2 and found["world:all_effects"].value == 1.0
    traps = found["world:all_traps"]
    # One of twenty: Clopper and Pearson [.0013, .2487].
    assert traps.value == pytest.approx(0.05) and traps.n == 20
    assert [traps.low, traps.high] == pytest.approx([0.0013, 0.2487], abs=1e-4)


def test_late_harm_that_does_not_come_is_no_trap(monkeypatch: pytest.MonkeyPatch) -> None:
    config = load(["stage=evaluate", "evaluate.study=gate", "evaluate.gate_worlds=2"])
    later = Row(
        "realised", "dpo", "valence", "later_gain", "mean", "all", -0.01, None, None, 60, "scale points"
    )
    verdict = Row("gate", "dpo", "all", "verdict", "mean", "all", 1.0, None, None, 20, "1 passed")

    def load_world(folder: Path) -> Report:
        return Report([verdict, replace(later, value=0.01 if folder.name == "late_harm_1" else -0.01)], {})

    parents = {w.name: Run("stress", "stress", config, {}, w.name, Path(w.name)) for w in worlds(config)}
    monkeypatch.setattr(gate, "load", load_world)
    run = Run("evaluate", "evaluate", config, parents, "f", Path("f"))
    count = {row.group: row.n for row in rows(run)}
    assert count["world:late_harm"] == 1 and count["world:late_harm_without_harm"] == 1
    assert count["world:all_traps"] == 7 and count["world:traps_in_the_log"] == 5
    assert not any("late_harm_1 " in note for note in gate.notes(run))
