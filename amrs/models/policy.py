"""The recommender: a history encoder and a track tower.

The same class is Copycat (behaviour-cloned) and the DPO policy. With a full softmax and no popularity
correction, its probabilities are propensities; popularity is an input, since content alone cannot
express it. Shape suffixes: B batch, L tokens, P positions, K tracks, D width, T plays of a session.
"""

import math

import torch
from torch import Tensor, nn

from amrs.batches import Batch
from amrs.config.groups import ModelConfig
from amrs.models.linear import Linear, linear
from amrs.models.transformer import HistoryEncoder


class PolicyModel(nn.Module):
    """Logits of every track, before the mask of what is allowed.

    Args:
        config: shape of the transformer.
        static_size: session features of a token.
        embedding_KE: the catalogue.
        plays_K: plays of each track by training users, smoothed, above 0.
    """

    log_popularity_K: Tensor

    def __init__(self, config: ModelConfig, static_size: int, embedding_KE: Tensor, plays_K: Tensor) -> None:
        super().__init__()
        self.encoder = HistoryEncoder(config, static_size, embedding_KE)
        log_plays = plays_K.float().log()
        scaled = (log_plays - log_plays.mean()) / log_plays.std().clamp(min=1e-6)
        self.register_buffer("log_popularity_K", scaled)
        width = config.width
        self.tower = nn.Sequential(
            Linear(embedding_KE.shape[1] + 1, 2 * width), nn.GELU(), Linear(2 * width, width + 1)
        )
        self.query = Linear(self.encoder.size, width)

    def tracks(self) -> tuple[Tensor, Tensor]:
        """Track vectors (K, D), scaled for inner products, and track biases (K,)."""
        out = self.tower(torch.cat([self.encoder.embedding_KE, self.log_popularity_K[:, None]], 1))
        return out[:, :-1] / math.sqrt(out.shape[1] - 1), out[:, -1].contiguous()

    def logits(self, h_PD: Tensor, tracks: tuple[Tensor, Tensor] | None = None) -> Tensor:
        """(P, K) unnormalised log-probabilities of what follows each history vector."""
        vector_KD, bias_K = tracks if tracks is not None else self.tracks()
        return linear(self.query(h_PD), vector_KD, bias_K)

    def forward(self, batch: Batch) -> Tensor:
        """One history vector per token, (B, L, D)."""
        h_BLD: Tensor = self.encoder(batch)
        return h_BLD


def played_so_far(batch: Batch) -> Tensor:
    """Tracks of the token's own session up to and including it, as (B, L, T), -1 for none.

    A window may begin inside a session; what lies before the window is not seen, nor masked.
    """
    track_BL, step_BL = batch.track_BL, batch.step_BL
    longest = int((step_BL * batch.valid_BL).max())
    index_L = torch.arange(track_BL.shape[1], device=track_BL.device)
    back_T = torch.arange(longest, device=track_BL.device)
    source_LT = (index_L[:, None] - back_T).clamp(min=0)
    inside_BLT = (back_T < step_BL[..., None]) & (index_L[:, None] >= back_T)
    return track_BL[:, source_LT].where(inside_BLT, -1)
