"""Who would be worse off than under Copycat. Shape suffixes: B sessions, U users, R simulations."""

import numpy as np
from scipy import stats

from amrs import metrics
from amrs.metrics import Estimate

HARMED = -0.02
"""Difference in expected valence, in scale points, below which a session counts as harmed."""


def harm(delta_B: np.ndarray, user_B: np.ndarray, draws: int, seed: int) -> Estimate:
    """Share of sessions with delta < -.02, with an interval by user.

    delta is E[valence | policy] - E[valence | Copycat] of one session, a mean over paired simulations. The
    upper end is the larger of the bootstrap's and Clopper and Pearson's (1934) with users as trials: a
    bootstrap of no harm at all has no width, although some users may just not have been met.
    """
    harmed_B = (delta_B < HARMED).astype(np.float64)
    found = metrics.mean_interval(harmed_B, user_B, draws, seed)
    users = len(np.unique(user_B))
    high = max(upper_bound(found.value * users, users), found.high or 0.0)
    low = found.low if found.low is not None else 0.0
    return Estimate(found.value, min(low, found.value), high, found.n)


def lower_bound(cases: float, trials: int, level: float = 0.975) -> float:
    """Clopper and Pearson's one-sided lower bound of a share."""
    return 0.0 if cases <= 0 else float(stats.beta.ppf(1 - level, cases, trials - cases + 1))


def upper_bound(cases: float, trials: int, level: float = 0.975) -> float:
    """Clopper and Pearson's one-sided upper bound of a share; `cases` may be a fraction."""
    if cases >= trials:
        return 1.0
    return float(stats.beta.ppf(level, cases + 1, trials - cases))
