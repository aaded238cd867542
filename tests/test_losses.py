"""Preference losses and divergence, worked by hand."""

import math

import pytest
import torch

from amrs.losses import DPO_LOSSES, dpo_loss, hard_dpo_loss, kl_divergence


@pytest.mark.parametrize("name", list(DPO_LOSSES))
def test_loss_is_log_2_when_policy_equals_reference(name: str) -> None:
    zeros = torch.zeros(3)
    loss_P, margin_P = DPO_LOSSES[name](zeros, zeros, torch.tensor([0.1, 1.0, 5.0]), 0.1, 1.0)
    assert loss_P.tolist() == pytest.approx([math.log(2)] * 3)
    assert margin_P.tolist() == [0] * 3


def test_hard_loss_by_hand() -> None:
    """beta x margin = .5 x (2 - -2) = 2, and -log sigma(2) = log(1 + e^-2)."""
    loss_P, margin_P = hard_dpo_loss(torch.tensor([2.0]), torch.tensor([-2.0]), torch.ones(1), 0.5, 1.0)
    assert margin_P.item() == 2
    assert loss_P.item() == pytest.approx(math.log1p(math.exp(-2)))


def test_soft_loss_by_hand() -> None:
    """dU / tau = log 3 is a label of .75; beta x margin = log 3, too: the entropy of .75."""
    chosen, du = torch.tensor([math.log(3)]), torch.tensor([2 * math.log(3)])
    loss_P, _ = dpo_loss(chosen, torch.zeros(1), du, 1.0, 2.0)
    assert loss_P.item() == pytest.approx(-0.75 * math.log(0.75) - 0.25 * math.log(0.25))


def test_soft_loss_is_least_where_the_margin_is_du_over_tau() -> None:
    chosen = torch.linspace(-10, 10, 2001)
    loss_P, margin_P = dpo_loss(chosen, torch.zeros(2001), torch.full((2001,), 1.2), 0.4, 0.8)
    assert margin_P[loss_P.argmin()].item() == pytest.approx(1.5, abs=0.01)


def test_soft_labels_become_hard_as_tau_goes_to_0() -> None:
    chosen, rejected, du = torch.randn(3, 5, generator=torch.Generator().manual_seed(0))
    soft, _ = dpo_loss(chosen, rejected, du.abs() + 0.1, 0.3, 1e-4)
    torch.testing.assert_close(soft, hard_dpo_loss(chosen, rejected, du, 0.3, 1.0)[0])


def test_loss_pushes_the_chosen_up_and_the_rejected_down() -> None:
    chosen, rejected = torch.zeros(1, requires_grad=True), torch.zeros(1, requires_grad=True)
    dpo_loss(chosen, rejected, torch.ones(1), 0.1, 1.0)[0].sum().backward()
    assert chosen.grad is not None and rejected.grad is not None
    assert chosen.grad < 0 < rejected.grad


def test_kl_by_hand_over_allowed_tracks_only() -> None:
    p, q = torch.tensor([[0.5, 0.5, 0.0]]).log(), torch.tensor([[0.25, 0.75, 0.0]]).log()
    assert kl_divergence(p, q).item() == pytest.approx(0.5 * math.log(2) + 0.5 * math.log(2 / 3))
    assert kl_divergence(p, p).item() == 0


def test_kl_is_never_negative() -> None:
    p, q = torch.randn(2, 200, 7, generator=torch.Generator().manual_seed(0)).log_softmax(-1)
    assert (kl_divergence(p, q) > 0).all()
