"""Hand-made features of a session log for the baselines: a user's history, the moment, the tracks.

Nothing here is learned from labels: every feature of a row is a function of what that user had done before
(and, where it is known, of this session's tracks or feedback). Missing is NaN.
Shape suffixes: S sessions, N plays, E events (sessions or plays), Q rows asked for, F features, D embedding.
"""

from functools import cached_property
from typing import Literal, NamedTuple

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from amrs.fidelity.targets import AFFECT, Columns, Floats, Ints, Target

Known = Literal["forecast", "tracks", "nowcast"]
"""At what moment valence and arousal are predicted: at the start of the session, given its list of tracks, or
after its last track with the feedback to all of them."""

EWM_ALPHA = 0.3
"""Weight of the newest value in the exponentially weighted means; half of it is the last two values."""

PLAY_HISTORY = ("engagement", "rating", "track_valence", "track_arousal")
SESSION_HISTORY = ("pre_valence", "pre_arousal", "post_valence", "post_arousal", "left")
TASTES = ("played", "engaged", "liked", "disliked")
"""Ways to weigh a user's earlier plays in the mean embedding that tracks are compared with."""


class Features(NamedTuple):
    """Features of Q rows; track embeddings are apart, as trees want them reduced and ridge whole."""

    names: tuple[str, ...]
    value_QF: Floats
    track_QD: tuple[Floats, ...]
    """Standardised over the catalogue: the play's own track, or the session's mean and last track."""

    def column(self, name: str) -> Floats:
        """One feature, (Q,)."""
        return self.value_QF[:, self.names.index(name)]


class Running(NamedTuple):
    """State of one signal of the user after each event, (E,): NaN before the first value, `count` 0."""

    last_E: Floats
    mean_E: Floats
    ewm_E: Floats
    count_E: Floats


def running(value_E: Floats, group_E: Ints) -> Running:
    """Running summaries inside contiguous groups numbered upwards; NaN values change nothing."""
    first_E = np.searchsorted(group_E, group_E)
    valid_E = ~np.isnan(value_E)
    count_E = _since(np.cumsum(valid_E, dtype=np.float64), first_E)
    total_E = _since(np.cumsum(np.where(valid_E, value_E, 0), dtype=np.float64), first_E)
    newest_E = np.maximum.accumulate(np.where(valid_E, np.arange(len(value_E)), -1))
    last_E = np.where(newest_E >= first_E, value_E[newest_E], np.nan)
    mean_E = _ratio(total_E, count_E, count_E > 0)
    ewm = pd.Series(value_E).groupby(group_E).ewm(alpha=EWM_ALPHA, ignore_na=True).mean()
    return Running(*(x.astype(np.float32) for x in (last_E, mean_E, ewm.to_numpy(), count_E)))


class History:
    """What each user had done up to any moment of the log."""

    def __init__(self, flat: Columns) -> None:
        self.flat = flat
        self.first_session_S = np.searchsorted(flat.user_S, flat.user_S)
        self.first_play_S = flat.first_S[self.first_session_S]
        user_N = flat.user_S[flat.row_N]
        self.state = {name: running(flat.play_N[name], user_N) for name in PLAY_HISTORY}
        self.state |= {name: running(flat.session_S[name], flat.user_S) for name in SESSION_HISTORY}

    @cached_property
    def embedding_KD(self) -> Floats:
        """Embeddings standardised over the catalogue."""
        x_KD = self.flat.embedding_KD
        spread_D = x_KD.std(0)
        scaled_KD: Floats = (x_KD - x_KD.mean(0)) / np.where(spread_D > 0, spread_D, 1)
        return scaled_KD.astype(np.float32)

    @cached_property
    def taste_ND(self) -> dict[str, Floats]:
        """Sums of the embeddings of all plays before each play, over all users, (N + 1, D).

        Weights: 1; engagement above the user's mean before it; whether liked; whether disliked.
        """
        track_ND = self.embedding_KD[self.flat.track_N]
        engagement_N, rating_N = self.flat.play_N["engagement"], self.flat.play_N["rating"]
        play_N = np.arange(len(engagement_N))
        usual_N = self.before("engagement", self.flat.row_N, play_N).mean_E
        weights = (np.ones(len(play_N)), np.nan_to_num(engagement_N - usual_N), rating_N == 1, rating_N == 0)
        sums = {}
        for name, weight_N in zip(TASTES, weights, strict=True):
            total_ND = np.cumsum(weight_N[:, None] * track_ND, axis=0, dtype=np.float64)
            sums[name] = np.concatenate([np.zeros((1, track_ND.shape[1])), total_ND])
        return sums

    @cached_property
    def repeats_N(self) -> dict[str, Floats]:
        """How often the user had played this track, and this artist, before this play."""
        flat = self.flat
        frame = pd.DataFrame({"user": flat.user_S[flat.row_N], "track": flat.track_N})
        frame["artist"] = flat.artist_K[flat.track_N]
        counts = {kind: frame.groupby(["user", kind]).cumcount() for kind in ("track", "artist")}
        counts["artist"] = counts["artist"].where(frame["artist"] >= 0)
        return {kind: np.asarray(count, np.float32) for kind, count in counts.items()}

    def before(self, name: str, row_Q: Ints, play_Q: Ints) -> Running:
        """State of a signal from sessions before `row_Q`, or plays before `play_Q` of the same user."""
        sessions = name in SESSION_HISTORY
        event_Q = (row_Q if sessions else play_Q) - 1
        first_Q = (self.first_session_S if sessions else self.first_play_S)[row_Q]
        last, mean, ewm, count = (_at(x_E, event_Q, first_Q) for x_E in self.state[name])
        return Running(last, mean, ewm, np.nan_to_num(count))

    def similarity(self, taste: str, vector_QD: Floats, row_Q: Ints, play_Q: Ints) -> Floats:
        """Cosine of vectors with the user's taste from plays before `play_Q`; NaN without any."""
        taste_QD = self.taste_ND[taste][play_Q] - self.taste_ND[taste][self.first_play_S[row_Q]]
        return cosine(vector_QD, taste_QD)


def cosine(a_QD: Floats, b_QD: Floats) -> Floats:
    """Cosine per row, (Q,); NaN where either vector is (numerically) zero."""
    size_Q = np.linalg.norm(a_QD, axis=1) * np.linalg.norm(b_QD, axis=1)
    return _ratio(np.einsum("qd,qd->q", a_QD, b_QD), size_Q, size_Q > 1e-6)


def features(history: History, signal: str, label: Target, known: Known = "tracks") -> Features:
    """Features of each label's row, from nothing later than what `known` allows.

    Valence and arousal: earlier sessions, this session's situation, then its tracks, then its feedback.
    Engagement and rating: all plays before this one, this session's included, and the play's own track.
    """
    flat = history.flat
    row_Q = label.row
    play_Q = flat.first_S[row_Q] + (0 if signal in AFFECT else label.step)
    named = _past(history, row_Q, play_Q) | _situation(flat, row_Q)
    tracks: tuple[Floats, ...] = ()
    if signal not in AFFECT:
        named |= _play(history, label, play_Q)
        tracks = (history.embedding_KD[flat.track_N[play_Q]],)
    elif known != "forecast":
        described, tracks = _session_tracks(history, row_Q)
        named |= described | (_feedback(history, row_Q) if known == "nowcast" else {})
    value_QF = np.column_stack([*named.values()]).astype(np.float32)
    return Features(tuple(named), value_QF, tracks)


def _past(history: History, row_Q: Ints, play_Q: Ints) -> dict[str, Floats]:
    flat = history.flat
    named: dict[str, Floats] = {}
    for name in (*SESSION_HISTORY, *PLAY_HISTORY):
        last, mean, ewm, count = history.before(name, row_Q, play_Q)
        named |= {f"{name}_last": last, f"{name}_mean": mean, f"{name}_ewm": ewm}
        named[f"{name}_count"] = np.log1p(count)
    first_Q = history.first_session_S[row_Q]
    hours_Q = (flat.start_S[row_Q] - flat.start_S[row_Q - 1]) / 3.6e6
    named["log_sessions"] = np.log1p(row_Q - first_Q)
    named["log_plays"] = np.log1p(play_Q - history.first_play_S[row_Q])
    named["log_hours_since"] = np.where(row_Q > first_Q, np.log1p(np.maximum(hours_Q, 0)), np.nan)
    return named


def _situation(flat: Columns, row_Q: Ints) -> dict[str, Floats]:
    """What is known at the start of the session; the hour is UTC where the local time is unknown."""
    named = {name: flat.session_S[name][row_Q] for name in ("pre_valence", "pre_arousal")}
    named |= {f"context_{c}": flat.context_SC[row_Q, c] for c in range(flat.context_SC.shape[1])}
    for kind, code_S in (("mode", flat.mode_S), ("cohort", flat.cohort_S)):
        codes = range(code_S.max(initial=-1) + 1)
        named |= {f"{kind}_{c}": (code_S[row_Q] == c).astype(np.float32) for c in codes}
    local_Q = flat.start_S[row_Q] / 6e4 + np.nan_to_num(flat.offset_S[row_Q])
    angle_Q = 2 * np.pi * (local_Q % 1440) / 1440
    return named | {"hour_sin": np.sin(angle_Q), "hour_cos": np.cos(angle_Q)}


def _play(history: History, label: Target, play_Q: Ints) -> dict[str, Floats]:
    """The play's place in its session, the session so far, and how its track fits the user's taste."""
    flat, row_Q = history.flat, label.row
    track_QD = history.embedding_KD[flat.track_N[play_Q]]
    first_Q = flat.first_S[row_Q]
    before_QD = np.where((label.step > 0)[:, None], history.embedding_KD[flat.track_N[play_Q - 1]], 0)
    named = {"position": label.step.astype(np.float32), "similarity_previous": cosine(track_QD, before_QD)}
    for name in ("engagement", "rating"):
        named[f"session_{name}_mean"] = _mean(flat.play_N[name], first_Q, play_Q)
    for taste in TASTES:
        named[f"similarity_{taste}"] = history.similarity(taste, track_QD, row_Q, play_Q)
    return named | {f"repeats_{kind}": count_N[play_Q] for kind, count_N in history.repeats_N.items()}


def _session_tracks(history: History, row_Q: Ints) -> tuple[dict[str, Floats], tuple[Floats, ...]]:
    """The session's list of tracks: how many, their fit to the taste of earlier sessions, embeddings."""
    flat = history.flat
    first_Q, length_Q = flat.first_S[row_Q], flat.length_S[row_Q]
    last_Q = first_Q + np.maximum(length_Q, 1) - 1
    sums_ND = history.taste_ND["played"]
    total_QD = sums_ND[first_Q + length_Q] - sums_ND[first_Q]
    mean_QD = (total_QD / np.maximum(length_Q, 1)[:, None]).astype(np.float32)
    last_QD = np.full_like(mean_QD, np.nan)
    last_QD[length_Q > 0] = history.embedding_KD[flat.track_N[last_Q[length_Q > 0]]]
    mean_QD[length_Q == 0] = np.nan
    named = {"tracks": length_Q.astype(np.float32)}
    for taste in TASTES:
        named[f"similarity_{taste}"] = history.similarity(taste, np.nan_to_num(mean_QD), row_Q, first_Q)
    for kind, count_N in history.repeats_N.items():
        named[f"repeats_{kind}"] = _mean(count_N, first_Q, first_Q + length_Q)
    return named, (mean_QD, last_QD)


def _feedback(history: History, row_Q: Ints) -> dict[str, Floats]:
    """This session's feedback, all of it but a report right after the last track: that would be the label."""
    flat = history.flat
    first_Q = flat.first_S[row_Q]
    end_Q = first_Q + flat.length_S[row_Q]
    named = {"left_now": flat.session_S["left"][row_Q]}
    for name in PLAY_HISTORY:
        stop_Q = end_Q if name in ("engagement", "rating") else np.maximum(end_Q - 1, first_Q)
        named[f"now_{name}_mean"] = _mean(flat.play_N[name], first_Q, stop_Q)
        named[f"now_{name}_last"] = _at(flat.play_N[name], stop_Q - 1, first_Q)
    return named


def _since(total_E: Floats, first_E: Ints) -> Floats:
    """Cumulative sums counted from the first event of each group."""
    since_E: Floats = total_E - np.concatenate([[0.0], total_E])[first_E]
    return since_E


def _at(value_E: Floats, event_Q: Ints, first_Q: Ints) -> Floats:
    """Values at events, NaN where the event lies before `first_Q`."""
    value_Q = np.full(len(event_Q), np.nan, np.float32)
    value_Q[event_Q >= first_Q] = value_E[event_Q[event_Q >= first_Q]]
    return value_Q


def _mean(value_N: Floats, first_Q: Ints, stop_Q: Ints) -> Floats:
    """Mean of the values that exist among plays first..stop-1, (Q,); NaN without any."""
    valid_N = ~np.isnan(value_N)
    total = np.concatenate([[0.0], np.cumsum(np.where(valid_N, value_N, 0), dtype=np.float64)])
    count = np.concatenate([[0], np.cumsum(valid_N)])
    count_Q = count[stop_Q] - count[first_Q]
    return _ratio(total[stop_Q] - total[first_Q], count_Q, count_Q > 0)


def _ratio(above_Q: Floats, below_Q: Floats | Ints, defined_Q: NDArray[np.bool_]) -> Floats:
    """Quotients as float32, NaN where not defined."""
    nothing_Q = np.full(len(above_Q), np.nan)
    return np.asarray(np.divide(above_Q, below_Q, out=nothing_Q, where=defined_Q), np.float32)
