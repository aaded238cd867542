"""Figures of all sessions from those that were reported: weights, and bounds where weights do not suffice.

Reports are missing not at random (Marlin and Zemel 2009). Weighting by the inverse of the predicted
probability of a report is right where presence depends only on what the model sees. Where it may also
depend on the report itself, the odds of presence are allowed to be up to Gamma times larger or smaller
than predicted (Tan 2006, after Rosenbaum 2002), and the figure lies between two bounds. They are the
extremes over all such weights of the ratio (Zhao, Small and Bhattacharya 2019): valid, and wider than need
be, since the weights are not asked to balance what is observed.
Shape suffixes: N reported sessions, U users.
"""

import numpy as np

from amrs.metrics.fidelity import Floats, Ints, observed
from amrs.metrics.intervals import user_codes

LEAST = 0.05
"""A smaller probability of a report counts as this: one session must not speak for more than twenty."""
_ROUNDS = 100


def weights(presence_N: Floats, gamma: float = 1.0) -> tuple[Floats, Floats]:
    """Least and largest inverse probability of presence, (N,), if its odds are within `gamma` of predicted.

    1 + (1 - p) / p times 1 / gamma or gamma; both are 1 / p at gamma = 1.
    """
    if gamma < 1:
        raise ValueError(f"gamma={gamma} must be 1 or more: 1 trusts the predicted odds of a report")
    (presence_N,) = observed(presence_N)
    odds_N = 1 / np.clip(presence_N, LEAST, 1.0) - 1
    return 1 + odds_N / gamma, 1 + odds_N * gamma


def ratio_bounds(above_N: Floats, below_N: Floats, low_N: Floats, high_N: Floats) -> tuple[float, float]:
    """Least and largest sum(w above) / sum(w below) over all weights `low_N` <= w <= `high_N`.

    `below_N` is 0 or more. At the best ratio r a row takes its high weight where above - r below helps,
    else its low one; r is found by repeating that (Dinkelbach 1967).
    """
    above_N, below_N, low_N, high_N = observed(above_N, below_N, low_N, high_N)
    if not (high_N * below_N).sum() > 0:
        return float("nan"), float("nan")
    found = []
    for sign in (-1.0, 1.0):
        ratio = float((low_N * above_N).sum() / (low_N * below_N).sum())
        for _ in range(_ROUNDS):
            weight_N = np.where(sign * (above_N - ratio * below_N) > 0, high_N, low_N)
            better = float((weight_N * above_N).sum() / (weight_N * below_N).sum())
            if better == ratio:
                break
            ratio = better
        found.append(ratio)
    return found[0], found[1]


def mean_bounds(y_N: Floats, presence_N: Floats, gamma: float) -> tuple[float, float]:
    """Bounds of the mean over all sessions; at gamma = 1 both are the weighted mean."""
    return ratio_bounds(y_N, np.ones(len(y_N)), *weights(presence_N, gamma))


def r2_bounds(
    y_N: Floats, predicted_N: Floats, centre: float, presence_N: Floats, gamma: float
) -> tuple[float, float]:
    """Bounds of R2 about `centre` over all sessions; at gamma = 1 both are the weighted R2."""
    error_N, spread_N = (y_N - predicted_N) ** 2, (y_N - centre) ** 2
    least, most = ratio_bounds(error_N, spread_N, *weights(presence_N, gamma))
    return 1 - most, 1 - least


def resampled_bounds(
    above_N: Floats, below_N: Floats, presence_N: Floats, gamma: float, user_N: Ints, draws: int, seed: int
) -> tuple[float, float]:
    """Bounds of a ratio with the chance of who was sampled: the 2.5 % quantile of the lower bound over
    bootstrap draws of users and the 97.5 % quantile of the upper (Zhao et al. 2019, percentile bootstrap)."""
    code_N, users = user_codes(user_N)
    low_N, high_N = weights(presence_N, gamma)
    random = np.random.default_rng(seed)
    drawn_D2 = np.empty((draws, 2))
    for d in range(draws):
        times_N = np.bincount(random.integers(0, users, users), minlength=users)[code_N].astype(float)
        drawn_D2[d] = ratio_bounds(above_N, below_N, times_N * low_N, times_N * high_N)
    low, high = np.nanquantile(drawn_D2[:, 0], 0.025), np.nanquantile(drawn_D2[:, 1], 0.975)
    return float(low), float(high)


def effective(presence_N: Floats) -> float:
    """Kish's effective number of sessions behind weights 1 / p: (sum w)^2 / sum w^2."""
    weight_N, _ = weights(presence_N)
    return float(weight_N.sum() ** 2 / (weight_N**2).sum()) if len(weight_N) else 0.0
