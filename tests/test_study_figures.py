"""What the studies compute, by hand."""

import numpy as np
import pandas as pd
import pytest
import torch
from test_fidelity import opened
from test_stages import Done, folders

from amrs.config import load
from amrs.logs.histories import played_before
from amrs.platform import load_truth
from amrs.runs import RunError, plan
from amrs.studies.ceilings import ceiling_rows, fit_curve
from amrs.studies.cold_start import before, group_rows
from amrs.studies.effects import Slopes, coverage_rows, slope, wilson


def test_a_learning_curve_is_found_again_and_read_beyond_its_end() -> None:
    users = (80, 240, 751, 2400)
    curve = fit_curve(users, [0.5 - 2.0 * n**-0.5 for n in users])
    assert curve.limit == pytest.approx(0.5) and curve.power == pytest.approx(0.5)
    assert curve.at(7510) == pytest.approx(0.5 - 2.0 / 7510**0.5)


def test_a_falling_learning_curve_is_taken_for_a_flat_one() -> None:
    curve = fit_curve((100, 300, 900), [0.3, 0.2, 0.1])
    assert curve.at(9000) == pytest.approx(0.2)


def predicted(signal: str, value: list[float], given: list[float]) -> pd.DataFrame:
    return pd.DataFrame(
        {"signal": signal, "log": "", "row": range(len(value)), "step": 0, "user": range(len(value)),
         "cohort": "", "mode": "", "value": value, "train_mean": 0.0, "world_model": given}
    )  # fmt: skip


def test_the_share_of_an_auroc_is_that_of_its_distance_from_chance() -> None:
    """Nine of twelve pairs in order at all sizes but the command's own, where they are eight."""
    label, good, own = [0, 0, 0, 1, 1, 1, 1], [1, 2, 6, 3, 4, 5, 7], [1, 5, 6, 2, 3, 7, 8]
    flat = {n: predicted("rating", label, own if n == 240 else good) for n in (80, 240, 751)}
    rows = ceiling_rows(flat, 240, 50, 0)
    limit = next(row for row in rows if row.subject == "history_ceiling").value
    share = next(row for row in rows if row.metric == "share_of_ceiling")
    assert share.value == pytest.approx((8 / 12 - 0.5) / (limit - 0.5)) and 8 / 12 < limit < 9 / 12 + 1e-9


def test_the_share_is_one_where_more_users_would_not_help() -> None:
    value = np.arange(8.0)
    same = {n: predicted("valence", list(value), list(value + 1)) for n in (80, 240, 751)}
    limit, share = ceiling_rows(same, 240, 50, 0)
    assert limit.value == pytest.approx(1 - 8 / (value**2).sum())
    assert (share.value, share.low, share.high) == pytest.approx((1, 1, 1))


def test_two_sizes_are_no_learning_curve() -> None:
    assert ceiling_rows({n: predicted("valence", [1.0], [1.0]) for n in (80, 240)}, 240, 50, 0) == []


def test_only_earlier_sessions_of_the_same_listener_count() -> None:
    user, reported = np.array([0, 0, 0, 1, 1]), np.array([1, 0, 1, 1, 1])
    assert before(np.ones(5), user).tolist() == [0, 1, 2, 0, 1]
    assert before(reported, user).tolist() == [0, 1, 1, 0, 1]


def test_a_group_of_few_listeners_is_named_and_gets_no_figure() -> None:
    frame = pd.DataFrame({
        "signal": "valence", "log": "", "user": np.arange(12) % 6, "row": np.arange(12), "step": 0,
        "mode": "", "cohort": "", "value": np.linspace(0, 1, 12), "train_mean": 0.5, "part": 0,
        "world_model": np.linspace(0, 1, 12),
    })  # fmt: skip
    (named,) = group_rows(frame, "sessions:0", 100, 0)
    assert (named.metric, named.value, named.n) == ("too_few_users", 6.0, 12)
    many = group_rows(frame.assign(user=np.arange(12)), "sessions:0", 100, 0)
    assert [(row.metric, row.group, row.value) for row in many] == [("r2", "sessions:0", 1.0)]


def test_coverage_counts_the_worlds_whose_interval_holds_the_truth() -> None:
    worlds = [
        Slopes(1.0, 0.5, 1.5, true=0.6, regression=2.0),
        Slopes(2.0, 1.0, 3.0, true=0.6, regression=2.0),
    ]
    found = {(row.metric, row.group): row.value for row in coverage_rows("valence", worlds)}
    assert found["slope_coverage", "all"] == 0.5
    assert found["slope_coverage", "compared:regression"] == 0.5
    assert found["uplift_slope", "world:mean"] == 1.5 and found["effect_slope", "world:mean"] == 0.6


def test_wilsons_interval_is_the_published_one() -> None:
    # 57 of 60: by hand from Wilson 1927
    share, low, high = wilson(57, 60)
    assert (share, low, high) == pytest.approx((0.95, 0.8630, 0.9829), abs=2e-4)
    assert wilson(60, 60)[2] == 1.0


def test_a_slope_has_an_intercept_of_its_own() -> None:
    x = np.array([0.0, 1.0, 2.0])
    assert slope(x, 5 + 0.7 * x) == pytest.approx(0.7)


@pytest.mark.parametrize("study", ["effects", "ceilings"])
def test_a_study_of_the_truth_is_refused_where_there_is_none(study: str) -> None:
    with pytest.raises(RunError, match="data=platform"):
        plan(load(["stage=evaluate", f"evaluate.study={study}", "data=situnes", "runs=/nowhere"]))


def test_under_the_logs_own_chance_the_platform_replays_the_log(evaluated: Done) -> None:
    """So the ceiling of the true state is about the very state that each listener was in."""
    data, _ = opened(evaluated[0])
    platform = load_truth(folders(evaluated[0], "prepare")[0] / "truth")
    row_B = torch.arange(20)
    played_BT = played_before(data.flat, row_B, data.flat.length_S[row_B])
    environment = platform.environment(after_logs=False)
    state = environment.start(row_B, platform.log_key(row_B))
    for t in range(played_BT.shape[1]):
        state, feedback, _ = environment.step(state, played_BT[:, t].clamp(min=0), t)
        on_B = played_BT[:, t] >= 0
        logged_B = data.flat.feedback_N4[(data.flat.first_S[row_B] + 1 + t)[on_B], 0]
        assert torch.allclose(feedback.engagement_B[on_B], logged_B, atol=1e-6)
