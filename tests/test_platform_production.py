"""The policy that made the platform's log."""

import numpy as np
import torch
from platform_worlds import one_thread, tracks, world

from amrs.platform.production import choose
from amrs.platform.service import LONGEST
from amrs.rollout import Feedback

__all__ = ["one_thread"]


def walk(rows):
    """Production's logits (B, K) before every logged play, with what it knew then."""
    platform, log = world()
    track_BT = tracks(log)[rows].clamp(min=0)
    policy, environment = platform.production(), platform.environment(after_logs=False)
    memory, state = policy.start(rows), environment.start(rows, platform.log_key(rows))
    for t in range(LONGEST):
        yield t, memory, policy.logits(memory)
        state, feedback, _ = environment.step(state, track_BT[:, t], t)
        memory = policy.observe(memory, track_BT[:, t], feedback)


def test_logits_are_the_logged_propensities():
    log = world()[1]
    rows, track_ST = torch.arange(len(log)), tracks(log)
    logged = log["propensity"].to_pylist()
    for t, _, logits in walk(rows):
        log_prob = logits.log_softmax(-1).gather(1, track_ST[:, t].clamp(min=0)[:, None])[:, 0]
        on = [row for row in rows.tolist() if t < len(logged[row])]
        np.testing.assert_allclose(log_prob[on].exp(), [logged[row][t] for row in on], rtol=1e-4)


def test_probabilities_sum_to_one_over_the_tracks_of_the_mode_not_yet_heard():
    platform, log = world()
    rows, track_ST = torch.arange(60), tracks(log)
    allowed = platform.catalogue.allowed_KM.T[platform.starts.mode_S[rows]]
    policy = platform.production()
    for t, memory, _ in walk(rows):
        odds, heard = policy.probabilities(memory), track_ST[rows, :t].clamp(min=0)
        may = allowed.scatter(1, heard, False)
        assert torch.allclose(odds.sum(1), torch.ones(60), atol=1e-5)
        assert ((odds > 0) == may).all()
        assert (odds[may] >= 0.9 * platform.config.exploration / may.sum(1).max()).all()


def test_no_logged_track_is_outside_its_mode_or_repeated_in_its_session():
    platform, log = world()
    track_ST = tracks(log)
    for row, mode in enumerate(platform.starts.mode_S.tolist()):
        heard = track_ST[row][track_ST[row] >= 0]
        assert platform.catalogue.allowed_KM[heard, mode].all()
        assert len(heard.unique()) == len(heard)


def test_choose_takes_the_track_where_the_cumulative_sum_passes_the_uniform():
    odds = torch.tensor([[0.2, 0.0, 0.5, 0.3]]).repeat(4, 1)
    track, chance = choose(odds, torch.tensor([0.1, 0.25, 0.69, 0.71]))
    assert track.tolist() == [0, 2, 2, 3]
    assert torch.allclose(chance, torch.tensor([0.2, 0.5, 0.5, 0.3]))


def test_tracks_are_drawn_for_some_listeners_at_a_time(monkeypatch):
    platform, _ = world()
    rows, uniform_B = torch.arange(45), torch.rand(45, generator=torch.Generator().manual_seed(0))
    policy = platform.production()
    memory = policy.start(rows)
    whole = choose(policy.probabilities(memory), uniform_B)
    monkeypatch.setattr("amrs.platform.production.AT_ONCE", 1)
    parts = policy.play(memory, uniform_B)
    assert torch.equal(parts[0], whole[0])
    torch.testing.assert_close(parts[1], whole[1])


def test_logged_choices_are_as_frequent_as_their_propensities_say():
    """The mean of 1 / propensity is the mean number of tracks that could be played."""
    platform, log = world()
    counts = [len(names) for names in log["track_id"].to_pylist()]
    inverse = 1 / np.concatenate(log["propensity"].to_numpy(zero_copy_only=False))
    open_M = platform.catalogue.allowed_KM.sum(0)
    could = np.concatenate(
        [
            int(open_M[mode]) - np.arange(n)
            for mode, n in zip(platform.starts.mode_S.tolist(), counts, strict=True)
        ]
    )
    ratio, error = inverse / could, (inverse / could).std() / len(inverse) ** 0.5
    assert abs(ratio.mean() - 1) < 4 * error < 0.2


def test_a_disliked_track_makes_its_like_less_probable_in_the_next_session():
    platform, log = world()
    policy, rows = platform.production(), torch.tensor([0])
    memory, track = policy.start(rows), tracks(log)[:1, 0]
    after = {}
    for rating in (0.0, 1.0):
        heard = Feedback(torch.tensor([0.5]), torch.tensor([rating]), torch.tensor([False]))
        seen = policy.observe(memory, track, heard)
        after[rating] = policy.logits(policy.begin(seen.mode_B, seen.profile_BP, seen.hidden_B))[0, track]
    assert after[0.0] < after[1.0]


def test_withheld_genres_are_never_played_and_stay_in_the_catalogue():
    platform, log = world(withheld_genres=5, seed=3)
    genre_K = platform.catalogue.genre_K
    played = tracks(log)
    assert (genre_K >= 11).any() and platform.catalogue.allowed_KM[genre_K >= 11].any()
    assert genre_K[played[played >= 0]].max() < 11
