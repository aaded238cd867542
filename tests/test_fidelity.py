"""Predictions of the world model, aligned with labels."""

from pathlib import Path

import numpy as np
import pytest
import torch
from test_stages import Done, folders

from amrs.config.data import SplitConfig
from amrs.data import SessionDataModule
from amrs.fidelity.fit import GRID_G, predict
from amrs.fidelity.targets import Target, targets
from amrs.logs.splits import TEST
from amrs.metrics import coverage, interval_from_cdf
from amrs.models.world_model import WorldModel
from amrs.stages import world_model


def opened(runs: Path) -> tuple[SessionDataModule, WorldModel]:
    data = SessionDataModule(folders(runs, "prepare")[0] / "log", SplitConfig(), 10_000)
    return data, world_model.load(folders(runs, "world_model")[0], data)


def held_out(data: SessionDataModule, signal: str, count: int = 40) -> Target:
    label = targets(data.log)[signal]
    keep = np.flatnonzero(data.part_S.numpy()[label.row] == TEST)[:count]
    return Target(*(getattr(label, name)[keep] for name in label.__dataclass_fields__))


@pytest.mark.parametrize("signal", ["engagement", "rating"])
def test_plays_predicted_in_windows_equal_one_history_at_a_time(evaluated: Done, signal: str) -> None:
    data, model = opened(evaluated[0])
    label = held_out(data, signal)
    found = predict(model, data, signal, label)
    for n in range(len(label.row)):
        batch = data.prefix(torch.tensor([label.row[n]]), torch.tensor([label.step[n]]))
        at_BL = torch.zeros_like(batch.valid_BL)
        at_BL[0, int(batch.valid_BL.sum()) - 1] = True
        slow = model.mean(signal, model.predict(batch, at_BL, "track")[signal])
        assert found.mean_N[n] == pytest.approx(slow.item(), abs=1e-5)


def test_given_tracks_feedback_of_the_session_changes_nothing(evaluated: Done) -> None:
    data, model = opened(evaluated[0])
    label = held_out(data, "valence")
    before = predict(model, data, "valence", label, "tracks").mean_N
    nowcast = predict(model, data, "valence", label, "nowcast").mean_N
    row = int(label.row[0])
    own_N = (data.flat.session_N == row) & (data.flat.track_N >= 0)
    data.flat.feedback_N4[own_N] = torch.tensor([0.0, 1.0, torch.nan, torch.nan])
    assert predict(model, data, "valence", label, "tracks").mean_N[0] == pytest.approx(before[0], abs=1e-6)
    assert predict(model, data, "valence", label, "nowcast").mean_N[0] != nowcast[0]


def test_a_forecast_knows_nothing_of_the_sessions_tracks(evaluated: Done) -> None:
    data, model = opened(evaluated[0])
    label = held_out(data, "arousal")
    before = {known: predict(model, data, "arousal", label, known).mean_N for known in ("forecast", "tracks")}
    own_N = (data.flat.session_N == int(label.row[-1])) & (data.flat.track_N >= 0)
    data.flat.track_N[own_N] = (data.flat.track_N[own_N] + 7) % data.tracks
    data.flat.next_track_N[:-1] = torch.where(
        data.flat.next_track_N[:-1] >= 0, data.flat.track_N[1:], data.flat.next_track_N[:-1]
    )
    assert predict(model, data, "arousal", label, "forecast").mean_N[-1] == pytest.approx(
        before["forecast"][-1]
    )
    assert predict(model, data, "arousal", label, "tracks").mean_N[-1] != before["tracks"][-1]


def test_intervals_cover_plays_to_the_end(evaluated: Done) -> None:
    """Mass on 1 lies on 1, not between the last two points of the grid."""
    data, model = opened(evaluated[0])
    label = held_out(data, "engagement", 200)
    predicted = predict(model, data, "engagement", label)
    low, high = interval_from_cdf(predicted.cdf_NG, GRID_G, 0.8)
    sure = predicted.cdf_NG[:, -1] < 0.9
    assert sure.any() and (high[sure] == 1).all()
    whole = sure & (label.value == 1)
    assert whole.any() and coverage(label.value[whole], low[whole], high[whole]).mean() == 1
