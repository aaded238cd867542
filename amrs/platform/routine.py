"""When listeners come, in which mode, and in which state: everything before the first track.

Shape suffixes: B listeners, M modes, L latent dimensions, P features of production's similarity.
"""

import math
from typing import NamedTuple

import torch
from torch import Tensor

from amrs.config.platform import PlatformConfig
from amrs.platform.draws import ALWAYS, Draw, hash_keys, normal, uniform
from amrs.platform.dynamics import State, begin, rested
from amrs.platform.listeners import Listeners

PEAKS_H = (8.5, 13.5, 20.5)
"""Local hours about which listeners come, on three, three and four tenths of days (choice)."""
PEAK_SD_H = 1.5
MODE_PEAK_H = (9.0, 14.0, 19.0, 23.0)
"""Local hour that suits each mode best (choice)."""
MODE_COHORT = ((0.1, -0.6, 0.6, 0.3), (0.3, 0.4, 0.1, -0.2))
"""Log-odds of modes for clinical and for consumer listeners (choice)."""
MODE_AROUSAL = (-3.0, 0.0, 4.0, -1.0)
"""Log-odds of modes per unit of arousal above .5: the tense choose calm (choice)."""
MODE_VALENCE = (1.0, 1.0, -2.0, 0.0)
"""Log-odds of modes per unit of valence above .5: the sad choose calm (choice)."""
GAP_DAYS = 2.5
"""Mean days between sessions; at most one session a day (choice)."""
FIRST_DAYS = 180
"""Days over which listeners join (choice)."""


class Start(NamedTuple):
    """The start of B sessions; with the listener's row, all that is hidden about it."""

    key_S: Tensor
    mode_S: Tensor
    day_S: Tensor
    """int64 local days since the log's first day."""
    hour_S: Tensor
    """Local hour, float in [5, 23.5]."""
    affect_S2: Tensor
    trace_SL: Tensor
    strain_S: Tensor
    hidden_S: Tensor
    profile_SP: Tensor
    """Production's memory of the listener."""


def open_session(config: PlatformConfig, who: Listeners, number: int, past: Start, end_B2: Tensor) -> Start:
    """The start of everybody's session `number` (0, 1, ...).

    `past` holds day and hour of the session before, and exposure and strain as they were at its
    end, where affect was `end_B2`. For the first session it is a blank.
    """
    key_B = hash_keys(who.key_U, ALWAYS, Draw.SESSION, number)
    draw_B = uniform(key_B, ALWAYS, Draw.GAP)
    if number == 0:
        day_B = (FIRST_DAYS * draw_B).long()
    else:
        day_B = past.day_S + 1 + (-(GAP_DAYS - 1.5) * draw_B.log() + 0.5).long()
    hour_B = _hour(key_B, who.hour_U)
    gap_B = 24.0 * (day_B - past.day_S) + hour_B - past.hour_S
    gap_B = torch.full_like(gap_B, 1e6) if number == 0 else gap_B
    trace_BL, strain_B = rested(past.trace_SL, past.strain_S, gap_B)
    affect_B2 = begin(config, who, key_B, hour_B, end_B2, strain_B, gap_B)
    hidden_B = torch.zeros_like(strain_B)
    if config.variant == "confounded":
        hidden_B = normal(key_B, ALWAYS, Draw.HIDDEN)
    mode_B = _mode(who, key_B, hour_B, affect_B2)
    return Start(key_B, mode_B, day_B, hour_B, affect_B2, trace_BL, strain_B, hidden_B, past.profile_SP)


def blank(who: Listeners, features: int) -> Start:
    """What comes before the first session of these listeners."""
    one_B, whole_B = torch.zeros(len(who.key_U)), torch.zeros_like(who.key_U)
    return Start(
        whole_B,
        whole_B,
        whole_B,
        one_B,
        who.baseline_U2,
        torch.zeros_like(who.taste_UL),
        one_B,
        one_B,
        torch.zeros(len(one_B), features),
    )


def state_at(who: Listeners, start: Start, key_B: Tensor) -> State:
    """The listener's state at the start of a session, under the noise of `key_B`."""
    return State(who, start.mode_S, key_B, start.affect_S2, start.trace_SL, start.strain_S, start.hidden_S)


def planned(config: PlatformConfig, key_B: Tensor) -> Tensor:
    """Tracks that listeners mean to hear, int64 (B,) in 3..20."""
    return (config.planned_tracks + 3.5 * normal(key_B, ALWAYS, Draw.PLANNED)).round().long().clamp(3, 20)


def _hour(key_B: Tensor, shift_B: Tensor) -> Tensor:
    peak_B = torch.bucketize(uniform(key_B, ALWAYS, Draw.HOUR), torch.tensor([0.3, 0.6]))
    hour_B = torch.tensor(PEAKS_H)[peak_B] + PEAK_SD_H * normal(key_B, ALWAYS, Draw.HOUR, 1)
    return (hour_B + shift_B).clamp(5.0, 23.5)


def mode_odds(who: Listeners, hour_B: Tensor, affect_B2: Tensor) -> Tensor:
    """Probability of each mode, (B, M)."""
    cohort_BM = torch.tensor(MODE_COHORT)[(~who.clinical_U).long()]
    fits_BM = torch.cos(2 * math.pi * (hour_B[:, None] - torch.tensor(MODE_PEAK_H)) / 24)
    apart_B2 = affect_B2 - 0.5
    state_BM = apart_B2[:, :1] * torch.tensor(MODE_VALENCE) + apart_B2[:, 1:] * torch.tensor(MODE_AROUSAL)
    return (cohort_BM + who.mode_UM + 0.8 * fits_BM + state_BM).softmax(-1)


def _mode(who: Listeners, key_B: Tensor, hour_B: Tensor, affect_B2: Tensor) -> Tensor:
    below_BM = mode_odds(who, hour_B, affect_B2).cumsum(-1)[:, :-1]
    return (uniform(key_B, ALWAYS, Draw.MODE)[:, None] > below_BM).sum(-1)
