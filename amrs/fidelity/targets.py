"""What is predicted and scored: a session log as flat numpy columns, and the labels of each signal.

Shape suffixes: S sessions (rows of the log), N plays (all tracks of all sessions, in log order),
K tracks of the catalogue, D embedding size, C context features, M labels of one signal.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from amrs.logs.schema import SIGNALS_ORDER, SessionLog
from amrs.logs.splits import TRAIN

Floats = NDArray[np.floating[Any]]
Ints = NDArray[np.int64]

AFFECT = ("valence", "arousal")
"""Signals reported once a session; the others are observed (or not) at every play."""


@dataclass(frozen=True)
class Target:
    """Labels of one signal, one row each; what the log holds no value for has no row."""

    row: Ints
    """Row of the log's sessions, (M,), never decreasing."""
    step: Ints
    """Index of the play in its session, (M,); the session's last track for valence and arousal."""
    value: Floats
    """The label in [0, 1], (M,)."""
    user: Ints
    """Number of the user in order of first appearance, (M,)."""
    mode: Ints
    """Index into `metadata.modes`, -1 where unknown, (M,)."""
    cohort: Ints
    """Index into `metadata.cohorts`, -1 where unknown, (M,)."""


@dataclass(frozen=True)
class Columns:
    """A session log as flat arrays; NaN (or -1 for codes) wherever the log holds null."""

    user_S: Ints
    start_S: Ints
    """Milliseconds since 1970, UTC."""
    offset_S: Floats
    """Minutes that local time is ahead of UTC."""
    mode_S: Ints
    cohort_S: Ints
    context_SC: Floats
    session_S: Mapping[str, Floats]
    """Reports: `pre_valence`, `pre_arousal`, `post_valence`, `post_arousal`; and `left`, 1 or 0."""
    first_S: Ints
    """Number of plays before the session, so its plays are `first_S[s] : first_S[s] + length_S[s]`."""
    length_S: Ints
    row_N: Ints
    track_N: Ints
    """Row of the catalogue."""
    play_N: Mapping[str, Floats]
    """`engagement`, `rating`, `track_valence`, `track_arousal`; and `propensity`, where it was logged."""
    embedding_KD: Floats
    artist_K: Ints
    """Number of the track's artist, -1 where the catalogue names none."""


def columns(log: SessionLog) -> Columns:
    """The log's columns as flat arrays, without a Python loop over rows."""
    table: pa.Table = log.sessions.with_format("arrow")[:]
    catalogue: pa.Table = log.catalogue.with_format("arrow")[:]
    length_S = _numpy(pc.list_value_length(_whole(table, "track_id"))).astype(np.int64)
    track = _whole(table, "track_id").flatten()
    dimension = int(pc.list_value_length(_whole(catalogue, "embedding").slice(0, 1))[0].as_py())
    reports = ("pre_valence", "pre_arousal", "post_valence", "post_arousal")
    ended = _whole(table, "ended")
    left_S = _floats(pc.equal(ended, "left").cast(pa.int8()))
    feedback = ("engagement", "rating", "track_valence", "track_arousal", "propensity")
    return Columns(
        user_S=_codes(_whole(table, "user_id")),
        start_S=_numpy(_whole(table, "started_at").cast(pa.int64())).astype(np.int64),
        offset_S=_floats(_whole(table, "utc_offset_min")),
        mode_S=_labels(_whole(table, "mode"), log.metadata.modes),
        cohort_S=_labels(_whole(table, "cohort"), log.metadata.cohorts),
        context_SC=_vectors(_whole(table, "context"), len(log.metadata.context)),
        session_S={"left": left_S, **{name: _floats(_whole(table, name)) for name in reports}},
        first_S=np.cumsum(length_S) - length_S,
        length_S=length_S,
        row_N=np.repeat(np.arange(len(length_S)), length_S),
        track_N=_numpy(pc.index_in(track, _whole(catalogue, "track_id"))).astype(np.int64),
        play_N={name: _items(_whole(table, name), length_S) for name in feedback},
        embedding_KD=_vectors(_whole(catalogue, "embedding"), dimension),
        artist_K=_codes(_whole(catalogue, "artist")),
    )


def targets(log: SessionLog, flat: Columns | None = None) -> dict[str, Target]:
    """Labels of each declared signal in log order; a null is no label, never 0.

    Valence and arousal: the reports after a session, one row per session that has one.
    Engagement and rating: one row per play that has one. `flat` is the log's columns, if read already.
    """
    flat = columns(log) if flat is None else flat
    names = [name for name in SIGNALS_ORDER if name in log.metadata.signals]
    return {name: _affect(flat, name) if name in AFFECT else _played(flat, name) for name in names}


def training_mean(labels: Mapping[str, Target], part_S: NDArray[np.int8]) -> dict[str, float]:
    """Mean label of training users per signal (NaN without any): what `r2` is measured against."""
    means = {}
    for name, label in labels.items():
        value = label.value[part_S[label.row] == TRAIN]
        means[name] = float(value.mean(dtype=np.float64)) if len(value) else float("nan")
    return means


def _affect(flat: Columns, name: str) -> Target:
    row = np.flatnonzero(~np.isnan(flat.session_S[f"post_{name}"]))
    return _target(flat, row, flat.length_S[row] - 1, flat.session_S[f"post_{name}"][row])


def _played(flat: Columns, name: str) -> Target:
    play = np.flatnonzero(~np.isnan(flat.play_N[name]))
    row = flat.row_N[play]
    return _target(flat, row, play - flat.first_S[row], flat.play_N[name][play])


def _target(flat: Columns, row: Ints, step: Ints, value: Floats) -> Target:
    return Target(row, step, value, flat.user_S[row], flat.mode_S[row], flat.cohort_S[row])


def _whole(table: pa.Table, name: str) -> pa.Array:
    """A column as one array: chunks joined; all null where an optional column is absent."""
    if name not in table.column_names:
        return pa.nulls(len(table), pa.string())
    chunked = table[name].combine_chunks()
    return chunked.combine_chunks() if isinstance(chunked, pa.ChunkedArray) else chunked


def _numpy(array: pa.Array) -> NDArray[np.generic]:
    return np.asarray(array.to_numpy(zero_copy_only=False))


def _floats(array: pa.Array) -> Floats:
    """Numbers as float32, null as NaN."""
    return _numpy(array.cast(pa.float32())).astype(np.float32)


def _codes(array: pa.Array) -> Ints:
    """Numbers of the distinct values in order of first appearance, null as -1."""
    coded = array.dictionary_encode().indices
    return _numpy(coded.fill_null(-1)).astype(np.int64)


def _labels(array: pa.Array, names: tuple[str, ...]) -> Ints:
    """Class labels; all -1 where the log declares no names."""
    code = _numpy(array.cast(pa.int64()).fill_null(-1)).astype(np.int64)
    return code if names else np.full_like(code, -1)


def _items(array: pa.Array, length_S: Ints) -> Floats:
    """A list column as (N,), NaN for null items and for every play of a row whose list is null."""
    value_N = np.full(int(length_S.sum()), np.nan, np.float32)
    given_S = _numpy(array.is_valid()).astype(bool)
    if given_S.any():
        value_N[np.repeat(given_S, length_S)] = _floats(array.flatten())
    return value_N


def _vectors(array: pa.Array, size: int) -> Floats:
    """Vectors of one length as (rows, size), NaN for rows that are null."""
    value = np.full((len(array), size), np.nan, np.float32)
    given = _numpy(array.is_valid()).astype(bool)
    if size and given.any():
        value[given] = _floats(array.flatten()).reshape(-1, size)
    return value
