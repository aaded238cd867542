"""What a track adds beyond its embedding: a level of its own, as far as tracks differ by more than chance.

No embedding says all. Of two tracks that sound alike one is liked more, by everybody, and a model of content
leaves that in its errors. A level is a random effect of the track on one move of a signal (`Kind.level`).
With g the score -d nll / d move of a listener's plays of a track under the linear start (their mean: what
they share is the listener's), and i(k) the mean square of track k's scores, the information of one (Berndt et
al. 1974), drawn to that of all tracks,

    s^2 = sum over tracks and pairs of listeners of g g' / sum of i(k)^2     how much tracks differ
    level(k) = sum of g over listeners of k / (n(k) i(k) + 1 / s^2)

The first is a method of moments, the second one step of scoring towards the best linear unbiased prediction
(Henderson 1975). A track that nobody played has a level of 0, and one that few played nearly so.
Shape suffixes: N plays, K tracks, J pairs of listener and track, X moves, M members, B batch, L tokens.
"""

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from amrs.bags import Bags
from amrs.data import SessionDataModule
from amrs.logs.histories import TARGETS
from amrs.logs.splits import TRAIN
from amrs.models.world_model import WorldModel
from amrs.signals import Kind

MOST = 0.25
"""Most that s^2 may be: labels that hardly differ carry so little information that any spread would explain
them."""
_DRAWN = 10.0
"""Listeners that draw the information of a track's scores to that of all tracks."""
_WINDOWS = 128
"""Windows looked at together."""


class Tally:
    """Sums over pairs of a listener and a track, from which levels follow."""

    def __init__(self, tracks: int) -> None:
        self.total_K, self.own_K, self.pairs_K, self.square_K, self.score_K, self.count_K = torch.zeros(
            6, tracks, dtype=torch.float64
        )

    def add(self, score_N: Tensor, times_N: Tensor, user_N: Tensor, track_N: Tensor) -> None:
        """All plays of some listeners, each of whom counts `times_N` times in the levels."""
        key_J, cell_N, count_J = (user_N * len(self.total_K) + track_N).unique(
            return_inverse=True, return_counts=True
        )
        of_cell = torch.stack([score_N, score_N.square(), times_N]).double()
        sums = torch.zeros(3, len(key_J), dtype=torch.float64).index_add(1, cell_N, of_cell)
        score_J, square_J, times_J = sums / count_J
        track_J = key_J % len(self.total_K)
        for into_K, value_J in (
            (self.total_K, score_J),
            (self.own_K, score_J.square()),
            (self.pairs_K, torch.ones_like(score_J)),
            (self.square_K, square_J),
            (self.score_K, times_J * score_J),
            (self.count_K, times_J),
        ):
            into_K.index_add_(0, track_J, value_J)

    @property
    def information_K(self) -> Tensor:
        """i(k)."""
        usual = self.square_K.sum() / self.pairs_K.sum().clamp(min=1)
        found_K: Tensor = (self.square_K + _DRAWN * usual) / (self.pairs_K + _DRAWN)
        return found_K

    @property
    def variance(self) -> float:
        """s^2 by all listeners once; 0 where tracks differ by no more than chance, or none was played by
        two."""
        pairs = (self.information_K.square() * (self.pairs_K.square() - self.pairs_K)).sum()
        excess = (self.total_K.square() - self.own_K).sum()
        return min(float(excess / pairs), MOST) if pairs > 0 and excess > 0 else 0.0

    def levels(self, variance: float) -> Tensor:
        """Level of each track, (K,), in moves."""
        level_K: Tensor = variance * self.score_K / (variance * self.count_K * self.information_K + 1)
        return level_K.float()


def scores(kind: Kind, params: Tensor, value_N: Tensor) -> Tensor:
    """-d nll / d level of each play, (N,), at head parameters (N, P)."""
    with torch.enable_grad():
        shift = torch.zeros(len(value_N), kind.moves, requires_grad=True)
        loss = kind.nll(kind.moved(params, shift), value_N).sum()
        gradient_NX: Tensor = torch.autograd.grad(loss, shift)[0]
    return -gradient_NX[:, kind.level]


@torch.no_grad()
def start_levels(
    model: WorldModel, data: SessionDataModule, fitted: Sequence[str], bags: Bags, seed: int
) -> None:
    """Set every member's levels from plays of its bag of training users, given its linear start.

    How much tracks differ is one figure for all members: what bags say of it is mostly chance.

    Args:
        model: at its linear start, whose untrained parts say nothing yet.
        data: the users to train on.
        fitted: signals that have such a start.
        bags: which users each member learns from.
        seed: of the sessions whose feedback is hidden, as in training.
    """
    first = model.ensemble[0]
    if {"track_embeddings", "levels"} & first.encoder.without:
        return  # a level tells tracks apart
    for place, name in enumerate(first.leveled):
        if name in fitted:
            tallies = _tallies(model, data, name, bags, seed)
            variance = sum(tally.variance for tally in tallies) / len(tallies)
            for member, tally in zip(model.ensemble, tallies, strict=True):
                member.level_KV[:, place] = tally.levels(variance)


def _tallies(model: WorldModel, data: SessionDataModule, name: str, bags: Bags, seed: int) -> list[Tally]:
    """One a member."""
    tallies = [Tally(data.tracks) for _ in model.ensemble]
    for user_N, track_N, score_MN in _whole_listeners(_scored(model, data, name, seed)):
        for m, tally in enumerate(tallies):
            tally.add(score_MN[m], bags.times(m, user_N), user_N, track_N)
    return tallies


Scored = tuple[Tensor, Tensor, Tensor]
"""Listener (N,) and track (N,) of plays, and each member's score of them (M, N)."""


def _scored(model: WorldModel, data: SessionDataModule, name: str, seed: int) -> Iterator[Scored]:
    """Plays of training users whose feedback is known, listener by listener."""
    first, column = model.ensemble[0], TARGETS.index(name)
    for window_B3 in data.windows(TRAIN).split(_WINDOWS):
        batch = data.gather(window_B3, hidden_seed=seed)
        told_BL = batch.counts_BL & ~batch.target_BLY[..., column].isnan()
        feature_NF = first.linear_features(batch, told_BL, of_track=True)
        value_N = batch.target_BLY[..., column][told_BL]
        score_MN = torch.stack(
            [scores(m.kinds[name], m.linear_answer(name, feature_NF), value_N) for m in model.ensemble]
        )
        user_N = batch.user_B[:, None].expand(told_BL.shape)[told_BL]
        yield user_N, batch.next_track_BL[told_BL], score_MN


def _whole_listeners(parts: Iterator[Scored]) -> Iterator[Scored]:
    """The same plays with all of a listener's together."""
    held: Scored | None = None
    for part in parts:
        plays = part if held is None else tuple(torch.cat(both, -1) for both in zip(held, part, strict=True))
        user_N, track_N, score_MN = plays
        if len(user_N):
            done_N = user_N != user_N[-1]
            yield user_N[done_N], track_N[done_N], score_MN[:, done_N]
            held = user_N[~done_N], track_N[~done_N], score_MN[:, ~done_N]
    if held is not None:
        yield held
