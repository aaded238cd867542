"""How varied the recommended tracks are. Shape suffixes: S sessions, T steps, K tracks, D dimensions, U
users.

Distinct tracks grow with the number of recommendations, so policies are compared at equal numbers:
pass their tracks through `equal_lengths` first.
"""

from collections.abc import Callable, Mapping
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from amrs.metrics.fidelity import Floats, Ints
from amrs.metrics.intervals import user_codes


class Lists(NamedTuple):
    """What a policy played, and the catalogue it was taken from."""

    track_ST: Ints
    """Catalogue row of each play, -1 where nothing was played."""
    user_S: Ints
    """Whose session it is, any integers."""
    embedding_KD: Floats
    """Unit vectors (see `unit`)."""
    artist_K: Ints
    """Artist of each track, -1 where unknown."""
    popularity_K: Floats
    """Share of training plays that the track has, smoothed: above 0, sums to 1."""

    def rows(self, row_M: Ints, user_M: Ints) -> "Lists":
        """The sessions `row_M` as those of `user_M`, for `resampled_users`."""
        return self._replace(track_ST=self.track_ST[row_M], user_S=user_M)


def unit(embedding_KD: npt.ArrayLike) -> Floats:
    """Rows scaled to length 1; a zero row stays zero (it is at distance 1 from everything)."""
    embedding_KD = np.asarray(embedding_KD, dtype=np.float64)
    length_K = np.linalg.norm(embedding_KD, axis=1, keepdims=True)
    scaled_KD: Floats = embedding_KD / np.where(length_K > 0, length_K, 1.0)
    return scaled_KD


def equal_lengths(tracks: Mapping[str, npt.ArrayLike]) -> dict[str, Ints]:
    """Each policy's (S, T) tracks cut to equal numbers, session by session.

    A policy that listeners leave early recommends less; every session keeps its first n tracks, n the least
    that any policy played in it. All policies must hold the same sessions in the same order.
    """
    arrays = {name: np.asarray(track_ST, dtype=np.int64) for name, track_ST in tracks.items()}
    if len({array.shape for array in arrays.values()}) > 1:
        raise ValueError(f"policies differ in shape: { {name: a.shape for name, a in arrays.items()} }")
    for name, array in arrays.items():
        if ((array[:, :-1] < 0) & (array[:, 1:] >= 0)).any():
            raise ValueError(f"{name} plays on after a -1: the tracks of a session must come first")
    keep_S = np.min([(array >= 0).sum(1) for array in arrays.values()], axis=0)
    return {name: np.where(np.arange(a.shape[1]) < keep_S[:, None], a, -1) for name, a in arrays.items()}


def catalogue_coverage(lists: Lists) -> float:
    """Share of the catalogue that was recommended at least once, in [0, 1]."""
    return float((_count(lists) > 0).mean())


def entropy(lists: Lists) -> float:
    """Entropy of the recommended tracks over that of a uniform catalogue, H / log K, in [0, 1]."""
    return (
        _entropy(_count(lists)) / np.log(len(lists.embedding_KD))
        if len(lists.embedding_KD) > 1
        else float("nan")
    )


def effective_tracks(lists: Lists) -> float:
    """exp(H): the number of tracks that, played equally often, would be as varied; 1 to K."""
    return float(np.exp(_entropy(_count(lists))))


def intra_list(lists: Lists) -> float:
    """Mean over sessions of the mean 1 - cosine over the pairs of tracks inside a session, in [0, 2].

    Sessions of fewer than two tracks have no pair and are left out.
    """
    sum_SD = np.zeros((len(lists.track_ST), lists.embedding_KD.shape[1]))
    square_S = np.zeros(len(lists.track_ST))
    for track_S in lists.track_ST.T:  # step by step, so (S, T, D) is never held
        played_S = track_S >= 0
        step_SD = lists.embedding_KD[track_S] * played_S[:, None]
        sum_SD += step_SD
        square_S += (step_SD**2).sum(1)
    count_S = (lists.track_ST >= 0).sum(1)
    has_pair_S = count_S >= 2
    pairs_S = count_S[has_pair_S] * (count_S[has_pair_S] - 1)
    # |sum of e|^2 holds every ordered pair's cosine, and each track with itself.
    cosine_S = ((sum_SD**2).sum(1) - square_S)[has_pair_S] / pairs_S
    return float(np.mean(1.0 - cosine_S)) if len(cosine_S) else float("nan")


def gini(lists: Lists) -> float:
    """Gini coefficient of plays over the whole catalogue: 0 all tracks alike, near 1 a few get all."""
    count_K = np.sort(_count(lists))
    if count_K.sum() == 0:
        return float("nan")
    rank_K = np.arange(1, len(count_K) + 1)
    return float(((2 * rank_K - len(count_K) - 1) * count_K).sum() / (len(count_K) * count_K.sum()))


def artist_entropy(lists: Lists) -> float:
    """Entropy of the recommended artists over log of the catalogue's number of artists, in [0, 1].

    Tracks of unknown artist are left out; NaN where fewer than two artists are known.
    """
    artists = len(np.unique(lists.artist_K[lists.artist_K >= 0]))
    artist_N = lists.artist_K[_played(lists)]
    artist_N = artist_N[artist_N >= 0]
    if artists < 2 or len(artist_N) == 0:
        return float("nan")
    return _entropy(np.bincount(artist_N).astype(np.float64)) / float(np.log(artists))


def novelty(lists: Lists) -> float:
    """Mean over plays of -log2 of the track's share of training plays, in bits: how little known it is."""
    played_N = _played(lists)
    return float(np.mean(-np.log2(lists.popularity_K[played_N]))) if len(played_N) else float("nan")


def repeat_rate(lists: Lists) -> float:
    """Share of plays that repeat a track which the same listener was given before in these lists, in [0,
    1)."""
    played_N = _played(lists)
    distinct = len(np.unique(_listener_track(lists, played_N)))
    return 1.0 - distinct / len(played_N) if len(played_N) else float("nan")


def between_listeners(lists: Lists) -> float:
    """Mean over pairs of listeners of 1 - cosine of their play counts over tracks, in [0, 1].

    0 when everyone gets the same list, 1 when no two share a track: the collapse that `intra_list` cannot
    see. After the inter-user distance of Zhou et al. 2010, for lists of unequal length.
    """
    played_N = _played(lists)
    tracks = len(lists.embedding_KD)
    pair_P, plays_P = np.unique(_listener_track(lists, played_N), return_counts=True)
    _, user_P = np.unique(pair_P // tracks, return_inverse=True)
    length_U = np.sqrt(np.bincount(user_P, weights=plays_P.astype(np.float64) ** 2))
    users = len(length_U)
    if users < 2:
        return float("nan")
    # The sum of all unit count vectors holds every ordered pair's cosine, and each listener's own (1).
    total_K = np.bincount(pair_P % tracks, weights=plays_P / length_U[user_P], minlength=tracks)
    return float(1.0 - ((total_K**2).sum() - users) / (users * (users - 1)))


DIVERSITY: dict[str, Callable[[Lists], float]] = {
    "catalogue_coverage": catalogue_coverage,
    "entropy": entropy,
    "effective_tracks": effective_tracks,
    "intra_list": intra_list,
    "gini": gini,
    "artist_entropy": artist_entropy,
    "novelty": novelty,
    "repeat_rate": repeat_rate,
    "between_listeners": between_listeners,
}


def _played(lists: Lists) -> Ints:
    return lists.track_ST[lists.track_ST >= 0]


def _count(lists: Lists) -> Floats:
    return np.bincount(_played(lists), minlength=len(lists.embedding_KD)).astype(np.float64)


def _entropy(count: Floats) -> float:
    """Entropy in nats of counts; NaN when all are 0."""
    if count.sum() == 0:
        return float("nan")
    share = count[count > 0] / count.sum()
    return float(-(share * np.log(share)).sum())


def _listener_track(lists: Lists, played_N: Ints) -> Ints:
    """One integer per play for its (listener, track)."""
    user_S, _ = user_codes(lists.user_S)
    owner_N = np.repeat(user_S, (lists.track_ST >= 0).sum(1))
    return owner_N * len(lists.embedding_KD) + played_N
