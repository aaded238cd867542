"""How a listener's state moves, and what of it shows. All of it is vectorised over B listeners.

Shape suffixes: B listeners, L latent dimensions of taste, W purposes of a draw, 2 = (valence, arousal).
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from amrs.config.platform import PlatformConfig
from amrs.platform.catalogue import Catalogue
from amrs.platform.draws import ALWAYS, Draw, chance, event, normal, uniform
from amrs.platform.listeners import Listeners
from amrs.rollout import Feedback, distance_to
from amrs.signals import censored_distance

TARGET_AROUSAL = (0.75, 0.5, 0.3, 0.2)
"""Arousal that fits each mode (choice)."""
TRACE_KEPT = 0.9
"""Exposure to a style left after one more track (choice)."""
TRACE_DAYS = 3.0
"""Days in which exposure decays to 37 % between sessions (choice)."""
STRAIN_KEPT = 0.9
"""late_harm: surfeit left at the next session."""
STRAIN_FREE = 0.1
"""late_harm: surfeit that does no harm."""
CIRCADIAN = 0.05
"""Amplitude of arousal over the day; highest at 14 h (choice)."""

PURPOSES = (
    Draw.SKIP,
    Draw.FRACTION,
    Draw.PROCESS_VALENCE,
    Draw.PROCESS_AROUSAL,
    Draw.LIKE,
    Draw.RATED,
    Draw.LEAVE,
)
Luck = dict[Draw, Tensor]
"""Uniform draws (B,) of one step."""


class State(NamedTuple):
    """A session in progress."""

    who: Listeners
    mode_B: Tensor
    key_B: Tensor
    """int64 noise key of this session's draws."""
    affect_B2: Tensor
    """Valence and arousal now, in [0, 1]."""
    trace_BL: Tensor
    """Decayed sum of the styles heard."""
    strain_B: Tensor
    """Surfeit of pleasant tracks; builds up under late_harm only."""
    hidden_B: Tensor
    """Hidden common cause of choice and affect; 0 unless confounded."""


def liking(
    config: PlatformConfig, catalogue: Catalogue, state: State, track_B: Tensor
) -> tuple[Tensor, Tensor]:
    """Log-odds of liking a track (B,), and how like-sounding the past was (B,), 0 or more."""
    style_BL = catalogue.style_KL[track_B]
    worn_B = (state.trace_BL * style_BL).sum(-1).clamp(min=0)
    taste_B = (state.who.taste_UL * style_BL).sum(-1)
    agree_B = agreement(catalogue.affect_K2[track_B, 1], state.mode_B)
    wish_B = 1.2 * taste_B + 0.4 * catalogue.appeal_K[track_B] + 1.5 * agree_B + 0.3
    return wish_B - config.wear * state.who.habituation_U * worn_B, worn_B


def agreement(arousal_B: Tensor, mode_B: Tensor) -> Tensor:
    """How a track's arousal fits the mode: 0 at a distance of .25, about .25 at best."""
    return 0.25 - (arousal_B - torch.tensor(TARGET_AROUSAL)[mode_B]).abs()


def step(
    config: PlatformConfig, catalogue: Catalogue, state: State, track_B: Tensor, t: int,
    targets: Sequence[tuple[str, float]] = (),
) -> tuple[State, Feedback, dict[str, Tensor]]:  # fmt: skip
    """One track heard: the next state, what shows, and the expected signals (B,) without any noise.

    Of `targets` the expected distances are among them (`rollout.distance_to`). Draws are made for (key of the
    session, t, purpose).
    """
    # One hash for all purposes of the step: many small ones would take most of the time.
    drawn_BW = uniform(state.key_B[:, None], t, torch.tensor(PURPOSES))
    luck = dict(zip(PURPOSES, drawn_BW.unbind(-1), strict=True))
    like_B, worn_B = liking(config, catalogue, state, track_B)
    heard_B, skips_B = _engagement(config, state, like_B, luck)
    clinical_B = state.who.clinical_U
    affect_K2 = catalogue.affect_K2
    pull_B = pull(config, state.who, like_B, worn_B, heard_B)
    affect_B2 = state.affect_B2 + pull_B[:, None] * (affect_K2[track_B] - state.affect_B2)
    affect_B2 = affect_B2 + config.return_rate * (state.who.baseline_U2 - state.affect_B2)
    wander_B2 = torch.stack([luck[Draw.PROCESS_VALENCE], luck[Draw.PROCESS_AROUSAL]], -1)
    affect_B2 = affect_B2 + config.process_sd * torch.special.ndtri(wander_B2)
    if config.variant == "confounded":
        affect_B2 = affect_B2 + 0.005 * config.confounding * state.hidden_B[:, None]
    strain_B = state.strain_B
    if config.variant == "late_harm":
        strain_B = strain_B + heard_B * (affect_K2[track_B, 0] - catalogue.usual_M[state.mode_B]) / 10
    state = state._replace(
        affect_B2=affect_B2.clamp(0, 1),
        trace_BL=TRACE_KEPT * state.trace_BL + heard_B[:, None] * catalogue.style_KL[track_B],
        strain_B=strain_B,
    )
    rating_B, likes_B = _rating(config, state, like_B, luck)
    feedback = Feedback(heard_B, rating_B, _leaves(config, state, like_B, luck))
    valence_B, arousal_B = expected_report(config, state.affect_B2).unbind(-1)
    expected = {"engagement": _mean_heard(config, clinical_B, skips_B), "rating": likes_B,
                "valence": valence_B, "arousal": arousal_B}  # fmt: skip
    for name, target in targets:
        if name == "engagement":
            away_B = _heard_from(config, clinical_B, skips_B, target)
        elif name == "rating":
            away_B = (1 - likes_B) * target + likes_B * (1 - target)
        else:
            away_B = report_from(config, state.affect_B2[:, ("valence", "arousal").index(name)], target)
        expected[distance_to(name, target)] = away_B
    return state, feedback, expected


def pull(config: PlatformConfig, who: Listeners, like_B: Tensor, worn_B: Tensor, heard_B: Tensor) -> Tensor:
    """Share (B,) of the way to the track's affect: more when liked, less when worn or cut short."""
    fresh_B = (-config.wear * who.habituation_U * worn_B).exp()
    return (config.strength * who.reactivity_U * (0.5 + like_B.sigmoid()) * heard_B * fresh_B).clamp(max=1.0)


def _engagement(config: PlatformConfig, state: State, like_B: Tensor, luck: Luck) -> tuple[Tensor, Tensor]:
    """Fraction heard (B,) and chance of a skip. Clinical listeners cannot skip: near 1 whatever they feel."""
    skip_B = torch.sigmoid(
        log_odds(config.skip_rate)
        + state.who.skip_U
        - 1.2 * (like_B - 0.5)
        + 3.0 * (0.5 - state.affect_B2[:, 0])
    )
    clinical_B = state.who.clinical_U
    skip_B = torch.where(clinical_B, 0.1, skip_B)
    skips_B = event(config.feedback_noise, luck[Draw.SKIP]) < skip_B
    part_B = event(config.feedback_noise, luck[Draw.FRACTION])
    return torch.where(skips_B, _cut(clinical_B, part_B), 1.0), chance(config.feedback_noise, skip_B)


def _cut(clinical_B: Tensor, part_B: Tensor) -> Tensor:
    """Fraction heard of what is cut short. Skips come early: .9 x the square of a uniform, with mean .3."""
    return torch.where(clinical_B, 0.9 + 0.1 * part_B, 0.9 * part_B**2)


def _mean_heard(config: PlatformConfig, clinical_B: Tensor, skips_B: Tensor) -> Tensor:
    mean_B = torch.where(clinical_B, 0.95, 0.9 * (0.25 + config.feedback_noise**2 / 12))
    return 1 - skips_B * (1 - mean_B)


def _heard_from(config: PlatformConfig, clinical_B: Tensor, skips_B: Tensor, target: float) -> Tensor:
    """E|fraction heard - target|, over the middles of 256 equal parts of what the uniform may be."""
    part_G = event(config.feedback_noise, (torch.arange(256) + 0.5) / 256)
    cut_B = (_cut(clinical_B[:, None], part_G) - target).abs().mean(1)
    return (1 - skips_B) * (1 - target) + skips_B * cut_B


def _rating(config: PlatformConfig, state: State, like_B: Tensor, luck: Luck) -> tuple[Tensor, Tensor]:
    """Like 1, dislike 0, NaN where not given (B,); and the probability of a like."""
    mood_B = state.affect_B2[:, 0] - 0.5
    likes_B = torch.sigmoid(1.3 * (like_B - 0.3) + 2.0 * mood_B)
    given_B = log_odds(config.rating_rate) + state.who.report_U + 0.5 * (like_B.abs() - 0.8)
    given_B = torch.sigmoid(given_B + config.missing_slope * mood_B / 0.15 - 1.0 * state.who.clinical_U)
    gives_B = event(config.feedback_noise, luck[Draw.RATED]) < given_B
    rating_B = (event(config.feedback_noise, luck[Draw.LIKE]) < likes_B).float()
    return torch.where(gives_B, rating_B, torch.nan), chance(config.feedback_noise, likes_B)


def _leaves(config: PlatformConfig, state: State, like_B: Tensor, luck: Luck) -> Tensor:
    """Whether the listener ends the session after this track, bool (B,)."""
    hazard_B = torch.sigmoid(
        log_odds(config.leave_rate)
        - 0.7 * (like_B - 0.5)
        + 3.0 * (0.5 - state.affect_B2[:, 0])
        - 2.0 * state.who.clinical_U
    )
    return event(config.feedback_noise, luck[Draw.LEAVE]) < hazard_B


def begin(
    config: PlatformConfig,
    who: Listeners,
    key_B: Tensor,
    hour_B: Tensor,
    before_B2: Tensor,
    strain_B: Tensor,
    gap_hours_B: Tensor,
) -> Tensor:
    """Affect (B, 2) at a session's start: back toward the baseline of that hour and strain, with noise."""
    level_B2 = who.baseline_U2.clone()
    level_B2[:, 1] += CIRCADIAN * torch.cos(2 * math.pi * (hour_B - 14) / 24)
    if config.variant == "late_harm":
        level_B2[:, 0] -= config.late_harm * (strain_B - STRAIN_FREE).clamp(min=0)
    kept_B1 = torch.exp(-gap_hours_B / config.carry_hours)[:, None]
    noise_B2 = config.session_sd * normal(key_B[:, None], ALWAYS, Draw.STATE, torch.arange(2))
    affect_B2: Tensor = (level_B2 + kept_B1 * (before_B2 - who.baseline_U2) + noise_B2).clamp(0.02, 0.98)
    return affect_B2


def rested(trace_BL: Tensor, strain_B: Tensor, gap_hours_B: Tensor) -> tuple[Tensor, Tensor]:
    """Exposure (B, L) and strain (B,) after the time between two sessions."""
    return trace_BL * torch.exp(-gap_hours_B / 24 / TRACE_DAYS)[:, None], STRAIN_KEPT * strain_B


def report(config: PlatformConfig, affect_B2: Tensor, key_B: Tensor, purpose: Draw) -> Tensor:
    """A noisy reading of affect (B, 2), censored to [0, 1]."""
    noise_B2 = config.report_sd * normal(key_B[:, None], ALWAYS, purpose, torch.arange(2))
    return (affect_B2 + noise_B2).clamp(0, 1)


def expected_report(config: PlatformConfig, affect_B2: Tensor) -> Tensor:
    """Mean of `report` over its noise: that of a normal censored to [0, 1]."""
    if config.report_sd == 0:
        return affect_B2
    low, high = -affect_B2 / config.report_sd, (1 - affect_B2) / config.report_sd
    density = (torch.exp(-(low**2) / 2) - torch.exp(-(high**2) / 2)) / math.sqrt(2 * math.pi)
    above, below = torch.special.ndtr(high), torch.special.ndtr(low)
    mean_B2: Tensor = affect_B2 * (above - below) + config.report_sd * density + (1 - above)
    return mean_B2


def report_from(config: PlatformConfig, affect_B: Tensor, target: float) -> Tensor:
    """E|report - target| (B,) of valence or arousal."""
    if config.report_sd == 0:
        return (affect_B - target).abs()
    return censored_distance(affect_B, torch.tensor(config.report_sd), target)


def log_odds(rate: float) -> float:
    """Log-odds of a rate in (0, 1]; infinite at 1."""
    return math.inf if rate >= 1 else math.log(rate / (1 - rate))
