"""Recalibration on validation users, used only where it helps them, and the rows of both before and after.

Continuous signals: the levels of the predicted CDF are mapped to those observed (Kuleshov et al. 2018).
Yes-or-no signals: Platt scaling (Platt 1999) or isotonic regression. Each is judged on validation users that
it was not fitted to, and left out where it does not lower their score.
Shape suffixes: N labels, G grid points of a distribution, K knots, F folds.
"""

from collections.abc import Callable, Iterator
from typing import NamedTuple

import numpy as np
from sklearn.isotonic import IsotonicRegression
from sklearn.linear_model import LogisticRegression

from amrs import metrics
from amrs.metrics import Estimate
from amrs.metrics.fidelity import Floats, Ints
from amrs.metrics.intervals import user_codes
from amrs.report import Row

LEVELS = (0.5, 0.8, 0.95)
BINS, FOLDS = 10, 5
KS_DRAWS = 200
"""Bootstrap draws of figures that are no function of sums."""
_EDGE = 1e-4
"""A probability is kept this far from 0 and 1: one surprise must not cost everything."""

Events = Callable[[Floats], Floats]
"""A map of probabilities."""


class Judged(NamedTuple):
    """Labels of some users with the distributions predicted for them."""

    y_N: Floats
    cdf_NG: Floats
    """On `grid_G`; the last point holds P(y < 1)."""
    user_N: Ints


class Yesno(NamedTuple):
    """0/1 labels of some users with the probabilities predicted for them."""

    y_N: Floats
    probability_N: Floats
    user_N: Ints


def folds(user_N: Ints, seed: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Rows to fit and rows to score, by user; none with fewer than two users."""
    code_N, users = user_codes(user_N)
    parts = min(FOLDS, users)
    fold_U = np.random.default_rng(seed).permutation(users) % max(parts, 1)
    if parts > 1:
        yield from ((fold_U[code_N] != fold, fold_U[code_N] == fold) for fold in range(parts))


def pits(judged: Judged, grid_G: Floats, seed: int) -> Floats:
    """Randomised PIT of each label, (N,)."""
    below_N, upto_N = metrics.levels(judged.y_N, judged.cdf_NG, grid_G)
    return metrics.pit(below_N, upto_N, np.random.default_rng(seed).random(len(judged.y_N)))


def clearly_better(before_N: Floats, after_N: Floats, user_N: Ints) -> bool:
    """Whether scores fell by more than two standard errors, users resampled: with few users a lower score is
    luck as often as not, and seven signals are tried."""
    gain_U = metrics.user_sums((before_N - after_N)[:, None], user_N)[:, 0]
    if len(gain_U) < 2:
        return False
    return bool(gain_U.sum() > 2 * np.sqrt(len(gain_U)) * gain_U.std(ddof=1))


def fit_levels(validation: Judged, grid_G: Floats, seed: int) -> Floats | None:
    """The quantile map (K,) of validation users, or None where it does not clearly lower their CRPS."""
    pit_N = pits(validation, grid_G, seed)
    before_N = metrics.crps(validation.y_N, validation.cdf_NG, grid_G)
    after_N = before_N.copy()
    for fit_N, score_N in folds(validation.user_N, seed):
        map_K = metrics.quantile_map(pit_N[fit_N])
        cdf_NG = metrics.mapped(validation.cdf_NG[score_N], map_K)
        after_N[score_N] = metrics.crps(validation.y_N[score_N], cdf_NG, grid_G)
    return metrics.quantile_map(pit_N) if clearly_better(before_N, after_N, validation.user_N) else None


def platt(y_N: Floats, probability_N: Floats) -> Events:
    """Logistic regression of the label on the predicted log-odds."""
    model = LogisticRegression(C=np.inf).fit(_log_odds(probability_N)[:, None], y_N)
    slope, intercept = float(model.coef_[0, 0]), float(model.intercept_[0])
    return lambda p_N: _inside(1 / (1 + np.exp(-(intercept + slope * _log_odds(p_N)))))


def isotonic(y_N: Floats, probability_N: Floats) -> Events:
    """The best rising step function."""
    model = IsotonicRegression(out_of_bounds="clip").fit(probability_N, y_N)
    return lambda p_N: _inside(np.asarray(model.predict(p_N), np.float64))


EVENTS: dict[str, Callable[[Floats, Floats], Events]] = {"platt": platt, "isotonic": isotonic}


def fit_events(validation: Yesno, seed: int) -> Events | None:
    """The map of probabilities with the least cross-fitted log loss on validation users, or None where none
    clearly lowers it."""
    y_N, p_N, user_N = validation
    before_N = log_loss(y_N, p_N)
    after = {name: before_N.copy() for name in EVENTS}
    for fit_N, score_N in folds(user_N, seed):
        if len(np.unique(y_N[fit_N])) < 2:
            return None
        for name, fit in EVENTS.items():
            after[name][score_N] = log_loss(y_N[score_N], fit(y_N[fit_N], p_N[fit_N])(p_N[score_N]))
    best = min(after, key=lambda name: float(after[name].sum()))
    return EVENTS[best](y_N, p_N) if clearly_better(before_N, after[best], user_N) else None


def log_loss(y_N: Floats, probability_N: Floats) -> Floats:
    """Negative log-likelihood of each label, (N,), in nats."""
    p_N = _inside(probability_N)
    loss_N: Floats = -(y_N * np.log(p_N) + (1 - y_N) * np.log1p(-p_N))
    return loss_N


def level_rows(
    signal: str, validation: Judged, test: Judged, grid_G: Floats, seed: int, draws: int, group: str = "all"
) -> list[Row]:
    """CRPS, coverage and PIT of a continuous signal, of the world model and of it recalibrated."""
    map_K = fit_levels(validation, grid_G, seed)
    rows = _level_rows("world_model", signal, test, grid_G, seed, draws, group)
    if map_K is not None:
        changed = test._replace(cdf_NG=metrics.mapped(test.cdf_NG, map_K))
        rows += _level_rows("recalibrated", signal, changed, grid_G, seed, draws, group)
    return rows


def _level_rows(
    subject: str, signal: str, test: Judged, grid_G: Floats, seed: int, draws: int, group: str
) -> list[Row]:
    y_N, cdf_NG, user_N = test
    found = {"crps": (metrics.mean_interval(metrics.crps(y_N, cdf_NG, grid_G), user_N, draws, seed),
                      "scale points")}  # fmt: skip
    pit_N = pits(test, grid_G, seed)
    for level in LEVELS:
        # By the PIT: an atom that is wider than the interval counts by its share inside, not whole.
        inside_N = (np.abs(pit_N - 0.5) <= level / 2).astype(float)
        estimate = metrics.mean_interval(inside_N, user_N, draws, seed)
        found[f"coverage_{round(100 * level)}"] = (estimate, "fraction")
    distance = metrics.resampled_users(
        lambda row_M, _: metrics.ks_uniform(pit_N[row_M]), user_N, min(draws, KS_DRAWS), seed, centred=True
    )
    found["pit_ks"] = (_from_0(distance), "fraction")
    rows = [
        Row("fidelity", subject, signal, metric, "mean", group, *estimate, unit)
        for metric, (estimate, unit) in found.items()
    ]
    if group != "all":
        return rows
    for k in range(BINS):
        inside_N = ((pit_N * BINS).astype(int).clip(0, BINS - 1) == k).astype(float)
        estimate = metrics.mean_interval(inside_N, user_N, draws, seed)
        rows.append(Row("fidelity", subject, signal, "pit_share", "mean", f"bin:{k}", *estimate, "fraction"))
    return rows


def event_rows(
    signal: str, validation: Yesno, test: Yesno, seed: int, draws: int, group: str = "all"
) -> list[Row]:
    """Calibration error and reliability curve of a yes-or-no signal, before and after recalibration."""
    change = fit_events(validation, seed)
    rows = _event_rows("world_model", signal, test, seed, draws, group)
    if change is not None:
        changed = test._replace(probability_N=change(test.probability_N))
        rows += _event_rows("recalibrated", signal, changed, seed, draws, group)
    return rows


def _event_rows(subject: str, signal: str, test: Yesno, seed: int, draws: int, group: str) -> list[Row]:
    y_N, p_N, user_N = test
    error = metrics.resampled_users(
        lambda row_M, _: metrics.ece(y_N[row_M], p_N[row_M]), user_N, min(draws, KS_DRAWS), seed, centred=True
    )
    rows = [Row("fidelity", subject, signal, "ece", "mean", group, *_from_0(error), "fraction")]
    if group != "all":
        return rows
    share_N, bin_N = metrics.reliability_bins(y_N, p_N, BINS)
    for k in range(bin_N.max(initial=-1) + 1):
        here_N = bin_N == k
        predicted = Estimate(float(p_N[here_N].mean()), None, None, int(here_N.sum()))
        observed = metrics.mean_interval(share_N[here_N], user_N[here_N], draws, seed)
        for metric, estimate in (("reliability_predicted", predicted), ("reliability_observed", observed)):
            rows.append(Row("fidelity", subject, signal, metric, "mean", f"bin:{k}", *estimate, "fraction"))
    return rows


def _from_0(estimate: Estimate) -> Estimate:
    """A distance cannot be below 0, and a centred bootstrap does not know."""
    return estimate if estimate.low is None else estimate._replace(low=max(0.0, estimate.low))


def _inside(p_N: Floats) -> Floats:
    kept_N: Floats = np.clip(p_N, _EDGE, 1 - _EDGE)
    return kept_N


def _log_odds(p_N: Floats) -> Floats:
    p_N = _inside(p_N)
    odds_N: Floats = np.log(p_N / (1 - p_N))
    return odds_N
