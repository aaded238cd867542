"""The platform at its published scale: size, rates, and whose the variance of reports is."""

import numpy as np
import pytest
import torch
from platform_worlds import one_thread, world

from amrs.config.platform import PlatformConfig
from amrs.platform import draw_platform
from amrs.platform.calibration import _between, _over_modes, nested_shares

__all__ = ["one_thread"]


@pytest.fixture(scope="module")
def published():
    return draw_platform(PlatformConfig())


def test_the_default_log_has_the_published_size(published):
    log = published[1].to_pandas()
    assert (len(log), log.user_id.nunique(), len(published[0].catalogue.embedding_KD)) == (8784, 939, 5990)
    assert 9.5 < log.track_id.map(len).mean() < 10.5
    assert 0.3 < (log.groupby("user_id").cohort.first() == "clinical").mean() < 0.37
    assert log["mode"].value_counts(normalize=True).between(0.1, 0.4).all()
    assert log.post_valence.notna().mean() == pytest.approx(0.65, abs=0.1)
    assert published[0].starts.affect_S2.std(0).tolist() == pytest.approx([0.15, 0.15], abs=0.015)


def test_mean_pull_of_a_track_is_6_to_9_percent(published):
    """By replay: the share of the way to the track's affect that the state went, without noise."""
    config = PlatformConfig(users=60, process_sd=0.0, return_rate=0.0)
    platform, log = draw_platform(config)
    rows = torch.arange(len(log))
    environment = platform.environment()
    state, moved = environment.start(rows, platform.log_key(rows)), []
    lists = log["track_id"].to_pylist()
    for t in range(6):
        track = torch.tensor([int(names[min(t, len(names) - 1)][6:]) for names in lists])
        way = platform.catalogue.affect_K2[track] - state.affect_B2
        after = environment.step(state, track, t)[0]
        on = torch.tensor([len(names) > t for names in lists])
        moved.append(((after.affect_B2 - state.affect_B2) * way)[on].sum() / (way[on] ** 2).sum())
        state = after
    assert 0.06 < np.mean(moved) < 0.09


def test_choice_of_tracks_has_5_to_15_percent_of_both_reports(published):
    platform, _ = published
    rows = torch.randperm(8784, generator=torch.Generator().manual_seed(0))[:250]
    for signal, share in nested_shares(platform, rows, lists=8, draws=2).items():
        assert 0.05 < share["tracks"] < 0.15, signal
        assert sum(share.values()) == pytest.approx(1)
        assert share["person"] + share["state"] + share["mode"] > share["tracks"], signal


def test_tracks_have_no_share_where_they_do_nothing():
    platform, _ = world(variant="no_track_effect")
    for share in nested_shares(platform, torch.arange(0, 500, 5), lists=6, draws=2).values():
        assert abs(share["tracks"]) < 0.01
        assert share["person"] + share["state"] > 0.3


def test_shares_of_person_and_state_are_those_of_a_known_mixture():
    generator = torch.Generator().manual_seed(0)
    person = 0.3 * torch.randn(2000, 1, 2, generator=generator)
    mean = (person + 0.4 * torch.randn(2000, 4, 2, generator=generator)).view(-1, 2)
    between, inside = _between(mean, torch.arange(2000).repeat_interleave(4))
    assert between.tolist() == pytest.approx([0.09, 0.09], rel=0.1)
    assert inside.tolist() == pytest.approx([0.16, 0.16], rel=0.1)


def test_few_lists_of_tracks_are_not_taken_for_mode_or_state():
    generator = torch.Generator().manual_seed(0)
    odds = torch.tensor([0.5, 0.25, 0.25])[:, None].expand(4000, 3, 1)
    mode = torch.tensor([0.0, 0.1, -0.1])[:, None]
    state = 0.2 * torch.randn(4000, 1, 2, generator=generator)
    lists = 0.1 * torch.randn(3, 4000, 3, 2, generator=generator)
    lists = lists + 0.2 * torch.randn(3, 4000, 1, 2, generator=generator)
    mean, blur, between = _over_modes(odds, mode + state + lists)
    assert between.tolist() == pytest.approx([0.005, 0.005], rel=0.2)  # .0071 with the lists' share
    assert (mean.var(0) - blur).tolist() == pytest.approx([0.04, 0.04], rel=0.1)  # .0546 with it
