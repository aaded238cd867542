"""SiTunes: every count and value against the raw files, read here on their own with the csv module."""

import csv
import json
from collections import Counter, defaultdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from situnes_raw import RAW, needs_situnes, run

from amrs.logs.schema import SessionLog

Row = dict[str, str]


def rows(*path: str) -> list[Row]:
    with RAW.joinpath(*path).open(newline="") as file:
        return list(csv.DictReader(file))


def kept_records() -> list[Row]:
    """Stage 2 without rows that repeat an earlier one."""
    seen = set()
    kept = []
    for row in rows("Stage2", "interactions.csv"):
        key = (row["user_id"], row["item_id"], row["timestamp"], row["rating"])
        if key not in seen:
            seen.add(key)
            kept.append(row)
    return kept


def binary(stars: str) -> int | None:
    return {"1": 0, "2": 0, "3": None, "4": 1, "5": 1}[stars]


def close(value: float) -> Any:
    return pytest.approx(value, abs=1e-6)


@pytest.fixture(scope="module")
def log(tmp_path_factory: pytest.TempPathFactory) -> SessionLog:
    return run(RAW, tmp_path_factory.mktemp("situnes"))


@pytest.fixture(scope="module")
def by_id(log: SessionLog) -> dict[str, dict[str, Any]]:
    return {session["session_id"]: session for session in log.sessions}


@pytest.fixture(scope="module")
def lab(log: SessionLog) -> dict[str, dict[str, Any]]:
    """Sessions of stage 1 by user."""
    return {s["user_id"]: s for s in log.sessions if s["session_id"].startswith("stage1")}


@needs_situnes
def test_there_is_one_lab_session_a_user_and_one_session_a_kept_record(log: SessionLog) -> None:
    users = {row["user_id"] for row in rows("Stage1", "interactions.csv")}
    assert len(rows("Stage2", "interactions.csv")) - len(kept_records()) == 3
    kinds = Counter(s["session_id"].split("-")[0] for s in log.sessions)
    assert kinds == {"stage1": len(users), "stage2": len(kept_records())} == {"stage1": 30, "stage2": 894}
    assert set(log.sessions["user_id"]) == users


@needs_situnes
def test_lab_sessions_hold_the_tracks_in_order_with_a_report_after_each(
    lab: dict[str, dict[str, Any]],
) -> None:
    by_user: dict[str, list[Row]] = defaultdict(list)
    for row in rows("Stage1", "interactions.csv"):
        by_user[row["user_id"]].append(row)
    for user, raw in by_user.items():
        raw.sort(key=lambda row: int(row["No."]))
        session = lab[user]
        assert session["track_id"] == [row["item_id"] for row in raw]
        assert session["rating"] == [binary(row["rating"]) for row in raw]
        assert session["track_valence"] == close([(float(row["emo_valence"]) + 1) / 2 for row in raw])
        assert session["track_arousal"] == close([(float(row["emo_arousal"]) + 1) / 2 for row in raw])
        assert [session[f"{w}_{s}"] for w in ("pre", "post") for s in ("valence", "arousal")] == [None] * 4
        assert session["started_at"] == datetime.fromtimestamp(int(raw[0]["timestamp"]), UTC)


@needs_situnes
def test_lab_engagement_is_the_fraction_of_the_track_cut_at_one(lab: dict[str, dict[str, Any]]) -> None:
    length_ms = {row["item_id"]: row["duration"] for row in rows("music_metadata", "music_info.csv")}
    cut = missing = 0
    for row in rows("Stage1", "interactions.csv"):
        engagement = lab[row["user_id"]]["engagement"][int(row["No."]) - 1]
        if not row["duration"]:
            assert engagement is None
            missing += 1
            continue
        fraction = float(row["duration"]) * 1000 / float(length_ms[row["item_id"]])
        cut += fraction > 1
        assert engagement == close(min(fraction, 1.0))
    assert (cut, missing) == (20, 12)


@needs_situnes
def test_field_sessions_are_one_track_with_reports_before_and_after(by_id: dict[str, dict[str, Any]]) -> None:
    reports = ("pre_valence", "pre_arousal", "post_valence", "post_arousal")
    for row in kept_records():
        session = by_id[f"stage2-{int(row['inter_id']):03d}"]
        assert session["user_id"] == row["user_id"]
        assert session["track_id"] == [row["item_id"]]
        assert session["rating"] == [binary(row["rating"])]
        assert session["arm"] == (row["rec_type"] or None)
        for name in reports:
            assert session[name] == close((float(row[f"emo_{name}"]) + 1) / 2)
        stamp = datetime.fromtimestamp(int(row["timestamp"]), UTC)
        seconds = float(row["duration"] or 0)
        assert session["ended_at"] == (stamp if row["duration"] else None)
        assert (stamp - session["started_at"]).total_seconds() == seconds


@needs_situnes
def test_dwell_time_of_the_field_is_no_engagement(log: SessionLog) -> None:
    field = [s for s in log.sessions if s["session_id"].startswith("stage2")]
    assert {tuple(s["engagement"]) for s in field} == {(None,)}
    assert {tuple(s["track_valence"]) for s in field} == {(None,)}


@needs_situnes
def test_counts_of_ratings_arms_and_missing_durations_match_the_raw_files(log: SessionLog) -> None:
    raw = rows("Stage1", "interactions.csv") + kept_records()
    imported = Counter(rating for session in log.sessions for rating in session["rating"])
    assert imported == Counter(binary(row["rating"]) for row in raw)
    arms = Counter(s["arm"] for s in log.sessions if s["session_id"].startswith("stage2"))
    assert arms == Counter(row["rec_type"] or None for row in kept_records())
    unended = sum(s["ended_at"] is None for s in log.sessions)
    assert unended == sum(not row["duration"] for row in kept_records()) == 131


@needs_situnes
def test_sessions_are_in_order_in_local_time_without_modes(log: SessionLog) -> None:
    assert set(log.sessions["utc_offset_min"]) == {480}
    assert set(log.sessions["mode"]) == {None} and log.metadata.modes == ()
    starts: dict[str, list[datetime]] = defaultdict(list)
    for session in log.sessions:
        starts[session["user_id"]].append(session["started_at"])
    assert all(times == sorted(times) for times in starts.values())


@needs_situnes
def test_repeats_are_declared_as_the_data_have_them(log: SessionLog) -> None:
    tracks: dict[str, list[str]] = defaultdict(list)
    for row in rows("Stage1", "interactions.csv"):
        tracks[row["user_id"]].append(row["item_id"])
    assert log.metadata.repeats == any(len(set(t)) < len(t) for t in tracks.values())
    assert log.metadata.repeats is False


@needs_situnes
def test_context_is_bracelet_and_weather_without_places(
    by_id: dict[str, dict[str, Any]], log: SessionLog
) -> None:
    names = log.metadata.context
    assert not any(word in name for name in names for word in ("gps", "longitude", "latitude", "speed"))
    wrist = np.load(RAW / "Stage2" / "wrist.npy", allow_pickle=False)
    env = json.loads((RAW / "Stage2" / "env.json").read_text())
    for record in (1, 17, 400, 897):
        context = dict(zip(names, by_id[f"stage2-{record:03d}"]["context"], strict=True))
        window, moment = wrist[record - 1], env[str(record)]
        assert context["heart_rate_mean"] == pytest.approx(sum(window[:, 0]) / 30, abs=1e-4)
        assert context["steps_sum"] == sum(window[:, 2])
        assert context["share_walking"] == close(list(window[:, 3]).count(2) / 30)
        assert context["share_running"] == close(list(window[:, 3]).count(5) / 30)
        assert [context[n] for n in ("morning", "afternoon", "evening")] == [
            moment["time"] == k for k in (1, 2, 3)
        ]
        weather, pressure, temperature, humidity = moment["weather"]
        assert [context[n] for n in ("sunny", "cloudy", "rainy")] == [weather == k for k in (0, 1, 2)]
        assert [context[n] for n in ("pressure_hpa", "temperature_c", "humidity_percent")] == [
            pressure,
            temperature,
            humidity,
        ]
    assert all(s["context"] is None for i, s in by_id.items() if i.startswith("stage1"))


@needs_situnes
def test_catalogue_is_the_music_without_the_row_of_no_song(log: SessionLog) -> None:
    raw = [row for row in rows("music_metadata", "music_info.csv") if row["item_id"] != "-1"]
    assert len(raw) == len(log.catalogue) == 945
    assert log.catalogue["track_id"][:] == [row["item_id"] for row in raw]
    assert log.catalogue["genre"][:] == [row["general_genre"] or None for row in raw]
    seconds = [float(row["duration"]) / 1000 for row in raw]
    assert log.catalogue["duration_s"][:] == pytest.approx(seconds, abs=1e-4)


@needs_situnes
def test_embeddings_are_standardised_audio_features_with_key_on_a_circle(log: SessionLog) -> None:
    raw = [row for row in rows("music_metadata", "music_info.csv") if row["item_id"] != "-1"]
    embedding = np.array(log.catalogue["embedding"][:])
    assert embedding.shape == (945, 18)  # 17 features, of which key takes two numbers
    assert embedding.mean(0) == pytest.approx(0, abs=1e-5)
    assert embedding.std(0) == pytest.approx(1, abs=1e-5)
    energy = np.array([float(row["energy"]) for row in raw])
    assert np.corrcoef(embedding[:, 2], energy)[0, 1] == pytest.approx(1)
    sine = np.sin(2 * np.pi * np.array([float(row["key"]) for row in raw]) / 12)
    assert np.corrcoef(embedding[:, 16], sine)[0, 1] == pytest.approx(1)
    popularity = np.array([float(row["popularity"]) for row in raw])
    assert max(abs(np.corrcoef(popularity, column)[0, 1]) for column in embedding.T) < 0.5
    assert "not a learned embedding such as MERT" in log.metadata.embedding


@needs_situnes
def test_the_same_files_give_the_same_fingerprint(log: SessionLog, tmp_path: Path) -> None:
    assert run(RAW, tmp_path).fingerprint == log.fingerprint
