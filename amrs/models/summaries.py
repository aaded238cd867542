"""Running summaries of a listener's history: what a careful statistician would compute first.

Means of feedback, and where in the embedding space the listener's plays, engagement and ratings lie.
A transformer can learn them, but not from a few thousand reports. They are sums over plays, so they are
causal by construction and grow by one addition a play.
Shape suffixes: B batch, L tokens, E embedding, Z summed quantities, T tastes, R ratios.
"""

from typing import NamedTuple

import torch
from torch import Tensor

TASTES = ("played", "engaged", "rated", "session")
"""Directions of the embedding space: mean track, covariance of engagement and of rating with tracks, mean
track of this session."""
SESSION = TASTES.index("session")
RATIOS, SESSION_PLAYS = 7, 5
"""Ratios in a summary, and which of them is log(1 + plays of this session)."""
_PRIOR = 3.0
"""Plays that pull a mean to the middle of the scale (or a covariance to zero)."""


class Summary(NamedTuple):
    """What the plays so far say, per token."""

    ratio_BLR: Tensor
    """Mean engagement and rating in [-1, 1], counts (log), and the same of this session."""
    taste_BLTE: Tensor


def summands(track_BLE: Tensor, play_BL1: Tensor, feedback_BL4: Tensor) -> Tensor:
    """What each token adds to the sums, as (B, L, Z); nothing where it is no play.

    Feedback is in [-1, 1], NaN where missing or hidden.
    """
    parts = [play_BL1, track_BLE]
    for column in (0, 1):
        value_BL1 = feedback_BL4[..., column : column + 1]
        known_BL1 = (~value_BL1.isnan()).to(track_BLE.dtype)
        value_BL1 = value_BL1.nan_to_num(0.0)
        parts += [known_BL1, value_BL1, known_BL1 * track_BLE, value_BL1 * track_BLE]
    return torch.cat(parts, -1)


def running_sums(summand_BLZ: Tensor, step_BL: Tensor) -> tuple[Tensor, Tensor]:
    """Sums up to and including each token, over the window and over its own session, (B, L, Z) each.

    `step_BL` is the number of plays of the session up to and including the token.
    """
    total_BLZ = summand_BLZ.cumsum(1)
    before_BLZ = total_BLZ - summand_BLZ
    index_L = torch.arange(step_BL.shape[1], device=step_BL.device)
    start_BL1 = (index_L - step_BL).clamp(min=0)[..., None]
    session_BLZ = total_BLZ - before_BLZ.gather(1, start_BL1.expand_as(before_BLZ))
    return total_BLZ, session_BLZ


def summarise(total_BLZ: Tensor, session_BLZ: Tensor, size: int) -> Summary:
    """Means and covariances from sums; `size` is E."""
    split = [1, size] + [1, 1, size, size] * 2
    plays, tracks, *rest = total_BLZ.split(split, -1)
    ratios, tastes = [torch.log1p(plays)], [tracks / (plays + _PRIOR)]
    for known, value, known_tracks, value_tracks in (rest[:4], rest[4:]):
        mean = value / (known + _PRIOR)
        ratios += [mean, torch.log1p(known)]
        tastes.append((value_tracks - mean * known_tracks) / (known + _PRIOR))
    session_plays, session_tracks, session_known, session_value, *_ = session_BLZ.split(split, -1)
    ratios += [torch.log1p(session_plays), session_value / (session_known + 1)]
    tastes.append(session_tracks / (session_plays + 1))
    return Summary(torch.cat(ratios, -1), torch.stack(tastes, -2))
