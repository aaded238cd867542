"""From a session log on disk to batches: user splits, the flat event sequence, windows.

A listener's history is one sequence of tokens: for each session a start token (what is known before
the first track), then one token a play. The output at token n predicts what comes right after it.
Shape suffixes: U users, S sessions, N tokens of the whole log, W windows, B batch, L window length,
K tracks, F session features, Y targets.
"""

import hashlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import lightning as L
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch
from torch import Tensor

from amrs.config.data import SplitConfig
from amrs.noise import uniform
from amrs.schema import SessionLog, read_log

TRAIN, VALIDATION, TEST = 0, 1, 2
FEEDBACK = ("engagement", "rating", "track_valence", "track_arousal")
"""What a play token carries besides its track; NaN where missing."""
TARGETS = ("engagement", "rating", "valence", "arousal", "left", "rated", "reported")
"""What the output before a play predicts about it; NaN where there is nothing to learn."""
_SPLIT_PURPOSE, _HALF_PURPOSE = "split", "half"


class Batch(NamedTuple):
    """B windows of L tokens, right-padded; targets are about the play after each token."""

    static_BLF: Tensor
    """Features of each token's session, NaN where missing."""
    track_BL: Tensor
    """int64 track of a play token, -1 at session starts and padding."""
    feedback_BL4: Tensor
    """`FEEDBACK` of a play token, NaN where missing or hidden."""
    hidden_BL: Tensor
    """True where the session's feedback is hidden from the model."""
    valid_BL: Tensor
    """False at padding."""
    counts_BL: Tensor
    """True where the token's targets count in the loss (windows overlap, targets do not)."""
    next_track_BL: Tensor
    """int64 track played right after the token in the same session, -1 where none."""
    mode_BL: Tensor
    """int64 mode of the session, -1 where null."""
    step_BL: Tensor
    """int64 number of plays of this session up to and including the token."""
    target_BLY: Tensor
    """`TARGETS` of the next play, NaN where unknown."""
    report_BL2: Tensor
    """The session's own final report (valence, arousal), at its start token and its last play only."""
    normaliser_Y: Tensor
    """Label counts of the whole optimiser step, per process and micro-batch; see `StepBatches`."""


@dataclass
class FlatLog:
    """The whole log as flat tensors, in log order."""

    user_S: Tensor
    mode_S: Tensor
    static_SF: Tensor
    report_S2: Tensor
    first_S: Tensor
    """Index of each session's start token."""
    length_S: Tensor
    session_N: Tensor
    track_N: Tensor
    feedback_N4: Tensor
    step_N: Tensor
    next_track_N: Tensor
    target_NY: Tensor
    user_first_U: Tensor
    """First token of each user."""
    user_last_U: Tensor
    """One past the last token of each user."""
    row_U: Tensor
    """First session of each user."""


def _floats(column: pa.ChunkedArray) -> np.ndarray:
    return np.asarray(pc.cast(column, pa.float32()).to_numpy(), dtype=np.float32)


def _list_floats(column: pa.ChunkedArray) -> np.ndarray:
    return _floats(pc.list_flatten(column))


def _class_index(column: pa.ChunkedArray, names: tuple[str, ...]) -> np.ndarray:
    """Class labels as int64, -1 for null (and for a data set that has no such classes)."""
    if not names:
        return np.full(len(column), -1, dtype=np.int64)
    return np.asarray(pc.fill_null(column, -1).to_numpy(), dtype=np.int64)


def _previous(values_S: np.ndarray, same_user_S: np.ndarray) -> np.ndarray:
    """Each session's predecessor of the same user; NaN at a user's first session."""
    shifted = np.full_like(values_S, np.nan)
    shifted[1:] = values_S[:-1]
    shifted[~same_user_S] = np.nan
    return shifted


def _hours(table: pa.Table, column: str) -> np.ndarray:
    return np.asarray(pc.cast(table[column], pa.int64()).to_numpy(), dtype=np.float64) / 3.6e6


def static_features(table: pa.Table, log: SessionLog, user_S: np.ndarray) -> np.ndarray:
    """What is known when a session starts, as (S, F) with NaN where missing.

    Mode and cohort (one-hot), pre-report, context, local hour (sine, cosine), hours since the last
    session's start (log), number of earlier sessions (log), and of the last session its report and
    whether the listener left. Nothing of the session's own plays, feedback or final report.
    """
    meta = log.metadata
    same_user_S = np.r_[False, user_S[1:] == user_S[:-1]]
    start_S = _hours(table, "started_at")
    gap_S = _previous(start_S, same_user_S)
    first_S = np.maximum.accumulate(np.where(same_user_S, 0, np.arange(len(user_S))))
    offset_S = _floats(table["utc_offset_min"])
    angle_S = (start_S + offset_S / 60) % 24 * (2 * np.pi / 24)
    left = pc.cast(pc.equal(table["ended"], "left"), pa.float32())
    columns = [
        *np.eye(len(meta.modes) + 1, dtype=np.float32)[_class_index(table["mode"], meta.modes)].T[:-1],
        *np.eye(len(meta.cohorts) + 1, dtype=np.float32)[_class_index(table["cohort"], meta.cohorts)].T[:-1],
        _floats(table["pre_valence"]),
        _floats(table["pre_arousal"]),
        np.sin(angle_S),
        np.cos(angle_S),
        np.log1p(np.maximum(start_S - gap_S, 0)),
        np.log1p(np.arange(len(user_S)) - first_S),
        _previous(_floats(table["post_valence"]), same_user_S),
        _previous(_floats(table["post_arousal"]), same_user_S),
        _previous(np.asarray(left.to_numpy(), dtype=np.float32), same_user_S),
    ]
    context = _context(table["context"], len(meta.context))
    return np.column_stack([np.stack(columns, 1), context]).astype(np.float32)


def _context(column: pa.ChunkedArray, size: int) -> np.ndarray:
    values = np.full((len(column), size), np.nan, dtype=np.float32)
    if size:
        known = np.asarray(pc.is_valid(column).to_numpy(), dtype=bool)
        values[known] = _list_floats(column.drop_null()).reshape(-1, size)
    return values


def flatten(log: SessionLog) -> FlatLog:
    """The log as flat tensors. Missing feedback stays NaN."""
    table: pa.Table = log.sessions.with_format("arrow")[:]
    tracks = pc.list_flatten(table["track_id"])
    length_S = np.asarray(pc.list_value_length(table["track_id"]).to_numpy(), dtype=np.int64)
    users = table["user_id"].combine_chunks().dictionary_encode()
    user_S = np.asarray(users.indices.to_numpy(), dtype=np.int64)
    first_S = np.r_[0, np.cumsum(length_S + 1)[:-1]]
    count = int((length_S + 1).sum())
    session_N = np.repeat(np.arange(len(length_S)), length_S + 1)
    step_N = np.arange(count) - first_S[session_N]
    play_N = step_N > 0
    catalogue_ids = log.catalogue.with_format("arrow")[:]["track_id"].combine_chunks()
    track_N = np.full(count, -1, dtype=np.int64)
    track_N[play_N] = pc.index_in(tracks, value_set=catalogue_ids).to_numpy()
    feedback_N4 = np.full((count, 4), np.nan, dtype=np.float32)
    feedback_N4[play_N] = np.column_stack([_list_floats(table[name]) for name in FEEDBACK])
    report_S2 = np.column_stack([_floats(table["post_valence"]), _floats(table["post_arousal"])])
    row_U = np.flatnonzero(np.r_[True, user_S[1:] != user_S[:-1]])
    user_first_U = first_S[row_U]
    mode_S = _class_index(table["mode"], log.metadata.modes)
    ended = table["ended"]
    left_S = np.asarray(pc.cast(pc.equal(ended, "left"), pa.float32()).to_numpy(), dtype=np.float32)
    next_track_N, target_NY = _targets(session_N, step_N, length_S, track_N, feedback_N4, report_S2, left_S)
    static_SF = static_features(table, log, user_S)
    arrays = (user_S, mode_S, static_SF, report_S2.astype(np.float32), first_S, length_S, session_N,
              track_N, feedback_N4, step_N, next_track_N, target_NY, user_first_U,
              np.r_[user_first_U[1:], count], row_U)  # fmt: skip
    return FlatLog(*(torch.from_numpy(np.ascontiguousarray(a)) for a in arrays))


def _targets(
    session_N: np.ndarray,
    step_N: np.ndarray,
    length_S: np.ndarray,
    track_N: np.ndarray,
    feedback_N4: np.ndarray,
    report_S2: np.ndarray,
    left_S: np.ndarray,
) -> tuple[np.ndarray, np.ndarray]:
    """Next track (N,) and `TARGETS` (N, Y) of the play that follows each token in its session.

    Valence and arousal mean the report if the session ended after that play: the session's report
    at its last play, a report right after the track elsewhere.
    """
    follows_N = step_N < length_S[session_N]
    last_N = step_N == length_S[session_N] - 1
    next_N = np.minimum(np.arange(len(step_N)) + 1, len(step_N) - 1)
    next_track_N = np.where(follows_N, track_N[next_N], -1)
    feedback = feedback_N4[next_N]
    report_N2 = report_S2[session_N]
    affect = np.where(last_N[:, None] & ~np.isnan(report_N2), report_N2, feedback[:, 2:])
    left_N = np.where(last_N, left_S[session_N], 0.0)
    rated_N = (~np.isnan(feedback[:, 1])).astype(np.float32)
    reported_N = np.where(last_N, (~np.isnan(report_N2)).any(1), np.nan)
    target_NY = np.column_stack([feedback[:, :2], affect, left_N, rated_N, reported_N]).astype(np.float32)
    target_NY[~follows_N] = np.nan
    return next_track_N, target_NY


def _ranked(user_ids: list[str], seed: int, purpose: str) -> np.ndarray:
    """Users in the order of a salted hash of their ids."""
    digests = [hashlib.sha256(f"{purpose}:{seed}:{user}".encode()).digest() for user in user_ids]
    return np.array(sorted(range(len(user_ids)), key=digests.__getitem__))


def split_users(user_ids: list[str], config: SplitConfig) -> np.ndarray:
    """TRAIN, VALIDATION or TEST for each user, as (U,): exact counts, at least one user each."""
    count = len(user_ids)
    if count < 3:
        raise ValueError(f"{count} users cannot be split: training, validation and test need one each")
    test = max(1, round(config.test * count))
    validation = min(max(1, round(config.validation * count)), count - test - 1)
    part_U = np.full(count, TRAIN, dtype=np.int64)
    order = _ranked(user_ids, config.seed, _SPLIT_PURPOSE)
    part_U[order[:test]] = TEST
    part_U[order[test : test + validation]] = VALIDATION
    return part_U


def split_halves(user_ids: list[str], part_U: np.ndarray, seed: int) -> np.ndarray:
    """0 (labeller) or 1 (judge) for each user, as (U,): disjoint halves within every part."""
    half_U = np.zeros(len(user_ids), dtype=np.int64)
    order = _ranked(user_ids, seed, _HALF_PURPOSE)
    for part in (TRAIN, VALIDATION, TEST):
        members = order[part_U[order] == part]
        half_U[members[: len(members) // 2]] = 1
    return half_U


def windows(flat: FlatLog, users: Tensor, length: int) -> Tensor:
    """Windows over the users' whole histories, as int64 (W, 3): first token, end, first that counts.

    Windows overlap by half; every token counts in exactly one window, and beyond the first window
    it has at least `length // 2` tokens before it.
    """
    rows = []
    stride = length - length // 2
    for begin, end in zip(flat.user_first_U[users].tolist(), flat.user_last_U[users].tolist(), strict=True):
        rows.append((begin, min(begin + length, end), begin))
        counted = begin + length
        while counted < end:
            stop = min(counted + stride, end)
            rows.append((max(stop - length, begin), stop, counted))
            counted = stop
    return torch.tensor(rows, dtype=torch.int64).reshape(-1, 3)


@dataclass
class StepBatches:
    """An endless stream of micro-batches, the same optimiser steps for any number of processes.

    Step s takes the same `batch_size` units whatever the ranks and accumulation steps; they are
    dealt out to (micro-batch, rank). `collate` gets the units and the label counts of the whole step
    divided by the number of deals, so that Lightning's division by accumulation steps and DDP's mean
    over ranks leave a sum divided by the step's count. Units are shuffled anew each epoch.
    """

    units: int
    batch_size: int
    seed: int
    collate: Callable[[Tensor, Tensor, int], NamedTuple]
    ranks: int = 1
    rank: int = 0
    accumulate: int = 1
    start_step: int = 0

    def step_units(self, step: int) -> Tensor:
        """Units of optimiser step `step`, as (batch_size,)."""
        position = torch.arange(step * self.batch_size, (step + 1) * self.batch_size)
        parts = []
        for epoch in range(int(position[0]) // self.units, int(position[-1]) // self.units + 1):
            order = uniform(self.seed, epoch, torch.arange(self.units)).argsort()
            parts.append(order[position[position // self.units == epoch] % self.units])
        return torch.cat(parts)

    def __iter__(self) -> Iterator[NamedTuple]:
        deals = self.ranks * self.accumulate
        step = self.start_step
        while True:
            units = self.step_units(step)
            for micro in range(self.accumulate):
                mine = units[micro * self.ranks + self.rank :: deals]
                yield self.collate(mine, units, deals)
            step += 1
