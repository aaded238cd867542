"""What a track adds beyond its embedding: a level of its own, as far as tracks differ by more than chance.

No embedding says all. Of two tracks that sound alike one is liked more, by everybody, and a model of content
leaves that in its errors. A level is a random effect of the track on one move of a signal (`Kind.level`):
with the score g = -d nll / d move of each play under the linear start, and i its mean square (the
information of a play; Berndt et al. 1974),

    s^2 = sum over pairs g g' / (i^2 pairs)        how much tracks differ (method of moments),
    level(k) = sum of g over plays of k / (n(k) i + 1 / s^2)

one step of scoring towards its best linear unbiased prediction (Henderson 1975). Pairs are plays of one
track by two listeners: what a listener's own plays of a track share is the listener's. So a track that
nobody played has a level of 0, and one that few played nearly so.
Shape suffixes: N plays, K tracks, J pairs of listener and track, X moves, B batch, L tokens.
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

_WINDOWS = 128
"""Windows looked at together (about)."""


class Tally:
    """Sums over plays, listener by listener, from which levels follow."""

    def __init__(self, tracks: int) -> None:
        self.score_K, self.count_K = torch.zeros(2, tracks, dtype=torch.float64)
        self.square = self.plays = self.own_score = self.own_count = 0.0

    def add(self, score_N: Tensor, times_N: Tensor, user_N: Tensor, track_N: Tensor) -> None:
        """Plays that count `times_N` times, with all plays of each of their listeners among them."""
        times_N, score_N = times_N.double(), score_N.double()
        cell_J, cell_N = torch.stack([user_N, track_N], 1).unique(dim=0, return_inverse=True)
        score_J, count_J = torch.zeros(2, len(cell_J), dtype=torch.float64)
        score_J.index_add_(0, cell_N, times_N * score_N)
        count_J.index_add_(0, cell_N, times_N)
        self.score_K.index_add_(0, cell_J[:, 1], score_J)
        self.count_K.index_add_(0, cell_J[:, 1], count_J)
        self.square += float((times_N * score_N.square()).sum())
        self.plays += float(times_N.sum())
        self.own_score += float(score_J.square().sum())
        self.own_count += float(count_J.square().sum())

    @property
    def variance(self) -> float:
        """s^2, 0 where tracks differ by no more than chance, or no track was played by two."""
        pairs = float(self.count_K.square().sum()) - self.own_count
        if pairs <= 0 or self.square == 0:
            return 0.0
        information = self.square / self.plays
        return max(float(self.score_K.square().sum()) - self.own_score, 0.0) / (information**2 * pairs)

    def levels(self) -> Tensor:
        """Level of each track, (K,), in moves."""
        variance, information = self.variance, self.square / max(self.plays, 1.0)
        level_K: Tensor = self.score_K * variance / (self.count_K * information * variance + 1)
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
    """Set every member's levels from plays of its bag of training users, given the linear start.

    Args:
        model: at its linear start, whose untrained parts say nothing yet.
        data: the users to train on.
        fitted: signals that have such a start.
        bags: which users each member learns from.
        seed: of the sessions whose feedback is hidden, as in training.
    """
    first = model.ensemble[0]
    names = [name for name in first.leveled if name in fitted]
    if "track_embeddings" in first.encoder.without or not names:
        return  # a level would tell tracks apart
    tallies = {(m, name): Tally(data.tracks) for m in range(len(model.ensemble)) for name in names}
    for window_B3 in _whole_listeners(data):
        batch = data.gather(window_B3, hidden_seed=seed)
        asked_BL = batch.counts_BL & (batch.next_track_BL >= 0)
        feature_NF = first.linear_features(batch, asked_BL, of_track=True)
        user_N = batch.user_B[:, None].expand(asked_BL.shape)[asked_BL]
        track_N = batch.next_track_BL[asked_BL]
        for (m, name), tally in tallies.items():
            member, value_N = model.ensemble[m], batch.target_BLY[asked_BL][:, TARGETS.index(name)]
            told_N = ~value_N.isnan()
            params = member.linear_answer(name, feature_NF[told_N])
            score_N = scores(member.kinds[name], params, value_N[told_N])
            times_N = bags.times(m, user_N[told_N])
            tally.add(score_N, times_N, user_N[told_N], track_N[told_N])
    for (m, name), tally in tallies.items():
        model.ensemble[m].level_KV[:, first.leveled.index(name)] = tally.levels()


def _whole_listeners(data: SessionDataModule) -> Iterator[Tensor]:
    """Training users' windows, about `_WINDOWS` at a time, with all of a listener's together."""
    window_W3 = data.windows(TRAIN)
    user_W = data.flat.user_S[data.flat.session_N[window_W3[:, 0]]]
    last_W = torch.cat([user_W[1:] != user_W[:-1], torch.ones(1, dtype=torch.bool)])
    stop_U = torch.nonzero(last_W)[:, 0] + 1
    begin = 0
    while begin < len(window_W3):
        stop = int(stop_U[min(int(torch.searchsorted(stop_U, begin + _WINDOWS)), len(stop_U) - 1)])
        yield window_W3[begin:stop]
        begin = stop
