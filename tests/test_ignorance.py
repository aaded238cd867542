"""Noise and ignorance."""

import numpy as np
import pytest
import torch

from amrs.config.groups import ModelConfig
from amrs.fidelity.ignorance import caught, caught_interval, disagreement, least_noise, split_variance
from amrs.models.world_model import WorldModelMember
from amrs.signals import Binary, Bounded


def test_split_by_hand_sums_to_the_variance_of_the_mixture() -> None:
    # members N(.2, .01) and N(.6, .03): noise .02, ignorance .2^2
    noise, ignorance = split_variance(torch.tensor([0.2, 0.6]), torch.tensor([0.01, 0.03]))
    assert noise.item() == pytest.approx(0.02) and ignorance.item() == pytest.approx(0.04)
    second_moment = (0.2**2 + 0.01 + 0.6**2 + 0.03) / 2
    assert (noise + ignorance).item() == pytest.approx(second_moment - 0.4**2)


@pytest.mark.parametrize("kind", [Bounded(3), Binary()])
def test_split_equals_the_variance_of_draws(kind: Bounded | Binary) -> None:
    torch.manual_seed(0)
    params = [kind.initial() + 0.5 * torch.randn(kind.size) for _ in range(3)]
    u_N = (torch.arange(60_000) + 0.5) / 60_000
    drawn = torch.cat([kind.sample(p.expand(len(u_N), -1), u_N) for p in params])
    means = torch.stack([kind.mean(p) for p in params])
    noise, ignorance = split_variance(means, torch.stack([kind.variance(p) for p in params]))
    assert ignorance > 0
    assert (noise + ignorance).item() == pytest.approx(drawn.var().item(), abs=1e-4)


def test_variance_above_that_of_reports_as_such_is_ignorance_of_the_listener() -> None:
    # two members agree about three listeners; the variances' 5 % quantile lies a tenth of the way up
    variances = torch.tensor([[0.01, 0.02, 0.05], [0.01, 0.02, 0.05]])
    floor = least_noise(variances)
    assert floor == pytest.approx(0.011)
    noise, ignorance = split_variance(torch.full((2, 3), 0.4), variances, floor)
    assert noise.tolist() == pytest.approx([0.01, 0.011, 0.011])
    assert ignorance.tolist() == pytest.approx([0, 0.009, 0.039])


def test_one_member_cannot_disagree() -> None:
    spread = disagreement({"valence": torch.tensor([[0.3, 0.7]]), "arousal": torch.tensor([[0.2], [0.6]])})
    assert spread["valence"].tolist() == [0, 0] and spread["arousal"].item() == pytest.approx(0.2)


def test_an_embedding_in_the_catalogue_is_answered_as_its_track() -> None:
    torch.manual_seed(1)
    member = WorldModelMember(
        ModelConfig(width=16, layers=1), {"valence": "bounded"}, 2, 5, torch.randn(9, 4)
    )
    by_track = member.candidates(torch.tensor([3, 7]))
    by_embedding = member.unseen(member.encoder.embedding_KE[[3, 7]])
    for one, other in zip(by_track, by_embedding, strict=True):
        torch.testing.assert_close(one, other)


def test_caught_by_hand() -> None:
    error = np.array([0.9, *[0.1] * 9])  # the worst tenth is the first
    assert caught(error, np.array([5.0, *range(9)])) == pytest.approx((5 + 0.5) / 9)
    assert caught(error, np.array([9.0, *range(9)])) == 1.0
    interval = caught_interval(error, np.array([9.0, *range(9)]), np.arange(10), 100, 0)
    assert interval.value == 1.0 and interval.n == 10
