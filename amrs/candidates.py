"""What might be played next at a play of the log: how likely it is, what it would do, and what it is worth.

Shape suffixes: B histories, C candidates, K tracks, M members, P head parameters, G grid points.
"""

from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from amrs.data import SessionDataModule
from amrs.listeners import HistoryReader, repeated
from amrs.logs.histories import played_before
from amrs.metrics import interval_from_cdf
from amrs.models.policy import PolicyModel
from amrs.models.world_model import WorldModel
from amrs.rollout import Feedback
from amrs.rules import Rules, log_softmax_allowed
from amrs.utility import Utility

_AFTER = 512
"""Tracks tried at a time as the last one heard."""
_GRID_G = np.linspace(0, 1, 101)


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
    return utility.joined(member_utilities(model, utility, data, row_B, step_B, track_BC), track_BC)


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
    """Head parameters (B, C, P) by signal, of each member; on the CPU, wherever the model is."""
    device = model.ensemble[0].head.weight.device
    batch, track_BC = data.prefix(row_B, step_B).to(device), track_BC.to(device)
    answers = []
    for member in model.ensemble:
        h_B1D = member.encoder.last(batch)[:, None]
        params = member.answer(h_B1D, member.candidates(track_BC))
        answers.append({name: value.cpu() for name, value in params.items()})
    return answers


class Band(NamedTuple):
    """What an ensemble expects of candidates."""

    member_MBC: Tensor
    """Each member's expectation: where they differ, the ensemble does not know."""
    low_BC: Tensor
    """Ends of the central interval of the members' mixture: noise, which no more data takes away."""
    high_BC: Tensor


def band(model: WorldModel, answers: list[dict[str, Tensor]], signal: str, level: float = 0.8) -> Band:
    """Expectation and central predictive interval of `level` of a signal, from `candidate_answers`."""
    kind = model.ensemble[0].kinds[signal]
    params = [answer[signal] for answer in answers]
    grid_G = torch.from_numpy(_GRID_G).float().clamp(max=1 - 1e-6)  # P(y < 1) last, as `metrics` wants it
    cdf_BCG = torch.stack([kind.cdf(p, grid_G) for p in params]).mean(0)
    ends = interval_from_cdf(cdf_BCG.flatten(0, 1).double().numpy(), _GRID_G, level)
    low_BC, high_BC = (torch.from_numpy(end).reshape(cdf_BCG.shape[:2]) for end in ends)
    return Band(torch.stack([kind.mean(p) for p in params]), low_BC, high_BC)


@torch.inference_mode()
def next_track_log_probs(
    policy: PolicyModel, data: SessionDataModule, rules: Rules, row_B: Tensor, step_B: Tensor,
    tracks: tuple[Tensor, Tensor] | None = None,
) -> Tensor:  # fmt: skip
    """Log-probabilities (B, K) in nats of every track as play `step_B` of session `row_B`, on the CPU.

    `tracks` are the policy's own, where they are known already.
    """
    batch = data.prefix(row_B, step_B).to(policy.log_popularity_K.device)
    logits_BK = policy.logits(policy.encoder.last(batch), tracks).cpu()
    allowed_BK = rules.allowed(data.flat.mode_S[row_B], played_before(data.flat, row_B, step_B))
    return log_softmax_allowed(logits_BK, allowed_BK)


@torch.inference_mode()
def entropy_after(policy: PolicyModel, data: SessionDataModule, rules: Rules, row_B: Tensor) -> Tensor:
    """The policy's entropy (K,) in nats over what it may play next, once a track was heard out first.

    A mean over the starts of sessions `row_B` whose mode allows the track; where there is none, over all
    tracks that were tried. Of the behaviour policy it is the entropy in DORL's penalty, less a constant
    (Gao et al. 2023, section 4.2: -KL(behaviour || uniform) = H - log K).
    """
    reader, tracks = HistoryReader(policy.encoder, data, 1), policy.tracks()
    total_K, count_K = torch.zeros(data.tracks), torch.zeros(data.tracks)
    for row in row_B.tolist():
        mind, mode_1 = reader.start(torch.tensor([row])), data.flat.mode_S[row : row + 1]
        none_10 = torch.zeros(1, 0, dtype=torch.int64)
        for track_C in rules.allowed(mode_1, none_10)[0].nonzero()[:, 0].split(_AFTER):
            heard = torch.ones(len(track_C))
            feedback = Feedback(heard, torch.full_like(heard, torch.nan), heard < 0)
            after = reader.append(repeated(mind, torch.zeros_like(track_C)), track_C, feedback)
            allowed_CK = rules.allowed(mode_1.expand(len(track_C)), track_C[:, None])
            log_p_CK = log_softmax_allowed(policy.logits(after.h_BD, tracks).cpu(), allowed_CK)
            total_K[track_C] -= (log_p_CK.exp() * log_p_CK.masked_fill(~allowed_CK, 0.0)).sum(1)
            count_K[track_C] += 1
    return torch.where(count_K > 0, total_K / count_K, total_K.sum() / count_K.sum())
