"""The policy that made the logs: rules by mode, popularity and similarity, with some exploration.

It sees only what a service sees: embeddings, its own tags and plays, and the feedback that was given.
Its probability of a track is

    (1 - e) softmax over allowed tracks of (w_pop log popularity + mode rule + w x similarity) + e / n

with e the exploration, n the number of allowed tracks: those of the mode that this session has not
had. Under `confounded` a hidden cause tilts it, which nobody sees.

Shape suffixes: B listeners, K tracks, M modes, P features, N tracks heard in this session.
"""

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from amrs.config.platform import PlatformConfig
from amrs.platform.catalogue import Catalogue
from amrs.platform.listeners import take
from amrs.rollout import Feedback

TARGET_ENERGY = (0.75, 0.5, 0.3, 0.2)
"""Energy tag that the mode's rule prefers."""
ENERGY_WIDTH = 0.25
"""Distance from that tag that costs `mode_weight` log-odds."""
FAR = 50.0
"""How far below the others a track outside the mode is scored before it is masked; -inf would make the
exponential five times slower."""
AT_ONCE, AT_LEAST = 1 << 20, 8
"""Probabilities held at a time (4 MiB stay in the cache), and the least listeners that they are of."""
PROFILE_KEPT = 0.95
STATION_KEPT = 0.6


class ProductionState(NamedTuple):
    """What production remembers of B listeners."""

    mode_B: Tensor
    profile_BP: Tensor
    """Features heard out and liked, minus those skipped or disliked, over the listener's whole history."""
    station_BP: Tensor
    """Features heard in this session."""
    heard_BN: Tensor
    """int64 tracks of this session."""
    hidden_B: Tensor


class Production:
    """The production policy."""

    def __init__(
        self,
        config: PlatformConfig,
        catalogue: Catalogue,
        restore: Callable[[Tensor], tuple[Tensor, Tensor, Tensor]],
    ) -> None:
        """`restore` maps rows (B,) to mode (B,), profile (B, P) and hidden cause (B,) at the start."""
        self.config, self.restore = config, restore
        played_K = catalogue.genre_K < config.genres - config.withheld_genres
        self.feature_KP = catalogue.feature_KP
        self.open_MK = (catalogue.allowed_KM & played_K[:, None]).T.float()
        target_M1 = torch.tensor(TARGET_ENERGY)[:, None]
        rule_MK = config.mode_weight * -(((catalogue.energy_K - target_M1) / ENERGY_WIDTH) ** 2)
        rule_MK = rule_MK + config.popularity_weight * catalogue.log_popularity_K
        self.rule_MK = rule_MK - FAR * (1 - self.open_MK)
        valence_K = catalogue.affect_K2[:, 0]
        self.tilt_K = config.confounding * (valence_K - valence_K.mean()) / valence_K.std()

    def start(self, row_B: Tensor) -> ProductionState:
        """State at the start of the log's sessions `row_B` (int64), as it was then."""
        return self.begin(*self.restore(row_B))

    def begin(self, mode_B: Tensor, profile_BP: Tensor, hidden_B: Tensor) -> ProductionState:
        """State at the start of a session."""
        none_BN = mode_B.new_zeros(len(mode_B), 0)
        return ProductionState(mode_B, profile_BP, torch.zeros_like(profile_BP), none_BN, hidden_B)

    def probabilities(self, state: ProductionState) -> Tensor:
        """Every track's probability, (B, K): 0 outside the mode and for what the session has had."""
        config = self.config
        taste_BP = config.profile_weight * state.profile_BP + config.station_weight * state.station_BP
        odds_BK = self.rule_MK.index_select(0, state.mode_B).addmm_(taste_BP, self.feature_KP.T)
        if config.variant == "confounded":
            odds_BK += state.hidden_B[:, None] * self.tilt_K
        open_BK = self.open_MK.index_select(0, state.mode_B).scatter_(1, state.heard_BN, 0.0)
        odds_BK.sub_(odds_BK.amax(1, keepdim=True)).exp_().mul_(open_BK)
        odds_BK *= (1 - config.exploration) / odds_BK.sum(1, keepdim=True)
        return odds_BK.addcmul_(open_BK, config.exploration / open_BK.sum(1, keepdim=True))

    def play(self, state: ProductionState, uniform_B: Tensor) -> tuple[Tensor, Tensor]:
        """Draw one track each (B,), and its probability (B,): some listeners at a time."""
        at_once = max(AT_LEAST, AT_ONCE // len(self.feature_KP))
        pieces = torch.arange(len(uniform_B)).tensor_split(-(-len(uniform_B) // at_once))
        drawn = [choose(self.probabilities(take(state, row_X)), uniform_B[row_X]) for row_X in pieces]
        track_B, chance_B = (torch.cat(parts) for parts in zip(*drawn, strict=True))
        return track_B, chance_B

    def logits(self, state: ProductionState) -> Tensor:
        """Log-probabilities (B, K) in nats: exact; about -69 instead of -inf for what cannot be played."""
        return self.probabilities(state).clamp_(min=1e-30).log_()

    def observe(self, state: ProductionState, track_B: Tensor, feedback: Feedback) -> ProductionState:
        """The state after a play and the feedback to it."""
        feature_BP = self.feature_KP[track_B]
        opinion_B = torch.where(feedback.rating_B.isnan(), 0.0, feedback.rating_B - 0.5)
        worth_B = 0.3 * (feedback.engagement_B - 0.6 + opinion_B)
        return state._replace(
            profile_BP=PROFILE_KEPT * state.profile_BP + worth_B[:, None] * feature_BP,
            station_BP=STATION_KEPT * state.station_BP + (1 - STATION_KEPT) * feature_BP,
            heard_BN=torch.cat([state.heard_BN, track_B[:, None]], 1),
        )


def choose(probability_BK: Tensor, uniform_B: Tensor) -> tuple[Tensor, Tensor]:
    """Draw one track each (B,) by one uniform and a cumulative sum; and its probability (B,)."""
    below_BK = probability_BK.cumsum(1)
    track_B1 = torch.searchsorted(below_BK, uniform_B[:, None] * below_BK[:, -1:])
    return track_B1[:, 0], probability_BK.gather(1, track_B1)[:, 0]
