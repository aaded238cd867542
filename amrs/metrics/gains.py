"""What a policy gains over Copycat. Shape suffixes: S sessions, M modes, U users.

The gain of signal x is the mean over sessions of s(mode) * (x_policy - x_copycat). For valence, engagement
and rating s = 1. For arousal s = +1 in energize, -1 in calm and in sleep, and in modes of a service's own
what the utility says of them (`utility.aims`); focus has a target and no direction, so it and sessions of
unknown mode are left out. Modes weigh as they do in the logs, whatever was rolled out.
"""

from collections.abc import Callable, Mapping, Sequence

import numpy as np
import numpy.typing as npt

from amrs.metrics.fidelity import Floats, observed
from amrs.metrics.intervals import Estimate, user_bootstrap, user_sums
from amrs.report.rows import Row

AROUSAL_SIGN: dict[str, float] = {"energize": 1.0, "calm": -1.0, "sleep": -1.0}
"""Direction of arousal that each mode aims at by default."""


def logged_share(mode_S: npt.ArrayLike, modes: Sequence[str]) -> dict[str | None, float]:
    """Share of the logged sessions in each mode; those without one (-1) under None. Sums to 1."""
    mode_S = np.asarray(mode_S, dtype=np.int64)
    count_M = np.bincount(mode_S + 1, minlength=len(modes) + 1)
    names: list[str | None] = [None, *modes]
    return {name: float(count) / len(mode_S) for name, count in zip(names, count_M, strict=True) if count}


def gain_rows(
    policy_S: npt.ArrayLike,
    copycat_S: npt.ArrayLike,
    mode_S: npt.ArrayLike,
    user_S: npt.ArrayLike,
    *,
    section: str,
    subject: str,
    signal: str,
    modes: Sequence[str],
    share: Mapping[str | None, float],
    within_sd: float | None = None,
    split: int | str = "mean",
    group: str = "all",
    draws: int = 1000,
    seed: int = 0,
    aims: Mapping[str, float] = AROUSAL_SIGN,
) -> list[Row]:
    """Rows `gain`, `gain_sd` and `relative_gain` of one policy for one signal; none where no session counts.

    `policy_S` and `copycat_S` are the signal of the same sessions under either policy. `mode_S` indexes
    `modes`, -1 where unknown. `share` is each mode's share of the logs (`logged_share`), renormalised over
    the modes that count here. `within_sd` is the within-person standard deviation of the signal's report
    (`within_person_sd`): without it `gain_sd` is left out. `relative_gain` is gain / mean of `copycat_S`
    over the same sessions with the same weights; it depends on where the scale has its zero, so it comes
    last. Intervals are by user.
    """
    sums_UC, weight_M, n = gain_sums(policy_S, copycat_S, mode_S, user_S, signal, modes, share, aims)
    if n == 0:
        return []
    gain = user_bootstrap(sums_UC, weighted_gain(weight_M), n, draws, seed)
    found: list[tuple[str, Estimate, str]] = [("gain", gain, "scale points")]
    if within_sd is not None and np.isfinite(within_sd) and within_sd > 0:
        low, high = (None if end is None else end / within_sd for end in (gain.low, gain.high))
        found.append(("gain_sd", Estimate(gain.value / within_sd, low, high, n), "within-person sd"))
    relative = user_bootstrap(sums_UC, weighted_gain(weight_M, relative=True), n, draws, seed)
    if np.isfinite(relative.value):
        found.append(("relative_gain", relative, "fraction"))
    return [
        Row(section, subject, signal, metric, split, group, value, low, high, n, unit)
        for metric, (value, low, high, n), unit in found
    ]


def gain_sums(
    policy_S: npt.ArrayLike,
    copycat_S: npt.ArrayLike,
    mode_S: npt.ArrayLike,
    user_S: npt.ArrayLike,
    signal: str,
    modes: Sequence[str],
    share: Mapping[str | None, float],
    aims: Mapping[str, float] = AROUSAL_SIGN,
) -> tuple[Floats, Floats, int]:
    """Users' sums per mode that counts, (U, 3M) as (gain, copycat, count); the modes' weights; sessions."""
    policy_S, copycat_S = observed(policy_S, copycat_S)
    mode_S = np.asarray(mode_S, dtype=np.int64)
    names: list[str | None] = [*modes, None]  # -1, unknown, is the last
    sign_M = np.array([aims.get(name or "", 0.0) if signal == "arousal" else 1.0 for name in names])
    counts_M = [
        index for index in range(len(names)) if sign_M[index] and (mode_S % len(names) == index).any()
    ]
    unknown = [names[index] for index in counts_M if names[index] not in share]
    if unknown:
        raise ValueError(f"modes {unknown} have sessions but no logged share; shares given: {list(share)}")
    columns = []
    for index in counts_M:
        in_mode_S = mode_S % len(names) == index
        columns += [in_mode_S * sign_M[index] * (policy_S - copycat_S), in_mode_S * copycat_S, in_mode_S]
    if not columns:
        return np.zeros((0, 0)), np.zeros(0), 0
    weight_M = np.array([share[names[index]] for index in counts_M])
    return (
        user_sums(np.stack(columns, axis=1), user_S),
        weight_M,
        int(sum(column.sum() for column in columns[2::3])),
    )


def weighted_gain(weight_M: Floats, relative: bool = False) -> Callable[[Floats], Floats]:
    """Mean over modes of the mean over sessions, or its ratio to Copycat's, from (..., 3M) sums.

    A mode that a bootstrap draw misses loses its weight to the others.
    """

    def statistic(sums: Floats) -> Floats:
        gain, copycat, count = np.moveaxis(sums.reshape(*sums.shape[:-1], len(weight_M), 3), -1, 0)
        weight = weight_M * (count > 0)
        number = np.where(count > 0, count, 1.0)
        below = weight * copycat / number if relative else weight
        with np.errstate(divide="ignore", invalid="ignore"):
            ratio: Floats = (weight * gain / number).sum(-1) / below.sum(-1)
        return ratio

    return statistic
