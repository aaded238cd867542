"""Variants of the platform, and which sessions carry a report."""

import numpy as np
import torch
from pandas.testing import assert_frame_equal
from platform_worlds import one_thread, world

from amrs.config.data import SplitConfig
from amrs.config.platform import PlatformConfig
from amrs.data import SessionDataModule
from amrs.importers.platform import metadata
from amrs.logs.schema import write_log
from amrs.platform import draw_platform
from amrs.platform.catalogue import catalogue_table
from amrs.platform.draws import hash_keys
from amrs.platform.reports import post_given, pre_given
from amrs.platform.routine import state_at
from amrs.studies.ceilings import full_information

__all__ = ["one_thread"]


def answers(variant, **settings):
    """The oracle's valence for the most pleasant and the least pleasant six tracks, (B,) each."""
    platform, _ = world(variant=variant, **settings)
    order = world()[0].catalogue.affect_K2[:, 0].argsort()
    rows = torch.arange(0, len(platform.user_S), 5)
    return [
        platform.oracle(rows, track_T.expand(len(rows), -1), draws=4)["valence"]
        for track_T in (order[-6:], order[:6])
    ]


def odds(variant, shift):
    """Probabilities of a report before and after the session with valence `shift` higher, all else equal."""
    platform, _ = world(variant=variant)
    rows = torch.arange(len(platform.user_S))
    state = state_at(platform.who(rows), platform.starts, platform.log_key(rows))
    state = state._replace(affect_B2=state.affect_B2 + shift)
    known = torch.full((len(rows),), 0.5)
    before = pre_given(platform.config, state)
    return before, post_given(platform.config, state, torch.zeros(len(rows), dtype=torch.bool), known, known)


def test_by_default_those_who_feel_worse_report_less():
    for low, high in zip(odds(None, -0.1), odds(None, 0.0), strict=True):
        assert (low < high).all()


def test_in_random_missing_the_hidden_state_does_not_matter_and_the_report_before_does():
    for low, high in zip(odds("random_missing", -0.1), odds("random_missing", 0.0), strict=True):
        assert torch.equal(low, high)
    platform, _ = world(variant="random_missing")
    rows = torch.arange(10)
    state = state_at(platform.who(rows), type(platform.starts)(*(x[rows] for x in platform.starts)), rows)
    left, one = torch.zeros(10, dtype=torch.bool), torch.ones(10)
    assert (
        post_given(platform.config, state, left, 0.3 * one, one)
        < post_given(platform.config, state, left, 0.7 * one, one)
    ).all()


def test_the_default_log_is_missing_not_at_random():
    platform, log = draw_platform(PlatformConfig(users=300, tracks=300, artists=40))
    given = ~np.isnan(log["pre_valence"].to_numpy(zero_copy_only=False))
    valence = platform.starts.affect_S2[:, 0].numpy()
    error = valence.std() * (1 / given.sum() + 1 / (~given).sum()) ** 0.5
    assert valence[given].mean() - valence[~given].mean() > 5 * error


def test_reports_can_be_made_certain():
    log = world(pre_report_rate=1.0, post_report_rate=1.0)[1]
    assert log["pre_valence"].null_count == log["post_valence"].null_count == 0
    assert world()[1]["post_valence"].null_count > 0


def test_tracks_move_affect_by_default_and_not_under_no_track_effect():
    pleasant, unpleasant = answers(None)
    assert (pleasant - unpleasant).mean() > 0.1
    pleasant, unpleasant = answers("no_track_effect")
    assert torch.allclose(pleasant, unpleasant, atol=1e-6)


def test_confounded_choice_and_affect_share_a_cause_that_tracks_do_not_tell():
    platform, log = world(variant="confounded")
    hidden = platform.starts.hidden_S
    played = torch.tensor(
        [
            np.mean([platform.catalogue.affect_K2[int(k[6:]), 0] for k in row])
            for row in log["track_id"].to_pylist()
        ]
    )
    assert torch.corrcoef(torch.stack([hidden, played]))[0, 1] > 0.3
    rows = torch.arange(len(hidden))
    same = torch.arange(6).expand(len(rows), -1)
    gone = platform.starts._replace(hidden_S=torch.zeros_like(hidden))
    moved = platform.oracle(rows, same, 4)["valence"]
    without = type(platform)(platform.config, platform.catalogue, platform.listeners, platform.user_S, gone)
    moved = moved - without.oracle(rows, same, 4)["valence"]
    assert torch.corrcoef(torch.stack([hidden, moved]))[0, 1] > 0.95
    assert (world()[0].starts.hidden_S == 0).all()


def test_drift_leaves_the_log_alone_and_changes_what_tracks_do_after_it():
    platform, log = world(variant="drift")
    assert log.equals(world()[1])
    before, after = platform.catalogue.affect_K2, platform.catalogue.affect_after_K2
    assert torch.equal(before, world()[0].catalogue.affect_after_K2)
    assert abs(torch.corrcoef(torch.stack([before[:, 0], after[:, 0]]))[0, 1]) < 0.1
    pleasant, unpleasant = answers("drift")
    then, least = answers(None)
    assert (pleasant - unpleasant).mean() < 0.3 * (then - least).mean()
    pleasant, unpleasant = answers("drift", drift_correlation=-1.0)
    assert (pleasant - unpleasant).mean() < -0.05


def test_the_true_state_predicts_the_log_by_what_tracks_did_in_it(tmp_path):
    platform, log = world()
    write_log(tmp_path / "log", [log], catalogue_table(platform.catalogue), metadata(platform.config), "made")
    data = SessionDataModule(tmp_path / "log", SplitConfig(), 64)
    assert_frame_equal(full_information(world(variant="drift")[0], data), full_information(platform, data))


def valence_by_session(variant, sessions=8):
    """Mean valence after each of a row of sessions of pleasant tracks and of production's usual ones."""
    platform, _ = world(variant=variant)
    best = platform.catalogue.affect_K2[:, 0].argsort()[-60:]
    rows, course = torch.arange(0, len(platform.user_S), 5), {}
    for name, pool in (("pleasant", best), ("usual", torch.arange(500))):
        environment, course[name] = platform.environment(), []
        state = environment.start(rows, hash_keys(1, rows))
        for number in range(sessions):
            for t in range(10):
                track = pool[hash_keys(number, t, rows) % len(pool)]
                state, _, signals = environment.step(state, track, t)
            course[name].append(signals["valence"].mean().item())
            state = environment.next_session(state, hash_keys(2, number, rows))
    return course


def test_late_harm_is_a_gain_at_first_and_a_loss_after_several_sessions():
    course = valence_by_session("late_harm")
    gain = np.subtract(course["pleasant"], course["usual"])
    assert gain[0] > 0.05
    assert gain[-1] < -0.05
    course = valence_by_session(None)
    assert min(np.subtract(course["pleasant"], course["usual"])) > 0.05
