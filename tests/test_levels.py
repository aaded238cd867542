"""What a track adds beyond its embedding: how much tracks differ, and each track's level."""

import pytest
import torch
from sklearn.linear_model import LogisticRegression
from tiny_logs import opened, random_log, world_model

from amrs.bags import Bags
from amrs.data import SessionDataModule
from amrs.levels import MOST, Tally, _scored, _whole_listeners, scores, start_levels
from amrs.logs.histories import TARGETS
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
    """Track 0 scores .5 and .5 by two listeners, track 1 scores 1 and 0; mean squares are .25, .5 and .375 of
    all, so i is (.5 + 3.75) / 12 and (1 + 3.75) / 12; products of the ordered pairs .25, .25, 0, 0."""
    found = tally([0.5, 0.5, 1.0, 0.0], [0, 1, 0, 1], [0, 0, 1, 1])
    i = [4.25 / 12, 4.75 / 12]
    assert found.information_K.tolist() == pytest.approx(i)
    assert 0.5 / (2 * i[0] ** 2 + 2 * i[1] ** 2) > MOST == found.variance
    assert found.levels(0.1).tolist() == pytest.approx([1 / (2 * i[0] + 10), 1 / (2 * i[1] + 10)])
    # One track, scores 4 and 1: i = 8.5, and of two ordered pairs 8 / (2 x 8.5^2) is below the most.
    assert tally([4.0, 1.0], [0, 1], [0, 0]).variance == pytest.approx(8 / (2 * 8.5**2))
    fewer = tally([0.5, 0.5, 1.0, -0.4], [0, 1, 0, 1], [0, 0, 1, 1])
    assert fewer.variance == 0  # .25 - .4 < 0


def test_what_a_listener_repeats_is_the_listeners() -> None:
    alone = tally([1.0, 1.0, 1.0], [0, 0, 0], [0, 0, 0])
    assert alone.variance == 0
    # Two listeners who disagree about a track, each several times, are two that disagree.
    many = tally([1.0, 1.0, 1.0, -1.0, -1.0], [0, 0, 0, 1, 1], [0] * 5)
    assert many.variance == 0 and many.levels(0.2).tolist() == [0, 0]


def test_labels_that_are_all_the_same_leave_levels_small() -> None:
    """Held back at the start, they leave the same small score everywhere, which is no news of any track."""
    random = torch.Generator().manual_seed(0)
    user, track = torch.arange(2000) // 40, torch.randint(50, (2000,), generator=random)
    found = Tally(50)
    found.add(torch.full((2000,), 0.004), torch.ones(2000), user, track)
    assert found.levels(found.variance).abs().max() < 0.05


def test_a_listener_counts_several_times_in_levels_and_once_in_how_much_tracks_differ() -> None:
    random = torch.Generator().manual_seed(0)
    score, user = torch.randn(60, generator=random), torch.arange(60) // 10
    track = torch.randint(4, (60,), generator=random)
    times = torch.tensor([0.0, 1, 2, 1, 3, 1])
    bag, parts, everybody = Tally(4), Tally(4), Tally(4)
    bag.add(score, times[user], user, track)
    everybody.add(score, torch.ones(60), user, track)
    for listener in range(6):
        mine = user == listener
        parts.add(score[mine], times[user][mine], user[mine], track[mine])
    torch.testing.assert_close(bag.levels(0.2), parts.levels(0.2))
    assert bag.variance == everybody.variance == pytest.approx(parts.variance)
    cell = [(int(u), int(k)) for u in range(6) for k in range(4) if ((user == u) & (track == k)).any()]
    mean = {(u, k): float(score[(user == u) & (track == k)].mean()) for u, k in cell}
    for k in range(4):
        total = sum(float(times[u]) * mean[u, k] for u, j in cell if j == k)
        count = sum(float(times[u]) for u, j in cell if j == k)
        information = float(bag.information_K[k])
        assert float(bag.levels(0.2)[k]) == pytest.approx(total / (count * information + 5), abs=1e-6)


@pytest.mark.parametrize(("spread", "usual"), [(0.0, 0.0), (0.4, 0.0), (0.4, 2.0)])
def test_how_much_tracks_differ_is_found(spread: float, usual: float) -> None:
    """Ratings of 400 tracks by 20 listeners each, whose log-odds differ by a level and nothing else."""
    random = torch.Generator().manual_seed(1)
    level_K = spread * torch.randn(400, generator=random)
    track, user = torch.arange(400).repeat_interleave(20), torch.arange(8000) % 100
    value = (torch.rand(8000, generator=random) < (usual + level_K[track]).sigmoid()).float()
    found = Tally(400)
    found.add(scores(Binary(), torch.full((8000, 1), usual), value), torch.ones(8000), user, track)
    assert found.variance**0.5 == pytest.approx(spread, abs=0.12)
    if spread and not usual:
        # The slower truth: every track's log-odds at once, held back by the true spread.
        hot = torch.eye(400)[track]
        slow = LogisticRegression(C=spread**2, fit_intercept=False, max_iter=1000).fit(hot, value)
        pair = torch.stack([found.levels(spread**2), torch.from_numpy(slow.coef_[0]).float()])
        assert torch.corrcoef(pair)[0, 1] > 0.99
        assert float(pair.std(1)[0]) == pytest.approx(float(pair.std(1)[1]), rel=0.1)
        assert torch.corrcoef(torch.stack([found.levels(spread**2), level_K]))[0, 1] > 0.6


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


def test_all_of_a_listeners_plays_are_counted_together(
    data: SessionDataModule, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("amrs.levels._WINDOWS", 2)
    model = world_model(data, members=2)
    parts = list(_whole_listeners(_scored(model, data, "engagement", 0)))
    users = [set(part[0].tolist()) for part in parts]
    assert all(not a & b for n, a in enumerate(users) for b in users[:n]) and len(users) > 2
    flat = data.flat
    row_N, column = flat.session_N, TARGETS.index("engagement")
    told_N = (data.part_S[row_N] == TRAIN) & ~flat.target_NY[:, column].isnan()
    expected = torch.stack([flat.user_S[row_N][told_N], flat.next_track_N[told_N]])
    assert torch.equal(torch.stack([torch.cat([part[k] for part in parts]) for k in range(2)]), expected)
    assert all(part[2].shape == (2, len(part[0])) for part in parts)


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
    for without, found in (([], True), (["track_embeddings"], False), (["levels"], False)):
        model = world_model(data)
        (member,) = model.ensemble
        torch.nn.init.zeros_(member.level_KV)
        member.encoder.blind(without, torch.zeros(data.flat.static_SF.shape[1], dtype=torch.bool))
        start_levels(model, data, ["engagement", "rating", "valence"], Bags(0, 1), 0)
        assert bool(member.level_KV.any()) is found


def test_levels_learn_from_nobody_but_training_users(data: SessionDataModule) -> None:
    found = []
    for part in (None, TRAIN):
        model, told = world_model(data), data.flat.target_NY.clone()
        if part is not None:  # what all others answered turns round
            other_N = data.part_S[data.flat.session_N] != part
            data.flat.target_NY[other_N] = 1 - data.flat.target_NY[other_N]
        start_levels(model, data, ["engagement", "rating"], Bags(0, 1), 0)
        data.flat.target_NY[:] = told
        found.append(model.ensemble[0].level_KV)
    assert torch.equal(*found) and found[0].any()
