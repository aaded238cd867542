"""Running summaries of a listener's history: what a careful statistician would compute first.

Means of feedback, and where in the embedding space the listener's plays, engagement and ratings lie.
A transformer can learn them, but not from a few thousand reports. They are sums over plays, so they are
causal by construction and grow by one addition a play.
Shape suffixes: B batch, L tokens, E embedding, Z summed quantities, Y those of
a session, T tastes, R ratios.
"""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

TASTES = ("played", "engaged", "rated", "session")
"""Directions of the embedding space: mean track, covariance of engagement and of rating with tracks, and the
mean track of this session, later tracks weighing more."""
TASTE_SCALES = (1.4, 6.0, 3.0, 1.0)
"""Factors that bring the inner product of each taste with a track to a spread near 1 (as measured on the
platform): covariances are small numbers, and a weight would take thousands of steps to make up for it."""
SESSION = TASTES.index("session")
RATIOS = 7
"""Ratios in a summary."""
DECAY = 0.9
"""Weight of a track in its session's sums per track played since: affect has inertia, and forgets."""
SHARE = (1 - DECAY) / (1 - DECAY**10)
"""Weight of a track just heard in its session's taste, so that ten sum to 1. Affect takes up a little of
each track: one moves it a seventh as far as ten such tracks do, which a mean over the session would deny."""
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


def running_sums(summand_BLZ: Tensor, step_BL: Tensor, size: int) -> tuple[Tensor, Tensor]:
    """Sums up to and including each token: over the window (B, L, Z), and over its own session with
    weights that decay (B, L, Y), of the first quantities only.

    `step_BL` is the number of plays of the session up to and including the token. The decaying sum doubles
    its reach in each pass (Hillis & Steele 1986), so it needs no division by small weights.
    """
    session_BLY = summand_BLZ[..., : _session_size(size)]
    reach = 1
    while reach < step_BL.shape[1]:
        earlier = F.pad(session_BLY, (0, 0, reach, 0))[:, :-reach]
        inside_BL1 = (step_BL >= reach)[..., None]
        session_BLY = session_BLY + DECAY**reach * earlier * inside_BL1
        reach *= 2
    return summand_BLZ.cumsum(1), session_BLY


def grown_sums(total_BZ: Tensor, session_BY: Tensor, summand_BZ: Tensor, size: int) -> tuple[Tensor, Tensor]:
    """Both sums after one more play of the same session."""
    return total_BZ + summand_BZ, DECAY * session_BY + summand_BZ[..., : _session_size(size)]


def _session_size(size: int) -> int:
    """Plays, tracks, and known and summed engagement."""
    return size + 3


def summarise(total_BLZ: Tensor, session_BLY: Tensor, size: int) -> Summary:
    """Means and covariances from sums; `size` is E."""
    plays, tracks, *rest = total_BLZ.split([1, size] + [1, 1, size, size] * 2, -1)
    ratios, tastes = [torch.log1p(plays)], [tracks / (plays + _PRIOR)]
    for known, value, known_tracks, value_tracks in (rest[:4], rest[4:]):
        mean = value / (known + _PRIOR)
        ratios += [mean, torch.log1p(known)]
        tastes.append((value_tracks - mean * known_tracks) / (known + _PRIOR))
    # The next track will add to these sums as they are after one more step.
    session_plays, session_tracks, known, value = (DECAY * session_BLY).split([1, size, 1, 1], -1)
    ratios += [torch.log1p(session_plays), value / (known + 1)]
    tastes.append(SHARE * session_tracks)
    return Summary(torch.cat(ratios, -1), torch.stack(tastes, -2))
