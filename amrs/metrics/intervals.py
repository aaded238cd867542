"""95 % intervals by bootstrap over users. Shape suffixes: N rows, U users, C columns of sums, D draws.

Sessions of one user are no independent evidence, so users are drawn, each with all their rows. A statistic
of sums (means, ratios, R2) is redone from the users' sums in one matrix product; any other is recomputed on
the rows.
"""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
from scipy import stats

from amrs.metrics.fidelity import Floats, Ints, auroc, observed

Statistic = Callable[[Floats], Floats]
"""Of users' summed columns (..., C), so that it takes several draws of users at once."""
_BLOCK = 4_000_000  # counts drawn at a time: bounds memory at 32 MB whatever the number of users


class Estimate(NamedTuple):
    """A figure, its interval (None with fewer than two users), and its number of observations."""

    value: float
    low: float | None
    high: float | None
    n: int


def user_codes(user_N: npt.ArrayLike) -> tuple[Ints, int]:
    """Users as 0..U-1, (N,), and U. Any ids will do."""
    names_U, code_N = np.unique(np.asarray(user_N), return_inverse=True)
    return code_N.reshape(-1).astype(np.int64), len(names_U)


def user_sums(columns_NC: npt.ArrayLike, user_N: npt.ArrayLike) -> Floats:
    """Columns summed over each user's rows, (U, C); users in the order of their sorted ids."""
    (columns_NC,) = observed(columns_NC)
    code_N, users = user_codes(user_N)
    if len(code_N) != len(columns_NC):
        raise ValueError(f"{len(code_N)} users do not fit {len(columns_NC)} rows")
    sums_CU = [np.bincount(code_N, weights=column_N, minlength=users) for column_N in columns_NC.T]
    return np.stack(sums_CU, axis=1)


def mean_of(sums: Floats) -> Floats:
    """Mean from [..., (sum, count)], or any ratio from [..., (above, below)]."""
    with np.errstate(divide="ignore", invalid="ignore"):
        ratio: Floats = sums[..., 0] / sums[..., 1]
    return ratio


def r2_of(sums: Floats) -> Floats:
    """R2 about the training mean from [..., (squared errors, squared deviations from it)]."""
    return 1.0 - mean_of(sums)


def user_bootstrap(
    sums_UC: npt.ArrayLike,
    statistic: Statistic,
    n: int,
    draws: int = 1000,
    seed: int = 0,
    level: float = 0.95,
) -> Estimate:
    """Percentile interval of `statistic` of the users' summed columns.

    `statistic` maps (..., C) to (...), so it takes all draws at once. `n` is only carried along: the number
    of observations, as the report states it.
    """
    (sums_UC,) = observed(sums_UC)
    value = float(statistic(sums_UC.sum(0)))
    if len(sums_UC) < 2:
        return Estimate(value, None, None, n)
    random = np.random.default_rng(seed)
    block = max(1, _BLOCK // len(sums_UC))
    share_U = np.full(len(sums_UC), 1.0 / len(sums_UC))
    drawn: list[Floats] = []
    for start in range(0, draws, block):
        # How often each user was drawn: the same as drawing U users with replacement.
        weight_DU = random.multinomial(len(sums_UC), share_U, size=min(block, draws - start))
        drawn.append(statistic(weight_DU.astype(np.float64) @ sums_UC))
    return Estimate(value, *_percentiles(np.concatenate(drawn), level), n)


def pseudo_values(sums_UC: npt.ArrayLike, statistic: Statistic) -> Floats:
    """Jackknife pseudo-values by user, (U,): U theta - (U - 1) theta without the user (Tukey 1958).

    For a ratio, or a difference of ratios, they behave as independent observations of it.
    """
    sums_UC = np.asarray(sums_UC, dtype=np.float64)
    users, total_C = len(sums_UC), sums_UC.sum(0)
    value_U: Floats = users * statistic(total_C) - (users - 1) * statistic(total_C - sums_UC)
    return value_U


def effective_users(x_N: npt.ArrayLike, user_N: npt.ArrayLike) -> float:
    """Kish's number of users who tell of a slope on `x_N`, given about its mean: sums of squares count."""
    spread_U = user_sums(np.asarray(x_N, dtype=np.float64)[:, None] ** 2, user_N)[:, 0]
    return float(spread_U.sum() ** 2 / (spread_U @ spread_U))


def studentised(
    sums_UC: npt.ArrayLike, statistic: Statistic, size: float, n: int, level: float = 0.95
) -> Estimate:
    """`statistic` of the users' sums (U, C) with its interval: jackknife by user, t with `size` - 1 degrees.

    `size` is the effective number of users. Percentile bootstrap covers too seldom here: a few users carry
    the sums, and a draw without them looks certain (study `off_policy` shows both).
    """
    pseudo_U = pseudo_values(sums_UC, statistic)
    value = float(statistic(np.asarray(sums_UC, dtype=np.float64).sum(0)))
    if len(pseudo_U) < 2 or size <= 1 or not np.isfinite(pseudo_U).all():
        return Estimate(value, None, None, n)
    half = stats.t.ppf((1 + level) / 2, size - 1) * float(pseudo_U.std(ddof=1)) / len(pseudo_U) ** 0.5
    return Estimate(value, value - half, value + half, n)


def resampled_users(
    statistic: Callable[[Ints, Ints], float],
    user_N: npt.ArrayLike,
    draws: int = 200,
    seed: int = 0,
    level: float = 0.95,
    centred: bool = False,
) -> Estimate:
    """Interval of a statistic that is no function of sums (AUROC, calibration error, diversity).

    `statistic(row_M, user_M)` gets the drawn rows and whose they are; a user drawn twice comes as two users.
    `centred=True` moves the draws' mean onto the value: a resample holds only some 63 % of the users, so
    counts of distinct tracks (coverage, entropy) fall in every draw, and the plain percentiles would
    miss the very figure that they belong to. The spread is the users'; the fall is the method's.
    """
    code_N, users = user_codes(user_N)
    value = float(statistic(np.arange(len(code_N)), code_N))
    if users < 2:
        return Estimate(value, None, None, len(code_N))
    order_N = np.argsort(code_N, kind="stable")
    size_U = np.bincount(code_N, minlength=users)
    start_U = np.cumsum(size_U) - size_U
    random = np.random.default_rng(seed)
    drawn_D = np.empty(draws)
    for draw in range(draws):
        user_U = random.integers(0, users, users)
        owner_M = np.repeat(np.arange(users), size_U[user_U])
        within_M = np.arange(len(owner_M)) - np.repeat(
            np.cumsum(size_U[user_U]) - size_U[user_U], size_U[user_U]
        )
        drawn_D[draw] = statistic(order_N[start_U[user_U][owner_M] + within_M], owner_M)
    low, high = _percentiles(drawn_D, level)
    if centred and low is not None and high is not None:
        shift = value - float(np.nanmean(drawn_D))
        low, high = low + shift, high + shift
    return Estimate(value, low, high, len(code_N))


def mean_interval(x_N: npt.ArrayLike, user_N: npt.ArrayLike, draws: int = 1000, seed: int = 0) -> Estimate:
    """Mean over rows, whatever the number of rows a user has."""
    (x_N,) = observed(x_N)
    sums_UC = user_sums(np.stack([x_N, np.ones_like(x_N)], axis=1), user_N)
    return user_bootstrap(sums_UC, mean_of, len(x_N), draws, seed)


def mae_interval(
    y_N: npt.ArrayLike, predicted_N: npt.ArrayLike, user_N: npt.ArrayLike, draws: int = 1000, seed: int = 0
) -> Estimate:
    """Mean absolute error in scale points."""
    y_N, predicted_N = observed(y_N, predicted_N)
    return mean_interval(np.abs(y_N - predicted_N), user_N, draws, seed)


def r2_interval(
    y_N: npt.ArrayLike,
    predicted_N: npt.ArrayLike,
    train_mean: float | npt.ArrayLike,
    user_N: npt.ArrayLike,
    draws: int = 1000,
    seed: int = 0,
) -> Estimate:
    """R2 about the training mean (a number, or one per row where rows of several splits are pooled)."""
    y_N, predicted_N = observed(y_N, predicted_N)
    columns_NC = np.stack([(y_N - predicted_N) ** 2, (y_N - np.asarray(train_mean)) ** 2], axis=1)
    return user_bootstrap(user_sums(columns_NC, user_N), r2_of, len(y_N), draws, seed)


def auroc_interval(
    label_N: npt.ArrayLike, score_N: npt.ArrayLike, user_N: npt.ArrayLike, draws: int = 200, seed: int = 0
) -> Estimate:
    """AUROC over all rows, users resampled."""
    label_N, score_N = observed(label_N, score_N)
    return resampled_users(lambda row_M, _: auroc(label_N[row_M], score_N[row_M]), user_N, draws, seed)


def _percentiles(drawn_D: Floats, level: float) -> tuple[float | None, float | None]:
    """The central `level` of the draws that exist (a draw may hold no row of the group)."""
    exists_D = drawn_D[np.isfinite(drawn_D)]
    if len(exists_D) < 0.95 * len(drawn_D):
        return None, None  # too few rows for an interval: better none than one from the lucky draws
    low, high = np.quantile(exists_D, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)
