"""Random numbers are functions of their keys."""

import pytest
import torch

from amrs.noise import hash_keys, normal, uniform

MASK = (1 << 64) - 1


def slow_hash(*keys: int) -> int:
    """splitmix64 in Python's unbounded integers."""
    state = 0
    for key in keys:
        state = ((state ^ (key & MASK)) + 0x9E3779B97F4A7C15) & MASK
        state = ((state ^ (state >> 30)) * 0xBF58476D1CE4E5B9) & MASK
        state = ((state ^ (state >> 27)) * 0x94D049BB133111EB) & MASK
        state ^= state >> 31
    return state


@pytest.mark.parametrize("keys", [(0,), (1, 2, 3), (-1, 7), (2**62, -(2**63))])
def test_hash_is_splitmix64(keys: tuple[int, ...]) -> None:
    assert int(hash_keys(*keys)) & MASK == slow_hash(*keys)


def test_splitmix64_of_seed_zero_is_the_published_first_output() -> None:
    assert slow_hash(0) == 0xE220A8397B1DCDAF


def test_uniform_is_the_top_23_bits() -> None:
    assert uniform(3, 5).item() == ((slow_hash(3, 5) >> 41) + 0.5) / 2**23


def test_a_batch_does_not_change_a_draw() -> None:
    key_B = torch.arange(50)
    together = uniform(key_B[:, None], torch.arange(4))
    assert torch.equal(together[[17]][:, [2]], uniform(torch.tensor([[17]]), 2))


def test_order_of_keys_matters_and_draws_differ() -> None:
    assert uniform(1, 2) != uniform(2, 1)
    assert len(hash_keys(torch.arange(300)[:, None], torch.arange(300)).unique()) == 90_000


def test_uniform_is_even_and_neighbouring_keys_are_unrelated() -> None:
    u = uniform(torch.arange(200)[:, None], torch.arange(500)).double()
    assert 0 < u.min() and u.max() < 1
    counts = torch.histc(u, 20, 0, 1)
    assert float(((counts - 5000) ** 2 / 5000).sum()) < 43.8  # chi-square, 19 degrees, p = .001
    for a, b in ((u[1:], u[:-1]), (u[:, 1:], u[:, :-1])):
        assert abs(torch.corrcoef(torch.stack([a.flatten(), b.flatten()]))[0, 1]) < 4 / 99_000**0.5


def test_normal_has_mean_0_and_variance_1() -> None:
    x = normal(9, torch.arange(100_000)).double()
    assert abs(x.mean()) < 4 / 100_000**0.5
    assert abs(x.var() - 1) < 4 * (2 / 100_000) ** 0.5
    assert x.isfinite().all()
