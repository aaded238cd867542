"""Running summaries of a listener's history: what a careful statistician would compute first.

Means of feedback, and where in the embedding space the listener's plays, engagement and ratings lie.
A transformer can learn them, but not from a few thousand reports. They are sums over plays, so they are
causal by construction and grow by one addition a play.
Shape suffixes: B batch, L tokens, E embedding, W weights, Z summed quantities, Y those of a session,
T tastes, R ratios.
"""

import itertools
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

TASTES = ("played", "engaged", "rated", "session")
"""Directions of the embedding space: mean track, covariance of engagement and of rating with tracks, and the
mean track of this session, later tracks weighing more."""
TASTE_SCALES = (2.0, 11.0, 7.0, 1.0)
"""Factors that bring the inner product of each taste with a track to a spread near 1 (as measured on the
platform): covariances are small numbers, and a weight would take thousands of steps to make up for it."""
SESSION = TASTES.index("session")
RATIOS = 13
"""Ratios in a summary."""
DECAY = 0.9
"""Weight of a track in its session's sums per track played since: affect has inertia, and forgets."""
SHARE = (1 - DECAY) / (1 - DECAY**10)
"""Weight of a track just heard in its session's taste, so that ten sum to 1. Affect takes up a little of
each track: one moves it a seventh as far as ten such tracks do, which a mean over the session would deny."""
_WEIGHTS = 5
"""What a track is weighed by in the sums: known and given engagement, known and given rating, 1."""
_REPORTS = 4
"""Sums of reports right after tracks: known and given valence, known and given arousal."""
_PRIOR, _SLOW_PRIOR = 3.0, 30.0
"""Plays that pull a mean to the middle of the scale: one that few plays move, and one that many do. Tastes
are pulled to none by the second: they have many more dimensions."""


class Summary(NamedTuple):
    """What the plays so far say, per token."""

    ratio_BLR: Tensor
    """Mean engagement, rating and reports right after tracks, in [-1, 1]; counts (log); plays of this
    session (log), and how its engagement and ratings differ from the listener's mean; that mean again, held
    back by more plays."""
    taste_BLTE: Tensor


class Heard(NamedTuple):
    """Tokens as numbers: zeros where a token is no play or nothing is known."""

    track_BLE: Tensor
    play_BL1: Tensor
    value_BL4: Tensor
    """Feedback in [-1, 1]."""
    known_BL4: Tensor
    """1 where feedback is known."""


def summands(heard: Heard) -> Tensor:
    """What each token adds to the sums, as (B, L, Z): `_REPORTS`, its track weighed by `_WEIGHTS`, and these
    weights."""
    told = torch.stack([heard.known_BL4[..., :2], heard.value_BL4[..., :2]], -1).flatten(-2)
    weight_BLW = torch.cat([told, heard.play_BL1], -1)
    weighed_BLWE = weight_BLW[..., None] * heard.track_BLE[..., None, :]
    reports = torch.stack([heard.known_BL4[..., 2:], heard.value_BL4[..., 2:]], -1).flatten(-2)
    return torch.cat([reports, weighed_BLWE.flatten(-2), weight_BLW], -1)


def running_sums(summand_BLZ: Tensor, step_BL: Tensor, size: int) -> tuple[Tensor, Tensor]:
    """Sums up to and including each token: over the window (B, L, Z), and over its own session with
    weights that decay (B, L, Y), of the last quantities only.

    `step_BL` is the number of plays of the session up to and including the token.
    """
    session_BLY = summand_BLZ[..., -size - _WEIGHTS :]
    if summand_BLZ.device.type != "cpu":
        return summand_BLZ.cumsum(1), _decayed(session_BLY, step_BL)
    # Token by token: torch's cumulative sum of any dimension but the last takes six times as long.
    total_BLZ, decayed_BLY = summand_BLZ.clone(), session_BLY.clone()
    same_BL1 = (step_BL > 0)[..., None].to(summand_BLZ.dtype)
    rows = zip(*(x.unbind(1) for x in (total_BLZ, decayed_BLY, same_BL1)), strict=True)
    for (total_BZ, decayed_BY, _), (next_BZ, next_BY, same_B1) in itertools.pairwise(rows):
        next_BZ.add_(total_BZ)
        next_BY.addcmul_(decayed_BY, same_B1, value=DECAY)
    return total_BLZ, decayed_BLY


def _decayed(summand_BLY: Tensor, step_BL: Tensor) -> Tensor:
    """The decaying sum doubles its reach in each pass (Hillis & Steele 1986): few operators, and no
    division by small weights."""
    reach = 1
    while reach < step_BL.shape[1]:
        earlier = F.pad(summand_BLY, (0, 0, reach, 0))[:, :-reach]
        inside_BL1 = (step_BL >= reach)[..., None]
        summand_BLY = summand_BLY + DECAY**reach * earlier * inside_BL1
        reach *= 2
    return summand_BLY


def grown_sums(
    total_BZ: Tensor, session_BY: Tensor, summand_BZ: Tensor, same_B1: Tensor
) -> tuple[Tensor, Tensor]:
    """Both sums after one more token; `same_B1` is 1 where it belongs to the same session, else 0."""
    summand_BY = summand_BZ[..., -session_BY.shape[-1] :]
    return total_BZ + summand_BZ, torch.addcmul(summand_BY, session_BY, same_B1, value=DECAY)


def summarise(total_BLZ: Tensor, session_BLY: Tensor, size: int) -> Summary:
    """Means and covariances from sums; `size` is E."""
    felt, weight = total_BLZ[..., :_REPORTS], total_BLZ[..., -_WEIGHTS:]
    track = total_BLZ[..., _REPORTS:-_WEIGHTS].unflatten(-1, (_WEIGHTS, size))
    known, value, plays = weight[..., 0:4:2], weight[..., 1:4:2], weight[..., 4:]  # of engagement and rating
    mean = value / (known + _PRIOR)
    covariance = torch.addcmul(track[..., 1:4:2, :], mean[..., None], track[..., 0:4:2, :], value=-1)
    # The next track will add to these sums as they are after one more step.
    recent, told, plays_now = (DECAY * session_BLY).split([size, _WEIGHTS - 1, 1], -1)
    unusual = torch.addcmul(told[..., 1::2], mean, told[..., 0::2], value=-1) / (told[..., 0::2] + 1)
    both = torch.stack([mean, known.log1p()], -1).flatten(-2)
    reports = [felt[..., 1::2] / (felt[..., 0::2] + _PRIOR), felt[..., :1].log1p()]
    slow = known + _SLOW_PRIOR
    ratio = torch.cat([plays.log1p(), both, *reports, plays_now.log1p(), unusual, value / slow], -1)
    tastes = [track[..., 4, :] / (plays + _SLOW_PRIOR), *(covariance / slow[..., None]).unbind(-2)]
    return Summary(ratio, torch.stack([*tastes, SHARE * recent], -2))
