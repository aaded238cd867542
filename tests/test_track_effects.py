"""What changing the tracks changes."""

import math

import numpy as np
import pytest
import torch
from test_fidelity import held_out, opened
from test_stages import Done

from amrs.fidelity.fit import _replayed, predict, predict_usual
from amrs.fidelity.track_effects import (
    Usual,
    given_list,
    instrument_columns,
    instrumented_slope_of,
    likely_lists,
    other_lists,
    partial_r2,
    slope_columns,
    slope_of,
    uplift_slope,
    usual_odds,
)
from amrs.logs.histories import played_before

USER = np.array([0, 0, 1, 1])


def test_uplift_slope_by_hand() -> None:
    usual = Usual(np.array([0.5, 0.5, 0.4, 0.4]), np.zeros(4))
    effect = np.array([-0.1, 0.1, -0.1, 0.1])
    noise = np.array([0.03, 0.03, 0.03, 0.03])  # an intercept takes it up
    estimate = uplift_slope(usual.mean_N + 0.7 * effect + noise, usual.mean_N + effect, usual, USER)
    assert estimate.value == pytest.approx(0.7) and estimate.n == 4


def test_luck_of_the_other_lists_does_not_pull_the_slope_to_one() -> None:
    """Predicted effects of spread .02, true ones half of them, against means of eight lists: 5 / 9 by plain
    least squares, as the eighth that both sides share has slope 1."""
    random, n = np.random.default_rng(0), 40_000
    person = 0.5 + 0.1 * random.standard_normal(n)
    own, lists = 0.02 * random.standard_normal(n), 0.02 * random.standard_normal((n, 8))
    usual = Usual(person + lists.mean(1), lists.var(1, ddof=1) / 8)
    reports = person + 0.5 * own + 0.05 * random.standard_normal(n)
    plain = uplift_slope(reports, person + own, usual._replace(variance_N=np.zeros(n)), np.arange(n))
    found = uplift_slope(reports, person + own, usual, np.arange(n))
    assert plain.value == pytest.approx(5 / 9, abs=0.03)
    assert found.value == pytest.approx(0.5, abs=0.03)
    assert found.low is not None and found.high is not None and found.low < 0.5 < found.high


def test_uneven_listeners_are_worth_fewer() -> None:
    """Listeners whose tracks hardly differ do not make the interval much narrower."""
    random = np.random.default_rng(1)
    user, effect = np.repeat(np.arange(12), 5), 0.02 * random.standard_normal(60)
    effect[user > 3] *= 0.01
    usual = Usual(np.full(60, 0.5), np.zeros(60))
    reports = 0.5 + effect + 0.02 * random.standard_normal(60)
    uneven = uplift_slope(reports, 0.5 + effect, usual, user)
    few = [x[user <= 3] for x in (reports, 0.5 + effect, usual.mean_N, usual.variance_N, user)]
    alone = uplift_slope(few[0], few[1], Usual(few[2], few[3]), few[4])
    assert None not in (uneven.low, uneven.high, alone.low, alone.high)
    assert uneven.high - uneven.low > 0.5 * (alone.high - alone.low)  # type: ignore[operator]


def test_partial_r2_by_hand() -> None:
    y, blind, given = np.array([1.0, 0.0, 1.0, 0.0]), np.full(4, 0.5), np.array([0.75, 0.25, 0.5, 0.5])
    # squared errors 1/16 + 1/16 + 1/4 + 1/4 against 4 x 1/4
    assert partial_r2(y, given, blind, USER, 100, 0).value == pytest.approx(1 - 0.625)
    assert partial_r2(y, blind, blind, USER, 100, 0).value == 0


def test_lists_hold_different_tracks_and_likelier_ones_more_often() -> None:
    log_p = torch.tensor([[0.6, 0.3, 0.1 - 1e-9, 1e-9]]).log().expand(2000, -1)
    lists = likely_lists(log_p, torch.arange(2000), 2, 3)
    assert lists.shape == (2000, 2, 3)
    assert all(len(set(row)) == 3 for row in lists[:, 0].tolist())
    assert (lists[:, 0, 0] == 0).float().mean().item() == pytest.approx(0.6, abs=0.04)
    assert not torch.equal(lists[:, 0], lists[:, 1])


def test_a_list_given_is_predicted_as_the_logged_list_is(evaluated: Done) -> None:
    """The cached way over a list of tracks equals reading the logged session with its feedback hidden."""
    data, model = opened(evaluated[0])
    label = held_out(data, "valence", 30)
    expected = predict(model, data, "valence", label, "tracks").mean_N
    compared, reads = 0, model.ensemble[0].encoder.config.history
    for n in range(len(label.row)):
        row = torch.tensor([label.row[n]])
        first = int(data.flat.first_S[row]) + 1
        tracks = data.flat.track_N[first : first + int(data.flat.length_S[row])][None]
        if first + tracks.shape[1] - int(data.flat.user_first_U[data.flat.user_S[row]]) > reads:
            continue  # the cached way keeps room for the list, so it reads less of a long history
        compared += 1
        assert given_list(model, data, row, tracks)["valence"].item() == pytest.approx(expected[n], abs=1e-5)
    assert compared >= 3


def test_an_instrument_frees_the_slope_of_the_predictions_noise() -> None:
    """True effects +-1, predicted with noise +-1 that is no part of them: least squares gives 1/2 for a slope
    of 1; a model with noise of its own, and with effects twice too large, gives 1."""
    true_N, judged_N, labelled_N = (
        np.array(x, float).ravel() for x in np.meshgrid([-1, 1], [-1, 1], [-1, 1])
    )
    usual = Usual(np.full(8, 0.25), np.zeros(8))
    given_N, y_N = 0.25 + true_N + judged_N, 0.25 + true_N
    assert slope_of(slope_columns(y_N, given_N, usual).sum(0)) == pytest.approx(0.5)
    columns = instrument_columns(y_N, given_N, usual, 2 * true_N + labelled_N)
    assert instrumented_slope_of(columns.sum(0)) == pytest.approx(1)
    # The chance of other lists is in x and in r alike; that of the instrument's is in neither.
    usual = Usual(0.25 + labelled_N[::-1], np.ones(8))
    columns = instrument_columns(y_N, given_N, usual, 2 * true_N)
    assert instrumented_slope_of(columns.sum(0)) == pytest.approx(1)
    assert math.isnan(instrumented_slope_of(np.array([2.0, 2, 2, 2, 2, 2])))


def test_other_lists_are_of_the_mode_and_as_often_as_played(evaluated: Done) -> None:
    data, _ = opened(evaluated[0])
    odds, row = usual_odds(data), torch.arange(200)
    assert torch.equal(odds.isfinite(), data.rules().mode_MK)
    mode, counts = int(data.flat.mode_S[0]), data.part_S[data.flat.session_N] == 0
    mine = counts & (data.flat.mode_S[data.flat.session_N] == mode) & (data.flat.track_N >= 0)
    plays = torch.bincount(data.flat.track_N[mine], minlength=data.tracks)
    share = odds[mode].softmax(0)
    torch.testing.assert_close(share, plays / plays.sum(), atol=1e-6, rtol=1e-3)
    lists = other_lists(odds[data.flat.mode_S[row]], row, 5)
    assert lists.shape == (200, 8, 5)
    assert data.rules().mode_MK[data.flat.mode_S[row][:, None, None], lists].all()
    assert torch.equal(other_lists(odds[data.flat.mode_S[row]], row, 3), lists[..., :3])
    assert not torch.equal(other_lists(odds[data.flat.mode_S[row]], row, 5, draw=1), lists)
    assert (
        other_lists(torch.zeros(1, 2), row[:1], 5).tolist()[0][0][:2]
        == other_lists(torch.zeros(1, 2), row[:1], 5).tolist()[0][0][2:4]
    )


def test_the_own_list_in_its_own_place_changes_nothing(evaluated: Done) -> None:
    """A session's logged tracks put in its place give its own prediction; other lists are predicted as
    `given_list` predicts them."""
    data, model = opened(evaluated[0])
    label = held_out(data, "valence", 12)
    row, step = torch.from_numpy(label.row), torch.from_numpy(label.step)
    batch = data.prefix(row, step, hide_own=True)
    own = played_before(data.flat, row, step + 1)
    again = _replayed(batch, own)
    assert torch.equal(again.track_BL, batch.track_BL)
    assert torch.equal(again.next_track_BL[batch.step_BL >= 0], batch.next_track_BL[batch.step_BL >= 0])
    usual = predict_usual(model, data, label.row)["valence"]
    lists = other_lists(usual_odds(data)[data.flat.mode_S[row]], row, int(step.max()) + 1)
    short = int((data.flat.first_S[row] - data.flat.user_first_U[data.flat.user_S[row]]).argmin())
    length = int(step[short]) + 1
    slow = [
        given_list(model, data, row[short : short + 1], lists[short : short + 1, c, :length])
        for c in range(8)
    ]
    means = torch.stack([found["valence"] for found in slow])
    assert usual.mean_N[short] == pytest.approx(means.mean().item(), abs=1e-4)
    assert usual.variance_N[short] == pytest.approx(means.var().item() / 8, rel=0.02, abs=1e-9)
