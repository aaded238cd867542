"""Ridge, logistic regression and boosted trees whose settings are picked on held-out users.

Each takes all rows with masks of those to fit on and those that pick the settings, and predicts
every row (M,).
Shape suffixes: M rows, W wanted rows, F features.
"""

from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from amrs.fidelity.targets import Floats, Ints
from amrs.logs.splits import TRAIN, VALIDATION

Rows = NDArray[np.bool_]
"""Mask over the rows, (M,)."""
Tuning = list[tuple[Rows, Rows]]
"""Where settings are tried: rows to fit on, rows to score on."""

FOLDS = 3
FEW_USERS = 20
"""Below this many validation users settings are chosen by folds over training and validation users together,
as two or three users say little. The final fit is on training users alone either way."""

CUT = 4.0
"""Spreads from the training mean at which features are cut for the linear models."""
RIDGE_ALPHAS = tuple(10.0 ** np.arange(-1, 5.5, 0.5))
"""Weights of the squared norm against the sum of squared errors, for features of spread 1."""
LOGISTIC_C = (1e-4, 1e-3, 1e-2, 1e-1)
"""Inverse weights of the squared norm against the sum of negative log-likelihoods."""
BOOSTING: tuple[dict[str, float], ...] = (
    {"learning_rate": 0.05, "max_leaf_nodes": 4, "l2_regularization": 10.0},
    {"learning_rate": 0.05, "max_leaf_nodes": 10, "l2_regularization": 10.0},
    {"learning_rate": 0.1, "max_leaf_nodes": 31, "l2_regularization": 10.0},
)
MAX_ITERATIONS = 400
PATIENCE = 15
TUNING_ROWS = 20_000
"""Settings of the trees are compared on at most so many fitted rows; the iterations are found on all."""


class Fitted(NamedTuple):
    """What was fitted: its predictions, and how its settings were picked."""

    value_M: Floats
    loss: float
    """Least `loss` on the scored rows of the tuning: which of several baselines is best is decided by it."""
    chosen: str
    """The settings that gave it."""


def tuning_rows(user_M: Ints, part_M: NDArray[np.int8], seed: int) -> Tuning:
    """Fit on training and score on validation users; by folds over both where validation users are few."""
    train_M, validation_M = part_M == TRAIN, part_M == VALIDATION
    if len(np.unique(user_M[validation_M])) >= FEW_USERS:
        return [(train_M, validation_M)]
    either_M = train_M | validation_M
    users = np.unique(user_M[either_M])
    fold = np.random.default_rng(seed).permutation(len(users)) % FOLDS
    score = [np.isin(user_M, users[fold == k]) for k in range(FOLDS)]
    masks = [(either_M & ~score_M, score_M) for score_M in score]
    return [(fit, score_M) for fit, score_M in masks if fit.any() and score_M.any()] or [(train_M, train_M)]


def linear(x_MF: Floats, y_M: Floats, train_M: Rows, tuning: Tuning, binary: bool) -> Fitted:
    """Ridge, or L2 logistic regression for binary labels."""
    path = _logistic_path if binary else _ridge_path
    grid: Sequence[float] = LOGISTIC_C if binary else RIDGE_ALPHAS
    loss_G = np.zeros(len(grid))
    for fit, score in tuning:
        loss_G += [loss(value_W, y_M[score], binary) for value_W in path(x_MF, y_M, fit, score, grid)]
    best = grid[int(np.argmin(loss_G))]
    value_M = next(path(x_MF, y_M, train_M, np.ones_like(train_M), [best]))
    return Fitted(value_M, float(loss_G.min()), f"{'C' if binary else 'alpha'}={best:.3g}")


def trees(x_MF: Floats, y_M: Floats, train_M: Rows, tuning: Tuning, binary: bool, seed: int) -> Fitted:
    """Gradient boosting on histograms; NaN is a value of its own."""
    if _constant(y_M[train_M]):
        value_M = np.full(len(y_M), y_M[train_M].mean())
        return Fitted(value_M, _scored(value_M, y_M, tuning, binary), "the mean: all labels are the same")
    rng = np.random.default_rng(seed)
    thinned = [(_thin(fit, rng), score) for fit, score in tuning]
    # scikit-learn's binning fails on a column without any value in the rows that it is fitted on.
    told_F = [~np.isnan(x_MF[fit]).all(0) for fit in (train_M, *(fit for fit, _ in thinned))]
    x_MF = x_MF[:, np.all(told_F, axis=0)]
    curves = [_curve(x_MF, y_M, thinned, params, binary, seed) for params in BOOSTING]
    params = BOOSTING[int(np.argmin([curve.min() for curve in curves]))]
    curve = min(curves, key=lambda curve: float(curve.min()))
    if any(a.sum() < b.sum() for (a, _), (b, _) in zip(thinned, tuning, strict=True)):
        curve = _curve(x_MF, y_M, tuning, params, binary, seed)
    count = int(np.argmin(curve)) + 1
    model = _model(params, binary, seed, max_iter=count, early_stopping=False)
    model.fit(x_MF[train_M], y_M[train_M])
    value_M = model.predict_proba(x_MF)[:, 1] if binary else model.predict(x_MF)
    words = ", ".join(f"{name}={value:g}" for name, value in params.items())
    return Fitted(value_M, float(curve.min()), f"{count} trees, {words}")


def tuned(
    values: Callable[[float], Floats], grid: Sequence[float], y_M: Floats, tuning: Tuning, binary: bool
) -> Fitted:
    """The best of `values(setting)` for a rule that is not fitted."""
    loss_G = [_scored(values(setting), y_M, tuning, binary) for setting in grid]
    best = grid[int(np.argmin(loss_G))]
    return Fitted(values(best), min(loss_G), f"{best:g}")


def _scored(value_M: Floats, y_M: Floats, tuning: Tuning, binary: bool) -> float:
    return sum(loss(value_M[score], y_M[score], binary) for _, score in tuning)


def loss(value_M: Floats, label_M: Floats, binary: bool) -> float:
    """Sum of squared errors, or of negative log-likelihoods in nats."""
    if not binary:
        return float(np.square(value_M - label_M, dtype=np.float64).sum())
    return float(-np.log(np.clip(np.where(label_M > 0, value_M, 1 - value_M), 1e-6, 1)).sum())


def _constant(label_M: Floats) -> bool:
    return bool((label_M == label_M[0]).all())


def standardise(x_MF: Floats, fit: Rows) -> Floats:
    """Columns of mean 0 and spread 1 over the fitted rows, as float64.

    A missing value is put at the mean and marked by a further column, if some but not all are missing.
    Values are cut at `CUT`: one outlier in a held-out row must not carry its prediction away.
    """
    missing_MF = np.isnan(x_MF)
    share_F = missing_MF[fit].mean(0)
    x_MF = np.concatenate([x_MF, missing_MF[:, (share_F > 0) & (share_F < 1)]], axis=1, dtype=np.float64)
    count_F = np.maximum((~np.isnan(x_MF[fit])).sum(0), 1)
    x_MF -= np.nansum(x_MF[fit], axis=0) / count_F
    spread_F = np.sqrt(np.nansum(np.square(x_MF[fit]), axis=0) / count_F)
    x_MF *= np.divide(1, spread_F, out=np.zeros_like(spread_F), where=spread_F > 1e-6)
    return np.clip(np.nan_to_num(x_MF, copy=False), -CUT, CUT)


def _ridge_path(
    x_MF: Floats, y_M: Floats, fit: Rows, wanted: Rows, alphas: Sequence[float]
) -> Iterator[Floats]:
    """Predictions of the wanted rows for each alpha, (W,), from one decomposition."""
    z_MF = standardise(x_MF, fit)
    mean = y_M[fit].mean(dtype=np.float64)
    value_F, vector_FF = np.linalg.eigh(z_MF[fit].T @ z_MF[fit])
    moment_F = vector_FF.T @ (z_MF[fit].T @ (y_M[fit] - mean))
    rotated_WF = z_MF[wanted] @ vector_FF
    for alpha in alphas:
        yield np.clip(mean + rotated_WF @ (moment_F / (np.maximum(value_F, 0) + alpha)), 0, 1)


def _logistic_path(
    x_MF: Floats, y_M: Floats, fit: Rows, wanted: Rows, grid: Sequence[float]
) -> Iterator[Floats]:
    """Probabilities of the wanted rows for each C, (W,)."""
    from sklearn.linear_model import LogisticRegression  # here, since training asks for folds alone

    z_MF = standardise(x_MF, fit)
    for c in grid:
        if _constant(y_M[fit]):
            yield np.full(int(wanted.sum()), y_M[fit].mean())
        else:
            model = LogisticRegression(C=c, max_iter=300, tol=1e-3).fit(z_MF[fit], y_M[fit])
            yield model.predict_proba(z_MF[wanted])[:, 1]


def _thin(fit: Rows, rng: np.random.Generator) -> Rows:
    """At most `TUNING_ROWS` of the rows, drawn at random."""
    if fit.sum() <= TUNING_ROWS:
        return fit
    thin_M = np.zeros_like(fit)
    thin_M[rng.choice(np.flatnonzero(fit), TUNING_ROWS, replace=False)] = True
    return thin_M


def _model(params: dict[str, float], binary: bool, seed: int, max_iter: int, early_stopping: bool) -> Any:
    from sklearn.ensemble import HistGradientBoostingClassifier, HistGradientBoostingRegressor

    kind = HistGradientBoostingClassifier if binary else HistGradientBoostingRegressor
    return kind(**params, max_features=0.5, n_iter_no_change=PATIENCE, random_state=seed, max_iter=max_iter,
                early_stopping=early_stopping)  # fmt: skip


def _curve(
    x_MF: Floats, y_M: Floats, tuning: Tuning, params: dict[str, float], binary: bool, seed: int
) -> Floats:
    """Loss on the scored rows after 1, 2, ... iterations, summed over folds; after an early stop it stays."""
    curve = np.zeros(MAX_ITERATIONS)
    for fit, score in tuning:
        if _constant(y_M[fit]):
            curve += loss(np.full(int(score.sum()), y_M[fit].mean()), y_M[score], binary)
            continue
        model = _model(params, binary, seed, MAX_ITERATIONS, early_stopping=True)
        model.fit(x_MF[fit], y_M[fit], X_val=x_MF[score], y_val=y_M[score])
        loss_I = -model.validation_score_[1:] * (1 if binary else 2)  # scikit-learn's is half the square
        curve += np.pad(loss_I, (0, MAX_ITERATIONS - len(loss_I)), mode="edge") * score.sum()
    return curve
