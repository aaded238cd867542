"""What might be played next at a play of the log: how likely it is, and what it is worth.

Shape suffixes: B histories, C candidates, K tracks, M members, P head parameters.
"""

import torch
from torch import Tensor

from amrs.data import SessionDataModule
from amrs.histories import played_before
from amrs.models.policy import PolicyModel
from amrs.models.world_model import WorldModel
from amrs.rules import Rules, log_softmax_allowed
from amrs.utility import Utility


@torch.inference_mode()
def candidate_utility(
    model: WorldModel,
    utility: Utility,
    data: SessionDataModule,
    row_B: Tensor,
    step_B: Tensor,
    track_BC: Tensor,
) -> Tensor:
    """Predicted utility (B, C) if each candidate were play `step_B`, of all members together."""
    return utility.joined(member_utilities(model, utility, data, row_B, step_B, track_BC))


def member_utilities(
    model: WorldModel, utility: Utility, data: SessionDataModule, row_B: Tensor, step_B: Tensor,
    track_BC: Tensor,
) -> Tensor:  # fmt: skip
    """Predicted utility (M, B, C) of each member if each candidate were play `step_B`."""
    predicted = candidate_answers(model, data, row_B, step_B, track_BC)
    mode_B = data.flat.mode_S[row_B]
    answers = zip(model.ensemble, predicted, strict=True)
    return torch.stack([utility(m.kinds, params, mode_B, step_B) for m, params in answers])


@torch.inference_mode()
def candidate_answers(
    model: WorldModel, data: SessionDataModule, row_B: Tensor, step_B: Tensor, track_BC: Tensor
) -> list[dict[str, Tensor]]:
    """Head parameters (B, C, P) by signal, of each member."""
    batch = data.prefix(row_B, step_B)
    answers = []
    for member in model.ensemble:
        h_B1D = member.encoder.last(batch)[:, None]
        answers.append(member.answer(h_B1D, member.candidates(track_BC)))
    return answers


@torch.inference_mode()
def next_track_log_probs(
    policy: PolicyModel, data: SessionDataModule, rules: Rules, row_B: Tensor, step_B: Tensor
) -> Tensor:
    """Log-probabilities (B, K) in nats of every track as play `step_B` of session `row_B`."""
    batch = data.prefix(row_B, step_B)
    h_BD = policy.encoder.last(batch)
    allowed_BK = rules.allowed(data.flat.mode_S[row_B], played_before(data.flat, row_B, step_B))
    return log_softmax_allowed(policy.logits(h_BD), allowed_BK)
