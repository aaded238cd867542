"""Listeners: what is fixed about a person. Every trait is drawn for the listener's own key.

Shape suffixes: U listeners, L latent dimensions of taste, M modes, 2 = (valence, arousal).
"""

import math
from typing import NamedTuple, TypeVar

import torch
from torch import Tensor

from amrs.config.platform import PlatformConfig
from amrs.platform.draws import ALWAYS, Draw, hash_keys, normal, uniform

BASELINE = (0.55, 0.45)
"""Mean baseline valence and arousal; people feel mildly well and calm on average (choice)."""
CLINICAL_SHIFT = (-0.07, -0.03)
"""How the baseline of clinical listeners differs (choice)."""
OFFSETS_MIN = (-480, -300, 0, 60, 120, 480, 600)
"""UTC offsets in minutes, equally frequent."""

Rows = TypeVar("Rows", bound=NamedTuple)


class Listeners(NamedTuple):
    """Traits, one row per listener; all hidden but `clinical` and `offset_min`."""

    key_U: Tensor
    """int64 noise key."""
    clinical_U: Tensor
    """bool: cannot skip, seldom leaves or rates."""
    taste_UL: Tensor
    """Standard normal; liking is its product with a track's style."""
    baseline_U2: Tensor
    """Affect that the listener returns to, in [0, 1]."""
    reactivity_U: Tensor
    """Factor on the pull of a track, mean near 1."""
    habituation_U: Tensor
    """Factor on the wear of repetition, mean near 1."""
    skip_U: Tensor
    """Tendency to skip, log-odds."""
    report_U: Tensor
    """Tendency to rate and report, log-odds."""
    mode_UM: Tensor
    """Preference for modes, log-odds."""
    hour_U: Tensor
    """Chronotype: shift of the daily routine, hours."""
    offset_min_U: Tensor
    """Minutes that local time is ahead of UTC."""


def draw_listeners(config: PlatformConfig, seed: int | Tensor, number_U: Tensor) -> Listeners:
    """The listeners with these numbers (int64, (U,)) of the population `seed`."""
    key_U = hash_keys(seed, ALWAYS, Draw.LISTENER, number_U)
    spread, key_U1 = config.listener_spread, key_U[:, None]
    clinical_U = uniform(key_U, ALWAYS, Draw.COHORT) < config.clinical
    trait_U4 = spread * normal(key_U1, ALWAYS, Draw.TRAITS, torch.arange(4))
    habit_UM = spread * normal(key_U1, ALWAYS, Draw.HABITS, torch.arange(4))
    shift_U2 = clinical_U[:, None] * torch.tensor(CLINICAL_SHIFT)
    own_U2 = config.baseline_sd * spread * normal(key_U1, ALWAYS, Draw.BASELINE, torch.arange(2))
    zone_U = uniform(key_U, ALWAYS, Draw.HABITS, 5) * len(OFFSETS_MIN)
    return Listeners(
        key_U,
        clinical_U,
        spread * normal(key_U1, ALWAYS, Draw.TASTE, torch.arange(config.latent)),
        (torch.tensor(BASELINE) + shift_U2 + own_U2).clamp(0.1, 0.9),
        (0.25 * trait_U4[:, 0]).exp(),
        (0.3 * trait_U4[:, 1]).exp(),
        0.8 * trait_U4[:, 2],
        0.8 * trait_U4[:, 3],
        0.7 * habit_UM,
        spread * 1.5 * normal(key_U, ALWAYS, Draw.HABITS, 4),
        torch.tensor(OFFSETS_MIN)[zone_U.long()],
    )


def take(rows: Rows, index: Tensor) -> Rows:
    """Rows `index` of every tensor in a named tuple."""
    return rows._make(field[index] for field in rows)


def join(parts: list[Rows]) -> Rows:
    """Named tuples of tensors, one below the other."""
    return parts[0]._make(torch.cat(fields) for fields in zip(*parts, strict=True))


def session_counts(config: PlatformConfig, seed: int | Tensor, users: int) -> Tensor:
    """Sessions of each listener, int64 (U,), 2 or more, that sum to round(users x sessions_per_user).

    Activity is log-normal and cut off; what is left after rounding goes to the largest remainders.
    """
    key_U = hash_keys(seed, ALWAYS, Draw.LISTENER, torch.arange(users))
    activity_U = (0.8 * normal(key_U, ALWAYS, Draw.ACTIVITY).double()).exp()
    activity_U = activity_U.clamp(max=math.exp(1.6))
    extra = round(users * config.sessions_per_user) - 2 * users
    exact_U = (activity_U / activity_U.sum() * extra).double()
    count_U = exact_U.floor().long()
    first = (count_U - exact_U).argsort()[: extra - int(count_U.sum())]
    count_U[first] += 1
    return count_U + 2
