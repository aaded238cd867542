"""Histories that nobody had: what a policy does on them is asked before anybody has one.

Each is made from real histories of test users by an edit of their columns, so everything that is computed
from a history (running means, features of a session) follows the edit. Shape suffixes: Q histories, S their
sessions, N their plays.
"""

import copy
from collections.abc import Callable
from dataclasses import replace
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor

from amrs.data import SessionDataModule
from amrs.fidelity.targets import Columns, Ints
from amrs.logs.histories import flatten_columns

WEEK_MS, DAY_MS = 7 * 24 * 3_600_000, 24 * 3_600_000
_WORST, _BEST = 0.0, 1.0
_SEVERAL = 4
"""Windows that a very long history fills."""
Thing = TypeVar("Thing")


class Histories:
    """Columns of Q histories; the last session of each is the one under way, which no edit touches."""

    def __init__(self, columns: Columns, row_Q: Ints) -> None:
        self.columns, self.row_Q = columns, row_Q

    @property
    def earlier_S(self) -> np.ndarray:
        """True for sessions before the one under way."""
        earlier_S = np.ones(len(self.columns.user_S), dtype=bool)
        earlier_S[self.row_Q] = False
        return earlier_S

    @property
    def earlier_N(self) -> np.ndarray:
        """True for plays of those sessions."""
        return self.earlier_S[self.columns.row_N]


def gather(columns: Columns, sessions_Q: list[Ints], start_S: Ints | None = None) -> Histories:
    """Q histories of the given sessions each, in order, under users of their own."""
    count_Q = np.array([len(rows) for rows in sessions_Q])
    row_S = np.concatenate(sessions_Q)
    length_S = columns.length_S[row_S]
    first_S = np.cumsum(length_S) - length_S
    within_N = np.arange(int(length_S.sum())) - np.repeat(first_S, length_S)
    play_N = np.repeat(columns.first_S[row_S], length_S) + within_N
    taken = replace(
        columns,
        user_S=np.repeat(np.arange(len(count_Q)), count_Q),
        start_S=columns.start_S[row_S] if start_S is None else start_S,
        offset_S=columns.offset_S[row_S], mode_S=columns.mode_S[row_S], cohort_S=columns.cohort_S[row_S],
        context_SC=columns.context_SC[row_S],
        session_S={name: value_S[row_S] for name, value_S in columns.session_S.items()},
        first_S=first_S, length_S=length_S, row_N=np.repeat(np.arange(len(row_S)), length_S),
        track_N=columns.track_N[play_N],
        play_N={name: value_N[play_N] for name, value_N in columns.play_N.items()},
    )  # fmt: skip
    return Histories(taken, np.cumsum(count_Q) - 1)


def logged(columns: Columns, row_Q: Ints) -> Histories:
    """The histories as they were, up to and with sessions `row_Q` of the log."""
    first_Q = np.searchsorted(columns.user_S, columns.user_S[row_Q])
    return gather(
        columns,
        [np.arange(first, row + 1) for first, row in zip(first_Q.tolist(), row_Q.tolist(), strict=True)],
    )


def rated(histories: Histories, rating: float, engagement: float, change: float) -> Histories:
    """Earlier plays all rated and heard alike, and reports that changed by `change`."""
    columns, earlier_N, earlier_S = histories.columns, histories.earlier_N, histories.earlier_S
    play_N = dict(columns.play_N)
    for name, value in (("rating", rating), ("engagement", engagement)):
        play_N[name] = np.where(earlier_N, np.float32(value), play_N[name])
    session_S = dict(columns.session_S)
    before_S = np.nan_to_num(session_S["pre_valence"], nan=0.5)
    after_S = np.clip(before_S + change, 0, 1).astype(np.float32)
    session_S["post_valence"] = np.where(earlier_S, after_S, session_S["post_valence"])
    return Histories(replace(columns, play_N=play_N, session_S=session_S), histories.row_Q)


def stuck(histories: Histories) -> Histories:
    """Every earlier track heard to its end, as by somebody who cannot skip; the rest as it was."""
    columns = histories.columns
    full_N = np.where(histories.earlier_N, np.float32(1.0), columns.play_N["engagement"])
    return Histories(replace(columns, play_N={**columns.play_N, "engagement": full_N}), histories.row_Q)


def empty(histories: Histories) -> Histories:
    """The session under way and nothing before it."""
    return gather(histories.columns, [np.array([row]) for row in histories.row_Q])


def long(histories: Histories, events: int) -> Histories:
    """Earlier sessions again and again, further and further back, until they fill `_SEVERAL` windows."""
    columns = histories.columns
    sessions_Q, starts = [], []
    first = 0
    for row in histories.row_Q.tolist():
        past, start_S = np.arange(first, row), columns.start_S
        tokens = int((columns.length_S[past] + 1).sum())
        times = 1 + (_SEVERAL * events // tokens if tokens else 0)
        span = int(start_S[row] - start_S[first]) + DAY_MS
        # Whole days back, so that every hour of the day stays.
        back = [-(-span // DAY_MS) * DAY_MS * k for k in range(times - 1, -1, -1)]
        sessions_Q.append(np.concatenate([*[past for _ in back], [row]]).astype(np.int64))
        starts.append(np.concatenate([*[start_S[past] - shift for shift in back], [start_S[row]]]))
        first = row + 1
    return gather(columns, sessions_Q, np.concatenate(starts).astype(np.int64))


def unseen_mode(histories: Histories) -> Histories:
    """A mode that no training session had: none of the mode's channels is set, every track is allowed."""
    mode_S = np.full_like(histories.columns.mode_S, -1)
    return Histories(replace(histories.columns, mode_S=mode_S), histories.row_Q)


def one_artist(histories: Histories) -> Histories:
    """All earlier tracks by the artist with most tracks."""
    columns = histories.columns
    artist_K = columns.artist_K
    known = artist_K[artist_K >= 0]
    his = np.flatnonzero(artist_K == np.bincount(known).argmax()) if len(known) else np.array([0])
    track_N = np.where(histories.earlier_N, his[np.arange(len(columns.track_N)) % len(his)], columns.track_N)
    return Histories(replace(columns, track_N=track_N), histories.row_Q)


def spliced(histories: Histories) -> Histories:
    """The past of the next history's listener before one's own session, moved in time to end before it."""
    columns = histories.columns
    first_Q = np.r_[0, histories.row_Q[:-1] + 1]
    sessions_Q, starts = [], []
    for q, row in enumerate(histories.row_Q.tolist()):
        other = (q + 1) % len(histories.row_Q)
        past = np.arange(first_Q[other], histories.row_Q[other])
        later = columns.start_S[past].max(initial=0) - columns.start_S[row] + DAY_MS
        shift = -(-int(later) // DAY_MS) * DAY_MS
        sessions_Q.append(np.r_[past, row].astype(np.int64))
        starts.append(np.r_[columns.start_S[past] - shift, columns.start_S[row]])
    return gather(columns, sessions_Q, np.concatenate(starts).astype(np.int64))


def weeks_later(histories: Histories, weeks: int = 5) -> Histories:
    """Everything the same number of whole weeks later."""
    start_S = histories.columns.start_S + weeks * WEEK_MS
    return Histories(replace(histories.columns, start_S=start_S), histories.row_Q)


def reversed_users(histories: Histories) -> Histories:
    """The same listeners under other ids and in another order: history q becomes history Q - 1 - q."""
    first_Q = np.r_[0, histories.row_Q[:-1] + 1]
    sessions = [np.arange(a, b + 1) for a, b in zip(first_Q, histories.row_Q, strict=True)]
    return gather(histories.columns, sessions[::-1])


EDITS: dict[str, Callable[[Histories, int], Histories]] = {
    "all_negative": lambda h, _: rated(h, _WORST, _WORST, -0.2),
    "all_positive": lambda h, _: rated(h, _BEST, _BEST, 0.2),
    "contradictory": lambda h, _: rated(h, _BEST, _BEST, -0.3),
    "engagement_stuck": lambda h, _: stuck(h),
    "empty": lambda h, _: empty(h),
    "very_long": long,
    "unseen_mode": lambda h, _: unseen_mode(h),
    "one_artist": lambda h, _: one_artist(h),
    "spliced": lambda h, _: spliced(h),
}
"""Counterfactual histories by name; the second argument is the model's window in events."""


def as_data(data: SessionDataModule, histories: Histories) -> SessionDataModule:
    """A DataModule that holds only these histories, for reading prefixes; ids are made up."""
    meta = data.log.metadata
    view = copy.copy(data)
    ids = [f"made-up-{q}" for q in range(len(histories.row_Q))]
    view.flat = flatten_columns(histories.columns, len(meta.modes), len(meta.cohorts), ids)
    return view


def reading(thing: Thing, data: SessionDataModule, view: SessionDataModule) -> Thing:
    """A copy of a policy or of listeners that reads histories from `view` where it read them from `data`."""
    memo: dict[int, Any] = {id(data): view, id(data.flat): view.flat}
    return copy.deepcopy(thing, memo)


def rows_of(histories: Histories) -> Tensor:
    """Rows of the sessions under way, (Q,)."""
    return torch.from_numpy(histories.row_Q)
