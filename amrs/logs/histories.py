"""A session log as one flat sequence of tokens.

A listener's history is one sequence: for each session a start token (what is known before the first
track), then one token a play. The output at token n predicts what comes right after it.
Shape suffixes: U users, S sessions, N tokens of the whole log, F session features, Y targets.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

if TYPE_CHECKING:  # reading a log takes pyarrow and datasets, serving a policy does not
    from amrs.fidelity.targets import Columns
    from amrs.logs.schema import SessionLog

FEEDBACK = ("engagement", "rating", "track_valence", "track_arousal")
"""What a play token carries besides its track; NaN where missing."""
TARGETS = ("engagement", "rating", "valence", "arousal", "left", "rated", "reported")
"""What the output before a play predicts about it; NaN where there is nothing to learn."""
LABELS = (*TARGETS, "start_valence", "start_arousal", "end_valence", "end_arousal", "play")
"""Everything a loss may be averaged over: targets, final reports asked for at a session's start and
at its end, and plays."""
TOKEN = np.dtype(
    [("session", "i8"), ("track", "i8"), ("step", "i8"), ("mode", "i8"), ("feedback", "f4", len(FEEDBACK)),
     ("target", "f4", len(TARGETS)), ("report", "f4", 2)], align=True,
)  # fmt: skip
"""All that a batch needs of one token, side by side: a window is one piece of memory."""

_REPORTS = ("pre_valence", "pre_arousal", "post_valence", "post_arousal")


@dataclass
class FlatLog:
    """The whole log as flat tensors, in log order; codes are -1 and values NaN where null.

    What belongs to tokens are views of `token_NR`, so they are strided.
    """

    user_ids: list[str]
    """Users are numbered in the order of the log."""
    user_S: Tensor
    mode_S: Tensor
    cohort_S: Tensor
    static_SF: Tensor
    """Session features; see `static_features`."""
    report_S2: Tensor
    """Final report (valence, arousal) of each session."""
    pre_report_S2: Tensor
    first_S: Tensor
    """Index of each session's start token."""
    length_S: Tensor
    session_N: Tensor
    track_N: Tensor
    """-1 at session starts."""
    feedback_N4: Tensor
    """`FEEDBACK` of each play."""
    step_N: Tensor
    """Plays of the session up to and including the token; 0 at its start."""
    next_track_N: Tensor
    """Track played right after the token in its session, -1 where none."""
    target_NY: Tensor
    """`TARGETS` of that play."""
    user_first_U: Tensor
    """First token of each user."""
    user_last_U: Tensor
    """One past the last token of each user."""
    row_U: Tensor
    """First session of each user."""
    token_NR: Tensor
    """The tokens as `TOKEN`, 8 bytes a column, and one more that is a start: (N + 1, R)."""
    labels_NZ: Tensor
    """int16 counts of `LABELS` before each token, modulo 2^16, as (N + 1, Z): those of a window are one
    subtraction."""

    @staticmethod
    def of(arrays: Mapping[str, np.ndarray], user_ids: list[str]) -> FlatLog:
        """From `token_N` and `labels_NZ`, and the arrays of sessions and users by the names above."""
        token_N = arrays["token_N"]
        views = {"session_N": token_N["session"][:-1], "track_N": token_N["track"][:-1],
                 "step_N": token_N["step"][:-1], "next_track_N": token_N["track"][1:],
                 "feedback_N4": token_N["feedback"][:-1], "target_NY": token_N["target"][:-1],
                 "token_NR": token_N.view("i8").reshape(len(token_N), -1)}  # fmt: skip
        given = {**{name: array for name, array in arrays.items() if name != "token_N"}, **views}
        return FlatLog(user_ids, **{name: torch.from_numpy(array) for name, array in given.items()})


def _previous(values_S: np.ndarray, same_user_S: np.ndarray) -> np.ndarray:
    """Each session's predecessor of the same user; NaN at a user's first session."""
    shifted = np.full_like(values_S, np.nan)
    shifted[1:] = values_S[:-1]
    shifted[~same_user_S] = np.nan
    return shifted


def _running_mean(values_S: np.ndarray, first_S: np.ndarray) -> np.ndarray:
    """Mean over the user's earlier sessions, NaN where none is known; `first_S` is the user's first."""
    known_S = ~np.isnan(values_S)
    before = [np.r_[0.0, np.cumsum(x)] for x in (np.where(known_S, values_S, 0).astype(float), known_S)]
    index_S = np.arange(len(values_S))
    total_S, count_S = (b[index_S] - b[first_S] for b in before)
    return np.where(count_S > 0, total_S / np.maximum(count_S, 1), np.nan)


def static_features(flat: Columns, modes: int, cohorts: int) -> np.ndarray:
    """What is known when a session starts, as (S, F) with NaN where missing.

    Mode and cohort (one-hot), pre-report, local hour (sine, cosine), hours since the last session's start
    (log), number of earlier sessions (log), of the last session its reports and whether the listener left,
    the means of all earlier reports, and context. Nothing of the session's own plays, feedback or report.
    """
    user_S = flat.user_S
    same_user_S = np.r_[False, user_S[1:] == user_S[:-1]]
    start_S = flat.start_S / 3.6e6
    gap_S = start_S - _previous(start_S, same_user_S)
    first_S = np.maximum.accumulate(np.where(same_user_S, 0, np.arange(len(user_S))))
    angle_S = (start_S + flat.offset_S / 60) % 24 * (2 * np.pi / 24)
    columns = [
        *np.eye(modes + 1)[flat.mode_S].T[:-1],
        *np.eye(cohorts + 1)[flat.cohort_S].T[:-1],
        flat.session_S["pre_valence"],
        flat.session_S["pre_arousal"],
        np.sin(angle_S),
        np.cos(angle_S),
        np.log1p(np.maximum(gap_S, 0)),
        np.log1p(np.arange(len(user_S)) - first_S),
        *(_previous(flat.session_S[name], same_user_S) for name in (*_REPORTS, "left")),
        *(_running_mean(flat.session_S[name], first_S) for name in _REPORTS),
    ]
    return np.column_stack([np.stack(columns, 1), flat.context_SC]).astype(np.float32)


def static_names(modes: Sequence[str], cohorts: Sequence[str], context: Sequence[str]) -> list[str]:
    """Names of the columns of `static_features`."""
    past = [f"last_{name}" for name in (*_REPORTS, "left")] + [f"mean_{name}" for name in _REPORTS]
    return [
        *(f"mode_{name}" for name in modes), *(f"cohort_{name}" for name in cohorts), *_REPORTS[:2],
        "hour_sin", "hour_cos", "log_gap", "log_sessions", *past, *(f"context_{name}" for name in context),
    ]  # fmt: skip


def without_reports(static_SF: Tensor, known_SF: Tensor, names: Sequence[str]) -> Tensor:
    """Session features (S, F) as they are where the listener's answers after some moment are not known.

    The session's pre-report and the last session's reports and end are missing; means of earlier reports are
    those of `known_SF`, the features of the session that the moment lies in. Time, mode and context stay.
    `names` are those of `static_names`.
    """
    unknown_F, mean_F = (
        torch.tensor([name.startswith(starts) for name in names])
        for starts in (("pre_", "last_"), ("mean_",))
    )
    return torch.where(mean_F, known_SF, static_SF).masked_fill(unknown_F, torch.nan)


BLIND_TO: dict[str, tuple[str, ...]] = {
    "past_feedback": ("last_", "mean_"),
    "pre_report": ("pre_",),
    "context": ("context_", "cohort_", "hour_", "log_gap"),
    "mode": ("mode_",),
    "past_tracks": (),
    "track_embeddings": (),
    "levels": (),
}
"""Beginnings of the session features that a model without an input does not read; what of a play it does not
read is the encoder's own business."""


def flatten(log: SessionLog) -> FlatLog:
    """The log as flat tensors in memory. Missing feedback stays NaN."""
    from amrs.fidelity.targets import columns

    flat = columns(log)
    ids = log.sessions.select_columns(["user_id"])[_first_rows(flat).tolist()]["user_id"]
    return flatten_columns(flat, len(log.metadata.modes), len(log.metadata.cohorts), ids)


def _first_rows(flat: Columns) -> np.ndarray:
    """First session of each user; a user's sessions stand together."""
    return np.flatnonzero(np.r_[True, flat.user_S[1:] != flat.user_S[:-1]])


def flatten_columns(flat: Columns, modes: int, cohorts: int, user_ids: list[str]) -> FlatLog:
    """The same from columns, which need not be those of a log on disk."""
    return FlatLog.of(flat_arrays(flat, modes, cohorts), user_ids)


def flat_arrays(flat: Columns, modes: int, cohorts: int) -> dict[str, np.ndarray]:
    """What `FlatLog.of` takes."""
    length_S, user_S = flat.length_S, flat.user_S
    first_S = flat.first_S + np.arange(len(length_S))
    count = int((length_S + 1).sum())
    session_N = np.repeat(np.arange(len(length_S)), length_S + 1)
    step_N = np.arange(count) - first_S[session_N]
    play_N = step_N > 0
    track_N = np.full(count, -1, dtype=np.int64)
    track_N[play_N] = flat.track_N
    feedback_N4 = np.full((count, len(FEEDBACK)), np.nan, dtype=np.float32)
    feedback_N4[play_N] = np.column_stack([flat.play_N[name] for name in FEEDBACK])
    report_S2, pre_S2 = (
        np.column_stack([flat.session_S[f"{when}_{name}"] for name in ("valence", "arousal")])
        for when in ("post", "pre")
    )
    row_U = _first_rows(flat)
    user_first_U = first_S[row_U]
    target_NY = _targets(session_N, step_N, length_S, feedback_N4, report_S2, flat.session_S["left"])
    edge_N = (step_N == 0) | (step_N == length_S[session_N])
    # A final report and one on the last track are of the same moment: the latter would tell the former.
    end_S = (first_S + length_S)[length_S > 0]
    feedback_N4[end_S, 2:] = np.where(np.isnan(report_S2[length_S > 0]), feedback_N4[end_S, 2:], np.nan)
    token_N = np.zeros(count + 1, TOKEN)
    token_N[-1]["track"], token_N[-1]["mode"] = -1, -1
    for name, values in (("session", session_N), ("track", track_N), ("step", step_N),
                         ("mode", flat.mode_S[session_N]), ("feedback", feedback_N4), ("target", target_NY),
                         ("report", np.where(edge_N[:, None], report_S2[session_N], np.nan))):  # fmt: skip
        token_N[name][:-1] = values
    return {
        "user_S": user_S, "mode_S": flat.mode_S, "cohort_S": flat.cohort_S,
        "static_SF": static_features(flat, modes, cohorts), "report_S2": report_S2, "pre_report_S2": pre_S2,
        "first_S": first_S, "length_S": length_S, "user_first_U": user_first_U,
        "user_last_U": np.r_[user_first_U[1:], count], "row_U": row_U, "token_N": token_N,
        "labels_NZ": cumulative_labels(token_N),
    }  # fmt: skip


def cumulative_labels(token_N: np.ndarray) -> np.ndarray:
    """Counts of `LABELS` before each token, modulo 2^16, from N + 1 tokens: (N + 1, Z)."""
    now_N, known_N2 = token_N[:-1], ~np.isnan(token_N["report"][:-1])
    start_N1 = (now_N["step"] == 0)[:, None]
    labels = [~np.isnan(now_N["target"]), known_N2 & start_N1, known_N2 & ~start_N1]
    labels.append((token_N["track"][1:] >= 0)[:, None])
    counts_NZ = np.zeros((len(token_N), len(LABELS)), np.int16)
    np.cumsum(np.concatenate(labels, 1), 0, np.int16, counts_NZ[1:])
    return counts_NZ


def _targets(
    session_N: np.ndarray,
    step_N: np.ndarray,
    length_S: np.ndarray,
    feedback_N4: np.ndarray,
    report_S2: np.ndarray,
    left_S: np.ndarray,
) -> np.ndarray:
    """`TARGETS` (N, Y) of the play that follows each token in its session.

    Valence and arousal mean the report if the session ended after that play: the session's report
    at its last play, a report right after the track elsewhere.
    """
    follows_N = step_N < length_S[session_N]
    last_N = step_N == length_S[session_N] - 1
    next_N = np.minimum(np.arange(len(step_N)) + 1, len(step_N) - 1)
    feedback = feedback_N4[next_N]
    report_N2 = report_S2[session_N]
    affect = np.where(last_N[:, None] & ~np.isnan(report_N2), report_N2, feedback[:, 2:])
    # Where it is unknown how a session ended, none of its plays says whether listeners leave.
    left_N = np.where(last_N, left_S[session_N], 0.0 * left_S[session_N])
    rated_N = (~np.isnan(feedback[:, 1])).astype(np.float32)
    reported_N = np.where(last_N, (~np.isnan(report_N2)).any(1), np.nan)
    target_NY = np.column_stack([feedback[:, :2], affect, left_N, rated_N, reported_N]).astype(np.float32)
    target_NY[~follows_N] = np.nan
    return target_NY


def played_before(flat: FlatLog, row_B: Tensor, step_B: Tensor) -> Tensor:
    """Tracks of the session before play `step_B`, as (B, T), -1 for none."""
    t_T = torch.arange(int(step_B.max()) if len(step_B) else 0)
    inside_BT = t_T < step_B[:, None]
    token_BT = (flat.first_S[row_B][:, None] + 1 + t_T).where(inside_BT, 0)
    return flat.track_N[token_BT].where(inside_BT, -1)
