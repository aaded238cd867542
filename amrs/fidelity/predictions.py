"""Held-out predictions as a table: figures of one split, or of many pooled, are functions of it.

One row a label: where it is, whose, its value, the training mean that R2 is about, and a column for each
predictor. A predictor is `<subject>` (given the session's tracks; per play for engagement and rating),
`<subject>@forecast` (at the session's start) or `<subject>@nowcast` (after its last track). Users are numbers
of a log, and `log` is its fingerprint: the same user in several splits is the same listener, the same number
in two worlds is not.
Shape suffix: N rows.
"""

import os
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd

from amrs import metrics
from amrs.fidelity.targets import AFFECT, Floats, Target
from amrs.fidelity.track_effects import Usual, partial_r2, uplift_slope
from amrs.logs.schema import Metadata
from amrs.report import Row

FILE = "predictions.parquet"
KEYS = ("signal", "log", "user", "row", "step", "mode", "cohort", "value", "train_mean")
USUAL = ("usual", "usual_variance")
"""What the world model predicts of a report had the tracks been others: see `track_effects.Usual`."""
_AUROC_DRAWS = 200


def table(
    signal: str, label: Target, train_mean: float, predictors: Mapping[str, Floats], meta: Metadata, log: str
) -> pd.DataFrame:
    """The labels of one signal with their predictions; a predictor that does not apply is left out."""
    columns: dict[str, object] = {
        "signal": signal, "log": log, "user": label.user, "row": label.row, "step": label.step,
        "mode": _named(label.mode, meta.modes), "cohort": _named(label.cohort, meta.cohorts),
        "value": label.value.astype(np.float32), "train_mean": np.float32(train_mean),
    }  # fmt: skip
    for name, value_N in predictors.items():
        if not np.isnan(value_N).all():
            columns[name] = value_N.astype(np.float32)
    return pd.DataFrame(columns)


def _named(code_N: np.ndarray, names: tuple[str, ...]) -> np.ndarray:
    """Names of codes, "" for -1."""
    name_N: np.ndarray = np.array([*names, ""], dtype=object)[code_N]
    return name_N


def save(frame: pd.DataFrame, folder: Path) -> None:
    """Write `folder`/predictions.parquet; the file is whole or not there."""
    temporary = folder / f"{FILE}.tmp"
    frame.to_parquet(temporary, index=False)
    os.replace(temporary, folder / FILE)


def pooled(folders: list[Path]) -> pd.DataFrame:
    """The predictions of several parts together, `part` numbering them."""
    return pd.concat(
        [pd.read_parquet(folder / FILE).assign(part=part) for part, folder in enumerate(folders)],
        ignore_index=True,
    )


def fit_rows(frame: pd.DataFrame, draws: int, seed: int, split: int | str = "mean") -> list[Row]:
    """Rows of section `fidelity` from predictions of one part or of several pooled.

    Intervals draw users, each with all appearances in all parts. `n` counts labels, each once.
    """
    found: list[Row] = []
    for signal, mine in frame.groupby("signal", sort=False):
        mine = mine.dropna(axis=1, how="all").reset_index(drop=True)
        user_N = _users(mine)
        for group, keep_N in _groups(mine):
            kept, whose_N = mine[keep_N], user_N[keep_N]
            for name in predictors(mine):
                subject, _, known = name.partition("@")
                if group == "all" or not known:
                    found += _score(subject, str(signal), kept, name, whose_N, group, draws, seed)
        if signal in AFFECT:
            found += _track_rows(str(signal), mine, user_N, draws, seed)
    return [replace(row, split=split) for row in found]


def predictors(frame: pd.DataFrame) -> list[str]:
    """The columns that are predictions."""
    return [name for name in frame.columns if name not in (*KEYS, *USUAL, "part")]


def _users(frame: pd.DataFrame) -> np.ndarray:
    """One number for each listener, over all logs, (N,)."""
    return frame.groupby(["log", "user"], sort=False).ngroup().to_numpy()


def labels(frame: pd.DataFrame) -> int:
    """Labels, each once in however many parts it was tested."""
    return len(frame[["log", "row", "step"]].drop_duplicates())


def _groups(frame: pd.DataFrame) -> Iterator[tuple[str, np.ndarray]]:
    yield "all", np.ones(len(frame), bool)
    for kind in ("cohort", "mode"):
        for name in sorted(set(frame[kind]) - {""}):
            yield f"{kind}:{name}", (frame[kind] == name).to_numpy()


def _score(
    subject: str, signal: str, frame: pd.DataFrame, name: str, user_N: np.ndarray, group: str, draws: int,
    seed: int,
) -> list[Row]:  # fmt: skip
    """Point figures of one predictor over some rows."""
    known = name.partition("@")[2]
    frame, user_N = frame[frame[name].notna()], user_N[frame[name].notna()]
    if frame.empty:
        return []
    y_N, p_N = (frame[column].to_numpy(np.float64) for column in ("value", name))
    if signal == "rating":
        found = {"auroc": (metrics.auroc_interval(y_N, p_N, user_N, min(draws, _AUROC_DRAWS), seed), "area")}
    else:
        mean_N = frame["train_mean"].to_numpy(np.float64)
        found = {"r2": (metrics.r2_interval(y_N, p_N, mean_N, user_N, draws, seed), "fraction")}
        if not known:
            found["mae"] = (metrics.mae_interval(y_N, p_N, user_N, draws, seed), "scale points")
    n, where = labels(frame), f"known:{known}" if known else group
    return [
        Row("fidelity", subject, signal, metric, "mean", where, *estimate._replace(n=n), unit)
        for metric, (estimate, unit) in found.items()
    ]


def _track_rows(signal: str, frame: pd.DataFrame, user_N: np.ndarray, draws: int, seed: int) -> list[Row]:
    """What knowing the session's tracks adds: against the track-blind prediction, one for all predictors; and
    against each one's own forecast, for a predictor may also know the listener better than that one does."""
    if "track_blind" not in frame:
        return []
    y_N, blind_N = (frame[name].to_numpy(np.float64) for name in ("value", "track_blind"))
    found, n = [], labels(frame)
    for name in predictors(frame):
        if "@" in name or name == "track_blind":
            continue
        given_N = frame[name].to_numpy(np.float64)
        keep_N = ~np.isnan(given_N)
        kept = (y_N[keep_N], given_N[keep_N])
        estimate = partial_r2(*kept, blind_N[keep_N], user_N[keep_N], draws, seed)._replace(n=n)
        found.append(Row("fidelity", name, signal, "partial_r2", "mean", "all", *estimate, "fraction"))
        if f"{name}@forecast" in frame:
            own_N = frame[f"{name}@forecast"].to_numpy(np.float64)[keep_N]
            estimate = partial_r2(*kept, own_N, user_N[keep_N], draws, seed)._replace(n=n)
            found.append(
                Row("fidelity", name, signal, "partial_r2_own", "mean", "all", *estimate, "fraction")
            )
        if name == "world_model" and set(USUAL) <= set(frame):
            usual = Usual(*(frame[column].to_numpy(np.float64)[keep_N] for column in USUAL))
            slope = uplift_slope(*kept, usual, user_N[keep_N])._replace(n=n)
            unit = "residual per predicted"
            found.append(Row("fidelity", name, signal, "uplift_slope", "mean", "all", *slope, unit))
    return found
