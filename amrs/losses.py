"""Preference losses. Shape suffix: P pairs."""

import torch
import torch.nn.functional as F
from torch import Tensor


def dpo_loss(
    chosen_P: Tensor, rejected_P: Tensor, du_P: Tensor, beta: float, tau: float
) -> tuple[Tensor, Tensor]:
    """DPO losses with soft labels, and the margin for logging, both (P,) in nats.

    The label sigma(dU / tau) is the probability that the chosen track is the better one; the loss is
    the cross-entropy of sigma(beta x margin) with it, whose optimum is finite: beta x margin = dU / tau.
    Rafailov et al. 2023, eq. 7, with the labels of conservative DPO (Mitchell 2023) made graded.

    Args:
        chosen_P: log pi - log pi_ref of the chosen track, in nats.
        rejected_P: likewise of the rejected track.
        du_P: predicted utility of chosen minus rejected.
        beta: inverse temperature, above 0.
        tau: label temperature in units of utility, above 0.
    """
    margin_P = beta * (chosen_P - rejected_P)
    label_P = torch.sigmoid(du_P / tau)
    loss_P = -label_P * F.logsigmoid(margin_P) - (1 - label_P) * F.logsigmoid(-margin_P)
    return loss_P, margin_P.detach()


def hard_dpo_loss(
    chosen_P: Tensor, rejected_P: Tensor, du_P: Tensor, beta: float, tau: float
) -> tuple[Tensor, Tensor]:
    """DPO as published (Rafailov et al. 2023, eq. 7): `du_P` and `tau` are not used."""
    margin_P = beta * (chosen_P - rejected_P)
    return -F.logsigmoid(margin_P), margin_P.detach()


DPO_LOSSES = {"soft": dpo_loss, "hard": hard_dpo_loss}


def kl_divergence(log_p_PK: Tensor, log_q_PK: Tensor) -> Tensor:
    """KL(p || q) in nats over tracks, exact, as (P,); tracks that are not allowed are -inf in both."""
    allowed_PK = log_p_PK > -torch.inf
    difference_PK = torch.where(allowed_PK, log_p_PK - log_q_PK, 0.0)
    return (log_p_PK.exp() * difference_PK).sum(-1)
