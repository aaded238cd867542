"""Copycat tilted by a utility: laws by hand, against draws, and at a divergence that was asked for."""

import math

import pytest
import torch
from tiny_logs import opened, policy, random_log, world_model

from amrs.carry import _expected, _two_draws, measure_effects
from amrs.config.groups import UtilityConfig
from amrs.data import SessionDataModule
from amrs.guidance import GuidedPolicy, Tilt, best_of, boltzmann, calibrate
from amrs.listeners import ImaginedListeners
from amrs.losses import kl_divergence
from amrs.noise import hash_keys
from amrs.policies import NeuralPolicy, Scorer
from amrs.rollout import imagine
from amrs.utility import Utility

HORIZON = 4


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> SessionDataModule:
    return opened(random_log(tmp_path_factory.mktemp("log") / "log", users=20))


def test_boltzmann_by_hand_leaves_forbidden_tracks_out() -> None:
    """q = (1/4, 3/4, 0), u = (log 3, 0, 99): weights 3/4 and 3/4."""
    log_q = torch.tensor([[0.25, 0.75, 0.0]]).log()
    found = boltzmann(log_q, torch.tensor([[math.log(3), 0.0, 99.0]]), 1.0)
    assert found.exp()[0].tolist() == pytest.approx([0.5, 0.5, 0.0])


def test_best_of_two_by_hand() -> None:
    """The worst track is the best of two only if drawn twice: .5^2; the middle one .8^2 - .5^2."""
    log_q = torch.tensor([[0.3, 0.5, 0.2, 0.0]]).log()
    found = best_of(log_q, torch.tensor([[1.0, 0.0, 2.0, 9.0]]), 1.0)
    assert found.exp()[0].tolist() == pytest.approx([0.64 - 0.25, 0.25, 1 - 0.64, 0.0], abs=1e-6)


def test_best_of_three_is_what_three_draws_give() -> None:
    generator = torch.Generator().manual_seed(0)
    q, u = torch.rand(6, generator=generator).softmax(0), torch.randn(6, generator=generator)
    drawn = torch.multinomial(q, 3 * 100_000, True, generator=generator).view(-1, 3)
    best = drawn.gather(1, u[drawn].argmax(1, keepdim=True))[:, 0]
    share = torch.bincount(best, minlength=6) / len(best)
    torch.testing.assert_close(best_of(q.log()[None], u[None], 2.0).exp()[0], share, atol=0.006, rtol=0)


def test_divergence_of_best_of_n_over_many_tracks_is_log_n_less_its_share() -> None:
    log_q = torch.full((1, 20_000), 1 / 20_000).log()
    u = torch.randn(1, 20_000, generator=torch.Generator().manual_seed(0))
    for n in (1.3, 2.0, 5.0):
        found = kl_divergence(best_of(log_q, u, n - 1), log_q).item()
        assert found == pytest.approx(math.log(n) - (n - 1) / n, abs=2e-3)


def guided(data: SessionDataModule, tilt: Tilt) -> GuidedPolicy:
    utility = Utility(UtilityConfig(standardise=False), data.log.metadata.modes)
    scorer = Scorer(world_model(data, 2), utility, data, HORIZON)
    return GuidedPolicy(NeuralPolicy(policy(data), data, HORIZON), scorer, data.rules(), tilt, 1.0)


@pytest.mark.parametrize("tilt", [boltzmann, best_of])
def test_a_calibrated_policy_has_the_divergence_that_was_asked_for(
    data: SessionDataModule, tilt: Tilt
) -> None:
    listeners, row_B = ImaginedListeners(world_model(data), data, HORIZON), torch.arange(40)
    key_B, mode_B = hash_keys(1, row_B), data.flat.mode_S[row_B]
    strengths = []
    for budget in (0.01, 0.05):
        one = guided(data, tilt)
        calibrate(one, budget, listeners, row_B, key_B, HORIZON)
        found = imagine(one, listeners, data.rules(), mode_B, row_B, key_B, HORIZON, one.copycat)
        assert found.kl_BT is not None
        assert float(found.kl_BT.nansum() / found.played_BT.sum()) == pytest.approx(budget, rel=0.15)
        strengths.append(one.strength)
    assert strengths[0] < strengths[1]


@torch.inference_mode()
def test_a_guided_policy_knows_the_rules_and_the_tracks_so_far(data: SessionDataModule) -> None:
    one, row_B = guided(data, boltzmann), torch.arange(5)
    state = one.start(row_B)
    listeners = ImaginedListeners(world_model(data), data, HORIZON)
    world = listeners.start(row_B, row_B)
    track_B = one.logits(state).argmax(1)
    _, feedback, _ = listeners.step(world, track_B, 0)
    log_p_BK = one.logits(one.observe(state, track_B, feedback))
    assert (log_p_BK[row_B, track_B] == -torch.inf).all()
    torch.testing.assert_close(log_p_BK.exp().sum(1), torch.ones(5))


class Forgetful:
    """Listeners whose valence is the mean track number, weighted by .5 per track since; luck adds nothing."""

    def start(self, row_B: torch.Tensor, key_B: torch.Tensor) -> torch.Tensor:
        return torch.zeros(len(row_B))

    def step(self, state, track_B, t):  # type: ignore[no-untyped-def]
        state = 0.5 * state + track_B
        return state, None, {"valence": state, "engagement": track_B.float()}


def test_carry_of_listeners_who_forget_half_by_hand(data: SessionDataModule) -> None:
    """Of an effect three tracks before the end an eighth is left; engagement counts one track in four."""
    played, other = torch.tensor([[1, 2, 3, 4], [4, 3, 2, 1]]), torch.tensor([[5, 5, 5, 5], [0, 0, 0, 0]])

    def draws(*_: object) -> tuple[torch.Tensor, torch.Tensor]:
        return played, other

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("amrs.carry._two_draws", draws)
        row_B = torch.arange(2)
        found = measure_effects(Forgetful(), None, None, row_B, row_B, 0, 4)  # type: ignore[arg-type]
        at_once = measure_effects(Forgetful(), None, None, row_B, row_B, 0, 4, False)  # type: ignore[arg-type]
    assert found.carry["valence"] == pytest.approx([0.125, 0.25, 0.5, 1.0])
    assert found.carry["engagement"] == pytest.approx([0.25] * 4)
    d = [[4, 3, 2, 1], [-4, -3, -2, -1]]
    square = sum((c * x) ** 2 / 2 for row in d for c, x in zip([0.125, 0.25, 0.5, 1], row, strict=True))
    assert found.spread["valence"] == pytest.approx(math.sqrt(square / 8))
    assert at_once.spread["valence"] == pytest.approx(math.sqrt(sum(x * x / 2 for r in d for x in r) / 8))
    assert at_once.carry == {}


def test_the_other_draws_are_allowed_and_swapped_sessions_share_their_past(data: SessionDataModule) -> None:
    listeners, row_B = ImaginedListeners(world_model(data, 2), data, HORIZON), torch.arange(30)
    mode_B, key_B = data.flat.mode_S[row_B], hash_keys(5, row_B)
    reference = NeuralPolicy(policy(data), data, HORIZON)
    with torch.inference_mode():
        played_BT, other_BT = _two_draws(listeners, reference, data.rules(), mode_B, row_B, key_B, HORIZON)
        changed_BT = played_BT.clone()
        changed_BT[:, 2] = other_BT[:, 2]
        base, changed = (_expected(listeners, row_B, key_B, x)["valence"] for x in (played_BT, changed_BT))
    assert data.rules().mode_MK[mode_B[:, None], other_BT].all()
    assert (played_BT != other_BT).any()
    assert torch.equal(base[:, :2], changed[:, :2]) and not torch.equal(base[:, 2], changed[:, 2])
