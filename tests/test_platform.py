"""The platform's log, its environment and its oracle."""

import subprocess
import sys
from itertools import chain

import pytest
import torch
from platform_worlds import SMALL, one_thread, tracks, world

from amrs.config.data import DataConfig
from amrs.config.platform import PlatformConfig
from amrs.importers.platform import importer, metadata
from amrs.logs.schema import read_log, validate
from amrs.platform import Platform, TruthError, load_truth
from amrs.platform.catalogue import catalogue_table, draw_catalogue
from amrs.platform.draws import Draw, hash_keys
from amrs.platform.dynamics import expected_report, pull, report
from amrs.platform.listeners import draw_listeners, session_counts, take
from amrs.platform.service import simulate
from amrs.platform.world import draw_shards
from amrs.rollout import distance_to

__all__ = ["one_thread"]

QUIET = dict.fromkeys(("process_sd", "report_sd", "feedback_noise", "unknowable", "listener_spread"), 0.0)


def replay(platform: Platform, rows: torch.Tensor, track_BT: torch.Tensor, keys: torch.Tensor) -> dict:
    """Feedback and signals of the environment, (B, T) each."""
    environment, told = platform.environment(), {}
    state = environment.start(rows, keys)
    for t, track in enumerate(track_BT.clamp(min=0).unbind(1)):
        state, feedback, signals = environment.step(state, track, t)
        for name, value in {**{f"seen {k}": v for k, v in feedback._asdict().items()}, **signals}.items():
            told.setdefault(name, []).append(value.float().nan_to_num(-1.0))
    return {name: torch.stack(steps, 1) for name, steps in told.items()}


@pytest.mark.parametrize(("users", "total"), [(939, 8784), (10, 94), (93_900, 878_400)])
def test_sessions_sum_to_the_published_rate_exactly(users: int, total: int):
    counts = session_counts(PlatformConfig(users=users), 0, users)
    assert counts.sum() == total
    assert counts.min() >= 2


def test_log_passes_validation():
    platform, log = world()
    validate(log, catalogue_table(platform.catalogue), metadata(platform.config), "simulation")


def test_resimulating_the_logged_tracks_under_the_logged_keys_reproduces_the_log():
    platform, log = world()
    rows, track_ST = torch.arange(len(log)), tracks(log)
    told = replay(platform, rows, track_ST, platform.log_key(rows))
    for row, logged in enumerate(log.select(["engagement", "rating", "ended"]).to_pylist()):
        count = len(logged["engagement"])
        assert told["seen engagement_B"][row, :count].tolist() == logged["engagement"]
        ratings = [-1 if rating is None else rating for rating in logged["rating"]]
        assert told["seen rating_B"][row, :count].tolist() == ratings
        if logged["ended"] == "left":
            assert told["seen left_B"][row, count - 1] == 1


def test_batch_order_and_size_do_not_matter_to_the_environment():
    platform, log = world()
    rows = torch.randperm(len(log), generator=torch.Generator().manual_seed(0))[:50]
    keys, track_BT = hash_keys(7, rows), tracks(log)[rows].clamp(min=0)
    whole = replay(platform, rows, track_BT, keys)
    for part in (torch.tensor([3]), torch.arange(49, -1, -1)):
        some = replay(platform, rows[part], track_BT[part], keys[part])
        for name in whole:
            assert torch.allclose(some[name], whole[name][part], atol=1e-6), name


def test_shard_size_does_not_change_the_log():
    small, whole = world(shard_users=7)[1].to_pydict(), world()[1].to_pydict()
    for name, column in small.items():
        # Vectorised arithmetic may differ in the last bit with the number of rows.
        if name in ("pre_valence", "pre_arousal", "post_valence", "post_arousal"):
            assert column == pytest.approx(whole[name], abs=1e-5), name
        elif name == "propensity":
            assert list(chain(*column)) == pytest.approx(list(chain(*whole[name])), rel=1e-3)
        elif name not in ("engagement", "ended_at"):
            assert column == whole[name], name


def test_shards_are_made_one_at_a_time():
    config = PlatformConfig(**{**SMALL, "users": 10**5, "sessions_per_user": 3, "shard_users": 5})
    shard, log = next(draw_shards(config, draw_catalogue(config), 0, config.users, "user-"))
    assert len(shard.listeners.key_U) == 5
    assert len(log["user_id"].unique()) == 5


def test_tracks_to_come_do_not_change_what_was_seen():
    platform, log = world()
    rows, track_BT = torch.arange(40), tracks(log)[:40].clamp(min=0)
    other_BT = track_BT.clone()
    other_BT[:, 4:] = (other_BT[:, 4:] + 1) % 500
    first, second = (replay(platform, rows, x, platform.log_key(rows)) for x in (track_BT, other_BT))
    for name in first:
        assert torch.equal(first[name][:, :4], second[name][:, :4]), name
    assert not torch.equal(first["valence"][:, 4:], second["valence"][:, 4:])


def test_sessions_to_come_do_not_change_the_past():
    config = PlatformConfig(**SMALL)
    catalogue, listeners = draw_catalogue(config), draw_listeners(config, 0, torch.arange(20))
    short = simulate(config, catalogue, listeners, torch.full((20,), 2))
    long = simulate(config, catalogue, listeners, torch.full((20,), 5))
    early = (torch.arange(100) % 5) < 2
    for name, value in take(long.plays, early)._asdict().items():
        assert torch.equal(value.nan_to_num(-1), getattr(short.plays, name).nan_to_num(-1)), name
    assert torch.equal(long.starts.affect_S2[early], short.starts.affect_S2)


def test_clinical_listeners_hear_nearly_all_and_consumers_skip():
    log = world()[1].to_pandas()
    heard = log.explode("engagement").groupby("cohort").engagement
    assert heard.min()["clinical"] >= 0.9
    assert heard.min()["consumer"] < 0.1
    assert heard.mean()["consumer"] < 0.95 < heard.mean()["clinical"]


def test_a_session_starts_where_the_sessions_before_left_the_listener():
    starts, user_S = world()[0].starts, world()[0].user_S
    first = torch.cat([torch.tensor([True]), user_S[1:] != user_S[:-1]])
    assert (starts.trace_SL[first] == 0).all()
    assert (starts.trace_SL[~first].norm(dim=1) > 0).all()


def test_effect_of_a_track_grows_with_liking_and_shrinks_with_repetition_and_skipping():
    platform = world()[0]
    who = take(platform.listeners, torch.tensor([0]))
    one, zero = torch.ones(1), torch.zeros(1)
    effect = pull(platform.config, who, zero, zero, one)
    assert pull(platform.config, who, one, zero, one) > effect
    assert pull(platform.config, who, zero, one, one) < effect
    assert pull(platform.config, who, zero, zero, 0.5 * one) == pytest.approx(0.5 * effect.item())


def test_expected_report_is_the_mean_of_many_reports():
    platform = world()[0]
    affect_B2 = torch.tensor([[0.02, 0.3], [0.97, 0.6]]).repeat_interleave(40_000, 0)
    drawn = report(platform.config, affect_B2, torch.arange(80_000), Draw.POST_NOISE)
    expected = expected_report(platform.config, affect_B2[[0, 40_000]])
    assert torch.allclose(drawn.view(2, 40_000, 2).mean(1), expected, atol=0.002)
    assert expected[0, 0] > 0.03  # reports below 0 are not possible


def test_oracle_is_the_mean_of_the_environment_over_chance():
    platform, log = world()
    rows = torch.tensor([5, 100, 200])
    track_BT = tracks(log)[rows, :6].clamp(min=0)
    keys = hash_keys(3, torch.arange(3 * 4000))
    told = replay(platform, rows.repeat_interleave(4000), track_BT.repeat_interleave(4000, 0), keys)
    answer = platform.oracle(rows, track_BT, draws=4000)
    for name in ("valence", "arousal"):
        assert torch.allclose(answer[name], told[name][:, -1].view(3, 4000).mean(1), atol=0.003)
    for name in ("engagement", "rating"):
        assert torch.allclose(answer[name], told[name].mean(1).view(3, 4000).mean(1), atol=0.003)
    seen = told["seen engagement_B"].mean(1).view(3, 4000).mean(1)
    assert torch.allclose(answer["engagement"], seen, atol=0.01)


def test_oracle_ignores_what_stands_behind_the_last_track():
    platform, log = world()
    rows, track_BT = torch.tensor([0, 1]), tracks(log)[[0, 1], :3]
    padded = torch.cat([track_BT, torch.full((2, 4), -1)], 1)
    for name, value in platform.oracle(rows, track_BT, draws=3).items():
        assert torch.equal(platform.oracle(rows, padded, draws=3)[name], value), name


def test_without_noise_the_state_after_a_session_does_not_depend_on_luck():
    platform, log = world(**QUIET)
    rows, track_ST = torch.arange(len(log)), tracks(log).clamp(min=0)
    one, two = (replay(platform, rows, track_ST, hash_keys(key, rows)) for key in (1, 2))
    for name in one:
        assert torch.equal(one[name], two[name]), name
    assert platform.listeners.baseline_U2.unique(dim=0).shape[0] == 2  # the two cohorts
    data = log.to_pandas()
    last = one["valence"][rows, data.track_id.map(len) - 1].tolist()
    assert data.post_valence.tolist() == pytest.approx(last, abs=1e-6)


def test_fresh_listeners_are_others_on_the_same_catalogue():
    platform, log = world()
    fresh, fresh_log = platform.fresh(12, seed=1)
    assert torch.equal(fresh.catalogue.embedding_KD, platform.catalogue.embedding_KD)
    assert not set(fresh.listeners.key_U.tolist()) & set(platform.listeners.key_U.tolist())
    assert not set(fresh_log["user_id"].to_pylist()) & set(log["user_id"].to_pylist())
    assert platform.fresh(12, seed=1)[1].equals(fresh_log)
    assert not platform.fresh(12, seed=2)[1]["track_id"].equals(fresh_log["track_id"])


def test_importer_keeps_the_truth_apart_and_it_comes_back_whole(tmp_path):
    importer(DataConfig(platform=PlatformConfig(**SMALL, shard_users=25)), tmp_path)
    log, platform = read_log(tmp_path / "log"), load_truth(tmp_path / "truth")
    assert len(log.sessions) == len(platform.user_S) == platform.config.sessions
    assert {path.name for path in tmp_path.iterdir()} == {"log", "truth"}
    hidden = {"affect_K2", "appeal_K", "style_KL"}
    assert not hidden & set(log.catalogue.column_names) | hidden & set(log.sessions.column_names)
    direct = world()[0]
    for part in ("catalogue", "listeners", "starts"):
        for name, value in getattr(direct, part)._asdict().items():
            assert torch.allclose(getattr(getattr(platform, part), name), value, atol=1e-5), name
    assert torch.equal(platform.user_S, direct.user_S)


def test_truth_of_other_data_is_refused_in_words(tmp_path):
    with pytest.raises(TruthError, match="only data=platform has one"):
        load_truth(tmp_path)


def test_settings_are_refused_by_name_and_need_no_torch():
    with pytest.raises(ValueError, match=r"data\.platform\.report_sd=-1: must be 0 or more"):
        PlatformConfig(report_sd=-1)
    code = "import sys, amrs.config.platform; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


def test_distances_to_targets_are_those_of_what_listeners_do_and_tell():
    """Slow truth: mean distances of drawn fractions heard and reports, after the same track."""
    platform, _ = world()
    targets = [("engagement", 0.6), ("rating", 0.3), ("valence", 0.4), ("arousal", 0.5)]
    environment, row_N = platform.environment(targets=targets), torch.zeros(20_000, dtype=torch.int64)
    key_N = hash_keys(0, 1, torch.arange(len(row_N)))
    state, feedback, expected = environment.step(environment.start(row_N, key_N), row_N + 5, 0)
    told_N2 = report(platform.config, state.affect_B2, key_N, Draw.POST_NOISE)
    drawn = {"engagement": feedback.engagement_B, "valence": told_N2[:, 0], "arousal": told_N2[:, 1]}
    for name, target in targets:
        away = float(expected[distance_to(name, target)].mean())
        if name == "rating":
            likes = float(expected["rating"].mean())
            assert away == pytest.approx((1 - likes) * target + likes * (1 - target), abs=1e-5)
        else:
            assert away == pytest.approx(float((drawn[name] - target).abs().mean()), abs=0.005), name
