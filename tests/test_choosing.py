"""Choosing by the judge, and correcting what it predicts: rank, regret, strengths and slopes by hand."""

import math

import numpy as np
import pytest
import torch

from amrs.config import load
from amrs.fidelity.track_effects import instrumented_slope_of, slope_of
from amrs.metrics import mean_of
from amrs.runs import plan
from amrs.studies.choosing import DIRECTIONS, KLS, choice_rows, regret_of, strength_for, tau_of
from amrs.studies.optimism import corrected


def sums(predicted: list[float], realised: list[float], count: float = 1.0) -> np.ndarray:
    return np.array([*predicted, *realised, count]) * np.array([count] * 6 + [1.0])


def test_kendalls_tau_counts_pairs_in_the_same_order_less_those_in_the_other() -> None:
    assert tau_of(sums([1, 2, 3], [1, 3, 2])) == pytest.approx(1 / 3)
    both = np.stack([sums([1, 2, 3], [4, 5, 6], 7), sums([1, 2, 3], [3, 2, 1], 7)])
    assert tau_of(both).tolist() == [1, -1]


def test_regret_is_what_the_best_realises_beyond_the_pick() -> None:
    assert regret_of(sums([1, 2, 3], [1, 3, 2])) == pytest.approx(1)
    assert regret_of(sums([1, 3, 2], [1, 3, 2], 5)) == 0


def test_a_judge_that_is_right_has_tau_1_and_no_regret() -> None:
    value = np.arange(12.0)[:, None] / 10 + np.array([0.0, 0.3, 0.1])
    by_way = {name: {"utility": value, "valence": value} for name in ("predicted", "realised")}
    rows = choice_rows(["copycat", "tilt:a", "tilt:b"], by_way, np.arange(12) // 2, 200, 0)
    found = {(row.section, row.subject, row.metric, row.signal): row for row in rows}
    assert found["predicted", "tilt:all", "kendall_tau", "utility"].value == 1
    assert found["predicted", "tilt:all", "regret", "valence"].high == 0
    assert found["realised", "tilt:a", "gain", "utility"].value == pytest.approx(0.3)


def test_a_strength_gives_the_divergence_that_was_asked_for() -> None:
    log_q_BK = torch.tensor([[0.5, 0.3, 0.2, 0.0], [0.1, 0.1, 0.0, 0.8]]).log()
    score_BK = torch.tensor([[0.0, 1.0, 2.0, 9.0], [0.5, -1.0, 3.0, 0.0]])
    log_p_BK = (log_q_BK + strength_for(0.05, log_q_BK, score_BK) * score_BK).log_softmax(-1)
    kl_B = (log_p_BK.exp() * (log_p_BK - log_q_BK)).nansum(1)
    assert float(kl_B.mean()) == pytest.approx(0.05, rel=1e-3)


def test_a_corrected_gain_is_the_slope_times_the_predicted_gain() -> None:
    x, residual = np.array([0.0, 1.0, 2.0]), np.array([0.1, 0.6, 1.1])  # a slope of 1/2
    slope = [3.0, x.sum(), residual.sum(), (x * x).sum(), (x * residual).sum()]
    own = corrected(slope_of, 5, mean_of)
    assert own(np.array([*slope, 0.8, 4.0])) == pytest.approx(0.1)
    assert math.isnan(own(np.array([1.0, 2.0, 1.0, 4.0, 2.0, 0.8, 4.0])))
    instrumented = corrected(instrumented_slope_of, 6, mean_of)
    along = [3.0, x.sum(), x.sum(), residual.sum(), (x * x).sum(), (x * residual).sum()]
    assert instrumented(np.array([*along, 0.8, 4.0])) == pytest.approx(0.1)


def test_twenty_four_policies_up_to_a_kl_of_a_fifth() -> None:
    assert len(DIRECTIONS) * len(KLS) >= 20 and max(KLS) == 0.2


def test_the_same_log_has_a_model_of_the_labellers_users_from_another_seed() -> None:
    study = plan(load(["stage=evaluate", "runs=/nowhere", "evaluate.study=optimism"]))[-1]
    same, labeller = study.parents["same_log"], study.parents["labeller"]
    assert same.config.world_model.users == "labeller" and same.config.seed == labeller.config.seed + 1
    assert same.fingerprint != labeller.fingerprint
