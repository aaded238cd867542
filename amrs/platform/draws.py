"""What each random number of the platform is drawn for.

A draw is `uniform(key, step, purpose)` of `amrs.noise`, or has more keys behind these three: the key is
the world's seed, a listener's or a session's; the step is the track's place in the session, or -1.
"""

from enum import IntEnum

from torch import Tensor

from amrs.noise import hash_keys, normal, uniform

ALWAYS = -1
"""The step of a draw that belongs to no step."""


class Draw(IntEnum):
    """Purposes; the numbers are part of what a seed means, so they are never reused."""

    GENRE = 1
    ARTIST = 2
    TRACK = 3
    ARTIST_GENRE = 4
    TRACK_ARTIST = 5
    STYLE = 6
    AFFECT_IN = 7
    AFFECT_OUT = 8
    UNKNOWABLE = 9
    POPULARITY = 10
    APPEAL = 11
    ENERGY = 12
    EDITORIAL = 13
    DURATION = 14
    AFFECT_AFTER = 15
    LISTENER = 20
    ACTIVITY = 21
    COHORT = 22
    TASTE = 23
    BASELINE = 24
    TRAITS = 25
    HABITS = 26
    SESSION = 40
    GAP = 41
    HOUR = 42
    STATE = 43
    MODE = 44
    PLANNED = 45
    HIDDEN = 46
    PRE_GIVEN = 47
    PRE_NOISE = 48
    POST_GIVEN = 49
    POST_NOISE = 50
    CHOICE = 60
    SKIP = 61
    FRACTION = 62
    PROCESS_VALENCE = 63
    PROCESS_AROUSAL = 67
    LIKE = 64
    RATED = 65
    LEAVE = 66
    ORACLE = 80
    FRESH = 81
    SHARES = 82


def event(noise: float, uniform_B: Tensor) -> Tensor:
    """Numbers (B,) for an event of probability p, which happens where they are below p.

    `noise` in [0, 1] draws the uniform numbers toward .5; at 0 an event happens exactly where it is likely.
    """
    return 0.5 + noise * (uniform_B - 0.5)


def chance(noise: float, probability_B: Tensor) -> Tensor:
    """How often such an event happens, (B,): `probability_B` itself at a noise of 1."""
    if noise == 0:
        return (probability_B > 0.5).float()
    return (0.5 + (probability_B - 0.5) / noise).clamp(0, 1)


__all__ = ["ALWAYS", "Draw", "chance", "event", "hash_keys", "normal", "uniform"]
