"""Likelihood heads: proper distributions whose parts agree with each other."""

import math

import pytest
import torch
from slow_truth import expected_distance, midpoints

from amrs.signals import Binary, Bounded, Kind

BOUNDED = [Bounded(1), Bounded(3)]


def params(kind: Kind, count: int = 20) -> torch.Tensor:
    """Heads around the initial one, some with much mass on the ends."""
    generator = torch.Generator().manual_seed(1)
    return kind.initial() + torch.randn(count, kind.size, generator=generator)


@pytest.mark.parametrize("kind", BOUNDED)
def test_bounded_density_and_masses_on_the_ends_sum_to_1(kind: Bounded) -> None:
    p, grid = params(kind).double(), midpoints(4000).double()
    inside = torch.exp(-kind.nll(p[:, None], grid.expand(len(p), -1))).mean(1)
    ends = sum(torch.exp(-kind.nll(p, torch.full((len(p),), end).double())) for end in (0.0, 1.0))
    torch.testing.assert_close(inside + ends, torch.ones(len(p)).double(), atol=1e-5, rtol=0)


@pytest.mark.parametrize("kind", BOUNDED)
def test_bounded_mean_is_the_integral_of_its_likelihood(kind: Bounded) -> None:
    p, grid = params(kind).double(), midpoints(4000).double()
    inside = (grid * torch.exp(-kind.nll(p[:, None], grid.expand(len(p), -1)))).mean(1)
    at_one = torch.exp(-kind.nll(p, torch.ones(len(p)).double()))
    torch.testing.assert_close(kind.mean(p), inside + at_one, atol=1e-5, rtol=0)


@pytest.mark.parametrize("kind", BOUNDED)
def test_bounded_cdf_is_the_integral_of_its_likelihood(kind: Bounded) -> None:
    p, grid = params(kind).double(), midpoints(4000).double()
    at_zero = torch.exp(-kind.nll(p, torch.zeros(len(p)).double()))
    density = torch.exp(-kind.nll(p[:, None], grid.expand(len(p), -1)))
    below = at_zero[:, None] + torch.cat([torch.zeros(len(p), 1), density.cumsum(1) / 4000], 1)
    at = torch.tensor([0, 400, 2000, 3600])
    torch.testing.assert_close(kind.cdf(p, at.double() / 4000), below[:, at], atol=1e-5, rtol=0)
    assert (kind.cdf(p, torch.tensor([1.0]).double()) == 1).all()


@pytest.mark.parametrize("kind", [*BOUNDED, Binary()])
def test_samples_follow_the_cdf_and_the_mean(kind: Kind) -> None:
    p, u = params(kind), midpoints(20_000)
    y = kind.sample(p[:, None].expand(-1, len(u), -1), u.expand(len(p), -1))
    grid = torch.linspace(0, 1, 11)
    found = (y[..., None] <= grid).float().mean(1)
    torch.testing.assert_close(found, kind.cdf(p, grid), atol=5e-4, rtol=0)
    torch.testing.assert_close(y.mean(1), kind.mean(p), atol=5e-4, rtol=0)
    assert y.min() >= 0 and y.max() <= 1


def test_one_component_by_hand() -> None:
    """Location .5 and scale s = .25: Phi(2) = .97725 lies below 1."""
    raw = math.log(math.expm1(0.25 - 0.02))
    p, kind = torch.tensor([[-40.0, 0.0, -40.0, 0.5, raw]]), Bounded(1)
    assert kind.cdf(p, torch.tensor([0.0, 0.5]))[0].tolist() == pytest.approx([0.02275, 0.5], abs=1e-5)
    assert kind.mean(p).item() == pytest.approx(0.5)
    assert kind.nll(p, torch.tensor([1.0])).item() == pytest.approx(-math.log(0.02275), abs=1e-3)
    density = 1 / (0.25 * math.sqrt(2 * math.pi))
    assert kind.nll(p, torch.tensor([0.5])).item() == pytest.approx(-math.log(density), abs=1e-5)


def test_atoms_by_hand() -> None:
    """Weights 1/4 on 0, 1/4 on a narrow normal at .5, 1/2 on 1."""
    p, kind = torch.tensor([[0.0, 0.0, math.log(2), 0.5, -20.0]]), Bounded(1)
    assert kind.mean(p).item() == pytest.approx(0.625)
    assert kind.nll(p, torch.tensor([0.0])).item() == pytest.approx(math.log(4))
    assert kind.nll(p, torch.tensor([1.0])).item() == pytest.approx(math.log(2))
    assert kind.cdf(p, torch.tensor([0.0, 0.4, 0.6, 1.0]))[0].tolist() == pytest.approx([0.25, 0.25, 0.5, 1])
    assert kind.sample(p.expand(3, 5), torch.tensor([0.2, 0.49, 0.51])).tolist() == pytest.approx(
        [0, 0.5, 1], abs=0.05
    )
    assert kind.distance(p, 0.0).item() == pytest.approx(0.625)


def test_a_move_adds_to_locations_and_scales_and_tilts_towards_1() -> None:
    """Three logits tilted by .7: -.7, 0, +.7."""
    p = torch.tensor([[0.1, 0.2, 0.3, 0.5, -1.0]])
    found = Bounded(1).moved(p, torch.tensor([[0.25, 0.7, 0.1]]))
    torch.testing.assert_close(found, torch.tensor([[-0.6, 0.2, 1.0, 0.75, -0.9]]))


def test_gradients_are_finite_far_from_the_target() -> None:
    kind = Bounded(3)
    p = torch.tensor([-30.0, 30.0])[:, None].repeat(1, kind.size).requires_grad_()
    for y in (0.0, 0.3, 1.0):
        (gradient,) = torch.autograd.grad(kind.nll(p, torch.full((2,), y)).sum(), p)
        assert gradient.isfinite().all()


def test_binary_applies_the_sigmoid_once() -> None:
    kind, logit = Binary(), math.log(3)
    p = torch.tensor([[logit]])
    assert kind.mean(p).item() == pytest.approx(0.75)
    assert kind.nll(p, torch.tensor([1.0])).item() == pytest.approx(-math.log(0.75))
    assert kind.nll(p, torch.tensor([0.0])).item() == pytest.approx(-math.log(0.25))
    assert kind.sample(p.expand(2, 1), torch.tensor([0.24, 0.26])).tolist() == [0, 1]
    assert kind.cdf(p, torch.tensor([0.0, 0.5, 1.0]))[0].tolist() == pytest.approx([0.25, 0.25, 1])


@pytest.mark.parametrize("target", [0.0, 0.333, 0.5, 1.0])
def test_distance_to_a_target_of_known_distributions(target: float) -> None:
    grid = midpoints(100)
    uniform = expected_distance(grid, grid, target)
    assert uniform.item() == pytest.approx((target**2 + (1 - target) ** 2) / 2, abs=1e-4)
    coin = expected_distance(Binary().cdf(torch.tensor([math.log(3)]), grid), grid, target)
    assert coin.item() == pytest.approx(0.25 * target + 0.75 * (1 - target), abs=1e-6)
    assert Binary().distance(torch.tensor([math.log(3)]), target).item() == pytest.approx(coin.item())


@pytest.mark.parametrize("target", [0.2, 0.5])
def test_distance_of_a_bounded_head_is_that_of_its_samples(target: float) -> None:
    kind, u = Bounded(3), midpoints(20_000)
    p = params(kind)
    y = kind.sample(p[:, None].expand(-1, len(u), -1), u.expand(len(p), -1))
    found = kind.distance(p, target)
    torch.testing.assert_close(found, (y - target).abs().mean(1), atol=1e-3, rtol=0)
    on_grid = expected_distance(kind.cdf(p, midpoints(100)), midpoints(100), target)
    torch.testing.assert_close(found, on_grid, atol=1e-3, rtol=0)
