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
from amrs.logs.histories import FEEDBACK
from amrs.models.dropout import Dropout
from amrs.models.linear import Linear
from amrs.models.packed import Packed, rounded, take_rows
from amrs.models.summaries import (
    RATIOS,
    TASTES,
    Heard,
    Summary,
    grown_sums,
    running_sums,
    summands,
    summarise,
)  # fmt: skip

_FARTHEST = 10.0
"""Standard deviations at which a session feature is cut: no outlier may drive a prediction."""


def _last_cells(valid_BL: Tensor) -> Tensor:
    """Where each row's last valid token lies in the flattened (B, L), as (B,)."""
    first_B = torch.arange(len(valid_BL), device=valid_BL.device) * valid_BL.shape[1]
    return first_B + valid_BL.sum(1) - 1


@dataclass
class Cache:
    """What was read so far; `length_B` slots of each listener are filled."""

    slots: list[Tensor]
    """Per layer keys and values, (2, B, H, C, D / H)."""
    length_B: Tensor
    total_BZ: Tensor
    """Running sums of all plays read, and of this session's."""
    session_BY: Tensor

    def __post_init__(self) -> None:
        """With J = B x H: `next_2J`, where the next keys and values go among all slots of a layer, and
        `unseen_J1C`, -inf at empty slots and 0 at filled ones, of which a listener has `most` at the most."""
        both, batch, heads, room, _ = self.slots[0].shape
        length_J, device = self.length_B.repeat_interleave(heads), self.length_B.device
        row_2J, slot_C = (torch.arange(n, device=device) for n in (both * batch * heads, room))
        self.next_2J = row_2J * room + length_J.repeat(both)
        self.unseen_J1C = torch.where(slot_C < length_J[:, None, None], 0.0, -torch.inf)
        self.most = int(length_J.max())

    def grow(self) -> None:
        """Count the next token in, whose keys and values are then to be written."""
        self.unseen_J1C.view(-1).index_fill_(0, self.next_2J[: len(self.unseen_J1C)], 0.0)
        self.written_2J, self.next_2J = self.next_2J, self.next_2J + 1
        self.length_B, self.most = self.length_B + 1, self.most + 1


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

    def append(self, x_BD: Tensor, slots: Tensor, cache: Cache) -> Tensor:
        """The block's output for one more token; writes its key and value into the slots."""
        q, k, v = self._project(x_BD, Packed((len(x_BD), 1), None), cache.length_B[:, None] - 1)
        new_2Jd = torch.stack([k, v]).view(-1, k.shape[-1])
        slots.view(-1, k.shape[-1]).index_copy_(0, cache.written_2J, new_2Jd)
        # By hand: torch's fused attention gains nothing from a single query, nor from slots that are empty.
        keys, values = slots.flatten(1, 2)[:, :, : cache.most]
        unseen, scale = cache.unseen_J1C[..., : cache.most], q.shape[-1] ** -0.5
        score = torch.baddbmm(unseen, q.flatten(0, 1), keys.transpose(1, 2), alpha=scale)
        attended = torch.bmm(score.softmax(-1), values)
        return self._finish(x_BD, attended.view(x_BD.shape))


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

    def heard(self, track_BL: Tensor, feedback_BL4: Tensor) -> Heard:
        """Plays as numbers: `track_BL` is -1 at starts, feedback NaN where missing. No tracks and no feedback
        for a model that may not read them."""
        play_BL1 = (track_BL >= 0)[..., None].to(self.embedding_KE.dtype)
        track_BLE = F.embedding(track_BL.clamp(min=0), self.embedding_KE) * play_BL1
        if {"past_tracks", "track_embeddings"} & self.without:
            track_BLE = torch.zeros_like(track_BLE)
        if "past_feedback" in self.without:
            feedback_BL4 = torch.full_like(feedback_BL4, torch.nan)
        known_BL4 = (feedback_BL4 == feedback_BL4).to(track_BLE.dtype)
        return Heard(track_BLE, play_BL1, (2 * feedback_BL4 - 1).nan_to_num_(0.0), known_BL4)

    def fit_statistics(self, static_SF: Tensor) -> None:
        """Mean and spread of the session features, from training sessions only."""
        known = ~static_SF.isnan()
        count = known.sum(0).clamp(min=1)
        mean = static_SF.nan_to_num().sum(0) / count
        variance = ((static_SF - mean).nan_to_num() ** 2).sum(0) / count
        self.static_mean.copy_(mean)
        # A feature that never varied in training must not explode on the first listener who has it.
        self.static_std.copy_(variance.sqrt().where(variance > 1e-6, 1.0))

    def sums(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """Running sums (B, L, Z) and (B, L, Y) up to and including each token."""
        summand_BLZ = summands(self.heard(batch.track_BL, batch.feedback_BL4))
        return running_sums(summand_BLZ, batch.step_BL, self.embedding_KE.shape[1])

    def standardised(self, static_BLF: Tensor) -> Tensor:
        """Session features and what of them is missing, (B, L, 2 F)."""
        missing_BLF = static_BLF.isnan() | self.static_blind_F
        static = ((static_BLF - self.static_mean) / self.static_std).clamp(-_FARTHEST, _FARTHEST)
        return torch.cat([static.masked_fill(missing_BLF, 0.0), missing_BLF.float()], -1)

    def inputs(
        self, heard: Heard, hidden_BL1: Tensor, summary: Summary, static_BLG: Tensor
    ) -> tuple[Tensor, Tensor]:
        """What is read of each token, (B, L, I), and the part of it that a linear model reads too: ratios and
        `standardised` session features."""
        known = torch.cat([summary.ratio_BLR, static_BLG], -1)
        liked = heard.value_BL4[..., :2, None] * heard.track_BLE[..., None, :]
        parts = [known, heard.track_BLE, liked.flatten(-2), heard.value_BL4, 1 - heard.known_BL4, hidden_BL1,
                 heard.play_BL1, summary.taste_BLTE.flatten(-2)]  # fmt: skip
        return torch.cat(parts, -1), known

    def observed(self, batch: Batch, wanted_BL: Tensor) -> tuple[Tensor, Tensor]:
        """The tastes (M, T, E) and the linear model's features at the tokens where `wanted_BL` is True: the
        parts of `at` that no weight has touched."""
        size, packed, sums = self.embedding_KE.shape[1], Packed.of(wanted_BL), self.sums(batch)
        summary = summarise(packed.take(sums[0]), packed.take(sums[1]), size)
        static_NG = self.standardised(packed.take(batch.static_BLF))
        return summary.taste_BLTE, torch.cat([summary.ratio_BLR, static_NG], -1)

    def _read(
        self, batch: Batch, read_BL: Tensor, cell_M: Tensor
    ) -> tuple[Tensor, list[Tensor], list[Tensor], tuple[Tensor, Tensor]]:
        """Vectors (M, size) at cells of the flattened (B, L), among those read; keys, values, sums."""
        size, packed = self.embedding_KE.shape[1], Packed.of(rounded(read_BL))
        heard = self.heard(batch.track_BL, batch.feedback_BL4)
        sums = running_sums(summands(heard), batch.step_BL, size)
        summary = summarise(packed.take(sums[0]), packed.take(sums[1]), size)
        heard = Heard(*(packed.take(x) for x in heard))
        hidden_N1, static_NG = packed.take(batch.hidden_BL)[:, None], packed.take(batch.static_BLF)
        input_NI, known = self.inputs(heard, hidden_N1.float(), summary, self.standardised(static_NG))
        x = self.embed(input_NI)
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
        slots = [F.pad(torch.stack(pair), (0, 0, 0, room)) for pair in zip(keys, values, strict=True)]
        total_BZ, session_BY = (x.flatten(0, 1)[cell_B] for x in sums)
        return h_BD, Cache(slots, batch.valid_BL.sum(1), total_BZ, session_BY)

    def append(
        self, static_BG: Tensor, track_B: Tensor, feedback_B4: Tensor, cache: Cache, hidden: bool = False
    ) -> Tensor:
        """Vector of one more token each, a play or (track -1) the start of a session; the cache grows in
        place. `static_BG` are the `standardised` features of the token's session."""
        heard, size = self.heard(track_B, feedback_B4), self.embedding_KE.shape[1]
        sums = grown_sums(cache.total_BZ, cache.session_BY, summands(heard), heard.play_BL1)
        cache.total_BZ, cache.session_BY = sums
        summary = summarise(*sums, size)
        input_BI, known = self.inputs(heard, torch.full_like(heard.play_BL1, hidden), summary, static_BG)
        x = self.embed(input_BI)
        if self.position is not None:
            x = x + self.position(cache.length_B)
        cache.grow()
        for block, slots in zip(self.blocks, cache.slots, strict=True):
            assert isinstance(block, Block)
            x = block.append(x, slots, cache)
        return torch.cat([self.norm(x), summary.taste_BLTE.flatten(-2), known], -1)
