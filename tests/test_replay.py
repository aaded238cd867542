"""Replay of given tracks with sampled feedback, and the horizon up to which it is trusted."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from platform_worlds import one_thread, world
from tiny_logs import opened, random_log, shape

from amrs.data import SessionDataModule
from amrs.fidelity.replay import (
    FILE,
    bands,
    cut,
    listed_tape,
    logged_tape,
    logged_truth,
    platform_truth,
    replay,
    stored_horizon,
    trusted_horizon,
    upper_bound,
)
from amrs.logs.histories import static_names
from amrs.logs.splits import TRAIN
from amrs.models.world_model import WorldModel
from amrs.rollout import Rollouts

__all__ = ["one_thread"]


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> SessionDataModule:
    return opened(random_log(tmp_path_factory.mktemp("log") / "log"))


@pytest.fixture(scope="module")
def model(data: SessionDataModule) -> WorldModel:
    torch.manual_seed(0)
    made = WorldModel(2, shape(history=64), data.log.metadata.signals, 2, data.flat.static_SF.shape[1],
                      data.embedding_KE)  # fmt: skip
    for member in made.ensemble:
        member.encoder.fit_statistics(data.flat.static_SF[data.rows(TRAIN)])
        for parameter in member.parameters():
            parameter.data += 0.1 * torch.randn_like(parameter)
    return made.eval()


def first_rows(data: SessionDataModule) -> torch.Tensor:
    return data.flat.row_U


def test_a_tape_holds_the_log_in_order_across_sessions(data: SessionDataModule) -> None:
    flat, row_B = data.flat, first_rows(data)
    tape = logged_tape(data, row_B, 7)
    for b, row in enumerate(row_B.tolist()):
        user = int(flat.user_S[row])
        tokens = range(int(flat.first_S[row]) + 1, int(flat.user_last_U[user]))
        plays = [n for n in tokens if flat.track_N[n] >= 0][:7]
        before = tape.before_BH[b][tape.before_BH[b] >= 0]
        assert (before + 1).tolist() == plays
        assert tape.track_BL[b][tape.token_BH[b][: len(plays)]].tolist() == flat.track_N[plays].tolist()
    assert (tape.track_BL == -1).any(), "no tape reaches a second session"


@torch.inference_mode()
def test_with_the_logs_own_feedback_a_replay_predicts_as_reading_the_log_does(
    data: SessionDataModule, model: WorldModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Across session starts too, in a log without the reports that a replay may not see."""
    flat = data.flat
    static_SF, token_NR = flat.static_SF.clone(), flat.token_NR.clone()
    feedback_N4 = token_NR.view(torch.float32)[:-1, 8:12]
    meta = data.log.metadata
    names = static_names(meta.modes, meta.cohorts, meta.context)
    hidden = [name.startswith(("pre_", "last_", "mean_")) for name in names]
    assert sum(hidden) == 11
    static_SF[:, hidden] = torch.nan
    feedback_N4[:, 2:] = torch.nan
    monkeypatch.setattr(flat, "static_SF", static_SF)
    monkeypatch.setattr(flat, "feedback_N4", feedback_N4)
    monkeypatch.setattr(flat, "token_NR", token_NR)
    row_B = first_rows(data)
    tape = logged_tape(data, row_B, 6)
    found = replay(model, data, tape, 1, 0, logged=True)
    asked = (tape.before_BH >= 0).nonzero().tolist()
    assert max(flat.session_N[tape.before_BH[b, h]] - row_B[b] for b, h in asked) >= 1
    for b, h in asked:
        session = int(flat.session_N[tape.before_BH[b, h]])
        step = int(flat.step_N[tape.before_BH[b, h]])
        batch = data.prefix(torch.tensor([session]), torch.tensor([step]))
        at_BL = torch.zeros_like(batch.valid_BL)
        at_BL[0, -1] = True
        slow = model.predict(batch, at_BL, "track")["engagement"]
        kind = model.ensemble[0].kinds["engagement"]
        for m in range(2):
            assert found["engagement"][m, 0, b, h] == pytest.approx(kind.mean(slow[m]).item(), abs=1e-4)


def test_later_reports_are_hidden_and_feedback_is_sampled(data: SessionDataModule, model: WorldModel) -> None:
    tape = logged_tape(data, first_rows(data), 6)
    before = replay(model, data, tape, 2, 0)["engagement"]
    kept = data.flat.feedback_N4.clone()
    row_N = data.flat.session_N
    later_N = ~torch.isin(row_N, first_rows(data))
    data.flat.feedback_N4[later_N & (data.flat.track_N >= 0), 0] = 0.123  # what is replayed, never read
    after = replay(model, data, tape, 2, 0)["engagement"]
    data.flat.feedback_N4 = kept
    assert torch.equal(before.nan_to_num(-1), after.nan_to_num(-1))
    known = before[:, :, (tape.token_BH >= 0)]
    assert not torch.equal(known[:, 0], known[:, 1])


def test_truth_of_the_log_stands_at_its_plays(data: SessionDataModule) -> None:
    tape = logged_tape(data, first_rows(data), 5)
    for signal, column in (("engagement", 0), ("rating", 1)):
        truth = logged_truth(data, tape, signal)
        for b, h in (tape.before_BH >= 0).nonzero().tolist():
            value = data.flat.feedback_N4[tape.before_BH[b, h] + 1, column]
            assert torch.equal(truth[b, h].nan_to_num(-1), value.nan_to_num(-1))


def test_the_platforms_truth_is_its_oracle() -> None:
    platform, _ = world()
    row_B = torch.arange(6)
    track_BT = torch.randint(0, 300, (6, 4), generator=torch.Generator().manual_seed(0))
    found = platform_truth(platform, row_B, track_BT, draws=256)
    for t in (0, 3):
        oracle = platform.oracle(row_B, track_BT[:, : t + 1], draws=256)
        torch.testing.assert_close(found["valence"][:, t], oracle["valence"], atol=0.01, rtol=0)
    torch.testing.assert_close(found["rating"].mean(1), oracle["rating"], atol=0.02, rtol=0)


def test_listed_tracks_are_one_session(data: SessionDataModule, model: WorldModel) -> None:
    tape = listed_tape(data, torch.tensor([0, 1]), torch.tensor([[1, 2, 3], [3, 2, 1]]))
    found = replay(model, data, tape, 2, 0)
    assert found["valence"].shape == (2, 2, 2, 3) and not found["valence"].isnan().any()


def test_bands_by_hand() -> None:
    # members at .2 and .6 in the mean, samples .1 to either side
    expected = torch.tensor([[0.1, 0.3], [0.5, 0.7]])[:, :, None, None]
    mean, members, samples = (x.item() for x in bands(expected))
    assert mean == pytest.approx(0.4)
    # variance within .02 (unbiased); between .04, of which .02 / 2 / 2 x 1/2 is the samples'
    assert samples == pytest.approx(0.02**0.5)
    assert members == pytest.approx((0.04 - 0.005) ** 0.5)


def test_trusted_horizon_by_hand() -> None:
    nan = float("nan")
    assert trusted_horizon({1: 0.05, 2: 0.08, 4: 0.2, 8: 0.05}, 0.1) == 2
    assert trusted_horizon({1: 0.2, 2: 0.05}, 0.1) == 0
    assert trusted_horizon({1: 0.05, 2: 0.05}, 0.1) == 2
    assert trusted_horizon({1: nan, 2: 0.05, 4: nan}, 0.1) == 2  # too few labels to know at 1 and at 4
    assert trusted_horizon({1: nan, 2: 0.3}, 0.1) == 0


def test_upper_bounds() -> None:
    user = np.arange(40) // 4
    same = np.full(40, 0.04)
    assert upper_bound(same, user, True, 100, 0) == pytest.approx(0.2)
    assert upper_bound(-same, user, False, 100, 0) == pytest.approx(0.04)
    assert upper_bound(-same, user, True, 100, 0) == 0  # rolling out did not add to the error
    assert np.isnan(upper_bound(same, np.zeros(40), True, 100, 0))  # one user


def test_cut_counts_what_went_on() -> None:
    played = torch.tensor([[True, True, True], [True, True, False], [True, False, False]])
    value = torch.arange(9.0).view(3, 3)
    rollouts = Rollouts(value.long(), played, value, value, torch.tensor([True, True, False]),
                        {"valence": value}, None)  # fmt: skip
    shorter, count = cut(rollouts, 2)
    assert count == 1 and shorter.track_BT.shape == (3, 2)
    assert shorter.left_B.tolist() == [False, True, False]  # the first left after its third track
    assert shorter.final("valence").tolist() == [1, 4, 6]
    with pytest.raises(ValueError, match="no track is trusted"):
        cut(rollouts, 0)


def test_the_stored_horizon_is_the_shortest_of_what_counts(tmp_path: Path) -> None:
    (tmp_path / FILE).write_text(json.dumps({"trusted_horizon": {"valence": 9, "arousal": 4, "rating": 1}}))
    assert stored_horizon(tmp_path, {"valence": 0.5, "arousal": 0.5, "rating": 0.0}) == 4
    with pytest.raises(ValueError, match="knows none"):
        stored_horizon(tmp_path, {"engagement": 1.0})
