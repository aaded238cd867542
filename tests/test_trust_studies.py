"""What the studies of calibration, ignorance, rollouts and missing reports count."""

from itertools import pairwise

import numpy as np
import pytest
import torch
from platform_worlds import one_thread, world

from amrs.fidelity.targets import Target
from amrs.studies.calibration import spread_out
from amrs.studies.missing import Sessions, bounds, comparisons, plain_and_weighted
from amrs.studies.rollouts import SHOWN, binned

__all__ = ["one_thread"]


def test_a_log_with_every_report_is_the_log_where_reports_were_given() -> None:
    _, log = world()
    _, full = world(post_report_rate=1.0)
    assert full["session_id"] == log["session_id"] and full["track_id"] == log["track_id"]
    assert full["post_valence"].null_count == 0 < log["post_valence"].null_count
    given = [value is not None for value in log["post_valence"].to_pylist()]
    for name in ("post_valence", "post_arousal", "pre_valence"):
        assert log[name].filter(given) == full[name].filter(given)


def test_labels_are_spread_over_each_users_own() -> None:
    user = np.array([0, 1, 0, 0, 0, 0, 1, 2])
    same = np.arange(8)
    label = Target(same, same, same / 8, user, same, same)
    kept = spread_out(label, 2)
    assert kept.row.tolist() == [0, 1, 5, 6, 7]  # first and last of each; the third user's only one
    assert spread_out(label, None) is label


def test_plain_and_weighted_figures_by_hand() -> None:
    nan = np.nan
    sessions = Sessions(
        y_N=np.array([0.0, 1.0, 1.0, nan]), predicted_N=np.full(4, 0.5),
        presence_N=np.array([0.5, 1, 1, 0.5]), true_N=np.array([0.0, 1.0, 1.0, 0.0]), user_N=np.arange(4),
    )  # fmt: skip
    found = plain_and_weighted(sessions, 0.25)
    assert found["report_mean"] == pytest.approx((2 / 3, 0.5, 0.5))
    # errors 1/4 each; deviations from 1/4: 1/16 at 0 and 9/16 at 1
    plain, weighted = 1 - 0.75 / (19 / 16), 1 - 1.0 / (20 / 16)
    assert found["r2"] == pytest.approx((plain, weighted, 1 - 1.0 / (20 / 16)))
    nearer = comparisons(sessions, 0.25, 0)["report_mean_nearer", "missing:"]
    assert nearer.value == pytest.approx(2 / 3 - 0.5)


def test_bounds_hold_the_weighted_figure_and_widen() -> None:
    random = np.random.default_rng(0)
    y = random.random(200)
    y[random.random(200) < 0.3] = np.nan
    sessions = Sessions(y, random.random(200), np.full(200, 0.7), None, np.arange(200) // 10)
    found = bounds(sessions, 0.5, 0)
    for figure in ("report_mean_bounds", "r2_bounds"):
        rows = [estimate for (metric, _), estimate in found.items() if metric == figure]
        assert all(row.low <= row.value <= row.high for row in rows)
        assert all(a.low >= b.low and a.high <= b.high for a, b in pairwise(rows))
    assert found["effective_share", "missing:"].value == pytest.approx(1)
    unknown = plain_and_weighted(sessions, 0.5)
    assert np.isnan(unknown["report_mean"][2]) and np.isnan(unknown["r2"][2])


def test_plays_are_pooled_between_the_horizons_shown() -> None:
    value = torch.arange(16.0).view(2, 8)
    found = {h: (v.tolist(), user.tolist()) for h, v, user in binned(value, np.array([7, 9]))}
    assert list(found) == [h for h in SHOWN if h <= 8]
    assert found[1] == ([0, 8], [7, 9])
    assert found[4] == ([2, 3, 10, 11], [7, 7, 9, 9])
