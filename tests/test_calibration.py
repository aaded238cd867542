"""Reliability, PIT, coverage, and recalibration only where it helps."""

import numpy as np
import pytest

from amrs import metrics
from amrs.fidelity.calibration import (
    EVENTS,
    Judged,
    Yesno,
    clearly_better,
    event_rows,
    fit_events,
    fit_levels,
    folds,
    level_rows,
    log_loss,
)

GRID = np.linspace(0, 1, 101)


def test_reliability_by_hand() -> None:
    curve = metrics.reliability([0, 1, 1, 1], [0.1, 0.2, 0.6, 0.9], bins=2)
    assert curve.predicted_B == pytest.approx([0.15, 0.75])
    assert curve.share_B == pytest.approx([0.5, 1.0])
    assert curve.count_B.tolist() == [2, 2]


def test_levels_by_hand_with_mass_on_both_ends() -> None:
    grid = np.array([0.0, 0.5, 1.0])
    cdf = np.tile([0.2, 0.6, 0.7], (4, 1))  # .2 on 0, .3 on 1
    below, upto = metrics.levels([0.0, 0.25, 0.5, 1.0], cdf, grid)
    assert below == pytest.approx([0.0, 0.4, 0.6, 0.7])
    assert upto == pytest.approx([0.2, 0.4, 0.6, 1.0])
    assert metrics.pit(below, upto, [0.5, 0.5, 0.5, 0.5]) == pytest.approx([0.1, 0.4, 0.6, 0.85])


def test_ks_by_hand() -> None:
    # the empirical steps at .1, .2 leave the diagonal most after .2: 1 - .2
    assert metrics.ks_uniform([0.1, 0.2]) == pytest.approx(0.8)
    assert metrics.ks_uniform([0.25, 0.75]) == pytest.approx(0.25)


def test_quantile_map_by_hand() -> None:
    map_K = metrics.quantile_map([0.1, 0.2, 0.3, 0.9], knots=2)
    assert map_K == pytest.approx([0, 0.25, 1])
    # half of the labels lie below level .25; from there to 1 the other half
    assert metrics.mapped([[0.0, 0.125, 0.25, 0.5, 1.0]], map_K)[0] == pytest.approx([0, 0.25, 0.5, 2 / 3, 1])


def censored(location: np.ndarray, spread: float, seed: int, claimed: float) -> Judged:
    """Draws of a normal censored to [0, 1], with the distribution that a model claims."""
    from scipy.stats import norm

    random = np.random.default_rng(seed)
    y = np.clip(location + spread * random.standard_normal(len(location)), 0, 1)
    cdf = norm.cdf((np.minimum(GRID, 1 - 1e-6) - location[:, None]) / claimed)
    return Judged(y, cdf, np.arange(len(y)) // 10)


def test_pit_of_the_true_model_is_uniform_with_atoms() -> None:
    location = np.linspace(-0.2, 1.2, 4000)  # a third of the mass is on the ends
    true = censored(location, 0.2, 0, 0.2)
    assert ((true.y_N == 0) | (true.y_N == 1)).mean() > 0.25
    below, upto = metrics.levels(true.y_N, true.cdf_NG, GRID)
    pit = metrics.pit(below, upto, np.random.default_rng(1).random(len(below)))
    assert metrics.ks_uniform(pit) < 1.63 / np.sqrt(len(pit))  # 1 % critical value
    assert metrics.ks_uniform(upto) > 0.1  # without the draw atoms heap up


def test_recalibration_mends_intervals_that_are_too_narrow() -> None:
    location = np.random.default_rng(3).uniform(0.3, 0.7, 3000)
    validation, test = (censored(location, 0.15, seed, claimed=0.08) for seed in (4, 5))
    rows = {(r.subject, r.metric): r for r in level_rows("valence", validation, test, GRID, 0, 100)}
    before, after = (rows[s, "coverage_80"].value for s in ("world_model", "recalibrated"))
    assert before < 0.6 and after == pytest.approx(0.8, abs=0.03)
    assert rows["recalibrated", "crps"].value < rows["world_model", "crps"].value
    assert rows["recalibrated", "pit_ks"].value < 0.04 < rows["world_model", "pit_ks"].value


def test_recalibration_that_can_only_add_noise_is_left_out() -> None:
    level = np.random.default_rng(6).permutation(np.arange(60) + 0.5) / 60  # as uniform as can be
    uniform = Judged(level, np.tile(GRID, (60, 1)), np.arange(60) // 10)
    assert fit_levels(uniform, GRID, 0) is None
    rows = level_rows("valence", uniform, uniform, GRID, 0, 100)
    assert {row.subject for row in rows} == {"world_model"}
    assert sum(row.value for row in rows if row.metric == "pit_share") == pytest.approx(1)


def yesno(seed: int, claim: float = 1.0) -> Yesno:
    """Labels whose log-odds are `claim` times too loud in what is predicted."""
    random = np.random.default_rng(seed)
    odds = random.normal(0, 1.2, 4000)
    y = (random.random(4000) < 1 / (1 + np.exp(-odds))).astype(float)
    return Yesno(y, 1 / (1 + np.exp(-claim * odds)), np.arange(4000) // 20)


@pytest.mark.parametrize("name", list(EVENTS))
def test_loud_probabilities_are_turned_down(name: str) -> None:
    validation, test = yesno(0, 3.0), yesno(1, 3.0)
    change = EVENTS[name](validation.y_N, validation.probability_N)
    assert metrics.ece(test.y_N, test.probability_N) > 0.1
    assert metrics.ece(test.y_N, change(test.probability_N)) < 0.03


def test_events_are_recalibrated_only_where_they_were_wrong() -> None:
    assert fit_events(yesno(2, 3.0), 0) is not None
    one_user = yesno(3, 3.0)._replace(user_N=np.zeros(4000, np.int64))
    assert fit_events(one_user, 0) is None  # nothing says that it would help others
    rows = event_rows("left", yesno(2, 3.0), yesno(4, 3.0), 0, 100)
    error = {row.subject: row.value for row in rows if row.metric == "ece"}
    assert error["recalibrated"] < 0.3 * error["world_model"]


def test_log_loss_by_hand() -> None:
    found = log_loss(np.array([1.0, 0.0]), np.array([0.5, 0.75]))
    assert found == pytest.approx([np.log(2), np.log(4)])


def test_better_means_more_than_two_standard_errors() -> None:
    before, user = np.array([1.0, 1.0, 1.0]), np.arange(3)
    # gains .3, .3, .1: sum .7, 2 sqrt(3) x .1155 = .4; gains .3, .3, -.001: .599, 2 sqrt(3) x .174 = .602
    assert clearly_better(before, before - [0.3, 0.3, 0.1], user)
    assert not clearly_better(before, before - [0.3, 0.3, -0.001], user)
    assert not clearly_better(before, before - 0.3, np.zeros(3))  # one user is no evidence


def test_folds_share_no_user() -> None:
    user = np.array([3, 3, 7, 7, 9])
    parts = list(folds(user, 0))
    assert len(parts) == 3 and sum(score.sum() for _, score in parts) == 5
    assert all(not set(user[fit]) & set(user[score]) for fit, score in parts)
