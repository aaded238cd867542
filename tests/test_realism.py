"""Simulated sessions against logged ones."""

import numpy as np
import pytest
import torch
from tiny_logs import opened, random_log

from amrs import metrics
from amrs.data import SessionDataModule
from amrs.fidelity.realism import (
    Told,
    compared,
    done_hazard,
    drawn_done,
    ended,
    features,
    gaps,
    logged_sessions,
    told_apart,
)
from amrs.logs.splits import TRAIN
from amrs.rollout import Rollouts

NAN = torch.nan


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> SessionDataModule:
    return opened(random_log(tmp_path_factory.mktemp("log") / "log"))


def test_gaps_by_hand() -> None:
    # one unit of mass has to move from 0 to 1, or half of it from 0 to .5
    assert gaps(np.array([0.0]), np.array([1.0])) == (1.0, 1.0)
    assert gaps(np.array([0.0, 1.0]), np.array([0.5, 1.0])) == pytest.approx((0.25, 0.5))
    assert gaps(np.array([0.2, np.nan]), np.array([0.2, 0.2])) == (0.0, 0.0)
    assert np.isnan(gaps(np.array([np.nan]), np.array([0.2]))).all()


def test_logged_sessions_are_the_logs(data: SessionDataModule) -> None:
    row_B = torch.arange(len(data.flat.length_S))
    told = logged_sessions(data, row_B)
    assert torch.equal((told.track_BT >= 0).sum(1), data.flat.length_S)
    ended_as = data.log.sessions["ended"][:]
    assert told.left_B.tolist() == [how == "left" for how in ended_as]
    for b, values in enumerate(data.log.sessions["rating"][:]):
        if values is not None:
            found = told.rating_BT[b, : len(values)].nan_to_num(-1).tolist()
            assert found == [-1 if value is None else value for value in values]


def test_hazard_of_being_done_counts_those_still_there(data: SessionDataModule) -> None:
    row = data.rows(TRAIN)
    length, left = data.flat.length_S[row], logged_sessions(data, row).left_B
    for t, hazard in enumerate(done_hazard(data).tolist(), start=1):
        reached = [int(n) >= t and not (gone and int(n) == t) for n, gone in zip(length, left, strict=True)]
        done = [int(n) == t and not gone for n, gone in zip(length, left, strict=True)]
        assert hazard == pytest.approx(sum(done) / max(sum(reached), 1))


def test_drawn_ends_follow_the_hazard_and_leaving_comes_first() -> None:
    hazard = torch.tensor([0.0, 0.25, 1.0])
    key, stays = torch.arange(4000), torch.zeros(4000, dtype=torch.bool)
    done = drawn_done(hazard, stays, torch.full((4000,), 3), key)
    share = torch.bincount(done, minlength=4)[1:].float() / 4000
    assert share.tolist() == pytest.approx([0, 0.25, 0.75], abs=0.03)
    left_last = drawn_done(hazard, ~stays, torch.full((4000,), 3), key)
    assert set(left_last.tolist()) == {2, 4}  # 4: not done when leaving after the third


def test_sessions_end_where_the_listener_left_or_was_done() -> None:
    played = torch.tensor([[True, True, False], [True, True, True], [True, True, True]])
    value = torch.tensor([[0.1, 0.2, NAN], [0.3, 0.4, 0.5], [0.6, 0.7, 0.8]])
    given = torch.tensor([[0.0, 1.0, NAN], [1.0, 0.0, 1.0], [1.0, 0.0, 1.0]])
    rollouts = Rollouts(
        torch.arange(9).view(3, 3).where(played, -1), played, value, value, torch.tensor([True, False, True]),
        {"drawn_valence": value, "drawn_arousal": 1 - value, "given": given}, None,
    )  # fmt: skip
    told = ended(rollouts, torch.tensor([4, 2, 4]))
    assert told.track_BT.tolist() == [[0, 1, -1], [3, 4, -1], [6, 7, 8]]
    assert told.left_B.tolist() == [True, False, True]
    assert told.report_B2[:, 0].nan_to_num(-1).tolist() == pytest.approx([0.2, -1, 0.8])
    assert ended(rollouts, torch.tensor([2, 4, 1])).left_B.tolist() == [False, False, False]


def test_equal_sessions_are_not_apart_and_other_ones_are(data: SessionDataModule) -> None:
    told = logged_sessions(data, torch.arange(len(data.flat.length_S)))
    assert all(w1 == ks == 0 for *_, w1, ks, _ in compared(told, told) if not np.isnan(w1))
    other = told._replace(engagement_BT=told.engagement_BT * 0)
    found = {key[:2]: key[2] for key in compared(told, other)}
    assert found["engagement", "marginal"] == pytest.approx(told.engagement_BT.nanmean().item(), abs=1e-6)
    assert found["rating", "marginal"] == 0


def test_a_classifier_tells_apart_only_what_differs() -> None:
    random = np.random.default_rng(0)
    user = np.arange(300) // 5
    one, same, other = (random.normal(shift, 1, (300, 3)) for shift in (0, 0, 1.5))
    for table, low, high in ((same, 0.35, 0.6), (other, 0.9, 1.0)):
        label, score, _ = told_apart(one, table, user, 0)
        assert low < metrics.auroc(label, score) < high


def test_a_sessions_features_do_not_depend_on_the_other_sessions(data: SessionDataModule) -> None:
    """Else a classifier would know the side by a figure that all of its sessions share."""
    told = logged_sessions(data, torch.arange(8))
    alone = Told(*(x[:3] for x in told))
    np.testing.assert_allclose(features(alone, data), features(told, data)[:3], atol=1e-6)


def test_features_see_no_user(data: SessionDataModule) -> None:
    row_B = torch.arange(8)
    told = logged_sessions(data, row_B)
    swapped = Told(*(x[[1, 0, *range(2, 8)]] for x in told))
    table = features(told, data)
    np.testing.assert_allclose(features(swapped, data)[:2], table[[1, 0]], atol=1e-5)
    assert np.isfinite(table[:, 0]).all() and table.shape[0] == 8
