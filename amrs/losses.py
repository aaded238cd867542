"""Preference losses. Shape suffixes: P pairs, J rejected tracks of one pair.

Arguments are log pi - log pi_ref of chosen and rejected in nats; margins are returned for logging.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

FLIP = 0.1
"""Share of labels that conservative DPO takes to be wrong."""


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


def conservative_dpo_loss(
    chosen_P: Tensor, rejected_P: Tensor, du_P: Tensor, beta: float, tau: float
) -> tuple[Tensor, Tensor]:
    """DPO whose labels are wrong with probability FLIP (Mitchell 2023); `du_P` and `tau` are not used.

    Its optimum is finite: beta x margin = log((1 - FLIP) / FLIP), the same for every pair.
    """
    margin_P = beta * (chosen_P - rejected_P)
    loss_P = -(1 - FLIP) * F.logsigmoid(margin_P) - FLIP * F.logsigmoid(-margin_P)
    return loss_P, margin_P.detach()


def ipo_loss(
    chosen_P: Tensor, rejected_P: Tensor, du_P: Tensor, beta: float, tau: float
) -> tuple[Tensor, Tensor]:
    """IPO (Azar et al. 2024, eq. 17): (margin - 1 / (2 beta))^2 of the log-ratios' difference.

    `beta` is the paper's tau; `du_P` and our `tau` are not used: every pair is pulled equally far apart.
    """
    difference_P = chosen_P - rejected_P
    return (difference_P - 1 / (2 * beta)) ** 2, beta * difference_P.detach()


def regression_loss(
    chosen_P: Tensor, rejected_P: Tensor, du_P: Tensor, beta: float, tau: float
) -> tuple[Tensor, Tensor]:
    """Squared error of beta x margin on dU / tau: the closed form of the tilt, fitted pair by pair.

    As REBEL (Gao et al. 2024, eq. 1) with the reference as the policy that is improved on.
    """
    margin_P = beta * (chosen_P - rejected_P)
    return (margin_P - du_P / tau) ** 2, margin_P.detach()


def s_dpo_loss(
    chosen_P: Tensor, rejected_PJ: Tensor, du_P: Tensor, beta: float, tau: float
) -> tuple[Tensor, Tensor]:
    """S-DPO (Chen et al. 2024, eq. 10): one chosen against J rejected at once, hard labels.

    -log sigma(-log sum_j exp(beta (rejected_j - chosen))); with J = 1 it is DPO. `du_P` and `tau` are not
    used. A rejected of -inf is none.
    """
    margin_P = -(beta * (rejected_PJ - chosen_P[:, None])).logsumexp(-1)
    return -F.logsigmoid(margin_P), margin_P.detach()


def list_dpo_loss(
    chosen_P: Tensor, rejected_PJ: Tensor, du_PJ: Tensor, beta: float, tau: float
) -> tuple[Tensor, Tensor]:
    """Soft DPO of a list: cross-entropy of softmax(beta x log-ratio) with softmax(u / tau), and the margin.

    Softmax over chosen and rejected, as in list-wise preference optimisation (LiPO: Liu et al. 2024). Its
    optimum is that of `dpo_loss`, log-ratio = u / (beta tau) + const; with J = 1 it is `dpo_loss`. The best
    and the worst of many draws differ in every signal at once, so that a pair hardly says how much each
    counts; a list does. `du_PJ` is the utility of chosen minus each rejected; a rejected of -inf is none.
    """
    zero_P1 = torch.zeros_like(chosen_P)[:, None]
    none_PJ = rejected_PJ == -torch.inf
    label_PL = torch.cat([zero_P1, (-du_PJ / tau).masked_fill(none_PJ, -torch.inf)], 1).softmax(-1)
    log_p_PL = (beta * torch.cat([chosen_P[:, None], rejected_PJ], 1)).log_softmax(-1)
    loss_P = -torch.where(label_PL > 0, label_PL * log_p_PL.masked_fill(label_PL == 0, 0.0), 0.0).sum(-1)
    return loss_P, (beta * (chosen_P - rejected_PJ[:, 0])).detach()


DPO_LOSSES = {
    "soft": dpo_loss,
    "hard": hard_dpo_loss,
    "conservative": conservative_dpo_loss,
    "ipo": ipo_loss,
    "regression": regression_loss,
    "s_dpo": s_dpo_loss,
    "list": list_dpo_loss,
}


TEMPERED = ("soft", "regression", "list")
"""Losses that read dU / tau."""
LISTED = ("s_dpo", "list")
"""Losses that see several rejected tracks at once: (P, J) of them and of dU."""


def kl_divergence(log_p_PK: Tensor, log_q_PK: Tensor) -> Tensor:
    """KL(p || q) in nats over tracks, exact, as (P,); tracks that are not allowed are -inf in both."""
    # Exponentials of -inf are slow outside of a softmax, and so is filling by a mask. -inf is where p is 0.
    difference_PK = (log_p_PK - log_q_PK).nan_to_num_(nan=0.0, posinf=torch.inf, neginf=0.0)
    return (log_p_PK.softmax(-1) * difference_PK).sum(-1)
