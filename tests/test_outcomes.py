"""Which sessions are rolled out, and what is said of the rollouts."""

from pathlib import Path

import numpy as np
import pytest
import torch
from tiny_logs import letters, opened, policy, random_log, session, world_model, write

from amrs.config.groups import UtilityConfig
from amrs.data import SessionDataModule
from amrs.listeners import ImaginedListeners
from amrs.logs.splits import TEST, TRAIN, VALIDATION
from amrs.metrics.gains import gain_sums
from amrs.outcomes import (
    _occurrence,
    choose_sessions,
    diversity_rows,
    gain_rows,
    outcome,
    roll_out,
    session_utility,
    several_times,
    utility_rows,
)
from amrs.policies import FixedPolicy, NeuralPolicy
from amrs.rollout import Rollouts
from amrs.utility import Utility, aims, yardstick


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> SessionDataModule:
    return opened(random_log(tmp_path_factory.mktemp("log") / "log", users=80))


def listening(folder: Path) -> SessionDataModule:
    """Users with one laboratory session of four reported tracks and 2 + k sessions of k % 3 + 1 tracks."""
    rows = []
    for k in range(12):
        rows.append(session(f"u{k}", 0, "abcd", track_valence=[0.5] * 4))
        rows += [session(f"u{k}", 9 * s + 9, "abc"[: k % 3 + 1]) for s in range(2 + k)]
    return opened(write(folder, rows, letters()))


def test_sessions_are_test_users_listening_spread_evenly(tmp_path: Path) -> None:
    data = listening(tmp_path / "log")
    users = data.users(TEST)
    chosen = choose_sessions(data, 2 * len(users), None, 0)
    assert torch.equal(chosen.user_B.unique(), users)
    assert torch.bincount(chosen.user_B)[users].tolist() == [2] * len(users)
    reported_N = ~data.flat.feedback_N4[:, 2].isnan()
    assert not torch.isin(chosen.row_B, data.flat.session_N[reported_N]).any()
    assert len(chosen.row_B.unique()) == len(chosen.row_B)
    training = data.rows(TRAIN)
    lengths = [
        int(data.flat.length_S[r]) for r in training if not torch.isin(r, data.flat.session_N[reported_N])
    ]
    assert chosen.horizon == sorted(lengths)[(len(lengths) - 1) // 2]


def test_a_session_keeps_its_luck_whatever_else_is_chosen(data: SessionDataModule) -> None:
    few, many = (choose_sessions(data, count, 4, 0) for count in (3, 10_000))
    luck = dict(zip(many.row_B.tolist(), many.key_B.tolist(), strict=True))
    assert [luck[r] for r in few.row_B.tolist()] == few.key_B.tolist()
    assert choose_sessions(data, 3, 4, 1).key_B.tolist() != few.key_B.tolist()


def test_logs_of_reported_tracks_alone_are_rolled_out_all_the_same(tmp_path: Path) -> None:
    rows = [session(f"u{k}", 1, "ab", track_valence=[0.5, 0.4]) for k in range(5)]
    chosen = choose_sessions(opened(write(tmp_path / "log", rows, letters())), 10, None, 0)
    assert len(chosen.row_B) == 1 and chosen.horizon == 2


def test_occurrence_by_hand() -> None:
    assert _occurrence(torch.tensor([4, 2, 4, 4, 2, 9])).tolist() == [0, 0, 1, 2, 1, 0]


def rollouts(expected: dict[str, list[list[float]]], played: list[list[bool]]) -> Rollouts:
    played_BT = torch.tensor(played)
    values = {name: torch.tensor(v).where(played_BT, torch.nan) for name, v in expected.items()}
    track_BT = torch.arange(played_BT.shape[1]).expand(played_BT.shape).where(played_BT, -1)
    nothing = torch.full(played_BT.shape, torch.nan)
    return Rollouts(
        track_BT, played_BT, nothing, nothing, ~played_BT.all(1), values, nothing.nan_to_num(0.25)
    )


def test_affect_is_the_report_at_the_end_and_behaviour_the_mean_over_plays() -> None:
    values = [[0.1, 0.2, 0.6], [0.5, 0.9, 0.9]]
    found = rollouts({"valence": values, "engagement": values}, [[True] * 3, [True, False, False]])
    assert outcome(found, "valence").tolist() == pytest.approx([0.6, 0.5])
    assert outcome(found, "engagement").tolist() == pytest.approx([0.3, 0.5])


def test_policies_start_from_the_same_sessions_and_batches_do_not_matter(data: SessionDataModule) -> None:
    sessions = choose_sessions(data, 20, 4, 0)
    policies = {"copycat": NeuralPolicy(policy(data), data, 4),
                "random": FixedPolicy(torch.zeros(data.tracks)),
                "twin": NeuralPolicy(policy(data), data, 4)}  # fmt: skip
    listeners = ImaginedListeners(world_model(data, 2), data, 4)
    found = roll_out(policies, listeners, data.rules(), sessions)
    small = roll_out(policies, listeners, data.rules(), sessions, batch=3)
    for name in policies:
        assert torch.equal(found[name].track_BT, small[name].track_BT)
        torch.testing.assert_close(found[name].expected["arousal"], small[name].expected["arousal"],
                                   equal_nan=True, atol=2e-5, rtol=1e-4)  # fmt: skip
    assert torch.equal(found["twin"].track_BT, found["copycat"].track_BT)
    rows = gain_rows("predicted", found, sessions, data, UtilityConfig(), 0, 100)
    gains = {(r.subject, r.signal): r.value for r in rows if r.metric == "gain" and r.group == "all"}
    assert all(value == 0 for (subject, _), value in gains.items() if subject == "twin")
    assert gains["random", "valence"] != 0 and not any(subject == "copycat" for subject, _ in gains)
    kl = {r.subject: r.value for r in diversity_rows(found, sessions, data, 0, 100) if r.metric == "kl"}
    assert kl["twin"] == 0 and kl["random"] > 0 and "copycat" not in kl


def test_gains_by_hand(data: SessionDataModule) -> None:
    """The mean over sessions of one policy minus Copycat, with arousal's sign by mode."""
    sessions = choose_sessions(data, 1000, 2, 0)
    count = len(sessions.row_B)
    generator = torch.Generator().manual_seed(0)
    played = [[True, True]] * count
    found = {}
    for name in ("copycat", "dpo", "production"):
        values = {s: torch.rand(count, 2, generator=generator).tolist() for s in data.log.metadata.signals}
        found[name] = rollouts(values, played)
    made = gain_rows("realised", found, sessions, data, UtilityConfig(), 0, 100)
    rows = {(r.signal, r.group): r.value for r in made if r.metric == "gain" and r.subject == "dpo"}
    over = {r.subject: r.value for r in made
            if (r.signal, r.group, r.metric) == ("valence", "mode:calm", "gain_over_production")}  # fmt: skip
    calm_B = (sessions.mode_B == 1).numpy()
    assert over.keys() == {"copycat", "dpo"}
    logged_B = outcome(found["production"], "valence")
    assert over["dpo"] == pytest.approx((outcome(found["dpo"], "valence") - logged_B)[calm_B].mean())
    mode_B = sessions.mode_B.numpy()
    for signal, sign in (("valence", [1, 1]), ("arousal", [1, -1])):
        difference_B = outcome(found["dpo"], signal) - outcome(found["copycat"], signal)
        for code, mode in enumerate(("energize", "calm")):
            by_hand = sign[code] * difference_B[mode_B == code].mean()
            assert rows[signal, f"mode:{mode}"] == pytest.approx(by_hand)
    share = (
        np.bincount(data.flat.mode_S[data.flat.mode_S >= 0].numpy()) / (data.flat.mode_S >= 0).sum().item()
    )
    expected = sum(share[c] * rows["arousal", f"mode:{m}"] for c, m in enumerate(("energize", "calm")))
    assert rows["arousal", "all"] == pytest.approx(float(expected))


def test_validation_users_are_chosen_for_tuning_and_no_test_user(data: SessionDataModule) -> None:
    chosen = choose_sessions(data, 50, 4, 0, VALIDATION)
    assert len(chosen.user_B) and torch.isin(chosen.user_B, data.users(VALIDATION)).all()


def test_several_simulations_of_a_session_are_one_session(data: SessionDataModule) -> None:
    """Gains are means over them, the first is that of a single simulation, and n counts sessions."""
    sessions = choose_sessions(data, 12, 4, 0)
    policies = {"copycat": NeuralPolicy(policy(data), data, 4),
                "random": FixedPolicy(torch.zeros(data.tracks))}  # fmt: skip
    listeners = ImaginedListeners(world_model(data, 2), data, 4)
    once = roll_out(policies, listeners, data.rules(), sessions)
    thrice = roll_out(policies, listeners, data.rules(), several_times(sessions, 3))
    size = len(sessions.row_B)
    assert len(several_times(sessions, 3).key_B.unique()) == 3 * size
    for name, rollouts in thrice.items():
        assert torch.equal(rollouts.at(3 * torch.arange(size)).track_BT, once[name].track_BT)
    means = {name: outcome(rollouts, "valence").reshape(size, 3).mean(1) for name, rollouts in thrice.items()}
    rows = gain_rows("predicted", thrice, sessions, data, UtilityConfig(), 0, 100)
    (mean,) = [
        r for r in rows if (r.subject, r.signal, r.metric, r.group) == ("random", "valence", "mean", "all")
    ]
    assert mean.n == size and mean.value == pytest.approx(means["random"].mean())
    utility = Utility(UtilityConfig(), data.log.metadata.modes)
    each = session_utility(thrice["random"], utility, sessions.mode_B.repeat_interleave(3))
    found = session_utility(thrice["random"], utility, sessions.mode_B)
    assert found == pytest.approx(each.reshape(size, 3).mean(1))


def ended(valence: list[float], arousal: list[float]) -> Rollouts:
    """Rollouts of one track with these expected reports."""
    column = torch.zeros(len(valence), 1)
    expected = {"valence": torch.tensor(valence)[:, None], "arousal": torch.tensor(arousal)[:, None]}
    # As if a report were .15 above or below its mean with equal odds: E|x - .5| is no |E[x] - .5|.
    x = expected["arousal"]
    expected["arousal from 0.5"] = ((x - 0.35).abs() + (x - 0.65).abs()) / 2
    return Rollouts(column.long(), column == 0, column, column, column[:, 0] > 0, expected, None)


def test_default_utility_of_a_session_follows_the_direction_of_its_mode() -> None:
    utility = Utility(UtilityConfig(), ("energize", "calm", "focus"), {"valence": 0.1, "arousal": 0.2})
    rollouts = ended([0.6] * 4, [0.9] * 4)
    assert utility.targets == [("arousal", 0.5)]
    valence, arousal = 0.5 * 0.6 / 0.1, 0.5 / 0.2
    up, down, near, unknown = 0.9 * arousal, 0.1 * arousal, (1 - (0.55 + 0.25) / 2) * arousal, 0.0
    found = session_utility(rollouts, utility, torch.tensor([0, 1, 2, -1]))
    assert found == pytest.approx([valence + g for g in (up, down, near, unknown)])


def test_gain_in_default_utility_is_its_mean_difference_to_copycat(data: SessionDataModule) -> None:
    sessions = choose_sessions(data, 40, 1, 0)
    size = len(sessions.row_B)
    found = {"copycat": ended([0.5] * size, [0.5] * size), "dpo": ended([0.52] * size, [0.5] * size)}
    spread = {"valence": 0.04, "arousal": 1.0}
    rows = utility_rows("predicted", found, sessions, data, UtilityConfig(), spread, 0, 100)
    (row,) = [row for row in rows if row.group == "all"]
    assert (row.subject, row.signal, row.metric, row.unit) == ("dpo", "utility", "gain", "spreads of effects")
    assert row.value == pytest.approx(0.5 * 0.02 / 0.04, abs=1e-5)


def test_a_direction_set_for_a_mode_of_ones_own_is_judged_and_the_default_ones_stay() -> None:
    config = UtilityConfig(
        modes={"commute": {"arousal": "down"}, "energize": {"arousal": "down"}, "dinner": {"arousal": "0.3"}}
    )
    assert aims(config) == {"commute": -1.0, "energize": 1.0, "calm": -1.0, "sleep": -1.0}
    assert yardstick(config).modes["focus"] == {"arousal": "0.5"}
    sums, weight, n = gain_sums(
        [0.4, 0.9], [0.6, 0.9], [0, 1], [0, 1], "arousal", ["commute", "dinner"],
        {"commute": 0.5, "dinner": 0.5}, aims(config),
    )  # fmt: skip
    assert n == 1 and weight.tolist() == [0.5] and sums[0] == pytest.approx([0.2, 0.6, 1])
