"""Off-policy estimates: a two-step toy worked by hand, exactness, intervals, and what is withheld."""

import csv
import itertools
from collections import Counter
from pathlib import Path
from subprocess import CompletedProcess

import numpy as np
import pytest
import torch
from situnes_raw import RAW, needs_situnes
from tiny_logs import world_model

from amrs.config.data import SplitConfig
from amrs.config.stages import OffPolicyConfig
from amrs.data import SessionDataModule
from amrs.logs.splits import TEST
from amrs.metrics import studentised
from amrs.off_policy import (
    Support,
    doubly_robust,
    effective_size,
    gain,
    given,
    importance_weights,
    per_decision,
    ratio,
    snips,
    support,
)
from amrs.platform import load_truth
from amrs.propensities import ask, expected, logged_plays
from amrs.report import load
from amrs.report.words import off_policy_findings
from amrs.runs import read_json

# Two plays of a or b, logged with probability 1/2 each: every session once, so sums are expectations.
SESSIONS = ("aa", "ab", "ba", "bb")
LOG_RATIO = np.log([[{"a": 0.8, "b": 0.2}[track] / 0.5 for track in session] for session in SESSIONS])
REPORT = np.array([1.0, 0.5, 0.5, 0.0])  # 1/2 for each a
REWARD = np.stack([np.full(4, np.nan), REPORT], 1)
TRUTH = 0.8  # of a policy that plays a with probability .8


def right_model() -> tuple[np.ndarray, np.ndarray]:
    """q and v of that policy: after a first a another is worth .5 + .4, after b .4."""
    after = {"a": 0.9, "b": 0.4}
    q = np.array([[after[session[0]], REPORT[s]] for s, session in enumerate(SESSIONS)])
    v = np.array([[TRUTH, after[session[0]]] for session in SESSIONS])
    return q, v


def test_weights_of_the_toy_are_products_of_ratios() -> None:
    weights = importance_weights(LOG_RATIO)
    np.testing.assert_allclose(weights, [[1.6, 2.56], [1.6, 0.64], [0.4, 0.64], [0.4, 0.16]])
    np.testing.assert_allclose(importance_weights(LOG_RATIO, clip=1.0)[:, 1], [1, 0.64, 0.64, 0.16])


def test_snips_and_per_decision_give_the_toys_value() -> None:
    weights = importance_weights(LOG_RATIO)
    # (2.56 x 1 + .64 x .5 + .64 x .5 + .16 x 0) / 4
    assert ratio(snips(weights, REWARD).sum(0)) == pytest.approx(TRUTH)
    assert ratio(per_decision(weights, REWARD).sum(0)) == pytest.approx(TRUTH)


def test_per_decision_weighs_a_play_only_by_what_came_before_it() -> None:
    liked = np.array([[1.0, np.nan], [1.0, np.nan], [0.0, np.nan], [0.0, np.nan]])  # the first play, if a
    sums = per_decision(importance_weights(LOG_RATIO), liked).sum(0)
    np.testing.assert_allclose(sums, [3.2, 4.0])
    session = snips(importance_weights(LOG_RATIO), liked)
    np.testing.assert_allclose(session[:, 1], [2.56, 0.64, 0.64, 0.16])


def test_the_logging_policy_itself_has_weights_of_1_and_the_logged_mean() -> None:
    weights = importance_weights(np.zeros((4, 2)))
    assert (weights == 1).all()
    assert ratio(snips(weights, REWARD).sum(0)) == REPORT.mean()
    assert effective_size(weights[:, 1]) == 4


def test_doubly_robust_is_exact_with_right_weights_and_any_model() -> None:
    q, v = right_model()
    wrong = np.sin(np.arange(8.0)).reshape(4, 2)  # q by session; v must be its mean over the policy
    wrong[1, 0], wrong[3, 0] = wrong[0, 0], wrong[2, 0]  # the first play's value knows nothing of the second
    first = 0.8 * wrong[0, 0] + 0.2 * wrong[2, 0]
    second = {"a": 0.8 * wrong[0, 1] + 0.2 * wrong[1, 1], "b": 0.8 * wrong[2, 1] + 0.2 * wrong[3, 1]}
    mean = np.array([[first, second[session[0]]] for session in SESSIONS])
    value = doubly_robust(importance_weights(LOG_RATIO), given(REWARD)[0], wrong, mean)
    assert value.mean() == pytest.approx(TRUTH)
    assert value.std() > doubly_robust(importance_weights(LOG_RATIO), given(REWARD)[0], q, v).std()


def test_doubly_robust_is_exact_with_the_right_model_and_any_weights() -> None:
    weights = np.abs(np.cos(np.arange(8.0))).reshape(4, 2)
    np.testing.assert_allclose(doubly_robust(weights, given(REWARD)[0], *right_model()), TRUTH)


def test_steps_behind_the_last_play_count_nothing() -> None:
    q, v = right_model()
    longer = [np.concatenate([x, np.full((4, 1), np.nan)], 1) for x in (LOG_RATIO, REWARD, q, v)]
    weights = importance_weights(longer[0])
    before = doubly_robust(importance_weights(LOG_RATIO), given(REWARD)[0], q, v)
    np.testing.assert_allclose(doubly_robust(weights, given(longer[1])[0], longer[2], longer[3]), before)
    np.testing.assert_allclose(snips(weights, longer[1]), snips(importance_weights(LOG_RATIO), REWARD))


def test_a_missing_report_is_left_out_and_not_taken_for_0() -> None:
    unreported = np.where(np.array([[False, False]] * 3 + [[False, True]]), np.nan, REWARD)  # bb is silent
    # (2.56 + .32 + .32) / (2.56 + .64 + .64): the mean of the reports that would be given
    assert ratio(snips(importance_weights(LOG_RATIO), unreported).sum(0)) == pytest.approx(3.2 / 3.84)


def test_kish_counts_equal_weights_fully_and_a_single_one_as_one() -> None:
    assert effective_size([2.0, 2.0, 2.0]) == 3
    assert effective_size([5.0, 0.0, 0.0]) == 1
    assert effective_size([3.0, 1.0]) == pytest.approx(16 / 10)
    assert effective_size([0.0, 0.0]) == 0


def test_support_counts_only_what_has_a_reward_and_pools_a_users_sessions() -> None:
    weights = np.ones((4, 2))
    assert support(weights, REWARD, [7, 7, 8, 9]) == Support(4, 16 / 6)
    silent = REWARD.copy()
    silent[0] = np.nan
    assert support(weights, silent, [7, 7, 8, 9]) == Support(3, 3)


def test_too_small_a_support_cannot_tell() -> None:
    config = OffPolicyConfig(least_sessions=50, least_users=20)
    assert Support(49.9, 40).too_small(config) and Support(60, 19.9).too_small(config)
    assert not Support(50, 20).too_small(config)


def test_studentised_interval_of_a_mean_is_the_t_interval() -> None:
    values = np.array([0.2, 0.5, 0.9, 0.4])
    found = studentised(np.stack([values, np.ones(4)], 1), ratio, 4, 4)
    half = 3.182446 * values.std(ddof=1) / 2  # t of 3 degrees at .975
    assert found.value == pytest.approx(0.5) and found.low is not None
    assert (found.low, found.high) == pytest.approx((0.5 - half, 0.5 + half), abs=1e-6)


def test_a_gain_over_the_same_columns_is_0_with_no_width() -> None:
    sums = np.random.default_rng(0).random((9, 2)) + 0.5
    found = studentised(np.concatenate([sums, sums], 1), gain, 9, 9)
    assert (found.value, found.low, found.high) == (0, 0, 0)


def test_studentised_intervals_of_a_weighted_mean_cover() -> None:
    rng, hits = np.random.default_rng(1), []
    for _ in range(400):
        weight = np.exp(rng.normal(size=60))
        value = rng.normal(size=60) + 0.5 * np.log(weight)  # weights and values belong together: truth .5
        found = studentised(np.stack([weight * value, weight], 1), ratio, effective_size(weight), 60)
        assert found.low is not None and found.high is not None
        hits.append(found.low <= 0.5 <= found.high)
    assert 0.92 <= np.mean(hits) <= 0.98


@pytest.fixture(scope="module")
def platform_run(evaluated: tuple[Path, CompletedProcess[str]]) -> tuple[SessionDataModule, Path]:
    """Data and prepare folder of the small finished run."""
    report = Path(evaluated[1].stdout.splitlines()[-1])  # other tests may have prepared other data beside it
    folder = evaluated[0] / "prepare" / read_json(report / "provenance.json")["parents"]["prepare"]
    return SessionDataModule(folder / "log", SplitConfig(), 64), folder


def test_production_asked_again_gives_the_logged_propensities(
    platform_run: tuple[SessionDataModule, Path],
) -> None:
    data, folder = platform_run
    logged = logged_plays(data, data.rows(TEST))
    found = ask(load_truth(folder / "truth").production(), data, logged, choices=2, seed=0)
    played = logged.track_ST >= 0
    torch.testing.assert_close(found.log_p_ST[played], logged.log_propensity_ST[played], rtol=0, atol=1e-3)
    assert found.log_p_ST[~played].isnan().all()
    # Its own choices are tracks that the mode allows and that the session has not had.
    allowed = data.rules().allowed(data.flat.mode_S[logged.row_S], logged.track_ST[:, :2])
    assert allowed.gather(1, found.choice_STC[:, 2].clamp(min=0))[played[:, 2]].all()


def test_the_judge_is_asked_with_nothing_of_the_play_and_what_follows(
    platform_run: tuple[SessionDataModule, Path],
) -> None:
    data, _ = platform_run
    model = world_model(data)
    logged = logged_plays(data, data.rows(TEST)[:3])
    before = expected(model, data, logged, logged.track_ST[..., None])
    step = 2
    changed = [column.clone() for column in logged.feedback[:2]]
    for column in changed:
        column[:, step:] = 1 - column[:, step:].nan_to_num(0.0)
    later = logged._replace(feedback=logged.feedback._replace(engagement_B=changed[0], rating_B=changed[1]))
    after = expected(model, data, later, logged.track_ST[..., None])
    for name in before:
        torch.testing.assert_close(before[name][0][:, : step + 1], after[name][0][:, : step + 1])
        assert not torch.allclose(before[name][0][:, step + 1 :], after[name][0][:, step + 1 :])


def test_six_test_users_are_too_few_to_tell_and_the_report_says_so(
    evaluated: tuple[Path, CompletedProcess[str]],
) -> None:
    report = load(Path(evaluated[1].stdout.splitlines()[-1]))
    rows = report.find(section="off_policy")
    assert {row.subject for row in rows} == {"production", "copycat", "random", "popularity", "greedy", "dpo"}
    assert {row.metric for row in rows} == {"ess", "withheld"}
    assert all(row.value == 1 for row in rows if row.metric == "withheld")
    assert {finding.tag for finding in off_policy_findings(report)} == {"cannot tell"}


@needs_situnes
def test_situnes_arms_hardly_overlap_so_none_tells_of_another() -> None:
    with (RAW / "Stage2" / "interactions.csv").open(newline="") as file:
        plays = [row for row in csv.DictReader(file) if row["rec_type"]]
    arms = {name: [row for row in plays if row["rec_type"] == name] for name in ("WD", "GCN", "Rand")}
    share = {
        name: {item: count / len(rows) for item, count in Counter(row["item_id"] for row in rows).items()}
        for name, rows in arms.items()
    }
    for target, logging in itertools.permutations(arms, 2):
        ratio_S1 = np.array([[share[target].get(row["item_id"], 0.0) / share[logging][row["item_id"]]]
                             for row in arms[logging]])  # fmt: skip
        with np.errstate(divide="ignore"):
            weight_S1 = importance_weights(np.log(ratio_S1))
        users = [row["user_id"] for row in arms[logging]]
        assert support(weight_S1, np.ones_like(weight_S1), users).too_small(OffPolicyConfig())
