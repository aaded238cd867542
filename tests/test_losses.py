"""Preference losses and divergence, worked by hand."""

import math

import pytest
import torch

from amrs.losses import (
    DPO_LOSSES,
    FLIP,
    conservative_dpo_loss,
    dpo_loss,
    hard_dpo_loss,
    ipo_loss,
    kl_divergence,
    list_dpo_loss,
    regression_loss,
    s_dpo_loss,
)


@pytest.mark.parametrize("name", ["soft", "hard", "conservative"])
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
    fewer = torch.tensor([[1.0, 0.0, 0.0]]).log()
    assert kl_divergence(fewer, p).item() == pytest.approx(math.log(2)), "what the policy never plays adds 0"
    assert kl_divergence(p, fewer).item() == math.inf, "what the reference never plays has no finite price"


def test_kl_is_never_negative() -> None:
    p, q = torch.randn(2, 200, 7, generator=torch.Generator().manual_seed(0)).log_softmax(-1)
    assert (kl_divergence(p, q) > 0).all()


def test_conservative_loss_by_hand_and_its_finite_optimum() -> None:
    """Margin log 3: sigma = 3/4. Least where sigma(margin) = .9, margin log 9."""
    loss_P, _ = conservative_dpo_loss(torch.tensor([math.log(3)]), torch.zeros(1), torch.ones(1), 1.0, 1.0)
    assert loss_P.item() == pytest.approx(-(1 - FLIP) * math.log(0.75) - FLIP * math.log(0.25))
    chosen = torch.linspace(0, 5, 5001)
    loss_P, margin_P = conservative_dpo_loss(chosen, torch.zeros(5001), chosen, 1.0, 1.0)
    assert margin_P[loss_P.argmin()].item() == pytest.approx(math.log(9), abs=0.005)


def test_ipo_by_hand() -> None:
    """Difference 3, beta 1/4: (3 - 2)^2; the margin that is logged is beta times 3."""
    loss_P, margin_P = ipo_loss(torch.tensor([2.0]), torch.tensor([-1.0]), torch.ones(1), 0.25, 1.0)
    assert (loss_P.item(), margin_P.item()) == (1.0, 0.75)


def test_regression_by_hand() -> None:
    """beta x margin = .5 x 3, dU / tau = 4 / 2."""
    loss_P, margin_P = regression_loss(torch.tensor([2.0]), torch.tensor([-1.0]), torch.tensor([4.0]), 0.5, 2)
    assert (loss_P.item(), margin_P.item()) == (0.25, 1.5)


def test_s_dpo_by_hand() -> None:
    """exp(0 - log 2) + exp(log 2 - log 2) = 3/2, so sigma(-log 3/2) = 1 / (1 + 3/2)."""
    loss_P, _ = s_dpo_loss(
        torch.tensor([math.log(2)]), torch.tensor([[0.0, math.log(2)]]), torch.ones(1), 1, 1
    )
    assert loss_P.item() == pytest.approx(-math.log(0.4))


def test_s_dpo_with_one_rejected_is_dpo_and_a_missing_one_is_none() -> None:
    chosen, rejected = torch.randn(2, 5, generator=torch.Generator().manual_seed(0))
    expected = hard_dpo_loss(chosen, rejected, chosen, 0.3, 1.0)[0]
    torch.testing.assert_close(s_dpo_loss(chosen, rejected[:, None], chosen, 0.3, 1.0)[0], expected)
    padded = torch.stack([rejected, torch.full((5,), -torch.inf)], 1)
    torch.testing.assert_close(s_dpo_loss(chosen, padded, chosen, 0.3, 1.0)[0], expected)


@pytest.mark.parametrize("name", ["soft", "regression"])
def test_the_best_margins_are_those_of_the_tilted_reference(name: str) -> None:
    """Slow truth: all pairs of four tracks fitted by gradient descent give q exp(u / tau), normalised."""
    u, tau = torch.tensor([0.0, 0.5, 1.5, -1.0]), 1.7
    log_q = torch.tensor([0.4, 0.3, 0.2, 0.1]).log()
    logit = log_q.clone().requires_grad_()
    first, second = torch.combinations(torch.arange(4)).T
    optimiser = torch.optim.LBFGS([logit], max_iter=200, line_search_fn="strong_wolfe")

    def closure() -> torch.Tensor:
        optimiser.zero_grad()
        ratio = logit.log_softmax(0) - log_q
        loss = DPO_LOSSES[name](ratio[first], ratio[second], u[first] - u[second], 1.0, tau)[0].sum()
        loss.backward()
        return loss

    optimiser.step(closure)
    torch.testing.assert_close(logit.detach().softmax(0), (log_q + u / tau).softmax(0), atol=1e-3, rtol=0)


def test_a_list_of_two_is_soft_dpo_and_a_missing_one_is_none() -> None:
    chosen, rejected, du = torch.randn(3, 5, generator=torch.Generator().manual_seed(0))
    expected = dpo_loss(chosen, rejected, du, 0.3, 1.7)[0]
    torch.testing.assert_close(list_dpo_loss(chosen, rejected[:, None], du[:, None], 0.3, 1.7)[0], expected)
    padded = torch.stack([rejected, torch.full((5,), -torch.inf)], 1)
    twice = torch.stack([du, du], 1)
    torch.testing.assert_close(list_dpo_loss(chosen, padded, twice, 0.3, 1.7)[0], expected)


def test_the_best_list_is_the_tilted_reference() -> None:
    u, tau, beta = torch.tensor([[0.0, 0.5, 1.5, -1.0]]), 1.7, 0.5
    best = u / tau / beta
    ratio = (best + 3.0).clone().requires_grad_()  # a constant does not matter
    loss_P, margin_P = list_dpo_loss(ratio[:, 0], ratio[:, 1:], u[:, :1] - u[:, 1:], beta, tau)
    (gradient,) = torch.autograd.grad(loss_P.sum(), ratio)
    assert gradient.abs().max() < 1e-6 and margin_P.item() == pytest.approx(-0.5 / tau)
    label = (u / tau).softmax(1)
    assert loss_P.item() == pytest.approx(float(-(label * label.log()).sum()))
