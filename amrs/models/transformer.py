"""Causal transformer over listening histories, with a key-value cache for rollouts.

Sequences are right-padded: under a causal mask nothing valid ever attends to padding.
Shape suffixes: B batch, L tokens, N tokens that are read, M tokens that are asked about, D width, H heads,
E embedding, F session features, C cache slots, Z summed quantities, Y those of a session.
"""

from collections.abc import Iterable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from amrs.batches import Batch
from amrs.config.groups import ModelConfig
from amrs.histories import FEEDBACK
from amrs.models.dropout import Dropout
from amrs.models.linear import Linear
from amrs.models.packed import Packed, rounded, take_rows
from amrs.models.summaries import RATIOS, TASTES, Summary, grown_sums, running_sums, summands, summarise

_FARTHEST = 10.0
"""Standard deviations at which a session feature is cut: no outlier may drive a prediction."""


def _last_cells(valid_BL: Tensor) -> Tensor:
    """Where each row's last valid token lies in the flattened (B, L), as (B,)."""
    first_B = torch.arange(len(valid_BL), device=valid_BL.device) * valid_BL.shape[1]
    return first_B + valid_BL.sum(1) - 1


@dataclass
class Cache:
    """Keys and values of what was read so far; `length_B` slots of each listener are filled."""

    keys: list[Tensor]
    """Per layer (B, H, C, D / H)."""
    values: list[Tensor]
    length_B: Tensor
    total_BZ: Tensor
    """Running sums of all plays read, and of this session's."""
    session_BY: Tensor


def _rotate(x_BHLd: Tensor, position_BL: Tensor) -> Tensor:
    """Rotary position embedding (Su et al. 2021, eq. 34), half-split form."""
    half = x_BHLd.shape[-1] // 2
    frequency = 10_000.0 ** (-torch.arange(half, device=x_BHLd.device) / half)
    angle = (position_BL[:, None, :, None] * frequency).to(x_BHLd.dtype)
    a, b = x_BHLd[..., :half], x_BHLd[..., half:]
    return torch.cat([a * angle.cos() - b * angle.sin(), a * angle.sin() + b * angle.cos()], -1)


class Block(nn.Module):
    """Pre-norm attention and feed-forward, each with a residual."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        width = config.width
        self.heads, self.rope = config.heads, config.positions == "rope"
        self.norm_attention, self.norm_mlp = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.out = Linear(width, 3 * width), Linear(width, width)
        self.mlp = nn.Sequential(Linear(width, 4 * width), nn.GELU(), Linear(4 * width, width))
        self.dropout = Dropout(config.dropout)

    def _project(self, x_ND: Tensor, packed: Packed, position_BL: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        qkv_BLD = packed.pad(self.qkv(self.norm_attention(x_ND)))
        q, k, v = qkv_BLD.unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        if self.rope:
            q, k = _rotate(q, position_BL), _rotate(k, position_BL)
        return q, k, v

    def _finish(self, x_ND: Tensor, attended_ND: Tensor) -> Tensor:
        x_ND = x_ND + self.dropout(self.out(attended_ND))
        x_ND = x_ND + self.dropout(self.mlp(self.norm_mlp(x_ND)))
        return x_ND

    def forward(
        self, x_ND: Tensor, packed: Packed, position_BL: Tensor, wanted_M: Tensor | None = None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """The block's output at all tokens, or at those in cells `wanted_M` only; its keys and values, for
        a cache."""
        q, k, v = self._project(x_ND, packed, position_BL)
        attended = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        attended = attended.transpose(1, 2).flatten(2).flatten(0, 1)
        cell = packed.cell_N if wanted_M is None else wanted_M
        if cell is not None:
            attended = take_rows(attended, cell)
        if wanted_M is not None:
            x_ND = take_rows(x_ND, packed.rows(wanted_M))
        return self._finish(x_ND, attended), k, v

    def append(self, x_BD: Tensor, keys: Tensor, values: Tensor, length_B: Tensor, filled: int) -> Tensor:
        """The block's output for one more token; writes its key and value into slot `length_B`, which is
        below `filled` for all."""
        q, k, v = self._project(x_BD, Packed((len(x_BD), 1), None), length_B[:, None])
        row_B = torch.arange(len(x_BD), device=x_BD.device)
        keys[row_B, :, length_B], values[row_B, :, length_B] = k[:, :, 0], v[:, :, 0]
        # By hand: torch's fused attention gains nothing from a single query, nor from slots that are empty.
        keys, values = keys[:, :, :filled], values[:, :, :filled]
        unseen_BC = torch.arange(filled, device=x_BD.device) > length_B[:, None]
        score = (q @ keys.transpose(-1, -2)).mul_(q.shape[-1] ** -0.5)
        attended = score.masked_fill_(unseen_BC[:, None, None], -torch.inf).softmax(-1) @ values
        return self._finish(x_BD, attended.flatten(1))


class HistoryEncoder(nn.Module):
    """A listener's history to one vector per token; tracks enter by content only.

    Args:
        config: the transformer's shape.
        static_size: F, session features of a token (NaN where missing).
        embedding_KE: the catalogue's embeddings; not part of the state dict.
    """

    static_mean: Tensor
    static_std: Tensor
    static_blind_F: Tensor
    embedding_KE: Tensor

    def __init__(self, config: ModelConfig, static_size: int, embedding_KE: Tensor) -> None:
        super().__init__()
        self.config = config
        self.register_buffer("static_mean", torch.zeros(static_size))
        self.register_buffer("static_std", torch.ones(static_size))
        self.register_buffer("static_blind_F", torch.zeros(static_size, dtype=torch.bool), persistent=False)
        self.without: frozenset[str] = frozenset()
        self.set_catalogue(embedding_KE)
        size = embedding_KE.shape[1]
        inputs = 2 * static_size + (3 + len(TASTES)) * size + 2 * len(FEEDBACK) + 2 + RATIOS
        self.embed = nn.Sequential(
            Dropout(config.dropout),
            Linear(inputs, 2 * config.width),
            nn.GELU(),
            Linear(2 * config.width, config.width),
        )
        self.position = nn.Embedding(config.history, config.width) if config.positions == "learned" else None
        self.blocks = nn.ModuleList(Block(config) for _ in range(config.layers))
        self.norm = nn.LayerNorm(config.width)
        self.sizes = [config.width, len(TASTES) * size, RATIOS + 2 * static_size]
        self.size = sum(self.sizes)

    def set_catalogue(self, embedding_KE: Tensor) -> None:
        """Standardise by one scalar per catalogue: cosines and relative sizes stay as they are."""
        centred = embedding_KE - embedding_KE.mean(0)
        scaled = centred / centred.square().mean().sqrt().clamp(min=1e-6)
        self.register_buffer("embedding_KE", scaled.float(), persistent=False)

    def blind(self, without: Iterable[str], static_F: Tensor) -> None:
        """Never read these inputs, in training as in rollouts (for ablations).

        Args:
            without: of `WorldModelConfig.without`; past feedback and tracks are masked here.
            static_F: True at session features that are not read.
        """
        self.without = frozenset(without)
        self.static_blind_F.copy_(static_F)

    def _embedded(self, track_BL: Tensor) -> Tensor:
        """Embeddings of plays, 0 at starts and for a model that may not read what was played."""
        blind = {"past_tracks", "track_embeddings"} & self.without
        seen_BL1 = (track_BL >= 0)[..., None].to(self.embedding_KE.dtype) * (0.0 if blind else 1.0)
        return self.embedding_KE[track_BL.clamp(min=0)] * seen_BL1

    def _told(self, feedback_BL4: Tensor) -> Tensor:
        """Feedback in [-1, 1], NaN where missing, and everywhere for a model that may not read it."""
        told = 2 * feedback_BL4 - 1
        return torch.full_like(told, torch.nan) if "past_feedback" in self.without else told

    def fit_statistics(self, static_SF: Tensor) -> None:
        """Mean and spread of the session features, from training sessions only."""
        known = ~static_SF.isnan()
        count = known.sum(0).clamp(min=1)
        mean = static_SF.nan_to_num().sum(0) / count
        variance = ((static_SF - mean).nan_to_num() ** 2).sum(0) / count
        self.static_mean.copy_(mean)
        # A feature that never varied in training must not explode on the first listener who has it.
        self.static_std.copy_(variance.sqrt().where(variance > 1e-6, 1.0))

    def summands(self, track_BL: Tensor, feedback_BL4: Tensor) -> Tensor:
        """What each token adds to the running sums, (B, L, Z)."""
        play_BL1 = (track_BL >= 0)[..., None].to(self.embedding_KE.dtype)
        return summands(self._embedded(track_BL), play_BL1, self._told(feedback_BL4))

    def known(self, static_BLF: Tensor, summary: Summary) -> Tensor:
        """The features of a linear model: ratios, standardised session features, what of them is missing."""
        missing_BLF = static_BLF.isnan() | self.static_blind_F
        static = ((static_BLF - self.static_mean) / self.static_std).clamp(-_FARTHEST, _FARTHEST)
        static = static.masked_fill(missing_BLF, 0.0)
        return torch.cat([summary.ratio_BLR, static, missing_BLF.float()], -1)

    def tokens(self, track_BL: Tensor, feedback_BL4: Tensor, hidden_BL: Tensor, summary: Summary) -> Tensor:
        """What is new in each token, (B, L, I): `track_BL` is -1 at starts, feedback NaN if missing."""
        play_BL1 = (track_BL >= 0)[..., None].float()
        track_BLE, told_BL4 = self._embedded(track_BL), self._told(feedback_BL4)
        absent_BL4 = told_BL4.isnan()
        feedback = told_BL4.masked_fill(absent_BL4, 0.0)
        liked = feedback[..., :2, None] * track_BLE[..., None, :]
        parts = [track_BLE, liked.flatten(-2), feedback, absent_BL4.float(), hidden_BL[..., None].float(),
                 play_BL1, summary.taste_BLTE.flatten(-2)]  # fmt: skip
        return torch.cat(parts, -1)

    def observed(self, batch: Batch, wanted_BL: Tensor) -> tuple[Tensor, Tensor]:
        """The tastes (M, T, E) and the linear model's features at the tokens where `wanted_BL` is True: the
        parts of `at` that no weight has touched."""
        size, packed = self.embedding_KE.shape[1], Packed.of(wanted_BL)
        sums = running_sums(self.summands(batch.track_BL, batch.feedback_BL4), batch.step_BL, size)
        summary = summarise(packed.take(sums[0]), packed.take(sums[1]), size)
        return summary.taste_BLTE, self.known(packed.take(batch.static_BLF), summary)

    def _read(
        self, batch: Batch, read_BL: Tensor, cell_M: Tensor
    ) -> tuple[Tensor, list[Tensor], list[Tensor], tuple[Tensor, Tensor]]:
        """Vectors (M, size) at cells of the flattened (B, L), among those read; keys, values, sums."""
        size, packed = self.embedding_KE.shape[1], Packed.of(rounded(read_BL))
        sums = running_sums(self.summands(batch.track_BL, batch.feedback_BL4), batch.step_BL, size)
        summary = summarise(packed.take(sums[0]), packed.take(sums[1]), size)
        known = self.known(packed.take(batch.static_BLF), summary)
        track_N, hidden_N = packed.take(batch.track_BL), packed.take(batch.hidden_BL)
        token = self.tokens(track_N, packed.take(batch.feedback_BL4), hidden_N, summary)
        x = self.embed(torch.cat([known, token], -1))
        position_BL = torch.arange(batch.valid_BL.shape[1], device=x.device).expand(batch.valid_BL.shape)
        if self.position is not None:
            x = x + self.position(packed.take(position_BL))
        keys, values = [], []
        for block in self.blocks:
            x, k, v = block(x, packed, position_BL, cell_M if block is self.blocks[-1] else None)
            keys.append(k)
            values.append(v)
        row_M = packed.rows(cell_M)
        taste_MTE, known = summary.taste_BLTE.index_select(0, row_M), known.index_select(0, row_M)
        return torch.cat([self.norm(x), taste_MTE.flatten(-2), known], -1), keys, values, sums

    def at(self, batch: Batch, wanted_BL: Tensor) -> Tensor:
        """One vector, (M, `size`), for each token where `wanted_BL` is True, in their order.

        As `forward` there, without the work for other tokens that nobody asks about.
        """
        return self._read(batch, batch.valid_BL | wanted_BL, torch.nonzero(wanted_BL.flatten())[:, 0])[0]

    def last(self, batch: Batch) -> Tensor:
        """Vector of each row's last valid token, (B, `size`)."""
        return self._read(batch, batch.valid_BL, _last_cells(batch.valid_BL))[0]

    def forward(self, batch: Batch) -> Tensor:
        """One vector per token, (B, L, `size`); token n sees tokens 0..n only; zeros at padding.

        The transformer's D channels, the tastes of `summaries.TASTES` in the embedding space, and the
        features of a linear model (`known`): see `sizes`.
        """
        return Packed.of(batch.valid_BL).pad(self.at(batch, batch.valid_BL))

    def prefill(self, batch: Batch, room: int) -> tuple[Tensor, Cache]:
        """Vector of each listener's last valid token, and a cache with room for more tokens."""
        cell_B = _last_cells(batch.valid_BL)
        h_BD, keys, values, sums = self._read(batch, batch.valid_BL, cell_B)
        grown = [F.pad(x, (0, 0, 0, room)) for x in keys], [F.pad(x, (0, 0, 0, room)) for x in values]
        total_BZ, session_BY = (x.flatten(0, 1)[cell_B] for x in sums)
        return h_BD, Cache(*grown, batch.valid_BL.sum(1), total_BZ, session_BY)

    def append(
        self, static_BF: Tensor, track_B: Tensor, feedback_B4: Tensor, cache: Cache, hidden: bool = False
    ) -> Tensor:
        """Vector of one more token each, a play or (track -1) the start of a session; the cache grows in
        place. `static_BF` are the features of the token's session."""
        cache.session_BY = cache.session_BY.masked_fill((track_B < 0)[:, None], 0.0)
        track_B1, feedback_B14 = track_B[:, None], feedback_B4[:, None]
        summand_BZ = self.summands(track_B1, feedback_B14)[:, 0]
        size = self.embedding_KE.shape[1]
        sums = grown_sums(cache.total_BZ, cache.session_BY, summand_BZ, size)
        cache.total_BZ, cache.session_BY = sums
        summary = summarise(cache.total_BZ[:, None], cache.session_BY[:, None], size)
        hidden_B1 = torch.full_like(track_B1, hidden, dtype=torch.bool)
        known = self.known(static_BF[:, None], summary)
        token = self.tokens(track_B1, feedback_B14, hidden_B1, summary)
        x = self.embed(torch.cat([known, token], -1))[:, 0]
        if self.position is not None:
            x = x + self.position(cache.length_B)
        filled = int(cache.length_B.max()) + 1
        for block, keys, values in zip(self.blocks, cache.keys, cache.values, strict=True):
            assert isinstance(block, Block)
            x = block.append(x, keys, values, cache.length_B, filled)
        cache.length_B = cache.length_B + 1
        return torch.cat([self.norm(x), summary.taste_BLTE[:, 0].flatten(-2), known[:, 0]], -1)
