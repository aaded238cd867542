"""How well predictions fit held-out feedback. Shape suffixes: N observations, G grid points.

All scales are [0, 1]. Unobserved feedback is left out by the caller: a NaN here is a fault and is refused.
"""

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]


def observed(*columns: npt.ArrayLike) -> tuple[Floats, ...]:
    """The columns as float64 of one length, or a ValueError that says which is at fault."""
    arrays = tuple(np.asarray(column, dtype=np.float64) for column in columns)
    lengths = [len(array) for array in arrays]
    if len(set(lengths)) > 1:
        raise ValueError(f"columns of {lengths} observations must have one length")
    for index, array in enumerate(arrays):
        if np.isnan(array).any():
            raise ValueError(
                f"column {index} has {int(np.isnan(array).sum())} NaN of {array.size} values: "
                "leave out what was not observed"
            )
    return arrays


def r2(y_N: npt.ArrayLike, predicted_N: npt.ArrayLike, train_mean: float) -> float:
    """1 - SSE / sum (y - train_mean)^2: variance explained about the *training* mean.

    The held-out mean is not known when predicting, so it is no baseline. At most 1; NaN without spread.
    """
    y_N, predicted_N = observed(y_N, predicted_N)
    spread = float(np.sum((y_N - train_mean) ** 2))
    return 1.0 - float(np.sum((y_N - predicted_N) ** 2)) / spread if spread > 0 else float("nan")


def mae(y_N: npt.ArrayLike, predicted_N: npt.ArrayLike) -> float:
    """Mean absolute error in scale points, 0 or more; NaN without observations."""
    y_N, predicted_N = observed(y_N, predicted_N)
    return float(np.mean(np.abs(y_N - predicted_N))) if len(y_N) else float("nan")


def auroc(label_N: npt.ArrayLike, score_N: npt.ArrayLike) -> float:
    """Probability that a random positive scores above a random negative, a tie counting one half.

    By mid-ranks (Mann and Whitney 1947). `label_N` is 0 or 1. NaN with one class only.
    """
    label_N, score_N = observed(label_N, score_N)
    positive_N = binary(label_N)
    positives, negatives = int(positive_N.sum()), int((~positive_N).sum())
    if positives == 0 or negatives == 0:
        return float("nan")
    _, group_N, size_V = np.unique(score_N, return_inverse=True, return_counts=True)
    middle_V = np.cumsum(size_V) - (size_V - 1) / 2.0
    rank_sum = float(middle_V[group_N][positive_N].sum())
    return (rank_sum - positives * (positives + 1) / 2.0) / (positives * negatives)


def crps(y_N: npt.ArrayLike, cdf_NG: npt.ArrayLike, grid_G: npt.ArrayLike) -> Floats:
    """Continuous ranked probability score of each observation, (N,), in scale points; 0 is perfect.

    The integral over the grid's range of (F(x) - [x >= y])^2, exact for a CDF linear between grid points: the
    cell that holds y is cut at y. Mass at 0 is F(0) > 0. Mass at 1 has no width: give P(X < 1) at the last
    point, or the jump is smeared over the last cell. Gneiting and Raftery 2007, eq. 20.
    """
    y_N, cdf_NG = observed(y_N, cdf_NG)
    grid_G = grid_of(grid_G, cdf_NG)
    if len(y_N) and (y_N.min() < grid_G[0] or y_N.max() > grid_G[-1]):
        raise ValueError(f"observations must lie on the grid's range [{grid_G[0]:g}, {grid_G[-1]:g}]")
    width_G = np.diff(grid_G)
    left_NG, right_NG = cdf_NG[:, :-1], cdf_NG[:, 1:]
    # Cells below y are scored as F^2, cells above as (1 - F)^2; the share below is between 0 and 1 in one
    # cell.
    below_NG = np.clip((y_N[:, None] - grid_G[:-1]) / width_G, 0.0, 1.0)
    cut_NG = left_NG + (right_NG - left_NG) * below_NG
    lower_NG = below_NG * _square_mean(left_NG, cut_NG)
    upper_NG = (1.0 - below_NG) * _square_mean(1.0 - cut_NG, 1.0 - right_NG)
    score_N: Floats = ((lower_NG + upper_NG) * width_G).sum(-1)
    return score_N


def interval_from_cdf(cdf_NG: npt.ArrayLike, grid_G: npt.ArrayLike, level: float) -> tuple[Floats, Floats]:
    """Central predictive interval of `level` (say .8), low (N,) and high (N,), in scale points.

    The quantiles (1 -+ level) / 2 by linear interpolation: the first grid point where F is at or above, less
    the overshoot. Mass at an end makes the end the quantile.
    """
    (cdf_NG,) = observed(cdf_NG)
    grid_G = grid_of(grid_G, cdf_NG)
    low_N, high_N = (_quantile(cdf_NG, grid_G, (1.0 + sign * level) / 2.0) for sign in (-1, 1))
    return low_N, high_N


def coverage(y_N: npt.ArrayLike, low_N: npt.ArrayLike, high_N: npt.ArrayLike) -> Floats:
    """1.0 where low <= y <= high, else 0.0, (N,): its mean is the coverage, a fraction."""
    y_N, low_N, high_N = observed(y_N, low_N, high_N)
    return ((low_N <= y_N) & (y_N <= high_N)).astype(np.float64)


def within_person_sd(y_N: npt.ArrayLike, user_N: npt.ArrayLike) -> float:
    """Standard deviation within a person, pooled over persons, in scale points.

    sqrt(sum (y - person's mean)^2 / sum (n_person - 1)); NaN when nobody reported twice.
    """
    (y_N,) = observed(y_N)
    _, user_N = np.unique(np.asarray(user_N), return_inverse=True)
    count_U = np.bincount(user_N)
    mean_U = np.bincount(user_N, weights=y_N) / count_U
    freedom = int((count_U - 1).sum())
    return float(np.sqrt(np.sum((y_N - mean_U[user_N]) ** 2) / freedom)) if freedom else float("nan")


def binary(label_N: Floats) -> npt.NDArray[np.bool_]:
    """Which labels are 1; anything but 0 and 1 is refused."""
    if not np.isin(label_N, (0.0, 1.0)).all():
        raise ValueError(f"labels must be 0 or 1, not {np.setdiff1d(label_N, (0.0, 1.0))[0]:g}")
    positive_N: npt.NDArray[np.bool_] = label_N == 1.0
    return positive_N


def grid_of(grid_G: npt.ArrayLike, cdf_NG: Floats) -> Floats:
    """The grid as float64, if it rises and fits the CDF."""
    grid_G = np.asarray(grid_G, dtype=np.float64)
    if cdf_NG.ndim != 2 or cdf_NG.shape[1] != len(grid_G):
        raise ValueError(f"a CDF of shape {cdf_NG.shape} does not fit a grid of {len(grid_G)} points")
    if len(grid_G) < 2 or (np.diff(grid_G) <= 0).any():
        raise ValueError("the grid must have two points or more, rising")
    return grid_G


def _square_mean(a: Floats, b: Floats) -> Floats:
    """Mean of the square of a line that runs from a to b."""
    return (a * a + a * b + b * b) / 3.0


def _quantile(cdf_NG: Floats, grid_G: Floats, probability: float) -> Floats:
    reached_NG = cdf_NG >= probability
    right_N = np.where(reached_NG.any(-1), reached_NG.argmax(-1), len(grid_G) - 1)
    left_N = np.maximum(right_N - 1, 0)
    row_N = np.arange(len(cdf_NG))
    rise_N = cdf_NG[row_N, right_N] - cdf_NG[row_N, left_N]
    share_N = (probability - cdf_NG[row_N, left_N]) / np.where(rise_N > 0, rise_N, 1.0)
    share_N = np.where(rise_N > 0, np.clip(share_N, 0.0, 1.0), 1.0)
    quantile_N: Floats = grid_G[left_N] + share_N * (grid_G[right_N] - grid_G[left_N])
    return quantile_N
