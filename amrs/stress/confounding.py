"""Hidden common causes of track choice and affect: how strong one must be to explain a gain away, and whether
the log itself shows one.

**How strong.** Marginal sensitivity model (Tan 2006): with the hidden cause known, the odds of a track
would differ from those that the history shows by at most a factor Gamma. A single track is rarely played,
so the report that it would bring to those who did not hear it is the observed report's distribution, tilted
by weights in [1 / Gamma, Gamma] with mean 1. The sharp bound puts the weight Gamma on the lowest reports
(Zhao, Small and Bhattacharya 2019; Dorn and Guo 2022): the mass 1 / (1 + Gamma), since Gamma m + (1 - m) /
Gamma = 1. Copycat plays what was played, so its outcome needs no tilt.

**Whether.** For play t of a session with history h, the judge's effect of the track on the final report is

    x = c(t) (E[report | h, track] - mean over q of E[report | h, k]),     q Copycat's probabilities at h,

c the carry (`carry.py`). Logged propensities p know a hidden cause, since they are what the service really
did; q, fitted to what can be seen, averages over it. Weighted by q / p, choices no longer depend on it
given h (stabilised weights: Robins, Hernan and Brumback 2000), so the slope of report - mean over q on x is
that of the tracks alone. One play's weights are near 1; a session's products would leave few sessions. Of a
cause that the service did not know either nothing is learnt.
Shape suffixes: N reports or plays, S sessions, T plays of a session, C draws of Copycat.
"""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from amrs import metrics
from amrs.data import SessionDataModule
from amrs.fidelity.targets import AFFECT
from amrs.fidelity.track_effects import slope_of
from amrs.metrics import Estimate
from amrs.metrics.fidelity import Floats, Ints
from amrs.models.world_model import WorldModel
from amrs.propensities import ask, expected, logged_plays
from amrs.rollout import Policy

FARTHEST = 10.0
"""Bound beyond which no hidden cause is looked for."""
_HALVINGS, _CHOICES = 40, 16


def tilted_mean(residual_N: np.ndarray, gamma: float) -> float:
    """Least mean of the residuals that weights in [1 / gamma, gamma] with mean 1 can give."""
    ordered_N = np.sort(np.asarray(residual_N, dtype=np.float64))
    edge_N = np.arange(len(ordered_N) + 1) / len(ordered_N)
    low_N = np.minimum(edge_N, 1 / (1 + gamma))  # mass of the lowest reports up to each edge
    weight_N = gamma * np.diff(low_N) + (np.diff(edge_N) - np.diff(low_N)) / gamma
    return float((weight_N * ordered_N).sum())


def breaking_gamma(lower_bound: float, residual_N: np.ndarray) -> float | None:
    """Gamma at which a gain's lower bound is gone; 1 where there is none, None beyond `FARTHEST`.

    Args:
        lower_bound: of the predicted gain, in scale points.
        residual_N: held-out reports less their predictions; their mean is taken out.
    """
    centred_N = residual_N - residual_N.mean()
    if lower_bound <= 0:
        return 1.0
    if lower_bound + tilted_mean(centred_N, FARTHEST) > 0:
        return None
    low, high = 1.0, FARTHEST
    for _ in range(_HALVINGS):
        middle = (low + high) / 2
        low, high = (middle, high) if lower_bound + tilted_mean(centred_N, middle) > 0 else (low, middle)
    return (low + high) / 2


class LoggedEffects(NamedTuple):
    """Of logged plays, a row a session; NaN where unknown and behind the last play."""

    user_S: Ints
    weight_ST: Floats
    """q / p of the logged track."""
    effect_ST: Floats
    """x, in scale points."""
    surprise_ST: Floats
    """Final report less what was expected of Copycat's next track, in scale points."""
    carry_ST: Floats
    """c(t)."""
    blur_ST: Floats
    """Variance of that expectation, which is a mean over a few draws; its error stands in both."""


def logged_effects(
    judge: WorldModel, copycat: Policy, data: SessionDataModule, row_S: Tensor,
    carry: Mapping[str, Sequence[float]], seed: int,
) -> dict[str, LoggedEffects]:  # fmt: skip
    """Effects of the logged tracks of sessions `row_S` on valence and arousal."""
    logged = logged_plays(data, row_S)
    asked = ask(copycat, data, logged, _CHOICES, seed)
    answers = expected(
        judge, data, logged, torch.cat([logged.track_ST[..., None], asked.choice_STC], -1)
    )  # fmt: skip
    user_S = data.flat.user_S[row_S].numpy()
    weight_ST = (asked.log_p_ST - logged.log_propensity_ST).exp().double().numpy()
    found = {}
    for column, name in enumerate(AFFECT):
        if name in answers:
            value_STN = answers[name][0] / answers[name][1]
            base_ST = value_STN[..., 1:].mean(-1).where(logged.track_ST >= 0, torch.nan)
            carry_ST = _carry(carry.get(name, [1.0]), base_ST.shape[1]).expand(base_ST.shape)
            effect_ST = carry_ST * (value_STN[..., 0] - base_ST)
            surprise_ST = data.flat.report_S2[row_S, column, None] - base_ST
            blur_ST = value_STN[..., 1:].var(-1) / _CHOICES
            columns = (x.double().numpy() for x in (effect_ST, surprise_ST, carry_ST, blur_ST))
            found[name] = LoggedEffects(user_S, weight_ST, *columns)
    return found


def _carry(carry: Sequence[float], longest: int) -> Tensor:
    """c(t) of `longest` plays; the last figure holds for all after it."""
    return torch.tensor(carry)[torch.arange(longest).clamp(max=len(carry) - 1)]


def weighted_slope(logged: LoggedEffects, draws: int, seed: int) -> Estimate | None:
    """Slope of surprises on effects under the weights, by user; None without propensities or reports.

    What the few draws behind both add to squares and products is taken off: it would pull a slope of 0 up
    (Fuller 1987, sec. 1.2, known error variances).
    """
    w_ST, x_ST, r_ST = logged.weight_ST, logged.effect_ST, logged.surprise_ST
    known_ST = np.isfinite(w_ST) & np.isfinite(x_ST) & np.isfinite(r_ST)
    if not known_ST.any():
        return None
    user_N = np.repeat(logged.user_S, known_ST.sum(1))
    w, x, r, c, v = (value_ST[known_ST] for value_ST in (w_ST, x_ST, r_ST, logged.carry_ST, logged.blur_ST))
    columns_NC = np.stack([w, w * x, w * r, w * (x * x - c * c * v), w * (x * r - c * v)], 1)
    return metrics.user_bootstrap(metrics.user_sums(columns_NC, user_N), slope_of, len(w), draws, seed)
