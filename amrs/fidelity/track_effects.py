"""What changing the tracks changes: predicted, tested on held-out reports, and against the truth.

Person and mood carry most of a good R2, and neither helps to choose a track. The predicted track effect is
the prediction given the session's tracks minus the same model's mean prediction given other lists in their
place (Friedman 2001, partial dependence): track-blind, and of one and the same head, so that their difference
says nothing of the listener.
Shape suffixes: N labels, B sessions, C lists of tracks a session, T tracks of a list, M modes, K tracks.
"""

from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from amrs import metrics
from amrs.data import SessionDataModule
from amrs.fidelity.targets import AFFECT, Floats, Ints
from amrs.listeners import HistoryReader
from amrs.logs.splits import TRAIN
from amrs.metrics import Estimate
from amrs.models.world_model import WorldModel
from amrs.noise import hash_keys, uniform
from amrs.platform import Platform
from amrs.report import Row

LISTS, DRAWS, LIST = 4, 32, 700
"""Lists of tracks per session, simulations of each in the platform, and the purpose of the draw."""
OTHERS = 8
"""Lists that stand in the place of a session's own."""


def slope_of(sums: np.ndarray) -> np.ndarray:
    """Least-squares slope with intercept from [..., (n, x, y, xx, xy)]."""
    n, x, y, xx, xy = np.moveaxis(sums, -1, 0)
    with np.errstate(divide="ignore", invalid="ignore"):
        slope: np.ndarray = (xy - x * y / n) / (xx - x * x / n)
    return slope


def correlation_of(sums: np.ndarray) -> np.ndarray:
    """Pearson's correlation from [..., (n, x, y, xx, xy, yy)]."""
    n, x, y, xx, xy, yy = np.moveaxis(sums, -1, 0)
    with np.errstate(divide="ignore", invalid="ignore"):
        found: np.ndarray = (xy - x * y / n) / np.sqrt((xx - x * x / n) * (yy - y * y / n))
    return found


class Usual(NamedTuple):
    """What the model predicts for other lists in the place of each session's own."""

    mean_N: Floats
    """Mean over the lists."""
    variance_N: Floats
    """Of that mean, by the spread between the lists."""


def slope_columns(y_N: Floats, given_N: Floats, usual: Usual) -> Floats:
    """(n, x, y, xx, xy) for `slope_of`, (N, 5): reports on predicted track effects, both about the mean over
    other lists.

    That mean is of few lists. Its error stands in x and in y, and pulls the slope to 1; its variance is taken
    off the squares and the products (Fuller 1987, sec. 1.2, known error variances).
    """
    x_N, r_N = given_N - usual.mean_N, y_N - usual.mean_N
    squares_N, products_N = x_N * x_N - usual.variance_N, x_N * r_N - usual.variance_N
    return np.stack([np.ones_like(x_N), x_N, r_N, squares_N, products_N], 1)


def instrument_columns(y_N: Floats, given_N: Floats, usual: Usual, instrument_N: Floats) -> Floats:
    """(n, z, x, r, zx, zr) for `instrumented_slope_of`, (N, 6): reports r and predicted track effects x as
    in `slope_columns`, and another model's track effects z, of other listeners and about other lists."""
    x_N, r_N = given_N - usual.mean_N, y_N - usual.mean_N
    ones_N = np.ones_like(x_N)
    return np.stack([ones_N, instrument_N, x_N, r_N, instrument_N * x_N, instrument_N * r_N], 1)


def instrumented_slope_of(sums: np.ndarray) -> np.ndarray:
    """Slope of reports on predicted track effects with an instrument, from [..., (n, z, x, r, zx, zr)].

    Noise of the predicted effects pulls the least-squares slope towards 0. A model of other listeners has
    noise of its own, so cov(z, r) / cov(z, x) is free of both (two-sample instrument, Angrist and Krueger
    1995): along the effects that z sees, by how much the predicted ones must be multiplied.
    """
    n, z, x, r, zx, zr = np.moveaxis(sums, -1, 0)
    with np.errstate(divide="ignore", invalid="ignore"):
        slope: np.ndarray = (zr - z * r / n) / (zx - z * x / n)
    return slope


def uplift_slope(y_N: Floats, given_N: Floats, usual: Usual, user_N: Ints) -> Estimate:
    """Slope of the report's residual on the predicted track effect; 1 says that predicted effects are real.

    Its interval is a jackknife by user, with as many degrees of freedom as users who tell of it: predicted
    effects are uneven, and percentiles of a bootstrap are too narrow for a few dozen listeners.
    """
    columns = slope_columns(y_N, given_N, usual)
    size = metrics.effective_users(columns[:, 1] - columns[:, 1].mean(), user_N)
    return metrics.studentised(metrics.user_sums(columns, user_N), slope_of, size, len(y_N))


def partial_r2(
    y_N: np.ndarray, found_N: np.ndarray, blind_N: np.ndarray, user_N: Ints, draws: int, seed: int
) -> Estimate:
    """1 - SSE / SSE of the track-blind prediction: what knowing the tracks adds."""
    columns = np.stack([(y_N - found_N) ** 2, (y_N - blind_N) ** 2], 1)
    return metrics.user_bootstrap(metrics.user_sums(columns, user_N), metrics.r2_of, len(y_N), draws, seed)


@torch.inference_mode()
def given_list(
    model: WorldModel, data: SessionDataModule, row_B: Tensor, track_BT: Tensor
) -> dict[str, Tensor]:
    """Expected final report (B,) of sessions `row_B` if these were their tracks, no feedback known."""
    total: dict[str, Tensor] = {}
    for member in model.eval().ensemble:
        reader = HistoryReader(member.encoder, data, track_BT.shape[1])
        mind = reader.start(row_B)
        for t in range(track_BT.shape[1] - 1):
            mind = reader.append_unheard(mind, track_BT[:, t])
        params = member.answer(mind.h_BD, member.candidates(track_BT[:, -1]))
        for signal in AFFECT:
            mean_B = member.kinds[signal].mean(params[signal]) / len(model.ensemble)
            total[signal] = total[signal] + mean_B if signal in total else mean_B
    return total


def likely_lists(log_p_BK: Tensor, key_B: Tensor, count: int, length: int) -> Tensor:
    """`count` lists of `length` tracks each, drawn without replacement (Gumbel top-k), as (B, C, T)."""
    track_K = torch.arange(log_p_BK.shape[1])
    lists = []
    for c in range(count):
        gumbel_BK = -torch.log(-torch.log(uniform(key_B[:, None], LIST, c, track_K)))
        lists.append((log_p_BK + gumbel_BK).topk(length, 1).indices)
    return torch.stack(lists, 1)


def usual_odds(data: SessionDataModule) -> Tensor:
    """Log-odds (M + 1, K) of the tracks in each mode (the last row: without one): how often training users
    played them in it; -inf for what it does not allow."""
    flat, modes = data.flat, len(data.log.metadata.modes) + 1
    counts_N = (data.part_S[flat.session_N] == TRAIN) & (flat.track_N >= 0)
    cell_N = flat.mode_S[flat.session_N] % modes * data.tracks + flat.track_N
    plays_MK = torch.bincount(cell_N[counts_N], minlength=modes * data.tracks).view(modes, -1)
    # Where too few tracks were played in a mode, any other that it allows may follow.
    return (plays_MK + 1e-6).log().masked_fill(~data.rules().mode_MK, -torch.inf)


def other_lists(log_p_BK: Tensor, row_B: Tensor, length: int, draw: int = 0) -> Tensor:
    """Lists (B, C, T) that stand in the place of those of sessions `row_B`, others for each `draw`; tracks
    repeat where the catalogue is shorter."""
    longest = min(length, log_p_BK.shape[1])
    lists_BCT = likely_lists(log_p_BK, hash_keys(LIST + draw, row_B), OTHERS, longest)
    return lists_BCT[..., torch.arange(length) % longest]


def true_effect_rows(
    model: WorldModel,
    data: SessionDataModule,
    platform: Platform,
    row_B: Tensor,
    track_BCT: Tensor,
    draws: int,
    seed: int,
) -> list[Row]:
    """Correlation and slope of the true on the predicted effect of replacing a session's tracks.

    For the same listener, state and mode, each list's outcome is taken about the mean over the session's
    lists; the truth is the platform's expectation over paired simulations.
    """
    predicted = [given_list(model, data, row_B, track_BCT[:, c]) for c in range(track_BCT.shape[1])]
    true = [platform.oracle(row_B, track_BCT[:, c], DRAWS) for c in range(track_BCT.shape[1])]
    user_N = data.flat.user_S[row_B].repeat_interleave(track_BCT.shape[1]).numpy()
    rows = []
    for signal in AFFECT:
        x_N, y_N = (
            _about_mean(torch.stack([o[signal] for o in outcomes], 1)) for outcomes in (predicted, true)
        )
        columns = np.stack([np.ones_like(x_N), x_N, y_N, x_N * x_N, x_N * y_N, y_N * y_N], 1)
        sums = metrics.user_sums(columns, user_N)
        slope = metrics.user_bootstrap(sums[:, :5], slope_of, len(x_N), draws, seed)
        correlation = metrics.user_bootstrap(sums, correlation_of, len(x_N), draws, seed)
        rows += [
            Row(
                "fidelity", "world_model", signal, "effect_slope", "mean", "all", *slope, "true per predicted"
            ),
            Row(
                "fidelity",
                "world_model",
                signal,
                "effect_correlation",
                "mean",
                "all",
                *correlation,
                "correlation",
            ),
        ]
    return rows


def _about_mean(value_BC: Tensor) -> np.ndarray:
    centred_BC = value_BC - value_BC.mean(1, keepdim=True)
    return centred_BC.double().flatten().numpy()
