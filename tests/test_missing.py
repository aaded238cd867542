"""Weights and bounds for reports that are missing."""

from itertools import product

import numpy as np
import pytest

from amrs.fidelity.missing import effective, mean_bounds, r2_bounds, ratio_bounds, resampled_bounds, weights


def test_weights_by_hand() -> None:
    low, high = weights(np.array([0.5, 0.2]), gamma=2)
    assert low == pytest.approx([1.5, 3.0])  # 1 + 1/2 and 1 + 4/2
    assert high == pytest.approx([3.0, 9.0])  # 1 + 1 x 2 and 1 + 4 x 2
    assert weights(np.array([0.5, 0.2]))[0] == pytest.approx([2, 5])
    with pytest.raises(ValueError, match="gamma"):
        weights(np.array([0.5]), gamma=0.9)


def test_mean_bounds_by_hand() -> None:
    y, presence = np.array([0.0, 1.0]), np.array([0.5, 0.5])
    # weights between 1.5 and 3: the 1 weighs least or most against the 0
    assert mean_bounds(y, presence, 2) == pytest.approx((1.5 / 4.5, 3 / 4.5))
    assert mean_bounds(y, presence, 1) == pytest.approx((0.5, 0.5))


def test_the_weighted_mean_undoes_a_known_selection() -> None:
    # of four sessions at 0 one reports, of four at 1 all do: the plain mean is 4/5, the truth 1/2
    y, presence = np.array([0, 1, 1, 1, 1.0]), np.array([0.25, 1, 1, 1, 1])
    assert mean_bounds(y, presence, 1) == pytest.approx((0.5, 0.5))


def test_ratio_bounds_equal_the_best_of_all_corners() -> None:
    random = np.random.default_rng(0)
    above, below = random.normal(size=8), random.random(8)
    low = random.uniform(1, 2, 8)
    high = low + random.random(8)
    corners = [np.where(pick, high, low) for pick in product((False, True), repeat=8)]
    ratios = [(w * above).sum() / (w * below).sum() for w in corners]
    assert ratio_bounds(above, below, low, high) == pytest.approx((min(ratios), max(ratios)))


def test_r2_bounds_by_hand() -> None:
    y, predicted = np.array([1.0, 0.0]), np.array([0.5, 0.0])
    # about .5: errors 1/4 and 0, deviations 1/4 each; weights 1.5 to 3
    low, high = r2_bounds(y, predicted, 0.5, np.array([0.5, 0.5]), 2)
    assert low == pytest.approx(1 - 3 / 4.5) and high == pytest.approx(1 - 1.5 / 4.5)


def test_bounds_widen_with_gamma_and_with_sampling() -> None:
    random = np.random.default_rng(1)
    y, presence, user = random.random(200), random.uniform(0.3, 1, 200), np.arange(200) // 10
    sizes = [np.diff(mean_bounds(y, presence, gamma))[0] for gamma in (1, 1.5, 3)]
    assert sizes[0] == pytest.approx(0) and 0 < sizes[1] < sizes[2]
    low, high = mean_bounds(y, presence, 1.5)
    wide = resampled_bounds(y, np.ones(200), presence, 1.5, user, 200, 0)
    assert wide[0] < low and high < wide[1]


def test_bounds_cover_the_truth_under_a_selection_within_gamma() -> None:
    random = np.random.default_rng(2)
    y = random.random(40_000)
    odds = 1.5 * np.where(y > 0.5, 2.0, 0.5)  # presence depends on the report, unseen by the model
    given = random.random(40_000) < odds / (1 + odds)
    predicted = np.full(given.sum(), 0.6)
    plain = y[given].mean()
    low, high = mean_bounds(y[given], predicted, 2.0)
    assert abs(plain - y.mean()) > 0.05
    assert low < y.mean() < high


def test_effective_number_by_hand() -> None:
    assert effective(np.array([0.5, 0.5])) == pytest.approx(2)
    assert effective(np.array([0.25, 1.0])) == pytest.approx(25 / 17)
