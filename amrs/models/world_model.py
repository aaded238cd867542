"""The world model: what would this listener answer to this track, now.

Factored: the history is encoded once to a vector, each candidate joins it in a small head, so one
encoding scores a whole catalogue. Three questions share the head (Chan et al. 2026; the second and
third are our addition): what follows if this *track* is played, what the final report will be as the
session *starts*, and what it will be once the session has *ended*.
A linear part, on what a careful statistician would use, moves every signal's location: with a few
thousand reports it carries most of what can be learned, and the rest of the head learns what it misses.
Shape suffixes: B batch, L tokens, N asked positions, K candidates, D width, H hidden, A affinities,
X moves of the signals (see `Kind.moves`), T tastes, S session features that meet the track, V signals with
levels.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from amrs.batches import Batch
from amrs.config.groups import ModelConfig
from amrs.logs.histories import LABELS, TARGETS
from amrs.models.curves import Curves
from amrs.models.dropout import Dropout
from amrs.models.linear import Linear, linear
from amrs.models.packed import rounded, take_rows
from amrs.models.summaries import RATIOS, SESSION, SHARE, TASTE_SCALES, TASTES
from amrs.models.transformer import HistoryEncoder
from amrs.signals import SIGNALS, Binary, Bounded, Kind

AFFINITIES = 8
"""Inner products of listener and track that the head sees besides their sum (fewer where the width is
no multiple of it)."""
REPORTS = ("valence", "arousal")
"""Signals that are reported of a session, not of a play."""
EXTRA = {"left": "binary", "rated": "binary", "reported": "binary"}
"""Learned besides the declared signals: leaving, and whether a rating or report is given."""


class Candidates(NamedTuple):
    """The catalogue's half of the head, computed once."""

    joined_KH: Tensor
    affinity_KD: Tensor
    linear_KX: Tensor
    """What each track moves each signal by, in the linear part."""
    embedding_KE: Tensor


class Question(NamedTuple):
    """One listener's half of the head, for some signals (P parameters, X moves); A affinities, Q = A + T."""

    query_AD: Tensor
    near_TE: Tensor
    joined_QH: Tensor
    """What affinities and nearness add to the hidden layer; then what this listener does, in a last row."""
    head_PH: Tensor
    near_PT: Tensor
    """What nearness adds to the parameters; then what this listener does, in a last column."""
    linear_PX: Tensor
    situated_PE: Tensor
    """What each channel of a track adds to the parameters in this situation; empty without `situation`."""
    sizes: dict[str, int]


class WorldModelMember(nn.Module):
    """One member of the ensemble.

    Args:
        config: shape of the transformer.
        signals: declared signals and their kinds, e.g. {"valence": "bounded"}.
        components: mixture components of bounded heads.
        static_size: session features of a token.
        embedding_KE: the catalogue.
        curves: smooth functions of a track that the linear part reads of plays; 0 is none.
        situation: session features whose products with the track it reads of plays, by number.
    """

    block_AD: Tensor
    """1 at the channels of each affinity, 0 elsewhere."""
    near_scale_T: Tensor
    of_play_X: Tensor
    """1 at moves of what follows each play, 0 at those of reports."""
    level_KV: Tensor
    """What each track adds beyond its embedding to what follows a play of it, in moves: see `amrs.levels`."""
    level_VX: Tensor
    """Which move that is: 1 there, 0 elsewhere."""
    move_XP: Tensor
    """How moves change the head's parameters: every kind's `moved` adds what is linear in them."""

    def __init__(
        self,
        config: ModelConfig,
        signals: dict[str, str],
        components: int,
        static_size: int,
        embedding_KE: Tensor,
        curves: int = 0,
        situation: Sequence[int] = (),
    ) -> None:
        super().__init__()
        self.kinds: dict[str, Kind] = {
            name: Bounded(components) if SIGNALS[kind] is Bounded else Binary()
            for name, kind in {**signals, **EXTRA}.items()
        }
        self.encoder = HistoryEncoder(config, static_size, embedding_KE)
        width, hidden = config.width, config.width
        self.track = nn.Sequential(Linear(embedding_KE.shape[1], width), nn.GELU())
        self.track_joined, self.track_affinity = Linear(width, hidden), Linear(width, width)
        self.history_joined, self.history_affinity = Linear(width, hidden), Linear(width, width)
        self.affinities = math.gcd(AFFINITIES, width)
        self.affinity_joined = Linear(self.affinities + len(TASTES), hidden, bias=False)
        block_AD = torch.eye(self.affinities).repeat_interleave(width // self.affinities, 1)
        self.register_buffer("block_AD", block_AD, persistent=False)
        scale_T = torch.tensor(TASTE_SCALES) * embedding_KE.shape[1] ** -0.5
        self.register_buffer("near_scale_T", scale_T, persistent=False)
        moves = sum(kind.moves for kind in self.kinds.values())
        move_XP = torch.block_diag(*[k.moved(torch.zeros(k.moves, k.size), torch.eye(k.moves))
                                     for k in self.kinds.values()])  # fmt: skip
        self.register_buffer("move_XP", move_XP, persistent=False)
        self._add_linear(embedding_KE.shape[1], moves, curves, situation)
        of_play = [torch.full((k.moves,), float(name not in REPORTS)) for name, k in self.kinds.items()]
        self.register_buffer("of_play_X", torch.cat(of_play), persistent=False)
        self.leveled = [name for name in self.kinds if name in signals and name not in REPORTS]
        self.register_buffer("level_KV", torch.zeros(len(embedding_KE), len(self.leveled)))
        level_X = [name in self.leveled and move == kind.level
                   for name, kind in self.kinds.items() for move in range(kind.moves)]  # fmt: skip
        self.register_buffer("level_VX", torch.eye(moves)[torch.tensor(level_X)], persistent=False)
        self.moment = nn.Parameter(torch.randn(2, hidden) * 0.1)
        if not set(REPORTS) & set(signals):
            self.moment.requires_grad_(False)  # nothing asks: several processes would wait for its gradient
        self.dropout = Dropout(config.dropout)
        self.head = Linear(hidden, sum(kind.size for kind in self.kinds.values()))
        nn.init.normal_(self.head.weight, std=0.02)
        self.head.bias.data = torch.cat([kind.initial() for kind in self.kinds.values()])

    def _add_linear(self, size: int, moves: int, curves: int, situation: Sequence[int]) -> None:
        """The linear part, which says nothing until it is fitted; `size` is that of an embedding."""
        self.known_linear = Linear(self.encoder.sizes[2], moves, bias=False)
        self.session_linear = Linear(size, moves, bias=False)
        self.near_linear = Linear(len(TASTES), moves, bias=False)
        self.cross_linear = Linear(len(TASTES) * RATIOS, moves, bias=False)
        self.curves = Curves(size, curves) if curves else None
        self.track_linear = Linear(size + curves, moves, bias=False)
        self.situation = [RATIOS + feature for feature in situation]
        if situation:
            self.situation_linear = Linear(len(situation) * size, moves, bias=False)
        for layer in self.linear_layers:
            nn.init.zeros_(layer.weight)

    @property
    def linear_layers(self) -> tuple[Linear, ...]:
        """The linear part's layers, in the order of `linear_features`."""
        situated = (self.situation_linear,) if self.situation else ()
        return (self.known_linear, self.session_linear, self.near_linear, self.cross_linear,
                self.track_linear, *situated)  # fmt: skip

    def candidates(self, track: Tensor | None = None) -> Candidates:
        """The head's track half for tracks of any shape; for the whole catalogue if None."""
        embedding, level = self.encoder.embedding_KE, self.level_KV
        if track is not None:
            embedding, level = embedding[track], level[track]
        found = self.unseen(embedding)
        return found._replace(linear_KX=found.linear_KX + level @ self.level_VX)

    def linear_features(self, batch: Batch, asked_BL: Tensor, of_track: bool) -> Tensor:
        """What the linear part sees (N, F) where `asked_BL` is True: of the track played next, or of a moment
        without one. In the order of its layers: known, session, near, near by ratios (how much a taste tells
        depends on how much was told), track, and track by situation."""
        taste_NTE, known = self.encoder.observed(batch, asked_BL)
        session_NE, near_NT = taste_NTE[:, SESSION], torch.zeros(len(known), len(TASTES))
        embedding_NE = torch.zeros_like(session_NE)
        track_NC = torch.zeros(len(known), self.track_linear.in_features)
        if of_track:
            embedding_NE = self._shown(self.encoder.embedding_KE[batch.next_track_BL[asked_BL]])
            session_NE = session_NE + SHARE * embedding_NE
            near_NT = (taste_NTE * embedding_NE[:, None, :]).sum(-1) * self.near_scale_T
            track_NC = self._described(embedding_NE)
        parts = [known, session_NE, near_NT, _crossed(near_NT, known), track_NC]
        if self.situation:
            parts.append((known[:, self.situation, None] * embedding_NE[:, None, :]).flatten(-2))
        return torch.cat(parts, -1)

    def of_report(self, feature_NF: Tensor) -> Tensor:
        """The same for reports, which see neither tracks by themselves nor products, (N, F)."""
        apart = sum(layer.in_features for layer in self.linear_layers[3:])
        return F.pad(feature_NF[:, :-apart], (0, apart))

    def linear_answer(self, name: str, feature_NF: Tensor) -> Tensor:
        """Head parameters (N, P) of a signal by the linear part alone, from `linear_features`."""
        sizes, moves = [k.size for k in self.kinds.values()], [k.moves for k in self.kinds.values()]
        place = list(self.kinds).index(name)
        weight_XF = torch.cat([layer.weight.split(moves)[place] for layer in self.linear_layers], 1)
        bias_P = self.head.bias.split(sizes)[place]
        return self.kinds[name].moved(bias_P.expand(len(feature_NF), -1), feature_NF @ weight_XF.T)

    @torch.no_grad()
    def start_linear(self, name: str, bias_P: Tensor, weight_XF: Tensor) -> None:
        """Set what the head says of a signal where all else is 0, and the linear part's moves of it."""
        sizes, moves = [k.size for k in self.kinds.values()], [k.moves for k in self.kinds.values()]
        place = list(self.kinds).index(name)
        self.head.bias.split(sizes)[place].copy_(bias_P)
        parts = weight_XF.split([layer.in_features for layer in self.linear_layers], 1)
        for layer, part in zip(self.linear_layers, parts, strict=True):
            layer.weight.split(moves)[place].copy_(part)

    def unseen(self, chosen: Tensor) -> Candidates:
        """The same for any embeddings (..., E), centred and scaled as `encoder.embedding_KE` is, of tracks
        that nobody has heard: without levels."""
        chosen = self._shown(chosen)
        content = self.track(chosen)
        # A track moves a report as part of its session only: final reports tell nothing of earlier plays.
        own = self.of_play_X * self.track_linear(self._described(chosen))
        shift = SHARE * self.session_linear(chosen) + own
        return Candidates(self.track_joined(content), self.track_affinity(content), shift, chosen)

    def _shown(self, embedding: Tensor) -> Tensor:
        """A candidate's embedding; zeros for a model that may not read it."""
        blind = "track_embeddings" in self.encoder.without
        return torch.zeros_like(embedding) if blind else embedding

    def _described(self, embedding: Tensor) -> Tensor:
        """What the linear part reads of a track by itself: (..., E), and its curves."""
        return embedding if self.curves is None else torch.cat([embedding, self.curves(embedding)], -1)

    def situated(self, known: Tensor) -> Tensor:
        """By how much each channel of a track moves each signal in this situation, (..., X, E)."""
        weight_XSE = self.situation_linear.weight.unflatten(-1, (len(self.situation), -1))
        moved: Tensor = torch.einsum("...s,xse->...xe", known[..., self.situation], weight_XSE)
        return self.of_play_X[:, None] * moved

    def _parts(self, h_ND: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """The transformer's channels, the tastes (N, T, E) and the linear model's features. No weight is
        behind the last two, so nobody needs the gradients that would be taken for them."""
        sizes = self.encoder.sizes
        tastes, known = h_ND.detach()[..., sizes[0] :].split(sizes[1:], -1)
        return h_ND[..., : sizes[0]], tastes.unflatten(-1, (len(TASTES), -1)), known

    def _split(self, hidden: Tensor, shift: Tensor) -> dict[str, Tensor]:
        """Head parameters by signal."""
        params = self.head(self.dropout(F.gelu(hidden))).float() + (shift @ self.move_XP).float()
        sizes = [kind.size for kind in self.kinds.values()]
        return dict(zip(self.kinds, params.split(sizes, -1), strict=True))

    def means(self, params: dict[str, Tensor]) -> dict[str, Tensor]:
        """Expectation of each signal (...), from parameters (..., P)."""
        found: dict[str, Tensor] = {}
        for kind in dict.fromkeys(self.kinds[name] for name in params):
            names = [name for name in params if self.kinds[name] == kind]
            found |= zip(names, kind.mean(torch.stack([params[name] for name in names])), strict=True)
        return {name: found[name] for name in params}

    def answer(self, h_ND: Tensor, candidates: Candidates) -> dict[str, Tensor]:
        """Head parameters (N, P) by signal, for one track at each position; tracks as (N, ...)."""
        own, taste_NTE, known = self._parts(h_ND)
        products = (self.history_affinity(own) * candidates.affinity_KD).unflatten(-1, (self.affinities, -1))
        near = (taste_NTE * candidates.embedding_KE[..., None, :]).sum(-1) * self.near_scale_T
        joined = self.history_joined(own) + candidates.joined_KH
        hidden = joined + self.affinity_joined(torch.cat([products.sum(-1), near], -1))
        shift = self.known_linear(known) + self.session_linear(taste_NTE[..., SESSION, :])
        shift = shift + self.near_linear(near) + self.of_play_X * self.cross_linear(_crossed(near, known))
        if self.situation:
            shift = shift + (self.situated(known) * candidates.embedding_KE[..., None, :]).sum(-1)
        return self._split(hidden, shift + candidates.linear_KX)

    def score(
        self, h_BD: Tensor, candidates: Candidates, signals: Sequence[str] | None = None
    ) -> dict[str, Tensor]:
        """Head parameters (B, K, P) by signal, for each of K tracks at each of B positions."""
        answers = [self.replies(question, candidates) for question in self.questions(h_BD, signals)]
        return {name: torch.stack([found[name] for found in answers]) for name in answers[0]}

    def questions(self, h_BD: Tensor, signals: Sequence[str] | None = None) -> list[Question]:
        """The listeners' halves, one each: with them a catalogue is read once."""
        sizes = {name: kind.size for name, kind in self.kinds.items() if signals is None or name in signals}
        name_P = [name for name, kind in self.kinds.items() for _ in range(kind.size)]
        index_P = torch.tensor([p for p, name in enumerate(name_P) if name in sizes], device=h_BD.device)
        head_PH, move_PX = self.head.weight[index_P], self.move_XP.T[index_P]
        own, taste_BTE, known = self._parts(h_BD)
        query_BAD = self.history_affinity(own)[:, None] * self.block_AD
        weight_BQH = self.affinity_joined.weight.T.expand(len(h_BD), -1, -1)
        joined_BQH = torch.cat([weight_BQH, self.history_joined(own)[:, None]], 1)
        shift_BX = self.known_linear(known) + self.session_linear(taste_BTE[..., SESSION, :])
        cross_BXT = F.linear(known[:, :RATIOS], self.cross_linear.weight.reshape(-1, RATIOS))
        cross_BXT = cross_BXT.unflatten(1, (-1, len(TASTES))) * self.of_play_X[:, None]
        near_BXT = torch.cat([self.near_linear.weight + cross_BXT, shift_BX[..., None]], -1)
        near_BPT = move_PX @ near_BXT
        near_BPT[..., -1] += self.head.bias[index_P]
        situated_BPE = move_PX @ self.situated(known) if self.situation else torch.empty(len(h_BD), 0)
        own_halves = zip(
            query_BAD, taste_BTE * self.near_scale_T[:, None], joined_BQH, near_BPT, situated_BPE, strict=True
        )
        return [
            Question(query_AD, near_TE, joined_QH, head_PH, near_PT, move_PX, situated_PE, sizes)
            for query_AD, near_TE, joined_QH, near_PT, situated_PE in own_halves
        ]

    def replies(self, question: Question, candidates: Candidates) -> dict[str, Tensor]:
        """Head parameters (K, P) by signal; each parameter lies side by side for all tracks."""
        near_TK = linear(question.near_TE, candidates.embedding_KE)
        one_1K = torch.ones_like(near_TK[:1])
        joined_QK = torch.cat([linear(question.query_AD, candidates.affinity_KD), near_TK, one_1K])
        hidden_KH = torch.addmm(candidates.joined_KH, joined_QK.T, question.joined_QH)
        active_KH = self.dropout(torch.ops.aten.gelu_(hidden_KH))  # in place: it stays in the cache
        params_PK = linear(question.head_PH, active_KH)
        params_PK.addmm_(question.near_PT, joined_QK[self.affinities :])
        params_PK.addmm_(question.linear_PX, candidates.linear_KX.T)
        if self.situation:
            params_PK.addmm_(question.situated_PE, candidates.embedding_KE.T)
        return dict(zip(question.sizes, params_PK.T.split(list(question.sizes.values()), -1), strict=True))

    def at_moment(self, h_ND: Tensor, ended: bool) -> dict[str, Tensor]:
        """Head parameters (N, P) of the final report, as the session starts or once it has ended."""
        own, taste_NTE, known = self._parts(h_ND)
        shift = self.known_linear(known) + self.session_linear(taste_NTE[..., SESSION, :])
        return self._split(self.history_joined(own) + self.moment[int(ended)], shift)


def _crossed(near_NT: Tensor, known: Tensor) -> Tensor:
    """Products of nearness and the summary's ratios, (N, T x R)."""
    return (near_NT[..., None] * known[..., None, :RATIOS]).flatten(-2)


def masked_sums(member: WorldModelMember, batch: Batch, times_B: Tensor | None = None) -> Tensor:
    """Summed negative log-likelihood of each of `LABELS` over the batch's counted labels, as (Z,).

    Sums, not means: the caller divides by counts over the whole optimiser step. Windows count `times_B` times
    (1 if None).
    """
    times_B = torch.ones(len(batch.track_BL), device=batch.track_BL.device) if times_B is None else times_B
    times_BL = times_B[:, None].expand(batch.track_BL.shape)
    asked_BL = batch.counts_BL & (batch.next_track_BL >= 0)
    reported_BL = batch.counts_BL & ~batch.report_BL2.isnan().all(-1)
    wanted_BL = rounded(asked_BL | reported_BL)
    h_ND = member.encoder.at(batch, wanted_BL)
    sums = torch.zeros(len(LABELS), device=h_ND.device)
    times_N = times_BL[wanted_BL]
    target_NY = batch.target_BLY[wanted_BL].masked_fill(~asked_BL[wanted_BL][:, None], torch.nan)
    params = member.answer(h_ND, member.candidates(batch.next_track_BL[wanted_BL].clamp(min=0)))
    parts = []
    for column, name in enumerate(TARGETS):
        if name in params:
            known_N = ~target_NY[:, column].isnan()
            loss_N = member.kinds[name].nll(params[name][known_N], target_NY[known_N, column])
            parts.append((column, (loss_N * times_N[known_N]).sum()))
    for ended, offset in ((False, LABELS.index("start_valence")), (True, LABELS.index("end_valence"))):
        moment_BL = reported_BL & ((batch.step_BL > 0) == ended)
        params = member.at_moment(take_rows(h_ND, moment_BL[wanted_BL].nonzero()[:, 0]), ended)
        report_N2, times_N = batch.report_BL2[moment_BL], times_BL[moment_BL]
        for column, name in enumerate(REPORTS):
            if name in params:
                known_N = ~report_N2[:, column].isnan()
                loss_N = member.kinds[name].nll(params[name][known_N], report_N2[known_N, column])
                parts.append((offset + column, (loss_N * times_N[known_N]).sum()))
    index = torch.tensor([column for column, _ in parts], device=sums.device)
    return sums.index_put((index,), torch.stack([loss for _, loss in parts]))


class WorldModel(nn.Module):
    """An ensemble of one member or more; predictions are averaged over members."""

    def __init__(
        self,
        members: int,
        config: ModelConfig,
        signals: dict[str, str],
        components: int,
        static_size: int,
        embedding_KE: Tensor,
        curves: int = 0,
        situation: Sequence[int] = (),
    ) -> None:
        super().__init__()
        self.members = nn.ModuleList(
            WorldModelMember(config, signals, components, static_size, embedding_KE, curves, situation)
            for _ in range(members)
        )

    @property
    def ensemble(self) -> list[WorldModelMember]:
        """The members, typed."""
        return [member for member in self.members if isinstance(member, WorldModelMember)]

    def predict(self, batch: Batch, at_BL: Tensor, moment: str) -> dict[str, list[Tensor]]:
        """Head parameters (N, P) of each member, by signal, at the tokens where `at_BL` is True; on the CPU,
        wherever the model is.

        `moment` is "track" (what the logged next track will bring), "start" or "end" (the final report).
        """
        answers: dict[str, list[Tensor]] = {}
        device = self.ensemble[0].head.weight.device
        batch, at_BL = batch.to(device), at_BL.to(device)
        for member in self.ensemble:
            h_ND = member.encoder.at(batch, at_BL)
            if moment == "track":
                params = member.answer(h_ND, member.candidates(batch.next_track_BL[at_BL]))
            else:
                params = member.at_moment(h_ND, ended=moment == "end")
            for name, value in params.items():
                answers.setdefault(name, []).append(value.cpu())
        return answers

    def mean(self, name: str, params: list[Tensor]) -> Tensor:
        """Expectation of a signal, averaged over members."""
        kind = self.ensemble[0].kinds[name]
        return torch.stack([kind.mean(p) for p in params]).mean(0)

    def distance(self, name: str, params: list[Tensor], target: float) -> Tensor:
        """E|signal - target|, averaged over members."""
        kind = self.ensemble[0].kinds[name]
        return torch.stack([kind.distance(p, target) for p in params]).mean(0)
