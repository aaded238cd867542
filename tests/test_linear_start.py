"""The world model's linear part, fitted by itself before training; and each member's bag of users."""

from typing import Any

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression
from tiny_logs import opened, random_log, world_model

from amrs.bags import Bags
from amrs.config.stages import WorldModelConfig
from amrs.data import SessionDataModule
from amrs.linear_start import Examples, examples, fitted, loss, start_linear, tuned_penalty
from amrs.logs.histories import LABELS
from amrs.logs.splits import TRAIN, VALIDATION
from amrs.models.world_model import masked_sums
from amrs.signals import Binary, Bounded

ALL = dict.fromkeys(LABELS, 1.0)
PENALTIES = WorldModelConfig().penalties


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> SessionDataModule:
    return opened(random_log(tmp_path_factory.mktemp("log") / "log"), history=9)


def made_up(n: int = 400, seed: int = 0) -> Examples:
    """Yes or no by three features, the third of no use; ten users, the last three for tuning."""
    random = torch.Generator().manual_seed(seed)
    feature_NF = torch.randn(n, 3, generator=random) * torch.tensor([1.0, 5.0, 1.0]) + 2.0
    odds_N = 1.0 * feature_NF[:, 0] - 0.3 * feature_NF[:, 1]
    value_N = (torch.rand(n, generator=random) < odds_N.sigmoid()).float()
    user_N = torch.arange(n) % 10
    return Examples(feature_NF, value_N, torch.ones(n), user_N, torch.where(user_N < 7, TRAIN, VALIDATION))


def test_a_binary_fit_is_penalised_logistic_regression() -> None:
    found, penalty = made_up(), 30.0
    (fit,) = fitted(Binary(), found, [penalty])
    x_NF = found.feature_NF.double().numpy()
    z_NF = (x_NF - x_NF.mean(0)) / x_NF.std(0, ddof=1)
    slow = LogisticRegression(C=1 / penalty, tol=1e-8, max_iter=1000).fit(z_NF, found.value_N.numpy())
    odds = found.feature_NF @ fit.weight_XF.T + fit.bias_P
    np.testing.assert_allclose(odds[:, 0], slow.decision_function(z_NF), atol=0.02, rtol=0.01)


def test_labels_that_are_all_the_same_stay_finite() -> None:
    same = made_up()._replace(value_N=torch.ones(400))
    (fit,) = fitted(Binary(), same, [10.0])
    assert 2 < fit.bias_P.item() + (fit.weight_XF @ same.feature_NF.mean(0)).item() < 10
    (nobody,) = fitted(Binary(), same._replace(weight_N=torch.zeros(400)), [10.0])
    assert nobody.bias_P.abs().item() < 1e-4 and nobody.weight_XF.abs().max() < 1e-4


def test_a_bounded_fit_moves_with_its_features() -> None:
    found = made_up()
    value_N = (0.5 + 0.05 * (found.feature_NF[:, 0] - 2)).clamp(0, 1)
    kind = Bounded(2)
    (fit,) = fitted(kind, found._replace(value_N=value_N), [0.1])
    params = kind.moved(fit.bias_P.expand(len(value_N), -1), found.feature_NF @ fit.weight_XF.T)
    assert (kind.mean(params) - value_N).abs().mean() < 0.01


def test_each_penalty_gives_what_it_gives_alone() -> None:
    found = made_up()
    several, alone = fitted(Binary(), found, [300.0, 3.0])[1], fitted(Binary(), found, [3.0])[0]
    torch.testing.assert_close(several.weight_XF, alone.weight_XF, atol=2e-3, rtol=0.02)
    held_back = fitted(Binary(), found, [300.0])[0]
    assert loss(Binary(), several, found).sum() < loss(Binary(), held_back, found).sum()


def test_noise_is_held_back_more_than_signal() -> None:
    random = torch.Generator().manual_seed(1)
    found = made_up()
    noise = found._replace(value_N=torch.randint(2, (400,), generator=random).float())
    assert tuned_penalty(Binary(), noise, 0, PENALTIES) > tuned_penalty(Binary(), found, 0, PENALTIES)


@pytest.mark.parametrize("settings", [{}, {"curves": 4, "situation": True}])
def test_the_linear_part_sees_what_the_head_adds_up(
    data: SessionDataModule, settings: dict[str, Any]
) -> None:
    """Before any step the model's answers are those of the fits that were put in."""
    model = world_model(data, **settings)
    (member,) = model.ensemble
    member.level_KV.zero_()
    start_linear(model, data, ALL, Bags(0, 1), 0, PENALTIES, torch.device("cpu"))
    batch = data.gather(data.windows(TRAIN), hidden_seed=0)
    sums = dict(zip(LABELS, masked_sums(member.eval(), batch).tolist(), strict=True))
    for name, found in examples(member, data, ALL, 0).items():
        kind, training = member.kinds[name], found.kept(found.part_N == TRAIN)
        params = member.linear_answer(name, training.feature_NF)
        total = float(kind.nll(params, training.value_N).sum().detach())
        together = sum(sums[label] for label in (name, f"start_{name}", f"end_{name}") if label in sums)
        assert together == pytest.approx(total, rel=1e-3)


def test_members_have_different_bags_and_one_member_has_everybody() -> None:
    user = torch.arange(4000)
    first, second = (Bags(0, 2).times(m, user) for m in range(2))
    assert not torch.equal(first, second) and torch.equal(first, Bags(0, 2).times(0, user))
    assert first.mean().item() == pytest.approx(1, abs=0.05)
    assert first.var().item() == pytest.approx(1, abs=0.1)
    assert (first == 0).float().mean().item() == pytest.approx(np.exp(-1), abs=0.03)
    assert torch.equal(Bags(0, 1).times(0, user), torch.ones(4000))


def test_a_user_outside_of_the_bag_adds_nothing(data: SessionDataModule) -> None:
    (member,), window_W3 = world_model(data).ensemble, data.windows(TRAIN)
    batch = data.gather(window_W3)
    times_B = (batch.user_B == batch.user_B[0]).float() * 2
    alone = masked_sums(member, data.gather(window_W3[batch.user_B == batch.user_B[0]]))
    torch.testing.assert_close(masked_sums(member, batch, times_B), 2 * alone, rtol=1e-4, atol=1e-3)
