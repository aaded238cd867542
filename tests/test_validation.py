"""What a session log may not hold, and the words in which it is refused."""

import time
from datetime import UTC, datetime
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from small_log import METADATA, TIME, catalogue, hour, many, sessions

from amrs.logs import validation
from amrs.logs.schema import LogError, Metadata, validate
from amrs.logs.validation import codes, given_again, mask, repeated, stable_order

NAN = float("nan")


def refusal(table: pa.Table | None = None, tracks: pa.Table | None = None) -> str:
    with pytest.raises(LogError) as error:
        validate(
            sessions() if table is None else table,
            catalogue() if tracks is None else tracks,
            METADATA,
            "logs.parquet",
        )
    return str(error.value)


def test_the_good_log_of_these_tests_is_accepted() -> None:
    validate(sessions(), catalogue(), METADATA, "logs.parquet")


BAD_SESSIONS: list[tuple[dict[str, Any], str]] = [
    # ranges
    (
        {"pre_valence": [0.1, None, 1.5]},
        "column sessions.pre_valence, session_id s3: 1.5; allowed: a number in [0, 1]",
    ),
    (
        {"pre_valence": [-0.1, None, 1.0]},
        "sessions.pre_valence, session_id s1: -0.1; allowed: a number in [0, 1]",
    ),
    (
        {"post_valence": [None, NAN, 0.3]},
        "sessions.post_valence, session_id s2: nan; allowed: a number in [0, 1]",
    ),
    ({"pre_valence": [float("inf"), 0.1, 0.1]}, "sessions.pre_valence, session_id s1: inf"),
    (
        {"engagement": [[0.5, 1.01], None, None]},
        "sessions.engagement, session_id s1, item 2: 1.01; allowed: a number in [0, 1]",
    ),
    (
        {"engagement": [[0.5, 0.5], None, [NAN, 0.1]]},
        "sessions.engagement, session_id s3, item 1: nan; allowed: a number in [0, 1]",
    ),
    ({"track_valence": [None, [7.0], None]}, "sessions.track_valence, session_id s2, item 1: 7;"),
    ({"rating": [[1, 5], [None], None]}, "sessions.rating, session_id s1, item 2: 5; allowed: 0, 1 or null"),
    ({"rating": [[300, 0], [None], None]}, "sessions.rating, session_id s1, item 1: 300; allowed: 0, 1"),
    (
        {"propensity": [[1.0, 0.0], None, None]},
        "sessions.propensity, session_id s1, item 2: 0; allowed: a probability in (0, 1]",
    ),
    (
        {"utc_offset_min": [60, 900, None]},
        "sessions.utc_offset_min, session_id s2: 900; allowed: minutes in [-840",
    ),
    (
        {"ended": ["left", "quit", None]},
        "sessions.ended, session_id s2: 'quit'; allowed: left, completed or null",
    ),
    (
        {"mode": ["calm", "angry", None]},
        "sessions.mode, session_id s2: 'angry'; allowed: calm, focus, or null",
    ),
    ({"mode": pa.array([0, 2, None])}, "sessions.mode, session_id s2: '2'; allowed: calm, focus, or null"),
    (
        {"cohort": [None, "other", None]},
        "sessions.cohort, session_id s2: 'other'; allowed: clinical, or null",
    ),
    ({"context": [[0.5, NAN], None, None]}, "sessions.context, session_id s1, item 2: nan; allowed: finite"),
    (
        {"context": [[0.5], None, None]},
        "sessions.context, session_id s1: 1 numbers; allowed: 2 numbers, or null",
    ),
    # times
    (
        {"started_at": pa.array([hour(1), hour(5), datetime(1970, 1, 20, tzinfo=UTC)], TIME)},
        "sessions.started_at, session_id s3: 1970-01-20T00:00:00 in UTC, as converted "
        "(search for session_id s3); allowed: 1971 up to 2100, UTC",
    ),
    (
        {"ended_at": pa.array([hour(0), None, None], TIME)},
        "sessions.ended_at, session_id s1: 2024-05-01T00:00:00 in UTC, as converted "
        "(search for session_id s1); allowed: not before started_at, 2024-05-01T01:00:00 in UTC, or null",
    ),
    (
        {"started_at": pa.array([hour(5), hour(1), hour(2)], TIME), "ended_at": None},
        "sessions.started_at, session_id s2: 2024-05-01T01:00:00 in UTC, as converted "
        "(search for session_id s2); allowed: not before this user's previous session, "
        "session_id s1 (2024-05-01T05:00:00 in UTC)",
    ),
    (
        {"ended_at": pa.array([hour(5.5), hour(6), None], TIME)},
        "sessions.started_at, session_id s2: 2024-05-01T05:00:00 in UTC, as converted "
        "(search for session_id s2); allowed: not before the end of this user's previous session, "
        "session_id s1 (2024-05-01T05:30:00 in UTC), or they overlap",
    ),
    (
        {"user_id": ["secret-1", "secret-2", "secret-1"], "ended_at": None},
        "sessions.user_id, session_id s3: apart from other sessions of this user; allowed: all sessions",
    ),
    # tracks
    (
        {"track_id": [["a", "b"], [], ["b", "c"]], "rating": None, "track_valence": None},
        "sessions.track_id, session_id s2: an empty session; allowed: 1 track or more",
    ),
    (
        {"track_id": [["a", "x"], ["c"], ["b", "c"]]},
        "sessions.track_id, session_id s1, item 2: 'x'; allowed: a track_id of the catalogue",
    ),
    ({"track_id": [["a", None], ["c"], ["b", "c"]]}, "sessions.track_id, session_id s1, item 2: null"),
    (
        {"track_id": [["a", "b"], ["c"], ["a", "c"]]},
        "sessions.track_id, session_id s3, item 1: 'a'; allowed: a track whose modes include",
    ),
    (
        {"track_id": [["a", "b"], ["c"], ["c", "c"]]},
        "sessions.track_id, session_id s3, item 2: 'c'; allowed: a track once in a session",
    ),
    (
        {"engagement": [[0.5, 0.1, 0.2], None, None]},
        "sessions.engagement, session_id s1: 3 items for 2 tracks; allowed: as many items as track_id has",
    ),
    # ids and nulls
    (
        {"session_id": ["s1", "s3", "s3"]},
        "sessions.session_id, session_id s3: given again; allowed: every session once",
    ),
    ({"session_id": ["s1", None, "s3"]}, "sessions.session_id, row 2: null; allowed: not null"),
    ({"user_id": ["secret-1", None, "secret-2"]}, "sessions.user_id, session_id s2: null; allowed: not null"),
    (
        {"started_at": pa.array([hour(1), None, hour(2)], TIME), "ended_at": None},
        "sessions.started_at, session_id s2: null; allowed: not null",
    ),
    (
        {"track_id": [["a", "b"], None, ["b", "c"]], "rating": None, "track_valence": None},
        "sessions.track_id, session_id s2: null; allowed: not null",
    ),
    # columns and types
    ({"track_id": None}, "sessions.track_id, every row: the column is missing"),
    (
        {"mood": [1, 2, 3]},
        "sessions.mood, every row: no such column; allowed: the columns session_id, user_id",
    ),
    (
        {"rating": [[0.5, 1.0], None, None]},
        "sessions.rating, every row: type list<item: double>; allowed: a list of int",
    ),
    ({"session_id": [1, 2, 3]}, "sessions.session_id, every row: type int64; allowed: strings"),
    (
        {"pre_valence": ["0.1", "0.2", "0.3"]},
        "sessions.pre_valence, every row: type string; allowed: numbers",
    ),
    (
        {"utc_offset_min": [60.5, 0.0, 0.0]},
        "sessions.utc_offset_min, every row: type double; allowed: integers",
    ),
    (
        {"started_at": pa.array([hour(1), hour(5), hour(2)]).cast(TIME).cast(pa.timestamp("ms"))},
        "sessions.started_at, every row: type timestamp[ms]; allowed: timestamp with a time zone",
    ),
    (
        {"engagement": [0.5, 0.5, 0.5]},
        "sessions.engagement, every row: type double; allowed: a list of numbers",
    ),
]


@pytest.mark.parametrize(
    ("columns", "message"), BAD_SESSIONS, ids=[m.split(";")[0][-48:] for _, m in BAD_SESSIONS]
)
def test_bad_sessions_are_refused_with_file_column_row_value_and_what_is_allowed(
    columns: dict[str, Any], message: str
) -> None:
    text = refusal(sessions(**columns))
    assert "logs.parquet: column " in text
    assert message in text
    assert "secret" not in text  # user ids are never shown


BAD_TRACKS: list[tuple[dict[str, Any], str]] = [
    (
        {"embedding": [[0.0, 1.0], [2.0], [4.0, 5.0]]},
        "catalogue.embedding, track_id b: 1 numbers; allowed: 2 numbers, as most tracks have",
    ),
    (
        {"embedding": [[0.0, 1.0], [2.0, NAN], [4.0, 5.0]]},
        "catalogue.embedding, track_id b, item 2: nan; allowed: finite numbers",
    ),
    ({"embedding": [[0.0, 1.0], [2.0, 1e39], [4.0, 5.0]]}, "catalogue.embedding, track_id b, item 2: inf"),
    ({"embedding": [[0.0, None], [2.0, 1.0], [4.0, 5.0]]}, "catalogue.embedding, track_id a, item 2: null"),
    (
        {"embedding": [[0.0, 1.0], None, [4.0, 5.0]]},
        "catalogue.embedding, track_id b: null; allowed: a list of",
    ),
    ({"embedding": pa.array([[], [], []], pa.list_(pa.float32()))}, "catalogue.embedding, every row: empty"),
    ({"track_id": ["a", "b", "b"]}, "catalogue.track_id, track_id b: given again; allowed: every track once"),
    ({"track_id": ["a", "b", None]}, "catalogue.track_id, row 3: null; allowed: an id"),
    (
        {"duration_s": [180.0, 0.0, 1.0]},
        "catalogue.duration_s, track_id b: 0; allowed: seconds above 0, or null",
    ),
    (
        {"duration_s": [180.0, NAN, 1.0]},
        "catalogue.duration_s, track_id b: nan; allowed: seconds above 0, or null",
    ),
    ({"modes": [["calm"], ["party"], None]}, "catalogue.modes, track_id b, item 1: 'party'; allowed: a mode"),
    ({"modes": [["calm"], [], None]}, "catalogue.modes, track_id b: an empty list; allowed: 1 mode or more"),
    (
        {"bpm": [1, 2, 3]},
        "catalogue.bpm, every row: no such column; allowed: the columns track_id, embedding",
    ),
]


@pytest.mark.parametrize(
    ("columns", "message"), BAD_TRACKS, ids=[m.split(";")[0][-48:] for _, m in BAD_TRACKS]
)
def test_bad_catalogues_are_refused_with_file_column_row_value_and_what_is_allowed(
    columns: dict[str, Any], message: str
) -> None:
    assert f"logs.parquet: column {message}" in refusal(tracks=catalogue(**columns))


def test_the_first_twenty_faults_are_listed_and_the_rest_counted() -> None:
    lines = refusal(many(33)).splitlines()
    assert lines[0] == "the log is refused, 33 faults:"
    assert len(lines) == 1 + 20 + 1
    assert "session_id s0" in lines[1] and "session_id s19" in lines[20]
    assert lines[21].strip() == "... and 13 more"


def test_a_repeat_is_allowed_where_the_service_repeats_tracks() -> None:
    table = sessions(track_id=[["b", "b"], ["c"], ["b", "c"]])
    repeating = Metadata("test", METADATA.modes, METADATA.cohorts, METADATA.context, {}, True, "made up")
    validate(table, catalogue(), repeating, "logs.parquet")
    assert "a track once in a session" in refusal(table)


def test_metadata_refuses_a_kind_that_a_signal_does_not_have() -> None:
    with pytest.raises(LogError, match="signal rating: bounded is not among"):
        Metadata("x", (), (), (), {"rating": "bounded"}, False, "")


def test_a_source_for_each_column_is_named_instead_of_one_for_all() -> None:
    places = {"": "folder", "sessions.pre_valence": "mood.csv: column before"}
    with pytest.raises(LogError) as error:
        validate(
            sessions(pre_valence=[9.0, None, None], ended=["x", None, None]), catalogue(), METADATA, places
        )
    assert "mood.csv: column before, session_id s1: 9;" in str(error.value)
    assert "folder: column sessions.ended, session_id s1: 'x';" in str(error.value)


def test_validation_time_does_not_depend_on_a_loop_over_rows() -> None:
    """Of 100,000 sessions of ten tracks the plays are checked in array operations: seconds, not minutes."""
    count, length = 100_000, 10
    rng = np.random.default_rng(0)
    offsets = pa.array(np.arange(count + 1) * length, pa.int32())
    start = rng.integers(1.5e12, 1.6e12, count)
    tracks = ((rng.integers(0, 50, count)[:, None] + np.arange(length)) % 50).ravel().astype(str)
    table = pa.table(
        {
            "session_id": np.arange(count).astype(str),
            "user_id": np.arange(count).astype(str),
            "started_at": pa.array(start).cast(TIME),
            "track_id": pa.ListArray.from_arrays(offsets, pa.array(tracks)),
            "engagement": pa.ListArray.from_arrays(offsets, pa.array(rng.random(count * length))),
        }
    )
    music = pa.table({"track_id": np.arange(50).astype(str), "embedding": [[float(i)] for i in range(50)]})
    began = time.process_time()
    validate(table, music, Metadata("big", (), (), (), {}, False, "made up"), "test")
    assert time.process_time() - began < 5


@pytest.mark.parametrize("collide", [False, True])
def test_ids_given_again_are_found_by_their_hashes(monkeypatch: pytest.MonkeyPatch, collide: bool) -> None:
    """Also where all hashes are the same, and over chunks: as from a table of all ids."""
    if collide:
        monkeypatch.setattr(validation, "hashes", lambda ids: np.zeros(len(ids), np.uint64))
    ids = pa.chunked_array([["a", "b", "a"], ["c", "b", "d", "a"], ["e"]])
    found = given_again(ids)
    assert found.tolist() == [False, False, True, False, True, False, True, False]
    assert found.tolist() == repeated(codes(ids.combine_chunks())).tolist()
    assert not given_again(pa.chunked_array([["a"], ["b"]])).any()


@pytest.mark.parametrize(
    "keys",
    [
        np.array([3, -1, 3, 0, -1, 2]),
        np.array([2**62, 0, -(2**62), 2**62, 0]),
        np.array([2.0, 0.0, -0.0, 2.0, -1.0, 0.0]),
        np.array([1.5, 1.0, 1.5, NAN, 1.0, NAN, np.inf, -np.inf]),
        np.array([2.0**70, 2.0, 2.0**70, 1.0]),
        np.array(["2025-01-02", "NaT", "2025-01-01", "2025-01-02", "NaT"], "datetime64[ms]"),
        np.array(["2025-01-02", "1969-01-01", "2025-01-02"], "datetime64[ms]"),
        np.random.default_rng(0).integers(-9, 9, 1000),
        np.array([7]),
        np.array([], np.int64),
    ],
)
def test_the_stable_order_is_that_of_a_stable_sort(keys: np.ndarray) -> None:
    assert stable_order(keys).tolist() == np.argsort(keys, kind="stable").tolist()


def test_a_null_is_no_yes_has_no_code_and_is_given_again_like_any_value() -> None:
    assert mask(pa.array([True, None, False])).tolist() == [True, False, False]
    assert mask(pa.chunked_array([[None, True], [False]])).tolist() == [False, True, False]
    for ids in (pa.array(["b", None, "a", "b", None]), pa.chunked_array([["b", None, "a"], ["b", None]])):
        assert codes(ids).tolist() == [0, -1, 1, 0, -1]
        assert repeated(codes(ids)).tolist() == [False, False, False, True, True]
