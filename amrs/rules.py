"""Which tracks may be recommended now, and probabilities over them.

Shape suffixes: M modes, K tracks, P positions, T plays of a session.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

_LOGITS = 1 << 26
"""Logits held at a time: 256 MiB."""


class Rules:
    """Which tracks may follow: those of the mode, and not yet played in the session.

    The same rules hold in training, sampling, pairs, KL and log-probabilities.

    Args:
        mode_MK: bool (modes + 1, K); the last row is for sessions without a mode.
        repeats: True where the service repeats tracks inside a session.
    """

    def __init__(self, mode_MK: Tensor, repeats: bool) -> None:
        self.mode_MK, self.repeats = mode_MK, repeats

    def to(self, device: torch.device) -> "Rules":
        """The same rules on another device."""
        return Rules(self.mode_MK.to(device), self.repeats)

    def allowed(self, mode_P: Tensor, played_PT: Tensor) -> Tensor:
        """bool (P, K); `played_PT` holds this session's tracks so far, -1 for none."""
        allowed_PK = self.mode_MK[mode_P]
        if not self.repeats and played_PT.shape[1]:
            first_P = allowed_PK[:, 0] & ~(played_PT == 0).any(1)  # -1 is written as track 0
            allowed_PK.scatter_(1, played_PT.clamp(min=0), False)
            allowed_PK[:, 0] = first_P
        return allowed_PK


def log_softmax_allowed(logits_PK: Tensor, allowed_PK: Tensor) -> Tensor:
    """(P, K) log-probabilities over the allowed tracks in nats, -inf elsewhere."""
    return logits_PK.masked_fill(~allowed_PK, -torch.inf).log_softmax(-1)


class _Chosen(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, logits_PK: Tensor, allowed_PK: Tensor, track_P: Tensor) -> Tensor:
        logits_PK = logits_PK.masked_fill(~allowed_PK, -torch.inf)
        total_P = logits_PK.logsumexp(-1)
        ctx.save_for_backward(logits_PK, total_P, track_P)
        return logits_PK.gather(-1, track_P[:, None])[:, 0] - total_P

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None]:
        logits_PK, total_P, track_P = ctx.saved_tensors
        grad_PK = torch.sub(logits_PK, total_P[:, None]).exp_().mul_(-grads[0][:, None])
        return grad_PK.scatter_add_(-1, track_P[:, None], grads[0][:, None]), None, None


def log_prob_allowed(logits_PK: Tensor, allowed_PK: Tensor, track_P: Tensor) -> Tensor:
    """(P,) log-probability of one allowed track each, in nats: `log_softmax_allowed` there, but neither it
    nor its gradient is written out for the other tracks more than once."""
    found: Tensor = _Chosen.apply(logits_PK, allowed_PK, track_P)  # type: ignore[no-untyped-call]
    return found


def in_chunks(score: Callable[..., Tensor], rows: Sequence[Tensor], tracks: int) -> Tensor:
    """`score` of all rows (N, ...), each of which needs logits over the catalogue.

    Large catalogues: memory for one chunk of rows at a time; its logits are computed again for gradients.
    """
    most = max(1, _LOGITS // tracks)
    if len(rows[0]) <= most:
        return score(*rows)
    chunks = zip(*(x.split(most) for x in rows), strict=True)
    return torch.cat([checkpoint(score, *part, use_reentrant=False) for part in chunks])


def histories_at_once(tracks: int, most: int) -> int:
    """Histories, at most `most`, that are looked at together where several tables over the catalogue are
    held for each."""
    return max(1, min(most, (_LOGITS >> 2) // tracks))
