"""Slower ways to the same figures, for comparison."""

import torch
import torch.nn.functional as F
from torch import Tensor

from amrs.batches import Batch
from amrs.data import SessionDataModule
from amrs.logs.histories import LABELS
from amrs.models.summaries import summarise
from amrs.models.transformer import HistoryEncoder, _rotate
from amrs.noise import uniform


def expected_distance(cdf: Tensor, grid_G: Tensor, target: float) -> Tensor:
    """E|y - target| on [0, 1]: integral of F below the target and of 1 - F above it.

    Each point of the increasing grid stands for the interval up to halfway to its neighbours, or to 0
    and 1. On midpoints (`midpoints`) no point lies on an end, where F jumps.
    """
    middle = (grid_G[1:] + grid_G[:-1]) / 2
    edge = torch.cat([middle.new_zeros(1), middle, middle.new_ones(1)])
    below_G = (edge[1:].clamp(max=target) - edge[:-1]).clamp(min=0)
    return cdf @ below_G + (1 - cdf) @ (edge.diff() - below_G)


def midpoints(count: int, device: torch.device | None = None) -> Tensor:
    """Middles of `count` even intervals of [0, 1]."""
    return (torch.arange(count, device=device) + 0.5) / count


def plain_encoding(encoder: HistoryEncoder, batch: Batch) -> Tensor:
    """One vector per token, padding included, every layer at every token, by torch's own operators."""
    size = encoder.embedding_KE.shape[1]
    summary, heard = summarise(*encoder.sums(batch), size), encoder.heard(batch.track_BL, batch.feedback_BL4)
    static_BLG = encoder.standardised(batch.static_BLF)
    x, known = encoder.inputs(heard, batch.hidden_BL[..., None].float(), summary, static_BLG)
    for layer in encoder.embed:
        x = F.linear(x, layer.weight, layer.bias) if isinstance(layer, torch.nn.Linear) else layer(x)
    position_BL = torch.arange(x.shape[1]).expand(x.shape[:2])
    if encoder.position is not None:
        x = x + encoder.position(position_BL)
    for block in encoder.blocks:
        parts = F.linear(block.norm_attention(x), block.qkv.weight, block.qkv.bias).chunk(3, -1)
        q, k, v = (p.unflatten(-1, (block.heads, -1)).transpose(1, 2) for p in parts)
        if block.rope:
            q, k = _rotate(q, position_BL), _rotate(k, position_BL)
        score = q @ k.transpose(-1, -2) * q.shape[-1] ** -0.5
        future = torch.ones(score.shape[-2:], dtype=torch.bool).triu(1)
        attended = (score.masked_fill(future, -torch.inf).softmax(-1) @ v).transpose(1, 2).flatten(2)
        x = x + F.linear(attended, block.out.weight, block.out.bias)
        wide = F.gelu(F.linear(block.norm_mlp(x), block.mlp[0].weight, block.mlp[0].bias))
        x = x + F.linear(wide, block.mlp[2].weight, block.mlp[2].bias)
    return torch.cat([encoder.norm(x), summary.taste_BLTE.flatten(-2), known], -1)


def picked(data: SessionDataModule, window_B3: Tensor, hidden_seed: int) -> Batch:
    """`data.gather`, every field by the rows of its tokens."""
    flat, (begin_B, end_B, counted_B) = data.flat, window_B3.unbind(1)
    index_BL = begin_B[:, None] + torch.arange(int((end_B - begin_B).max()))
    valid_BL = index_BL < end_B[:, None]
    index_BL = index_BL.where(valid_BL, 0)
    session_BL, step_BL = flat.session_N[index_BL], flat.step_N[index_BL]
    draw_BL = uniform(data.seed, 1, hidden_seed, session_BL)
    hidden_BL = (draw_BL < data.hide_feedback) & valid_BL & (step_BL > 0)
    known_BL1 = (valid_BL & ~hidden_BL)[..., None]
    edge_BL = valid_BL & ((step_BL == 0) | (step_BL == flat.length_S[session_BL]))
    return Batch(
        flat.static_SF[session_BL], flat.track_N[index_BL].where(valid_BL, -1),
        flat.feedback_N4[index_BL].where(known_BL1, torch.nan), hidden_BL, valid_BL,
        valid_BL & (index_BL >= counted_B[:, None]), flat.next_track_N[index_BL].where(valid_BL, -1),
        flat.mode_S[session_BL].where(valid_BL, -1), step_BL,
        flat.target_NY[index_BL].where(valid_BL[..., None], torch.nan),
        flat.report_S2[session_BL].where(edge_BL[..., None], torch.nan), flat.user_S[flat.session_N[begin_B]],
        torch.ones(len(LABELS)),
    )  # fmt: skip


def chosen(log_p_BK: Tensor, u_B: Tensor) -> Tensor:
    """`rollout.choose` by one cumulative sum over all tracks."""
    edge_BK = log_p_BK.double().exp().cumsum(1)
    return torch.searchsorted(edge_BK, u_B.double()[:, None] * edge_BK[:, -1:])[:, 0]
