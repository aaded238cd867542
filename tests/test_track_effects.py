"""What changing the tracks changes."""

import numpy as np
import pytest
import torch
from test_fidelity import held_out, opened
from test_stages import Done

from amrs.fidelity import predict
from amrs.track_effects import given_list, likely_lists, partial_r2, uplift_slope

USER = np.array([0, 0, 1, 1])


def test_uplift_slope_by_hand() -> None:
    blind = np.array([0.5, 0.5, 0.4, 0.4])
    effect = np.array([-0.1, 0.1, -0.1, 0.1])
    noise = np.array([0.03, 0.03, 0.03, 0.03])  # an intercept takes it up
    estimate = uplift_slope(blind + 0.7 * effect + noise, blind + effect, blind, USER, 100, 0)
    assert estimate.value == pytest.approx(0.7) and estimate.n == 4


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
        assert given_list(model, data, row, tracks)["valence"].item() == pytest.approx(expected[n], abs=1e-4)
    assert compared >= 3
