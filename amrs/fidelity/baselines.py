"""What a careful statistician would use instead of a world model, on the same users, rows and inputs.

Fitted on training users, tuned on validation users: copies of the last report, a shrunken running mean,
ridge (logistic for ratings) and gradient boosting on the hand-made features of `features.py`.
Shape suffixes: M labels of one signal, F features, D embedding size, R its reduced size.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from amrs.fidelity.estimators import Fitted, Rows, Tuning, linear, trees, tuned, tuning_rows
from amrs.fidelity.features import Features, History, Known, features
from amrs.fidelity.targets import AFFECT, Floats, Target, columns, targets, training_mean
from amrs.logs.schema import SessionLog
from amrs.logs.splits import TRAIN

REDUCED = 64
"""Principal components of the catalogue that the trees see in place of longer embeddings, for speed; with 16,
R2 of valence on the platform fell from .261 to .252 (four splits)."""

SHRINKAGE = (0.25, 0.5, 1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0, 1e9)
"""Grid of pseudo-counts of the training mean in a user's running mean."""


class Labels(NamedTuple):
    """One signal's labels with their users' parts, and what the subjects need to predict them."""

    signal: str
    label: Target
    train_M: Rows
    tuning: Tuning
    mean: float
    history: History
    inputs: Features
    seed: int

    @property
    def binary(self) -> bool:
        """Whether the label is 0 or 1, so that a probability is predicted."""
        return self.signal == "rating"


def predict(
    log: SessionLog,
    part_S: NDArray[np.int8],
    known: Known = "tracks",
    seed: int = 0,
    subjects: Sequence[str] | None = None,
    signals: Sequence[str] | None = None,
) -> dict[str, dict[str, Floats]]:
    """Predictions of each subject and declared signal, aligned with the rows of `targets(log)[signal]`.

    As `fit`, without what the tuning chose.
    """
    found = fit(log, part_S, known, seed, subjects, signals)
    return {name: {x: fitted.value_M for x, fitted in by_signal.items()} for name, by_signal in found.items()}


def fit(
    log: SessionLog,
    part_S: NDArray[np.int8],
    known: Known = "tracks",
    seed: int = 0,
    subjects: Sequence[str] | None = None,
    signals: Sequence[str] | None = None,
) -> dict[str, dict[str, Fitted]]:
    """Each subject fitted to each declared signal; values aligned with the rows of `targets(log)[signal]`.

    `part_S` is 0, 1 or 2 (training, validation, test) per session, the same for all sessions of a user.
    Rows of every part are predicted; NaN where a subject does not apply. Labels of test users reach their
    own later predictions as history and nothing else. `known` concerns valence and arousal alone.
    """
    chosen = tuple(SUBJECTS) if subjects is None else tuple(subjects)
    if unknown := [name for name in chosen if name not in SUBJECTS]:
        raise ValueError(f"baseline {unknown[0]!r} does not exist; there are {', '.join(SUBJECTS)}")
    flat = columns(log)
    if part_S.shape != flat.user_S.shape:
        raise ValueError(f"part_S has shape {part_S.shape}, but the log has {len(flat.user_S)} sessions")
    history, labels = History(flat), targets(log, flat)
    means = training_mean(labels, part_S)
    found: dict[str, dict[str, Fitted]] = {name: {} for name in chosen}
    for signal, label in labels.items():
        if signals is not None and signal not in signals:
            continue
        part_M = part_S[label.row]
        task = Labels(
            signal, label, part_M == TRAIN, tuning_rows(label.user, part_M, seed), means[signal], history,
            features(history, signal, label, known), seed,
        )  # fmt: skip
        for name in chosen:
            fitted = SUBJECTS[name](task) if task.train_M.any() else _nothing(task)
            found[name][signal] = fitted._replace(value_M=np.clip(fitted.value_M, 0, 1).astype(np.float32))
    return found


def best(found: dict[str, dict[str, Fitted]], signal: str) -> str | None:
    """The baseline with the least loss where settings are tuned; None where there is none."""
    loss = {name: by_signal[signal].loss for name, by_signal in found.items() if signal in by_signal}
    loss = {name: value for name, value in loss.items() if np.isfinite(value)}
    return min(loss, key=loss.__getitem__) if loss else None


def _nothing(task: Labels) -> Fitted:
    """No prediction: the baseline does not apply, or no training user has a label."""
    return Fitted(np.full(len(task.train_M), np.nan, np.float32), np.inf, "does not apply")


def _copied(task: Labels, value_M: Floats) -> Fitted:
    """Values as they are; the training mean where there is none."""
    filled_M = np.where(np.isnan(value_M), task.mean, value_M).astype(np.float32)
    return tuned(lambda _: filled_M, (1.0,), task.label.value, task.tuning, task.binary)._replace(
        chosen="nothing to tune"
    )


def persistence_pre(task: Labels) -> Fitted:
    """Copy the report before the session; the training mean where there is none."""
    if task.signal not in AFFECT:
        return _nothing(task)
    return _copied(task, task.history.flat.session_S[f"pre_{task.signal}"][task.label.row])


def persistence_last(task: Labels) -> Fitted:
    """Copy the user's last value of the signal; the training mean where there is none."""
    return _copied(task, task.inputs.column(f"{_past(task.signal)}_last"))


def user_mean(task: Labels) -> Fitted:
    """Mean of the user's earlier values, shrunk toward the training mean by a tuned pseudo-count."""
    count_M = np.expm1(task.inputs.column(f"{_past(task.signal)}_count"))
    mean_M = np.nan_to_num(task.inputs.column(f"{_past(task.signal)}_mean"))

    def shrunk(k: float) -> Floats:
        mixed_M: Floats = (count_M * mean_M + k * task.mean) / (count_M + k)
        return mixed_M

    found = tuned(shrunk, SHRINKAGE, task.label.value, task.tuning, task.binary)
    return found._replace(chosen=f"pseudo-count={found.chosen}")


def ridge(task: Labels) -> Fitted:
    """Ridge regression (L2 logistic for ratings) on all features and whole embeddings."""
    x_MF = np.column_stack([task.inputs.value_QF, *task.inputs.track_QD])
    return linear(x_MF, task.label.value, task.train_M, task.tuning, task.binary)


def boosting(task: Labels) -> Fitted:
    """Gradient boosting on all features and reduced embeddings."""
    axes_DR = _axes(task.history.embedding_KD)
    x_MF = np.column_stack([task.inputs.value_QF, *(x_QD @ axes_DR for x_QD in task.inputs.track_QD)])
    return trees(x_MF, task.label.value, task.train_M, task.tuning, task.binary, task.seed)


SUBJECTS: dict[str, Callable[[Labels], Fitted]] = {
    "persistence_pre": persistence_pre,
    "persistence_last": persistence_last,
    "user_mean": user_mean,
    "ridge": ridge,
    "boosting": boosting,
}
"""Names as in the report's rows."""


def _past(signal: str) -> str:
    """Name of the history feature that holds the signal's own earlier values."""
    return f"post_{signal}" if signal in AFFECT else signal


def _axes(embedding_KD: Floats) -> Floats:
    """Projection (D, R) on the catalogue's leading principal axes; the channels themselves if hardly more."""
    if embedding_KD.shape[1] <= 1.5 * REDUCED:
        return np.eye(embedding_KD.shape[1])
    _, vector_DD = np.linalg.eigh(np.cov(embedding_KD, rowvar=False))
    return vector_DD[:, ::-1][:, :REDUCED]
