"""Stress: hand-worked bounds and perturbations, made-up histories, and the whole stage once."""

import json
import subprocess
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import TINY, train
from tiny_logs import opened, policy, random_log, world_model

from amrs.data import SessionDataModule
from amrs.fidelity.targets import columns
from amrs.listeners import ImaginedListeners
from amrs.logs.histories import flatten
from amrs.logs.splits import VALIDATION
from amrs.noise import hash_keys
from amrs.policies import FixedPolicy, NeuralPolicy
from amrs.report import load
from amrs.rollout import imagine
from amrs.stress import counterfactual, properties
from amrs.stress.adversary import exchanged
from amrs.stress.confounding import breaking_gamma, tilted_mean
from amrs.stress.counterfactual import EDITS, as_data, logged, rows_of
from amrs.stress.dynamics import (
    HeardOtherwise,
    breaking_point,
    flipped,
    jittered,
    less_reactive,
    more_inertia,
)
from amrs.stress.harm import harm, upper_bound
from amrs.stress.simulation import last

HORIZON = 4


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> SessionDataModule:
    return opened(random_log(tmp_path_factory.mktemp("log") / "log", users=8))


@pytest.fixture(scope="module")
def histories(data: SessionDataModule) -> counterfactual.Histories:
    last_U = torch.cat([data.flat.row_U[1:], torch.tensor([len(data.flat.mode_S)])]) - 1
    return logged(columns(data.log), last_U.numpy())


def test_tilted_mean_puts_most_weight_on_the_lowest_third() -> None:
    # Gamma = 2: the lowest third of (-1, -1, 1, 1) weighs 2, the rest 1/2:
    # 2 (-1/3) + 1/2 (-(1/2 - 1/3) + 1/2) = -2/3 + 1/6 = -1/2.
    assert tilted_mean(np.array([1.0, -1.0, 1.0, -1.0]), 2.0) == pytest.approx(-0.5)


def test_without_a_hidden_cause_nothing_is_tilted() -> None:
    assert tilted_mean(np.array([0.3, -0.1, 0.4]), 1.0) == pytest.approx(0.2)


def test_no_weights_within_the_bound_give_a_lower_mean() -> None:
    rng = np.random.default_rng(0)
    residual = rng.normal(size=40)
    least = tilted_mean(residual, 1.5)
    for _ in range(200):
        weight = np.exp(rng.uniform(-np.log(1.5), np.log(1.5), 40))
        weight /= weight.mean()
        if weight.max() <= 1.5 and weight.min() >= 1 / 1.5:
            assert (weight * residual).mean() >= least - 1e-12


def test_breaking_gamma_is_where_the_tilt_eats_the_bound() -> None:
    residual = np.array([1.0, -1.0, 1.0, -1.0])
    assert breaking_gamma(0.5, residual) == pytest.approx(2.0, abs=1e-6)
    assert breaking_gamma(-0.1, residual) == 1.0
    assert breaking_gamma(2.0, residual) is None


def test_reactivity_shrinks_departures_from_the_start() -> None:
    path = torch.tensor([[0.6, 0.8]])
    assert less_reactive(path, torch.tensor([0.5]), 0.5).tolist()[0] == pytest.approx([0.55, 0.65])


def test_inertia_lags_behind() -> None:
    # y1 = .5 x .5 + .5 x .6 = .55; y2 = .5 x .55 + .5 x .8 = .675
    path = torch.tensor([[0.6, 0.8]])
    assert more_inertia(path, torch.tensor([0.5]), 0.5).tolist()[0] == pytest.approx([0.55, 0.675])


def test_breaking_point_is_interpolated() -> None:
    assert breaking_point({0.0: 0.04, 0.5: 0.02, 1.0: -0.02}) == pytest.approx(0.75)
    assert breaking_point({0.0: 0.04, 0.5: 0.02, 1.0: 0.0}) == 1.0
    assert breaking_point({0.0: 0.04, 1.0: 0.01}) is None
    assert breaking_point({0.0: -0.01, 1.0: 0.01}) == 0.0


def test_a_session_that_was_left_counts_at_its_last_state() -> None:
    path = torch.tensor([[0.1, 0.2, torch.nan], [0.1, 0.2, 0.3]])
    assert last(path, ~path.isnan()).tolist() == pytest.approx([0.2, 0.3])


def test_harm_counts_falls_of_more_than_two_points() -> None:
    delta = np.array([-0.03, -0.019, 0.1, -0.5])
    found = harm(delta, np.array([0, 1, 2, 3]), draws=200, seed=0)
    assert found.value == 0.5 and found.n == 4 and found.high is not None and found.high > 0.5


def test_no_harm_seen_is_not_no_harm() -> None:
    # Clopper and Pearson: 1 - .025 ** (1 / 10) = .3085 for none of ten users.
    found = harm(np.zeros(20), np.repeat(np.arange(10), 2), draws=100, seed=0)
    assert found.value == 0 and found.high == pytest.approx(0.3085, abs=1e-4)
    assert upper_bound(3, 3) == 1.0


def test_tracks_heard_as_they_are_change_nothing(data: SessionDataModule) -> None:
    judge, row = world_model(data, 2), torch.arange(6)
    chosen, key = NeuralPolicy(policy(data), data, HORIZON), hash_keys(0, torch.arange(6))
    same = HeardOtherwise(judge, torch.ones(data.tracks), data, HORIZON)
    worlds = (ImaginedListeners(judge, data, HORIZON), same, jittered(judge, data, HORIZON, 0, 0.0))
    plain, *others = (
        imagine(chosen, world, data.rules(), data.flat.mode_S[row], row, key, HORIZON) for world in worlds
    )
    for other in others:
        assert torch.equal(plain.track_BT, other.track_BT)
        torch.testing.assert_close(plain.expected["valence"], other.expected["valence"], equal_nan=True)


def test_flipping_every_track_turns_the_linear_effect(data: SessionDataModule) -> None:
    judge = world_model(data)
    for parameter in judge.parameters():
        torch.nn.init.zeros_(parameter)
    member = judge.ensemble[0]
    signal = list(member.kinds).index("valence")
    torch.nn.init.constant_(member.session_linear.weight, 0.01)
    row, track = torch.arange(6), torch.arange(6)
    effects = []
    for world in (ImaginedListeners(judge, data, HORIZON), flipped(judge, data, HORIZON, 0, 1.0)):
        state = world.start(row, hash_keys(0, row))
        effects.append(world.step(state, track, 0)[2]["valence"])
    shift = member.session_linear(member.encoder.embedding_KE[track])[:, signal]
    assert (shift.abs() > 1e-3).all()
    # Without any effect the head says its constant; both effects lie the same way around it.
    middle = (effects[0] + effects[1]) / 2
    torch.testing.assert_close(middle, middle[:1].expand(6), atol=2e-3, rtol=0)
    assert torch.equal((effects[0] - effects[1]) > 0, shift > 0)


def test_a_history_made_of_the_log_is_the_log(
    data: SessionDataModule, histories: counterfactual.Histories
) -> None:
    whole = as_data(data, histories)
    for name in ("static_SF", "track_N", "feedback_N4", "mode_S", "length_S"):
        torch.testing.assert_close(
            getattr(whole.flat, name), getattr(flatten(data.log), name), equal_nan=True
        )


@pytest.mark.parametrize("name", list(EDITS))
def test_edits_leave_the_session_under_way_alone(
    data: SessionDataModule, histories: counterfactual.Histories, name: str
) -> None:
    made = EDITS[name](histories, data.history)
    before, after = histories.columns, made.columns
    assert len(made.row_Q) == len(histories.row_Q)
    assert (after.start_S[made.row_Q] == before.start_S[histories.row_Q]).all()
    if name != "unseen_mode":
        assert (after.mode_S[made.row_Q] == before.mode_S[histories.row_Q]).all()
    assert (np.diff(after.start_S)[np.diff(after.user_S) == 0] > 0).all(), "sessions stay in order"


def test_what_the_edits_make(data: SessionDataModule, histories: counterfactual.Histories) -> None:
    made = {name: edit(histories, data.history) for name, edit in EDITS.items()}
    negative, contradictory = made["all_negative"], made["contradictory"]
    assert (negative.columns.play_N["rating"][negative.earlier_N] == 0).all()
    assert (contradictory.columns.play_N["rating"][contradictory.earlier_N] == 1).all()
    before = np.nan_to_num(contradictory.columns.session_S["pre_valence"], nan=0.5)[contradictory.earlier_S]
    after = contradictory.columns.session_S["post_valence"][contradictory.earlier_S]
    assert (after <= before).all() and (after < before).any()
    assert len(made["empty"].columns.user_S) == len(histories.row_Q)
    had = np.bincount(histories.columns.user_S) > 1
    events = np.bincount(made["very_long"].columns.user_S, made["very_long"].columns.length_S + 1)
    assert (events[had] > 3 * data.history).all()
    artist = made["one_artist"].columns
    assert len(set(artist.artist_K[artist.track_N[made["one_artist"].earlier_N]])) == 1


def test_hard_properties_hold_for_a_neural_policy(
    data: SessionDataModule, histories: counterfactual.Histories
) -> None:
    found = properties.hard(NeuralPolicy(policy(data), data, HORIZON), data, histories, 0)
    assert set(found) == {"outside_mode", "repeated", "probabilities", "renamed", "weeks_later"}
    assert all(each.checks == len(histories.row_Q) and each.violations == 0 for each in found.values())


class Broken(FixedPolicy):
    """Says that something is no number, or looks at the row of the log that a session has."""

    def __init__(self, tracks: int, fault: str) -> None:
        super().__init__(torch.zeros(tracks))
        self.fault = fault

    def start(self, row_B: torch.Tensor) -> torch.Tensor:  # type: ignore[override]
        return row_B

    def logits(self, state: torch.Tensor) -> torch.Tensor:  # type: ignore[override]
        logits = self.logits_K.repeat(len(state), 1)
        if self.fault == "nan":
            logits[0] = torch.nan
        else:
            logits[:, 0] = state.float()
        return logits


@pytest.mark.parametrize(("fault", "name"), [("nan", "probabilities"), ("row", "renamed")])
def test_hard_properties_catch_a_policy_that_breaks_them(
    data: SessionDataModule, histories: counterfactual.Histories, fault: str, name: str
) -> None:
    found = properties.hard(Broken(data.tracks, fault), data, histories, 0)
    assert found[name].violations > 0 and found[name].worst > 0


class Perverse(FixedPolicy):
    """Plays more of what was not heard: a track's logit falls with the engagement in it so far."""

    def __init__(self, data: SessionDataModule) -> None:
        self.data = data

    def start(self, row_B: torch.Tensor) -> torch.Tensor:  # type: ignore[override]
        return self.data.flat.user_S[row_B]

    def logits(self, state: torch.Tensor) -> torch.Tensor:  # type: ignore[override]
        flat = self.data.flat
        total = torch.zeros(len(flat.user_ids), self.data.tracks)
        play = flat.track_N >= 0
        owner = flat.user_S[flat.session_N[play]]
        total.index_put_(
            (owner, flat.track_N[play]), -flat.feedback_N4[play, 0].nan_to_num(), accumulate=True
        )
        return total[state]


def test_worse_feedback_that_makes_a_track_likelier_is_counted(
    data: SessionDataModule, histories: counterfactual.Histories
) -> None:
    ignorant = properties.worse_feedback(FixedPolicy(torch.zeros(data.tracks)), data, histories)
    perverse = properties.worse_feedback(Perverse(data), data, histories)
    assert ignorant.violations == 0 and ignorant.checks > 0
    assert perverse.violations >= 0.5 * perverse.checks and perverse.worst > 0


def test_exchanged_feedback_is_feedback_that_somebody_gave(
    data: SessionDataModule, histories: counterfactual.Histories
) -> None:
    log = columns(data.log)
    donor = data.part_S.numpy() == VALIDATION
    made = exchanged(histories, log, donor, 2, 0)
    theirs = np.stack(list(log.play_N.values()), 1)[donor[log.row_N]]
    given = {tuple(np.nan_to_num(x, nan=-1).tolist()) for x in theirs}
    now = np.nan_to_num(np.stack(list(made.columns.play_N.values()), 1), nan=-1)
    was = np.nan_to_num(np.stack(list(histories.columns.play_N.values()), 1), nan=-1)
    changed = (now != was).any(1)
    assert changed.any() and {tuple(x.tolist()) for x in now[changed]} <= given
    assert not changed[~histories.earlier_N].any()
    first = histories.columns.user_S[histories.columns.row_N] % 2 == 0
    assert not changed[first].any(), "the first variant is the real one"


def test_rows_of_histories_are_their_last_sessions(histories: counterfactual.Histories) -> None:
    again = replace(histories.columns)
    assert rows_of(histories).tolist() == np.flatnonzero(np.r_[np.diff(again.user_S) != 0, True]).tolist()


SMALL = [
    "stress.sessions=20", "stress.simulations=4", "stress.perturbed=1", "stress.histories=4",
    "stress.candidates=2", "stress.variants=2",
]  # fmt: skip


@pytest.fixture(scope="module")
def stressed(evaluated: tuple[Path, subprocess.CompletedProcess[str]]) -> Path:
    """The run folder of a small stress on the shared tiny run."""
    return Path(train("stage=stress", *TINY, *SMALL, f"runs={evaluated[0]}").stdout.splitlines()[-1])


def test_stress_adds_its_rows_to_those_of_evaluate_and_leaves_that_run_alone(stressed: Path) -> None:
    report = load(stressed)
    before = load(Path(json.loads((stressed / "provenance.json").read_text())["parents"]["evaluate"]))
    assert {row.key for row in before.rows} < {row.key for row in report.rows}
    assert not before.find(section="stress") and stressed.parent.name == "stress"
    groups = {row.group for row in report.rows if (row.section, row.subject) == ("stress", "dpo")}
    assert {f"history:{name}" for name in EDITS} <= groups and "worst:1" in groups
    assert {"perturbed:sign_flip=0.1", "perturbed:reactivity=0.5", "perturbed:half_of_users"} <= groups
    assert {r.subject for r in report.find(section="stress", metric="harm")} >= {"copycat", "greedy", "dpo"}
    assert report.one(section="realised", metric="harm", subject="dpo") is not None
    assert report.find(section="stress", subject="dpo", metric="violations")[0].value == 0
    slopes = report.find(section="stress", subject="world_model", group="propensities:logged")
    assert [(row.metric, row.signal) for row in slopes] == [
        ("uplift_slope", "valence"), ("uplift_slope", "arousal"),
    ]  # fmt: skip
    asked = report.find(section="gate", subject="dpo", group="propensities:logged")
    assert [row.signal for row in asked] == ["valence"]


def test_greedy_fails_the_gate_and_the_words_name_threshold_and_figure(stressed: Path) -> None:
    report = load(stressed)
    verdict = report.one(section="gate", subject="greedy", metric="verdict")
    assert verdict is not None and verdict.value == 0
    margin = report.one(section="gate", subject="greedy", metric="effective_tracks")
    assert margin is not None and margin.value < 0
    words = report.provenance["verdicts"]["greedy"]
    assert "effective tracks, as a share of Copycat's, is 0." in words and "[gate.effective_tracks]" in words


def test_the_page_says_who_might_be_harmed_and_what_the_gate_says(stressed: Path) -> None:
    page = (stressed / "report.html").read_text()
    for words in ("Who might be harmed?", "Copycat against itself", "Greedy failed", "Breaking points"):
        assert words in page
    assert "Worst histories found" in page and "Not yet stressed" not in page
