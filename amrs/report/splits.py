"""Reports of several splits as one. Shape suffix: J splits."""

import math
import re
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from scipy import stats

from amrs.report.rows import Report, Row


def over_splits(reports: Sequence[Report], test_to_train: float) -> list[Row]:
    """Every split's rows under its number, and their means over splits under "mean".

    The interval of a mean is t with J - 1 degrees of freedom on sd x sqrt(1 / J + n_test / n_train): splits
    of one log share training users, so the plain standard error is too small (Nadeau & Bengio 2003). A
    figure that some split lacks has no mean.

    Args:
        reports: one per split, in order; each holds rows under "mean" of its own.
        test_to_train: test users divided by training users.
    """
    numbered = [
        [replace(row, split=k) for row in report.rows if row.split == "mean"]
        for k, report in enumerate(reports)
    ]
    by_figure: dict[tuple[str, ...], list[Row]] = {}
    for rows in numbered:
        for row in rows:
            key = (row.section, row.subject, row.signal, row.metric, row.group)
            by_figure.setdefault(key, []).append(row)
    means = [_mean(rows, test_to_train) for rows in by_figure.values() if len(rows) == len(reports)]
    return [row for rows in numbered for row in rows] + means


def over_folds(reports: Sequence[Report], test_to_train: float, pooled: Sequence[Row]) -> list[Row]:
    """Rows of repeated folds under "mean": `pooled` ones as they are, means over folds of all others.

    A fold of a few users says little alone, so only the whole is kept.
    """
    known = {row.key for row in pooled}
    means = [row for row in over_splits(reports, test_to_train) if row.split == "mean"]
    return [*pooled, *(row for row in means if row.key not in known)]


def _mean(row_J: list[Row], test_to_train: float) -> Row:
    value_J = np.array([row.value for row in row_J])
    count = len(value_J)
    low = high = None
    mean = float(value_J.mean())
    if count > 1:
        error = float(value_J.std(ddof=1)) * math.sqrt(1 / count + test_to_train)
        half = float(stats.t.ppf(0.975, count - 1)) * error
        low, high = mean - half, mean + half
    unit = re.sub(r", \d+ % interval$", "", row_J[0].unit)  # of one split; this one is of 95 %
    n = sum(row.n for row in row_J)
    return replace(row_J[0], split="mean", value=mean, low=low, high=high, n=n, unit=unit)
