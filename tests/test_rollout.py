"""Rollouts: luck belongs to the listener, not to the batch or the policy; leaving is not the horizon."""

import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from slow_truth import midpoints
from tiny_logs import METADATA, letters, opened, policy, random_log, session, world_model, write
from torch import Tensor

from amrs.config.groups import UtilityConfig
from amrs.data import SessionDataModule
from amrs.listeners import HistoryReader, ImaginedListeners, luck
from amrs.models.world_model import EXTRA
from amrs.noise import hash_keys
from amrs.policies import FixedPolicy, GreedyPolicy, NeuralPolicy, Scorer, catalogue_utility
from amrs.rollout import Feedback, Rollouts, choose, imagine
from amrs.rules import Rules
from amrs.utility import Utility

HORIZON = 5
CLOSE = {"atol": 2e-5, "rtol": 1e-4, "equal_nan": True}


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> SessionDataModule:
    return opened(random_log(tmp_path_factory.mktemp("log") / "log"))


def roll(data: SessionDataModule, row_B: Tensor, seed: int = 0, members: int = 2) -> Rollouts:
    listeners = ImaginedListeners(world_model(data, members), data, HORIZON)
    chosen, reference = (NeuralPolicy(policy(data, s), data, HORIZON) for s in (1, 2))
    return imagine(chosen, listeners, data.rules(), data.flat.mode_S[row_B], row_B, hash_keys(seed, row_B),
                   HORIZON, reference)  # fmt: skip


def rows(data: SessionDataModule) -> Tensor:
    return torch.arange(len(data.flat.mode_S))


def assert_same(a: Rollouts, b: Rollouts) -> None:
    assert torch.equal(a.track_BT, b.track_BT) and torch.equal(a.left_B, b.left_B)
    torch.testing.assert_close(a.engagement_BT, b.engagement_BT, **CLOSE)
    torch.testing.assert_close(a.rating_BT, b.rating_BT, **CLOSE)
    torch.testing.assert_close(a.kl_BT, b.kl_BT, **CLOSE)
    for name in a.expected:
        torch.testing.assert_close(a.expected[name], b.expected[name], **CLOSE)


def test_batch_size_does_not_change_a_rollout(data: SessionDataModule) -> None:
    assert_same(roll(data, rows(data)), Rollouts.join([roll(data, part) for part in rows(data).split(3)]))


def test_batch_order_does_not_change_a_rollout(data: SessionDataModule) -> None:
    order = rows(data).flip(0)
    there, back = roll(data, rows(data)), roll(data, order)
    assert torch.equal(there.track_BT.flip(0), back.track_BT)
    torch.testing.assert_close(there.expected["valence"].flip(0), back.expected["valence"], **CLOSE)


def test_rollouts_keep_the_rules(data: SessionDataModule) -> None:
    rules, found = data.rules(), roll(data, rows(data))
    for row, tracks in zip(rows(data).tolist(), found.track_BT.tolist(), strict=True):
        played = [k for k in tracks if k >= 0]
        assert len(set(played)) == len(played) > 0
        assert rules.mode_MK[data.flat.mode_S[row], played].all()


def test_after_leaving_there_is_nothing(data: SessionDataModule) -> None:
    found = Rollouts.join([roll(data, rows(data), seed) for seed in range(8)])
    assert 0 < found.left_B.float().mean() < 1
    assert torch.equal(found.played_BT, found.track_BT >= 0)
    assert not (found.played_BT[:, 1:] & ~found.played_BT[:, :-1]).any(), "who left does not come back"
    assert found.played_BT[~found.left_B].all(), "who did not leave plays to the horizon"
    for values in (found.engagement_BT, found.expected["valence"], found.kl_BT):
        assert values is not None and torch.equal(values.isnan(), ~found.played_BT)


@pytest.mark.parametrize("missing", [("rating",), ("engagement",), ("rating", "engagement"), ("arousal",)])
def test_rollouts_do_without_signals_that_a_data_set_lacks(tmp_path: Path, missing: tuple[str, ...]) -> None:
    """Luck stays with its signal: leaving is drawn as where all are there."""
    metadata = replace(METADATA, signals={k: v for k, v in METADATA.signals.items() if k not in missing})
    data = opened(random_log(tmp_path / "log", metadata=metadata))
    found = roll(data, rows(data))
    assert set(found.expected) == {*metadata.signals, *EXTRA}
    for name, values in (("rating", found.rating_BT), ("engagement", found.engagement_BT)):
        assert values[found.played_BT].isnan().all() == (name in missing)
    luck_BT4 = luck(hash_keys(0, rows(data))[:, None], torch.arange(HORIZON))
    leaves_BT = luck_BT4[..., 3] > 1 - found.expected["left"]
    assert torch.equal(leaves_BT.where(found.played_BT, False).any(1), found.left_B)


@torch.inference_mode()
def test_a_cached_rollout_equals_reading_its_whole_history_anew(data: SessionDataModule) -> None:
    """Slow truth: the tracks and sampled feedback written behind the logged history, read at once."""
    member, row_B = world_model(data).ensemble[0], rows(data)
    reader = HistoryReader(member.encoder, data, HORIZON)
    mind = reader.start(row_B)
    batch = data.prefix(row_B, length=16 - HORIZON)
    generator = torch.Generator().manual_seed(0)
    for step in range(HORIZON):
        track_B = torch.randint(data.tracks, row_B.shape, generator=generator)
        rating_B = torch.tensor([0.0, 1.0, torch.nan])[torch.randint(3, row_B.shape, generator=generator)]
        feedback = Feedback(
            torch.rand(row_B.shape, generator=generator), rating_B, torch.zeros(row_B.shape).bool()
        )
        mind = reader.append(mind, track_B, feedback)
        batch = _longer(data, batch, row_B, track_B, feedback)
        at_B = batch.valid_BL.sum(1) - 1
        slow = member.encoder(batch)[row_B, at_B]
        torch.testing.assert_close(mind.h_BD, slow, atol=5e-5, rtol=1e-4, msg=f"step {step}")


@torch.inference_mode()
def test_a_session_that_is_simulated_often_is_read_once_and_goes_on_in_many_ways(
    data: SessionDataModule, monkeypatch: pytest.MonkeyPatch
) -> None:
    member, row_B = world_model(data).ensemble[0], rows(data)[[2, 0, 2, 1, 2]]
    reader = HistoryReader(member.encoder, data, HORIZON)
    step_B = torch.tensor([0, 1, 0, 0, 1])
    alone = [reader.start(row_B[b : b + 1], step_B[b : b + 1]) for b in range(5)]
    read = []
    prefix = data.prefix
    monkeypatch.setattr(data, "prefix", lambda row, *a, **k: read.append(len(row)) or prefix(row, *a, **k))
    together = reader.start(row_B, step_B)
    assert read == [4], "sessions 0, 1 and 2, the last of them at two steps"
    track_B, feedback = (
        torch.arange(5),
        Feedback(torch.rand(5), torch.full((5,), torch.nan), torch.zeros(5).bool()),
    )
    for b, one in enumerate(alone):
        torch.testing.assert_close(together.h_BD[b], one.h_BD[0], atol=5e-5, rtol=1e-4)
    after = reader.append(together, track_B, feedback)
    for b, one in enumerate(alone):
        own = reader.append(one, track_B[b : b + 1], Feedback(*(x[b : b + 1] for x in feedback)))
        torch.testing.assert_close(after.h_BD[b], own.h_BD[0], atol=5e-5, rtol=1e-4)


def _longer(data, batch, row_B, track_B, feedback):  # type: ignore[no-untyped-def]
    """The batch with one more play token behind each listener's last."""
    at_B = batch.valid_BL.sum(1)
    grown = {}
    fill = {
        "track_BL": -1,
        "step_BL": 0,
        "valid_BL": False,
        "hidden_BL": False,
        "feedback_BL4": torch.nan,
        "static_BLF": torch.nan,
    }
    for name, value in fill.items():
        old = getattr(batch, name)
        grown[name] = torch.cat([old, torch.full_like(old[:, :1], value)], 1)
    grown["track_BL"][row_B, at_B], grown["valid_BL"][row_B, at_B] = track_B, True
    grown["step_BL"][row_B, at_B] = batch.step_BL[row_B, at_B - 1] + 1
    grown["static_BLF"][row_B, at_B] = data.flat.static_SF[row_B]
    grown["feedback_BL4"][row_B, at_B, 0] = feedback.engagement_B
    grown["feedback_BL4"][row_B, at_B, 1] = feedback.rating_B
    return batch._replace(**grown)


class Clock:
    """Listeners who leave after as many tracks as their row says and expect the step as valence."""

    def start(self, row_B: Tensor, key_B: Tensor) -> Tensor:
        return row_B

    def step(self, state: Tensor, track_B: Tensor, t: int) -> tuple[Tensor, Feedback, dict[str, Tensor]]:
        value_B = torch.full(track_B.shape, float(t))
        return state, Feedback(value_B, value_B * torch.nan, state == t + 1), {"valence": value_B}


def test_left_and_horizon_are_kept_apart_by_hand() -> None:
    row_B = torch.tensor([1, 3, 4, 9])
    rules = Rules(torch.ones(1, 8, dtype=torch.bool), False)
    found = imagine(FixedPolicy(torch.zeros(8)), Clock(), rules, torch.full((4,), -1), row_B, row_B, 4)
    assert found.played_BT.sum(1).tolist() == [1, 3, 4, 4]
    assert found.left_B.tolist() == [True, True, True, False]
    assert found.final("valence").tolist() == [0, 2, 3, 3]
    assert found.per_play("valence").tolist() == [0, 1, 1.5, 1.5]
    assert found.kl_BT is None


def test_a_small_catalogue_ends_a_rollout_without_anybody_leaving() -> None:
    row_B = torch.tensor([2, 9])
    rules = Rules(torch.ones(1, 3, dtype=torch.bool), False)
    found = imagine(FixedPolicy(torch.zeros(3)), Clock(), rules, torch.full((2,), -1), row_B, row_B, 5)
    assert found.played_BT.sum(1).tolist() == [2, 3]
    assert found.left_B.tolist() == [True, False]


def test_a_policy_has_no_divergence_from_itself(data: SessionDataModule) -> None:
    listeners = ImaginedListeners(world_model(data), data, HORIZON)
    same = [NeuralPolicy(policy(data), data, HORIZON) for _ in range(2)]
    found = imagine(
        same[0], listeners, data.rules(), data.flat.mode_S, rows(data), rows(data), HORIZON, same[1]
    )
    assert found.kl_BT is not None and (found.kl_BT[found.played_BT] == 0).all()


def test_two_policies_meet_the_same_luck(data: SessionDataModule) -> None:
    """The same tracks, however they came to be chosen, are answered the same."""
    row_B, listeners = rows(data), ImaginedListeners(world_model(data, 2), data, HORIZON)
    certain = torch.arange(data.tracks) * -1e4
    almost = certain + 100.0 * (torch.arange(data.tracks) % 2)
    a, b = (
        imagine(
            FixedPolicy(logits),
            listeners,
            data.rules(),
            data.flat.mode_S,
            row_B,
            hash_keys(3, row_B),
            HORIZON,
        )
        for logits in (certain, almost)
    )
    assert torch.equal(a.track_BT, b.track_BT) and torch.equal(a.left_B, b.left_B)
    torch.testing.assert_close(a.engagement_BT, b.engagement_BT, **CLOSE)


def test_imagined_feedback_follows_the_heads(tmp_path: Path) -> None:
    """One listener, one track, many keys: frequencies are the head's probabilities; dropout is off."""
    log = opened(write(tmp_path / "log", [session(u, 1, "ab") for u in "pqr"], letters()))
    model = world_model(log, dropout=0.5).train()
    row_B = torch.zeros(4000, dtype=torch.int64)
    listeners = ImaginedListeners(model, log, HORIZON)
    state = listeners.start(row_B, torch.arange(4000))
    _, feedback, expected = listeners.step(state, torch.full((4000,), 2), 0)
    assert len(expected["valence"].unique()) == 1, "the expectation is the same for the same history"
    rated_B = ~feedback.rating_B.isnan()
    for found, name in ((rated_B, "rated"), (feedback.rating_B[rated_B], "rating"), (feedback.left_B, "left"),
                        (feedback.engagement_B, "engagement")):  # fmt: skip
        assert abs(found.float().mean() - expected[name][0]) < 4 * 0.5 / len(found) ** 0.5, name


def test_rollouts_are_spread_over_the_members(data: SessionDataModule) -> None:
    listeners = ImaginedListeners(world_model(data, 3), data, HORIZON)
    state = listeners.start(torch.zeros(3000, dtype=torch.int64), torch.arange(3000))
    assert torch.cat([group.index_G for group in state]).sort().values.tolist() == list(range(3000))
    assert all(abs(len(group.index_G) - 1000) < 4 * (3000 * 2 / 9) ** 0.5 for group in state)


def test_choose_follows_the_distribution_and_never_takes_what_is_not_allowed() -> None:
    p = torch.tensor([0.0, 0.2, 0.0, 0.5, 0.3, 0.0])
    drawn = choose(p.log().expand(1000, -1), midpoints(1000))
    assert torch.bincount(drawn, minlength=6).tolist() == [0, 200, 0, 500, 300, 0]
    ends = torch.tensor([2.0**-24, 1 - 2.0**-24])
    assert choose(p.log().expand(2, -1), ends).tolist() == [1, 4]


@torch.inference_mode()
def test_greedy_takes_the_best_allowed_track_by_brute_force(data: SessionDataModule) -> None:
    model, row_B = world_model(data, 2), rows(data)
    utility = Utility(UtilityConfig(), data.log.metadata.modes)
    greedy = GreedyPolicy(Scorer(model, utility, data, HORIZON))
    state = greedy.start(row_B).minds
    mode_B = data.flat.mode_S[row_B]
    u_BK = catalogue_utility(model, utility, [mind.h_BD for mind in state], mode_B)
    for b in (0, 5):
        per_member = [
            utility(m.kinds, m.score(mind.h_BD[b : b + 1], m.candidates()), mode_B[b : b + 1])
            for m, mind in zip(model.ensemble, state, strict=True)
        ]
        torch.testing.assert_close(u_BK[b], sum(per_member)[0] / 2, atol=1e-6, rtol=1e-5)  # type: ignore[index]
    found = imagine(greedy, ImaginedListeners(model, data, HORIZON), data.rules(), mode_B, row_B, row_B, 1)
    allowed_BK = data.rules().mode_MK[mode_B]
    assert torch.equal(found.track_BT[:, 0], u_BK.masked_fill(~allowed_BK, -math.inf).argmax(1))


def test_a_horizon_beyond_the_history_is_refused(data: SessionDataModule) -> None:
    with pytest.raises(ValueError, match=r"horizon of 16 tracks needs model\.history above it"):
        HistoryReader(world_model(data).ensemble[0].encoder, data, 16)
