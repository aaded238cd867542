"""What counts as negative feedback on a play. Shape suffixes: B plays or sessions, S sessions, N tokens."""

import torch
from torch import Tensor

from amrs.config.stages import NegativeConfig
from amrs.logs.histories import FlatLog
from amrs.utility import Utility


def negative_plays(flat: FlatLog, config: NegativeConfig, utility: Utility) -> Tensor:
    """True for play tokens with negative feedback, as (N,).

    A dislike; too little of the track played; a report right after the track that moved the wrong way
    since the report before it (for valence down, for arousal against the mode's direction); and, if asked
    for, the last tracks of a session whose final report moved the wrong way since its pre-report.
    """
    engagement_N, rating_N = flat.feedback_N4[:, 0], flat.feedback_N4[:, 1]
    negative_N = engagement_N < config.engagement_below
    if config.rating:
        negative_N = negative_N | (rating_N == 0)
    if config.track_report:
        before_N2 = torch.full_like(flat.report_S2[flat.session_N], torch.nan)
        before_N2[1:] = flat.feedback_N4[:-1, 2:]
        before_N2[flat.step_N <= 1] = flat.pre_report_S2[flat.session_N[flat.step_N <= 1]]
        mode_N = flat.mode_S[flat.session_N]
        negative_N = negative_N | _moved_wrong(before_N2, flat.feedback_N4[:, 2:], mode_N, utility)
    if config.session_report:
        wrong_S = _moved_wrong(flat.pre_report_S2, flat.report_S2, flat.mode_S, utility)
        late_N = flat.length_S[flat.session_N] - flat.step_N < config.session_report
        negative_N = negative_N | (wrong_S[flat.session_N] & late_N)
    return negative_N & (flat.track_N >= 0)


def _moved_wrong(before_B2: Tensor, after_B2: Tensor, mode_B: Tensor, utility: Utility) -> Tensor:
    """True where valence or arousal moved against the direction that the utility gives it."""
    wrong_B = torch.zeros(len(mode_B), dtype=torch.bool)
    for column, signal in enumerate(("valence", "arousal")):
        if utility.weights.get(signal, 0) <= 0:
            continue
        for mode in mode_B.unique().tolist():
            rows_B = mode_B == mode
            before, after = before_B2[rows_B, column], after_B2[rows_B, column]
            direction = utility.direction(signal, mode)
            if direction == "up":
                wrong_B[rows_B] |= after < before
            elif direction == "down":
                wrong_B[rows_B] |= after > before
            elif direction is not None:
                wrong_B[rows_B] |= (after - float(direction)).abs() > (before - float(direction)).abs()
    return wrong_B
