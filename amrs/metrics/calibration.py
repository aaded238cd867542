"""Whether probabilities and intervals mean what they say. Shape suffixes: N observations, G grid points,
B bins, K knots.

All scales are [0, 1]. Intervals and levels of continuous signals are read off a CDF on a grid, whose last
value is P(y < 1): mass on the ends is kept there.
"""

from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from amrs.metrics.fidelity import Floats, Ints, binary, grid_of, observed

KNOTS = 40
"""Cells of a quantile map; more would follow the noise of a hundred users."""


class Reliability(NamedTuple):
    """Mean prediction, share of positives and count in each bin of a reliability curve."""

    predicted_B: Floats
    share_B: Floats
    count_B: Ints


def reliability_bins(
    label_N: npt.ArrayLike, probability_N: npt.ArrayLike, bins: int = 10
) -> tuple[Floats, Ints]:
    """Labels (N,) with equal predictions sharing their mean, and the bin of each (N,).

    `bins` bins of equal count, ordered by probability; fewer observations than bins make bins of one. Labels
    are shared, so the order of rows does not matter where a bin's edge falls between equal predictions.
    """
    label_N, probability_N = observed(label_N, probability_N)
    binary(label_N)
    n = len(label_N)
    _, group_N, size_V = np.unique(probability_N, return_inverse=True, return_counts=True)
    share_N = (np.bincount(group_N, weights=label_N) / size_V)[group_N] if n else label_N
    start_B = np.arange(bins) * n // bins if n >= bins else np.arange(n)
    bin_N = np.empty(n, np.int64)
    bin_N[np.argsort(probability_N, kind="stable")] = np.repeat(
        np.arange(len(start_B)), np.diff(np.r_[start_B, n])
    )
    return share_N, bin_N


def reliability(label_N: npt.ArrayLike, probability_N: npt.ArrayLike, bins: int = 10) -> Reliability:
    """The curve over the bins of `reliability_bins`."""
    share_N, bin_N = reliability_bins(label_N, probability_N, bins)
    count_B = np.bincount(bin_N)
    (probability_N,) = observed(probability_N)
    predicted_B, share_B = (np.bincount(bin_N, x_N) / count_B for x_N in (probability_N, share_N))
    return Reliability(predicted_B, share_B, count_B)


def ece(label_N: npt.ArrayLike, probability_N: npt.ArrayLike, bins: int = 10) -> float:
    """Expected calibration error over the bins of `reliability`; in [0, 1], NaN without observations.

    The mean over bins of |mean probability - share of positives|, weighted by count.
    """
    curve = reliability(label_N, probability_N, bins)
    if not len(curve.count_B):
        return float("nan")
    gap_B = np.abs(curve.predicted_B - curve.share_B)
    return float((curve.count_B * gap_B).sum() / curve.count_B.sum())


def levels(y_N: npt.ArrayLike, cdf_NG: npt.ArrayLike, grid_G: npt.ArrayLike) -> tuple[Floats, Floats]:
    """P(Y < y) and P(Y <= y), (N,) each, of a CDF that is linear between grid points.

    They differ on the ends alone: at 0 by the mass there, at 1 by what the last grid value leaves.
    """
    y_N, cdf_NG = observed(y_N, cdf_NG)
    grid_G = grid_of(grid_G, cdf_NG)
    right_N = np.clip(np.searchsorted(grid_G, y_N, side="left"), 1, len(grid_G) - 1)
    row_N = np.arange(len(y_N))
    share_N = np.clip((y_N - grid_G[right_N - 1]) / (grid_G[right_N] - grid_G[right_N - 1]), 0.0, 1.0)
    left_N = cdf_NG[row_N, right_N - 1]
    inside_N = left_N + share_N * (cdf_NG[row_N, right_N] - left_N)
    low_N, high_N = y_N <= grid_G[0], y_N >= grid_G[-1]
    return np.where(low_N, 0.0, inside_N), np.where(high_N, 1.0, inside_N)


def pit(below_N: npt.ArrayLike, upto_N: npt.ArrayLike, u_N: npt.ArrayLike) -> Floats:
    """Randomised probability integral transform P(Y < y) + u (P(Y <= y) - P(Y < y)), (N,).

    Uniform under the true distribution, atoms or not, for uniform `u_N` (Czado, Gneiting and Held 2009).
    """
    below_N, upto_N, u_N = observed(below_N, upto_N, u_N)
    value_N: Floats = below_N + u_N * (upto_N - below_N)
    return value_N


def ks_uniform(u_N: npt.ArrayLike) -> float:
    """Kolmogorov-Smirnov distance to the uniform distribution, in [0, 1]; NaN without observations."""
    (u_N,) = observed(u_N)
    if not len(u_N):
        return float("nan")
    sorted_N, n = np.sort(u_N), len(u_N)
    rank_N = np.arange(1, n + 1)
    return float(max((rank_N / n - sorted_N).max(), (sorted_N - (rank_N - 1) / n).max()))


def quantile_map(pit_N: npt.ArrayLike, knots: int = KNOTS) -> Floats:
    """Quantiles k / knots of the PIT, (K,) with k = 0..knots: 0 first, 1 last.

    The map from predicted to observed levels of Kuleshov, Fenner and Ermon (2018), as a rising line: where
    the model says `map[k]`, the share k / knots is observed. Knots lie where the observations do, so that
    tails keep their detail.
    """
    (pit_N,) = observed(pit_N)
    level_K = np.linspace(0.0, 1.0, knots + 1)
    map_K: Floats = np.quantile(pit_N, level_K) if len(pit_N) else level_K
    map_K[0], map_K[-1] = 0.0, 1.0
    return map_K


def mapped(cdf_NG: npt.ArrayLike, map_K: Floats) -> Floats:
    """The CDF with its levels mapped: R(F(g)), monotone where F is."""
    (cdf_NG,) = observed(cdf_NG)
    changed_NG: Floats = np.interp(cdf_NG, map_K, np.linspace(0.0, 1.0, len(map_K)))
    return changed_NG
