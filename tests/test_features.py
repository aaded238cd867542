"""Targets and hand-made features: worked by hand, and blind to labels, to the future and to other users."""

import copy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from made_up_logs import METADATA, Sessions, embedding, make_log, simulated, two_listeners

from amrs.fidelity.features import Features, History, features
from amrs.fidelity.targets import columns, targets
from amrs.logs.schema import Metadata, SessionLog, read_log, write_log


def asked(log: SessionLog, signal: str, known: Any = "tracks") -> Features:
    flat = columns(log)
    return features(History(flat), signal, targets(log, flat)[signal], known)


def test_targets_have_a_row_per_value_and_none_for_a_null() -> None:
    label = targets(two_listeners())
    assert list(label) == ["engagement", "rating", "valence", "arousal"]
    assert label["engagement"].value.tolist() == [0.5, 1.0, 0.25, 0.75]
    assert label["engagement"].step.tolist() == [0, 2, 0, 1]
    assert (label["rating"].value.tolist(), label["rating"].row.tolist()) == ([1.0, 0.0], [0, 0])
    assert label["valence"].value.tolist() == pytest.approx([0.6, 0.8, 0.1])
    assert label["valence"].step.tolist() == [2, 1, 0]
    assert label["valence"].user.tolist() == [0, 0, 1]
    assert (label["valence"].mode.tolist(), label["valence"].cohort.tolist()) == ([1, 0, -1], [-1, -1, 1])
    assert len(label["arousal"].value) == 0


def test_targets_of_undeclared_signals_do_not_exist() -> None:
    declared = Metadata(
        "m", ("calm", "focus"), ("a", "b"), ("heart_rate",), {"valence": "bounded"}, True, "r"
    )
    log = make_log(simulated(3), embedding(), declared)
    assert list(targets(log)) == ["valence"]


def test_columns_of_a_log_in_two_shards_are_those_of_one(tmp_path: Path) -> None:
    log = make_log(simulated(4), embedding())
    table = log.sessions.with_format("arrow")[:]
    write_log(
        tmp_path / "log",
        [table.slice(0, 12), table.slice(12)],
        log.catalogue.with_format("arrow")[:],
        METADATA,
        "test",
    )
    one, two = columns(log), columns(read_log(tmp_path / "log"))
    assert two.track_N.tolist() == one.track_N.tolist()
    assert two.user_S.tolist() == one.user_S.tolist() == np.repeat(np.arange(4), 6).tolist()
    np.testing.assert_array_equal(two.play_N["rating"], one.play_N["rating"])


def test_affect_features_of_a_second_session_worked_by_hand() -> None:
    asked_x = asked(two_listeners(), "valence")
    values = dict(zip(asked_x.names, asked_x.value_QF[1], strict=True))
    expected = {
        "post_valence_last": 0.6,
        "pre_valence_last": 0.4,
        "engagement_last": 1.0,
        "engagement_mean": 0.75,
        "engagement_ewm": (1.0 + 0.7 * 0.5) / 1.7,
        "engagement_count": np.log(3),
        "rating_mean": 0.5,
        "track_valence_ewm": (0.3 + 0.7 * 0.2 + 0.49 * 0.1) / 2.19,
        "left_last": 1.0,
        "pre_valence": np.nan,
        "context_0": 0.7,
        "mode_0": 1.0,
        "mode_1": 0.0,
        "cohort_1": 0.0,
        "log_sessions": np.log(2),
        "log_hours_since": np.log(25),
        "hour_sin": np.sin(2 * np.pi * 11 / 24),
        "tracks": 2.0,
        "similarity_liked": -np.sqrt(0.5),
        "similarity_disliked": np.sqrt(0.5),
        "repeats_track": 1.0,
    }
    assert {name: values[name] for name in expected} == pytest.approx(expected, abs=1e-6, nan_ok=True)


def test_affect_features_of_a_new_user_know_no_history() -> None:
    asked_y = asked(two_listeners(), "valence")
    first = dict(zip(asked_y.names, asked_y.value_QF[2], strict=True))
    assert all(np.isnan(first[f"{name}_last"]) for name in ("post_valence", "engagement", "left"))
    assert (first["log_sessions"], first["log_plays"], first["engagement_count"]) == (0, 0, 0)
    assert np.isnan(first["log_hours_since"])


def test_play_features_include_earlier_plays_of_the_session_worked_by_hand() -> None:
    asked_x = asked(two_listeners(), "engagement")
    values = dict(zip(asked_x.names, asked_x.value_QF[3], strict=True))
    expected = {
        "position": 1.0,
        "engagement_mean": 1.75 / 3,
        "engagement_last": 0.25,
        "session_engagement_mean": 0.25,
        "session_rating_mean": np.nan,
        "track_valence_last": 0.9,
        "repeats_track": 1.0,
        "similarity_liked": -1.0,
        "similarity_played": 0.0,
        "similarity_previous": 0.0,
        "log_plays": np.log(5),
        "post_valence_last": 0.6,
    }
    assert {name: values[name] for name in expected} == pytest.approx(expected, abs=1e-6, nan_ok=True)


def test_nowcast_adds_this_sessions_feedback_but_not_the_report_after_its_last_track() -> None:
    asked_x = asked(two_listeners(), "valence", "nowcast")
    values = dict(zip(asked_x.names, asked_x.value_QF[0], strict=True))
    assert values["now_engagement_mean"] == 0.75
    assert (values["now_rating_last"], values["left_now"]) == (0, 1)
    assert values["now_track_valence_mean"] == pytest.approx(0.15)
    assert values["now_track_valence_last"] == pytest.approx(0.2)


def test_forecast_knows_no_track_of_the_session() -> None:
    forecast = asked(two_listeners(), "valence", "forecast")
    assert forecast.track_QD == ()
    assert not {"tracks", "similarity_played", "repeats_track"} & set(forecast.names)


def tampered(rows: Sessions, row: int, step: int, allowed: str) -> Sessions:
    """The log with everything changed that a prediction of session `row` (play `step`) must not use."""
    rows, user = copy.deepcopy(rows), rows[row]["user_id"]
    secret = {"post_valence": 0.123, "post_arousal": 0.987, "ended": None}
    feedback = {"engagement": 0.111, "rating": 1, "track_valence": 0.222, "track_arousal": 0.333}
    for i, other in enumerate(rows):
        if other["user_id"] != user or i > row:
            other |= secret | {"pre_valence": 0.5, "pre_arousal": 0.5}
        elif i == row:
            other |= {
                name: value for name, value in secret.items() if allowed != "nowcast" or name != "ended"
            }
        else:
            continue
        start = 0 if i != row or allowed in ("forecast", "tracks") else step
        for name, value in feedback.items():
            if i != row or allowed != "nowcast" or name.startswith("track_"):
                other[name][start:] = [value] * len(other[name][start:])
        first = {"forecast": 0, "play": step + 1}.get(allowed, len(other["track_id"])) if i == row else 0
        other["track_id"][first:] = ["t7"] * len(other["track_id"][first:])
    return rows


@pytest.mark.parametrize(
    ("signal", "allowed"),
    [
        ("valence", "forecast"),
        ("valence", "tracks"),
        ("valence", "nowcast"),
        ("arousal", "nowcast"),
        ("engagement", "play"),
        ("rating", "play"),
    ],
)
def test_features_are_blind_to_the_label_to_the_future_and_to_other_users(signal: str, allowed: str) -> None:
    rows = simulated(4)
    log = make_log(rows, embedding())
    known = "tracks" if allowed == "play" else allowed
    before, label = asked(log, signal, known), targets(log)[signal]
    for i in np.random.default_rng(0).choice(len(label.row), 6, replace=False):
        row, step = int(label.row[i]), int(label.step[i])
        log = make_log(tampered(rows, row, step, allowed), embedding())
        again = targets(log)[signal]
        after = asked(log, signal, known)
        j = int(np.flatnonzero((again.row == row) & (again.step == step))[0])
        assert again.value[j] != label.value[i] or signal == "rating"
        np.testing.assert_array_equal(after.value_QF[j], before.value_QF[i])
        for x, y in zip(after.track_QD, before.track_QD, strict=True):
            np.testing.assert_array_equal(x[j], y[i])


def test_what_is_allowed_does_change_the_features() -> None:
    rows, row = simulated(4), 3
    log = make_log(rows, embedding())
    fewer = make_log(tampered(rows, row, 0, "forecast"), embedding())
    for known in ("tracks", "nowcast"):
        now, then = asked(log, "valence", known), asked(fewer, "valence", known)
        assert not np.array_equal(now.value_QF[row], then.value_QF[row], equal_nan=True)
