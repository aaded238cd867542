"""Which sessions carry a report. By default that depends on how the listener feels: not at random.

Shape suffix: B sessions.
"""

import torch
from torch import Tensor

from amrs.config.platform import PlatformConfig
from amrs.platform.dynamics import State, log_odds

MIDDLE = 0.5
PER_VALENCE = 0.15
"""Valence that `missing_slope` is the log-odds of; about the spread of the state."""


def pre_given(config: PlatformConfig, state: State) -> Tensor:
    """Probability (B,) of a report before the session."""
    log_odds_B = log_odds(config.pre_report_rate) + state.who.report_U
    if config.variant != "random_missing":
        log_odds_B = log_odds_B + config.missing_slope * (state.affect_B2[:, 0] - MIDDLE) / PER_VALENCE
    return torch.sigmoid(log_odds_B)


def post_given(
    config: PlatformConfig, state: State, left_B: Tensor, pre_valence_B: Tensor, engagement_B: Tensor
) -> Tensor:
    """Probability (B,) of a report after the session.

    By default it depends on the true state; under `random_missing` on what the log shows instead: the
    report before (NaN where not given) and the mean fraction heard (B,).
    """
    log_odds_B = log_odds(config.post_report_rate) + state.who.report_U - 1.5 * left_B
    if config.variant == "random_missing":
        shown_B = torch.where(pre_valence_B.isnan(), 0.0, (pre_valence_B - MIDDLE) / PER_VALENCE)
        return torch.sigmoid(log_odds_B + config.missing_slope * shown_B + 2.0 * (engagement_B - 0.8))
    return torch.sigmoid(log_odds_B + config.missing_slope * (state.affect_B2[:, 0] - MIDDLE) / PER_VALENCE)
