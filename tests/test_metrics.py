"""Metrics: worked out by hand in fractions, and held against a slower or independent truth."""

import itertools
import math
from fractions import Fraction

import numpy as np
import pytest
import torch
from sklearn.metrics import mean_absolute_error, r2_score, roc_auc_score
from torchmetrics.functional.classification import binary_auroc

from amrs import metrics
from amrs.metrics import DIVERSITY, Lists, intervals

# ---- fit


def test_r2_is_about_the_training_mean():
    # SSE = .1^2 + .1^2 + .2^2 = .06; about .5: .3^2 + .1^2 + .4^2 = .26
    assert metrics.r2([0.2, 0.6, 0.9], [0.3, 0.5, 0.7], 0.5) == pytest.approx(float(1 - Fraction(6, 26)))
    assert metrics.r2([0.2, 0.6], [0.5, 0.5], 0.5) == 0.0  # the training mean itself explains nothing
    assert math.isnan(metrics.r2([0.5, 0.5], [0.1, 0.2], 0.5))


def test_r2_and_mae_equal_sklearn_where_the_training_mean_is_the_mean():
    y, predicted = np.random.default_rng(0).random((2, 300))
    assert metrics.r2(y, predicted, float(y.mean())) == pytest.approx(r2_score(y, predicted))
    assert metrics.mae(y, predicted) == pytest.approx(mean_absolute_error(y, predicted))


def test_auroc_counts_ties_one_half():
    # positives .8, .5; negatives .5, .2: pairs 1, 1, 1/2, 1 of 4
    assert metrics.auroc([1, 1, 0, 0], [0.8, 0.5, 0.5, 0.2]) == float(Fraction(7, 8))
    assert metrics.auroc([1, 0, 1], [0.3, 0.3, 0.3]) == 0.5
    assert math.isnan(metrics.auroc([1, 1], [0.1, 0.2]))


def test_auroc_equals_sklearn_and_torchmetrics_with_many_ties():
    random = np.random.default_rng(1)
    label, score = random.integers(0, 2, 500), random.integers(0, 12, 500) / 12
    assert metrics.auroc(label, score) == pytest.approx(roc_auc_score(label, score), abs=1e-12)
    expected = binary_auroc(torch.tensor(score), torch.tensor(label)).item()
    assert metrics.auroc(label, score) == pytest.approx(expected, abs=1e-6)


def test_ece_over_two_bins_of_equal_count():
    # bins (.1, .2), (.6, .9): |.15 - 1/2| = .35 and |.75 - 1| = .25, each half of the rows
    assert metrics.ece([0, 1, 1, 1], [0.1, 0.2, 0.6, 0.9], bins=2) == pytest.approx(0.30)
    # five rows make bins of two and three: .05 + .5 above share 0, then |1.3 / 3 - 2/3|
    value = metrics.ece([0, 0, 1, 1, 0], [0.1, 0.2, 0.3, 0.4, 0.6], bins=2)
    assert value == pytest.approx(float((Fraction(3, 10) + abs(Fraction(13, 10) - 2)) / 5))
    assert math.isnan(metrics.ece([], []))


def test_ece_does_not_depend_on_the_order_of_rows_with_equal_predictions():
    random = np.random.default_rng(2)
    label, probability = random.integers(0, 2, 97), random.integers(0, 5, 97) / 5
    order = random.permutation(97)
    assert metrics.ece(label, probability) == pytest.approx(metrics.ece(label[order], probability[order]))


def test_ece_of_more_bins_than_rows_is_the_mean_absolute_gap():
    assert metrics.ece([1, 0], [0.7, 0.4], bins=10) == pytest.approx(0.35)


def test_crps_of_a_uniform_forecast():
    # integral of x^2 below y and (1 - x)^2 above: y^3 / 3 + (1 - y)^3 / 3
    grid = np.linspace(0, 1, 5)
    y = np.array([0.0, 0.3, 0.5, 1.0])
    found = metrics.crps(y, np.tile(grid, (4, 1)), grid)
    expected = [Fraction(1, 3), Fraction(27 + 343, 3000), Fraction(1, 12), Fraction(1, 3)]
    assert found == pytest.approx(list(map(float, expected)))


def test_crps_of_a_forecast_with_all_mass_at_the_ends():
    # half at 0, half at 1, so F = 1/2 between: 1/4 whatever is observed (energy form: 1/2 - 1/4)
    assert metrics.crps([0.0, 0.37, 1.0], np.full((3, 3), 0.5), [0, 0.5, 1]) == pytest.approx([0.25] * 3)
    # all mass at 1: P(X < 1) = 0 everywhere, so the score is the distance 1 - y
    assert metrics.crps([0.0, 0.37, 1.0], np.zeros((3, 3)), [0, 0.5, 1]) == pytest.approx([1.0, 0.63, 0.0])


def test_crps_of_a_censored_normal_equals_its_energy_form_by_sampling():
    random = np.random.default_rng(3)
    sample = np.clip(random.normal(0.85, 0.3, 200_000), 0, 1)
    grid = np.linspace(0, 1, 201)
    cdf = 0.5 * torch.special.erfc(-(torch.tensor(grid) - 0.85) / (0.3 * math.sqrt(2))).numpy()
    for y in (0.0, 0.4, 0.953, 1.0):
        energy = np.abs(sample - y).mean() - 0.5 * np.abs(sample[:100_000] - sample[100_000:]).mean()
        assert metrics.crps([y], cdf[None], grid)[0] == pytest.approx(energy, abs=2e-3)


def test_crps_refuses_an_observation_outside_the_grid_and_a_grid_that_does_not_fit():
    with pytest.raises(ValueError, match=r"on the grid's range \[0, 1\]"):
        metrics.crps([1.2], [[0.0, 1.0]], [0, 1])
    with pytest.raises(ValueError, match="does not fit a grid of 3 points"):
        metrics.crps([0.2], [[0.0, 1.0]], [0, 0.5, 1])


def test_central_interval_by_interpolation_and_with_mass_at_an_end():
    uniform = np.linspace(0, 1, 5)
    low, high = metrics.interval_from_cdf([uniform, [0.3, 0.4, 0.5, 0.6, 0.7]], uniform, 0.8)
    # the second: F(0) = .3 holds the 10 % point, and F stays under .9 until the mass at 1
    assert low == pytest.approx([0.1, 0.0]) and high == pytest.approx([0.9, 1.0])


def test_coverage_counts_both_ends():
    assert metrics.coverage([0.1, 0.5, 0.9], [0.1, 0.2, 0.2], [0.4, 0.5, 0.8]).tolist() == [1.0, 1.0, 0.0]


def test_within_person_sd_pools_persons_by_their_degrees_of_freedom():
    # person a: .2, .4 (mean .3, squares .02); b: .1, .1, .4 (mean .2, squares .06); c once: nothing
    found = metrics.within_person_sd([0.2, 0.1, 0.4, 0.1, 0.4, 0.9], ["a", "b", "a", "b", "b", "c"])
    assert found == pytest.approx(math.sqrt(0.08 / 3))
    assert math.isnan(metrics.within_person_sd([0.2, 0.3], ["a", "b"]))


def test_unobserved_values_and_unequal_lengths_are_refused_not_dropped():
    with pytest.raises(ValueError, match="column 0 has 1 NaN of 2 values: leave out what was not observed"):
        metrics.mae([0.1, float("nan")], [0.1, 0.2])
    with pytest.raises(ValueError, match=r"columns of \[2, 3\] observations"):
        metrics.mae([0.1, 0.2], [0.1, 0.2, 0.3])
    with pytest.raises(ValueError, match=r"labels must be 0 or 1, not 0\.5"):
        metrics.auroc([0.5, 1], [0.1, 0.2])


# ---- diversity


def lists(tracks, users=None, tracks_in_all=4, artists=None):
    """Lists over a catalogue of orthogonal tracks, popularity 1/2, 1/4, 1/8, ... (the last doubled)."""
    popularity = np.array([0.5 ** min(k + 1, tracks_in_all - 1) for k in range(tracks_in_all)])
    return Lists(
        track_ST=np.array(tracks),
        user_S=np.arange(len(tracks)) if users is None else np.array(users),
        embedding_KD=np.eye(tracks_in_all),
        artist_K=np.arange(tracks_in_all) if artists is None else np.array(artists),
        popularity_K=popularity,
    )


def test_coverage_entropy_and_effective_tracks_by_hand():
    some = lists([[0, 0], [1, 2]])  # plays 1/2, 1/4, 1/4 of four tracks: H = 3/2 log 2
    assert DIVERSITY["catalogue_coverage"](some) == 0.75
    assert DIVERSITY["entropy"](some) == pytest.approx(0.75)
    assert DIVERSITY["effective_tracks"](some) == pytest.approx(2**1.5)


def test_gini_by_hand_and_against_all_pairs():
    assert DIVERSITY["gini"](lists([[0, 1], [2, 3]])) == 0.0
    assert DIVERSITY["gini"](lists([[2, 2], [2, 2]])) == 0.75  # one of four gets all: 1 - 1/4
    plays = np.random.default_rng(4).integers(0, 6, (5, 7))
    count = np.bincount(plays.ravel(), minlength=8)
    pairs = sum(abs(a - b) for a, b in itertools.product(count, count)) / (2 * 8 * count.sum())
    assert DIVERSITY["gini"](lists(plays, tracks_in_all=8)) == pytest.approx(pairs)


def test_intra_list_is_a_mean_over_sessions_of_a_mean_over_pairs():
    # session 1: pairs (0,0) at 0, (0,1), (0,1) at 1: 2/3; session 2: one pair at 1; session 3: no pair
    found = DIVERSITY["intra_list"](lists([[0, 0, 1], [2, 3, -1], [1, -1, -1]]))
    assert found == pytest.approx(float((Fraction(2, 3) + 1) / 2))


def test_intra_list_equals_the_loop_over_pairs():
    random = np.random.default_rng(5)
    embedding = metrics.unit(random.normal(size=(20, 6)))
    track = random.integers(0, 20, (9, 5))
    track[3, 2:] = -1
    sessions = []
    for session in track:
        pairs = itertools.combinations(session[session >= 0], 2)
        sessions.append(np.mean([1 - embedding[a] @ embedding[b] for a, b in pairs]))
    found = DIVERSITY["intra_list"](lists(track, tracks_in_all=20)._replace(embedding_KD=embedding))
    assert found == pytest.approx(np.mean(sessions))


def test_artist_entropy_and_novelty_by_hand():
    # artists 0, 0, 1, unknown: plays of artists 3 : 1
    some = lists([[0, 1], [1, 2], [3, -1]], artists=[0, 0, 1, -1])
    expected = -(0.75 * math.log(0.75) + 0.25 * math.log(0.25)) / math.log(2)
    assert DIVERSITY["artist_entropy"](some) == pytest.approx(expected)
    # popularity 1/2, 1/4, 1/8, 1/8 is 1, 2, 3, 3 bits
    assert DIVERSITY["novelty"](some) == pytest.approx((1 + 2 + 2 + 3 + 3) / 5)
    assert math.isnan(DIVERSITY["artist_entropy"](lists([[0, 1]], artists=[-1] * 4)))


def test_repeat_rate_counts_a_listeners_repeats_across_sessions():
    # listener 7 gets 0, 1 and then 1, 0: two of four; listener 8's 0 is new to them
    assert DIVERSITY["repeat_rate"](lists([[0, 1], [1, 0], [0, -1]], users=[7, 7, 8])) == pytest.approx(2 / 5)


def test_distance_between_listeners_sees_the_collapse_that_intra_list_cannot():
    same = lists([[0, 1], [0, 1], [0, 1]])
    assert DIVERSITY["between_listeners"](same) == pytest.approx(0.0)
    assert DIVERSITY["intra_list"](same) == 1.0
    assert DIVERSITY["between_listeners"](lists([[0, 1], [2, 3]])) == pytest.approx(1.0)


def test_distance_between_listeners_equals_the_loop_over_pairs():
    random = np.random.default_rng(6)
    track, user = random.integers(0, 9, (8, 4)), np.array([5, 5, 2, 2, 2, 9, 9, 1])
    count = np.stack([np.bincount(track[user == u].ravel(), minlength=9) for u in np.unique(user)]).astype(
        float
    )
    count /= np.linalg.norm(count, axis=1, keepdims=True)
    expected = np.mean([1 - a @ b for a, b in itertools.combinations(count, 2)])
    found = DIVERSITY["between_listeners"](lists(track, users=user, tracks_in_all=9))
    assert found == pytest.approx(expected)


def test_diversity_is_what_three_other_libraries_say_of_the_same_lists():
    """RecTools 0.19.0 (coverage, intra-list diversity with cosine distance), Recommenders 1.2.1 (the same
    two, novelty, distributional coverage, which is the entropy in bits) and RecBole 1.2.1 (Gini index; item
    coverage), run on this table in an environment of their own and frozen here."""
    track_ST = np.array([[0, 1, 2, 3, 4], [0, 2, 5, 1, 6], [0, 1, 7, 2, 3],
                         [8, 0, 1, 9, 2], [1, 0, 3, 2, 10], [0, 2, 4, 1, 12]])  # fmt: skip
    embedding_KD = [[2, 4, 3], [0, 4, 4], [4, -4, 0], [1, -2, -1], [1, 3, 1], [-3, 2, 3], [-3, 0, -1],
                    [4, -4, 0], [4, -1, -3], [3, 4, 4], [4, -1, 2], [4, 1, 4], [1, -3, 0],
                    [1, -2, 2]]  # fmt: skip
    plays_K = np.array([40, 30, 20, 12, 9, 7, 6, 5, 4, 3, 2, 2, 1, 1])
    some = Lists(track_ST, np.arange(6), metrics.unit(embedding_KD), np.full(14, -1), plays_K / plays_K.sum())
    assert DIVERSITY["catalogue_coverage"](some) == pytest.approx(0.8571428571428571)
    assert DIVERSITY["intra_list"](some) == pytest.approx(0.9402526303724729)
    assert DIVERSITY["novelty"](some) == pytest.approx(3.2597995783135207)
    assert DIVERSITY["gini"](some) == pytest.approx(0.49523809523809526)
    assert DIVERSITY["entropy"](some) == pytest.approx(3.130750178437043 / np.log2(14))
    assert DIVERSITY["effective_tracks"](some) == pytest.approx(2**3.130750178437043)


def test_equal_lengths_keeps_in_each_session_what_every_policy_reached():
    cut = metrics.equal_lengths({"a": [[1, 2, 3], [4, -1, -1]], "b": [[5, 6, -1], [7, 8, 9]]})
    assert cut["a"].tolist() == [[1, 2, -1], [4, -1, -1]]
    assert cut["b"].tolist() == [[5, 6, -1], [7, -1, -1]]
    with pytest.raises(ValueError, match="a plays on after a -1"):
        metrics.equal_lengths({"a": [[1, -1, 2]]})
    with pytest.raises(ValueError, match="policies differ in shape"):
        metrics.equal_lengths({"a": [[1]], "b": [[1, 2]]})


def test_no_plays_give_no_figure():
    empty = lists([[-1, -1]])
    assert DIVERSITY["catalogue_coverage"](empty) == 0.0
    assert all(math.isnan(DIVERSITY[name](empty)) for name in DIVERSITY if name != "catalogue_coverage")


# ---- intervals


def test_a_mean_is_over_rows_not_over_users():
    found = metrics.mean_interval([1.0, 0.0, 0.0, 0.0], ["a", "b", "b", "b"])
    assert found.value == 0.25 and found.n == 4


def test_user_bootstrap_of_two_users_is_the_binomial_of_their_draws():
    # a (mean 0) and b (mean 1), one row each: the mean is 0, 1/2, 1 with probability 1/4, 1/2, 1/4
    found = metrics.mean_interval([0.0, 1.0], ["a", "b"], draws=2000)
    assert (found.low, found.value, found.high) == (0.0, 0.5, 1.0)


def test_user_bootstrap_equals_resampling_rows_of_drawn_users():
    random = np.random.default_rng(7)
    user = random.integers(0, 40, 300)
    y, predicted = random.random((2, 300))
    fast = metrics.r2_interval(y, predicted, 0.4, user, draws=4000, seed=1)
    slow = metrics.resampled_users(
        lambda row, _: metrics.r2(y[row], predicted[row], 0.4), user, draws=4000, seed=2
    )
    assert fast.value == pytest.approx(slow.value) == pytest.approx(metrics.r2(y, predicted, 0.4))
    width = slow.high - slow.low
    assert fast.low == pytest.approx(slow.low, abs=0.06 * width)
    assert fast.high == pytest.approx(slow.high, abs=0.06 * width)


def test_user_bootstrap_covers_the_mean_where_users_differ_and_sessions_hardly():
    random = np.random.default_rng(8)
    user = np.repeat(np.arange(40), 8)
    covers, too_narrow = 0, 0
    for world in range(200):
        y = random.normal(size=40)[user] + 0.1 * random.normal(size=320)
        by_user = metrics.mean_interval(y, user, draws=300, seed=world)
        by_row = metrics.mean_interval(y, np.arange(320), draws=300, seed=world)
        covers += by_user.low <= 0 <= by_user.high
        too_narrow += by_row.low <= 0 <= by_row.high
    assert 0.88 <= covers / 200 <= 0.99  # nominal .95; standard error .015
    assert too_narrow / 200 < 0.65  # sessions as if independent: an interval that lies


def test_intervals_are_the_same_for_the_same_seed_whatever_the_block(monkeypatch):
    y, user = np.random.default_rng(9).random(60), np.arange(60) % 20
    once = metrics.mean_interval(y, user, seed=3)
    assert metrics.mean_interval(y, user, seed=3) == once
    assert metrics.mean_interval(y, user, seed=4) != once
    monkeypatch.setattr(intervals, "_BLOCK", 100)
    assert metrics.mean_interval(y, user, seed=3) == once


def test_one_user_gives_a_value_without_an_interval():
    assert metrics.mean_interval([0.2, 0.4], [5, 5]) == (pytest.approx(0.3), None, None, 2)
    assert metrics.auroc_interval([0, 1], [0.1, 0.2], [5, 5]) == (1.0, None, None, 2)


def test_resampled_users_come_whole_and_a_user_drawn_twice_is_two_users():
    user = np.array([3, 1, 3, 2, 2, 2])
    seen = []
    metrics.resampled_users(lambda row, owner: seen.append((row, owner)) or 0.0, user, draws=50)
    for row, owner in seen[1:]:
        sets = [tuple(sorted(row[owner == o])) for o in np.unique(owner)]
        assert len(sets) == 3 and set(sets) <= {(1,), (3, 4, 5), (0, 2)}
    assert any(len(set(map(tuple, [row[owner == o] for o in range(3)]))) < 3 for row, owner in seen[1:])


def test_a_centred_interval_of_distinct_tracks_holds_its_value_and_a_plain_one_does_not():
    random = np.random.default_rng(10)
    some = lists(random.integers(0, 400, (60, 5)), tracks_in_all=400)

    def coverage(row, owner):
        return DIVERSITY["catalogue_coverage"](some.rows(row, owner))

    plain = metrics.resampled_users(coverage, some.user_S)
    centred = metrics.resampled_users(coverage, some.user_S, centred=True)
    assert plain.high < plain.value  # a resample repeats users, so it has fewer distinct tracks
    assert centred.low < centred.value < centred.high
    assert centred.high - centred.low == pytest.approx(plain.high - plain.low)


def test_auroc_interval_has_the_plain_auroc_as_its_value():
    random = np.random.default_rng(11)
    label, user = random.integers(0, 2, 200), np.arange(200) % 25
    score = label + random.normal(size=200)
    found = metrics.auroc_interval(label, score, user)
    assert found.value == metrics.auroc(label, score) and found.low < found.value < found.high


# ---- gains

MODES = ("energize", "focus", "calm", "sleep")


def gains(policy, copycat, mode, signal="valence", share=None, user=None, **rest):
    share = {name: 0.25 for name in MODES} if share is None else share
    user = range(len(mode)) if user is None else user
    rows = metrics.gain_rows(
        policy, copycat, [MODES.index(m) if m else -1 for m in mode], list(user), section="predicted",
        subject="dpo", signal=signal, modes=MODES, share=share, **rest,
    )  # fmt: skip
    return {row.metric: row for row in rows}


def test_gain_weighs_modes_as_logged_whatever_was_rolled_out():
    # energize: +.1 and +.3 (mean .2); calm: -.1. Logged 1/2 and 1/10 of all: 5/6 and 1/6 of what is here.
    share = {"energize": 0.5, "calm": 0.1, "focus": 0.4}
    found = gains(
        [0.5, 0.7, 0.4], [0.4, 0.4, 0.5], ["energize", "energize", "calm"], share=share, within_sd=0.2
    )
    gain = 5 / 6 * 0.2 - 1 / 6 * 0.1
    assert found["gain"].value == pytest.approx(gain)
    assert found["gain_sd"].value == pytest.approx(gain / 0.2)
    assert found["relative_gain"].value == pytest.approx(gain / (5 / 6 * 0.4 + 1 / 6 * 0.5))
    assert found["gain"].n == 3 and found["gain"].unit == "scale points"
    assert found["gain_sd"].low == pytest.approx(found["gain"].low / 0.2)


def test_arousal_gain_turns_in_calm_and_sleep_and_leaves_out_focus_and_unknown():
    mode = ["energize", "calm", "sleep", "focus", None]
    found = gains([0.7, 0.3, 0.5, 0.9, 0.9], [0.5, 0.4, 0.4, 0.1, 0.1], mode, "arousal")
    assert found["gain"].value == pytest.approx((0.2 + 0.1 - 0.1) / 3)
    assert found["relative_gain"].value == pytest.approx((0.2 / 3) / ((0.5 + 0.4 + 0.4) / 3))
    assert found["gain"].n == 3
    assert gains([0.9], [0.1], ["focus"], "arousal") == {} == gains([0.9], [0.1], [None], "arousal")


def test_sessions_of_unknown_mode_count_for_valence_with_their_own_share():
    found = gains([0.5, 0.6], [0.4, 0.4], ["calm", None], share={"calm": 0.25, None: 0.75})
    assert found["gain"].value == pytest.approx(0.25 * 0.1 + 0.75 * 0.2)


def test_a_mode_without_a_logged_share_is_refused():
    with pytest.raises(ValueError, match=r"modes \['calm'\] have sessions but no logged share"):
        gains([0.5], [0.4], ["calm"], share={"sleep": 1.0})


def test_gain_without_spread_between_users_has_an_interval_of_no_width():
    mode = ["calm", "energize"] * 10
    found = gains(np.full(20, 0.6), np.full(20, 0.5), mode, user=np.arange(20) // 2)["gain"]
    assert found.low == pytest.approx(0.1) and found.high == pytest.approx(0.1)


def test_gain_interval_equals_recomputing_on_resampled_users():
    random = np.random.default_rng(12)
    mode = random.integers(0, 4, 400)
    user, copycat = random.integers(0, 50, 400), random.random(400)
    policy = copycat + 0.1 * random.normal(size=400) + 0.2 * random.normal(size=50)[user]
    share = dict(zip(MODES, (0.4, 0.3, 0.2, 0.1), strict=True))

    def slow(row, _):
        mean = [np.mean((policy - copycat)[row][mode[row] == m]) for m in range(4)]
        return float(np.dot(mean, list(share.values())))

    names = [MODES[m] for m in mode]
    fast = gains(policy, copycat, names, share=share, user=user, draws=3000)["gain"]
    expected = metrics.resampled_users(slow, user, draws=3000)
    width = expected.high - expected.low
    assert fast.value == pytest.approx(expected.value)
    assert fast.low == pytest.approx(expected.low, abs=0.06 * width)
    assert fast.high == pytest.approx(expected.high, abs=0.06 * width)


def test_gain_sd_is_left_out_where_nobody_reported_twice():
    assert set(gains([0.5], [0.4], ["calm"])) == {"gain", "relative_gain"}
    assert set(gains([0.5], [0.4], ["calm"], within_sd=float("nan"))) == {"gain", "relative_gain"}


def test_logged_share_counts_sessions_without_a_mode_under_none():
    assert metrics.logged_share([0, 0, 2, -1], MODES) == {"energize": 0.5, "calm": 0.25, None: 0.25}


def test_effective_users_by_hand() -> None:
    """Squares by user 1 + 1 and 4: (2 + 4)^2 / (4 + 16)."""
    assert metrics.effective_users([1.0, -1.0, 2.0], [5, 5, 9]) == pytest.approx(1.8)
