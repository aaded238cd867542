"""What a track adds beyond its embedding: how much tracks differ, and each track's level."""

import pytest
import torch
from sklearn.linear_model import LogisticRegression
from tiny_logs import opened, random_log, world_model

from amrs.bags import Bags
from amrs.data import SessionDataModule
from amrs.levels import Tally, _whole_listeners, scores, start_levels
from amrs.logs.splits import TRAIN
from amrs.signals import Binary, Bounded


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> SessionDataModule:
    return opened(random_log(tmp_path_factory.mktemp("log") / "log"), history=9)


def tally(score: list[float], user: list[int], track: list[int], tracks: int = 2) -> Tally:
    found = Tally(tracks)
    found.add(torch.tensor(score), torch.ones(len(score)), torch.tensor(user), torch.tensor(track))
    return found


def test_levels_by_hand() -> None:
    """Track 0 scores 1 and 1 by two listeners, track 1 scores -1 and 0: i = 3/4, the products of the four
    ordered pairs are 1, 1, 0, 0, so s^2 = 2 / (9/16 x 4) = 8/9; levels are 2 and -1 over 2 x 3/4 + 9/8."""
    found = tally([1.0, 1.0, -1.0, 0.0], [0, 1, 0, 1], [0, 0, 1, 1])
    assert found.variance == pytest.approx(8 / 9)
    assert found.levels().tolist() == pytest.approx([2 / 2.625, -1 / 2.625])


def test_what_a_listener_repeats_is_the_listeners() -> None:
    one = tally([1.0, 1.0, 1.0], [0, 0, 0], [0, 0, 0])
    assert one.variance == 0 and one.levels().tolist() == [0, 0]
    # Listeners 0 and 1 disagree about the track, each twice: pairs within a listener do not count.
    two = tally([1.0, 1.0, -1.0, -1.0], [0, 0, 1, 1], [0, 0, 0, 0])
    assert two.variance == 0


def test_plays_may_come_listener_by_listener_and_count_several_times() -> None:
    random = torch.Generator().manual_seed(0)
    score, user = torch.randn(60, generator=random), torch.arange(60) // 10
    track = torch.randint(4, (60,), generator=random)
    whole, parts, twice = Tally(4), Tally(4), Tally(4)
    whole.add(score, torch.full((60,), 2.0), user, track)
    for listener in range(6):
        mine = user == listener
        parts.add(score[mine], torch.full((10,), 2.0), user[mine], track[mine])
    twice.add(score.repeat(2), torch.ones(120), user.repeat(2), track.repeat(2))
    for other in (parts, twice):
        torch.testing.assert_close(whole.levels(), other.levels())
        assert whole.variance == pytest.approx(other.variance)


@pytest.mark.parametrize("spread", [0.0, 0.6])
def test_how_much_tracks_differ_is_found(spread: float) -> None:
    """Ratings of 400 tracks by 10 listeners each, whose log-odds differ by a level and nothing else."""
    random = torch.Generator().manual_seed(1)
    level_K = spread * torch.randn(400, generator=random)
    track, user = torch.arange(400).repeat_interleave(10), torch.arange(4000) % 50
    value = (torch.rand(4000, generator=random) < level_K[track].sigmoid()).float()
    found = Tally(400)
    found.add(scores(Binary(), torch.zeros(4000, 1), value), torch.ones(4000), user, track)
    assert found.variance**0.5 == pytest.approx(spread, abs=0.12)
    if spread:
        # The slower truth: every track's log-odds at once, held back by the true spread.
        hot = torch.eye(400)[track]
        slow = LogisticRegression(C=spread**2, fit_intercept=False, max_iter=1000).fit(hot, value)
        assert (
            torch.corrcoef(torch.stack([found.levels(), torch.from_numpy(slow.coef_[0]).float()]))[0, 1]
            > 0.99
        )
        assert torch.corrcoef(torch.stack([found.levels(), level_K]))[0, 1] > 0.6


@pytest.mark.parametrize("kind", [Binary(), Bounded(2)])
def test_scores_are_slopes_of_the_likelihood(kind: Binary | Bounded) -> None:
    params = kind.initial().expand(3, -1) + torch.randn(
        3, kind.size, generator=torch.Generator().manual_seed(0)
    )
    value = torch.tensor([0.0, 1.0, 1.0])
    step = torch.zeros(kind.moves)
    step[kind.level] = 1e-3
    ahead, behind = (
        kind.nll(kind.moved(params.double(), by * step.double()), value.double()) for by in (1, -1)
    )
    torch.testing.assert_close(
        scores(kind, params, value).double(), (behind - ahead) / 2e-3, atol=1e-4, rtol=1e-3
    )


def test_all_of_a_listeners_windows_are_looked_at_together(data: SessionDataModule) -> None:
    parts = list(_whole_listeners(data))
    assert torch.equal(torch.cat(parts), data.windows(TRAIN))
    users = [set(data.flat.user_S[data.flat.session_N[part[:, 0]]].tolist()) for part in parts]
    assert all(not a & b for n, a in enumerate(users) for b in users[:n])


def test_a_level_moves_what_follows_a_play_and_no_report(data: SessionDataModule) -> None:
    model = world_model(data)
    (member,) = model.ensemble
    member.level_KV.zero_()
    h_BD, track_B = torch.randn(4, member.encoder.size), torch.tensor([0, 1, 2, 3])
    before = member.means(member.answer(h_BD, member.candidates(track_B)))
    member.level_KV[2] = 3.0
    after = member.means(member.answer(h_BD, member.candidates(track_B)))
    for name in before:
        same = torch.isclose(before[name], after[name], atol=1e-6).tolist()
        assert same == [True, True, name not in ("engagement", "rating"), True]
    assert member.leveled == ["engagement", "rating"]


def test_a_model_that_may_not_tell_tracks_apart_has_no_levels(data: SessionDataModule) -> None:
    for without, found in (([], True), (["track_embeddings"], False)):
        model = world_model(data)
        (member,) = model.ensemble
        torch.nn.init.zeros_(member.level_KV)
        member.encoder.blind(without, torch.zeros(data.flat.static_SF.shape[1], dtype=torch.bool))
        start_levels(model, data, ["engagement", "rating", "valence"], Bags(0, 1), 0)
        assert bool(member.level_KV.any()) is found
