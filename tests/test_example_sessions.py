"""Example sessions: typical ones, and nothing of who the listener is."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from test_stages import Done, folders

from amrs.example_sessions import example_sessions
from amrs.report import load
from amrs.rollout import Rollouts

NAN = float("nan")


def rollouts(valence: list[list[float]], tracks: list[list[int]]) -> Rollouts:
    track_BT = torch.tensor(tracks)
    played_BT = track_BT >= 0
    value_BT = torch.tensor(valence).where(played_BT, NAN)
    nothing_BT, left_B = torch.full_like(value_BT, NAN), torch.zeros(len(tracks), dtype=torch.bool)
    expected = {"valence": value_BT, "arousal": 1 - value_BT}
    return Rollouts(track_BT, played_BT, nothing_BT, nothing_BT, left_B, expected, None)


def made_up(pre: list[float]) -> Any:
    columns = {"track_id": ["t0", "t1", "t2"], "artist": ["A", None, "B"]}
    catalogue = type(
        "Catalogue", (), {"column_names": list(columns), "__getitem__": lambda _, k: columns[k]}
    )()
    log = SimpleNamespace(catalogue=catalogue, metadata=SimpleNamespace(modes=("calm",)))
    report_S2 = torch.tensor([[x, x] for x in pre])
    return SimpleNamespace(log=log, flat=SimpleNamespace(pre_report_S2=report_S2))


def test_the_median_gain_among_sessions_with_a_report_before_them_by_hand() -> None:
    """Gains .1, .5, .2, .3; the second has no report before it, so the median of .1, .2, .3 is shown."""
    copycat = rollouts([[0.5, 0.5]] * 4, [[0, 1]] * 4)
    dpo = rollouts([[0.5, 0.6], [0.5, 1.0], [0.7, NAN], [0.5, 0.8]], [[2, 1], [2, 1], [2, -1], [2, 1]])
    sessions: Any = SimpleNamespace(row_B=torch.arange(4), mode_B=torch.zeros(4, dtype=torch.int64))
    first, second = example_sessions(
        {"copycat": copycat, "dpo": dpo}, sessions, made_up([0.1, NAN, 0.3, 0.4])
    )
    assert (first["mode"], first["policy"], second["policy"]) == ("calm", "copycat", "dpo")
    assert first["start"] == second["start"] == pytest.approx([0.3, 0.3])
    assert second["path"] == [pytest.approx([0.7, 0.3])]  # it ended after one track
    assert first["tracks"] == ["t0 (A)", "t1"] and second["tracks"] == ["t2 (B)"]


def test_without_both_policies_there_is_no_example() -> None:
    sessions: Any = SimpleNamespace()
    assert example_sessions({"copycat": rollouts([[0.5]], [[0]])}, sessions, made_up([0.1])) == []


def test_a_report_shows_a_session_a_mode_and_policy(evaluated: Done) -> None:
    folder: Path = folders(evaluated[0], "evaluate")[0]
    examples = load(folder).provenance["examples"]
    assert {e["policy"] for e in examples} == {"copycat", "dpo"} and len({e["mode"] for e in examples}) >= 2
    for e in examples:
        assert len(e["path"]) == len(e["tracks"]) >= 1
        assert all(0 <= x <= 1 for point in e["path"] for x in point)
    assert "Example sessions" in (folder / "report.html").read_text()
