"""Bad tables and bad column maps: what is said, and that nothing half-written stays."""

from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from test_table import Edit, cells, change, edit_map, raw, refusal, run, write

from amrs.config.data import DataConfig
from amrs.importers import IMPORTERS, reading
from amrs.importers import times as times_module
from amrs.importers.order import ordered
from amrs.importers.reading import Raw, numbers
from amrs.importers.times import times
from amrs.logs.schema import LogError

__all__ = ["raw"]  # the fixture


BAD_CELLS: list[tuple[str, int, dict[str, str], str]] = [
    (
        "sessions.csv",
        1,
        {"mood_before": "8"},
        "sessions.csv: column mood_before (pre_valence), session_id V01: '8'; allowed: a number in [1, 7]",
    ),
    (
        "sessions.csv",
        2,
        {"mood_after": "good"},
        "(post_valence), session_id V02: 'good'; allowed: a number in [1, 7]",
    ),
    (
        "sessions.csv",
        2,
        {"mood_after": "nan"},
        "(post_valence), session_id V02: 'nan'; allowed: a number in [1, 7]",
    ),
    (
        "sessions.csv",
        3,
        {"pulse": "inf"},
        "column pulse (context), session_id V03: 'inf'; allowed: a number, or empty",
    ),
    (
        "sessions.csv",
        1,
        {"begin": "2025-03-03"},
        "column begin (started_at), session_id V01: '2025-03-03'; allowed: a time like %d.%m.%Y",
    ),
    (
        "sessions.csv",
        1,
        {"begin": "31.02.2025 08:15"},
        "(started_at), session_id V01: '31.02.2025 08:15'; allowed:",
    ),
    (
        "sessions.csv",
        1,
        {"begin": "30.03.2025 02:30"},
        "column begin (started_at), session_id V01: '30.03.2025 02:30'; allowed: a time that clocks in "
        "Europe/Berlin showed: this one they skipped (is the zone right?)",
    ),
    ("sessions.csv", 1, {"begin": ""}, "column begin (started_at), session_id V01: null; allowed: not null"),
    (
        "sessions.csv",
        1,
        {"finish": "03.03.2025 08:00"},
        "(ended_at), session_id V01, row 1: '03.03.2025 08:00'; allowed: not before started_at, "
        "'03.03.2025 08:15', or null",
    ),
    (
        "sessions.csv",
        1,
        {"finish": "06.03.2025 08:00"},
        "column begin (started_at), session_id V06, row 6: '05.03.2025 20:10'; allowed: not before the end "
        "of this user's previous session, session_id V01 (row 1: '06.03.2025 08:00'), or they overlap",
    ),
    (
        "sessions.csv",
        1,
        {"activity": "party"},
        "column activity (mode), session_id V01: 'party'; allowed: relax, workout, study (the",
    ),
    (
        "sessions.csv",
        1,
        {"how_ended": "crash"},
        "column how_ended (ended), session_id V01: 'crash'; allowed: closed, end",
    ),
    ("sessions.csv", 2, {"visit": "V01"}, "column visit (session_id), session_id V01: given again; allowed:"),
    (
        "sessions.csv",
        1,
        {"begin": "03.03.1925 08:15"},
        "column begin (started_at), session_id V01, row 1: '03.03.1925 08:15'; allowed: 1971 up to 2100, UTC",
    ),
    (
        "sessions.csv",
        6,
        {"visit": "", "mood_before": "9"},
        "column visit (session_id), session_id (empty), row 6: null; allowed: not empty",
    ),
    (
        "sessions.csv",
        6,
        {"visit": "", "mood_before": "9"},
        "column mood_before (pre_valence), session_id (empty), row 6: '9'; allowed: a number in [1, 7]",
    ),
    (
        "sessions.csv",
        2,
        {"listener": ""},
        "column listener (user_id), session_id V02: null; allowed: not null",
    ),
    (
        "events.csv",
        1,
        {"song": "S999"},
        "events.csv: column song (track_id), session_id V08, item 3: 'S999'; allowed: a "
        "track_id of the catalogue",
    ),
    (
        "events.csv",
        1,
        {"song": "S001"},
        "session_id V08, item 3: 'S001'; allowed: a track whose modes include the mode",
    ),
    (
        "events.csv",
        1,
        {"visit": "V77"},
        "events.csv: column visit (session_id), session_id V77, row 1: 'V77'; allowed: a "
        "session of the sessions file",
    ),
    (
        "events.csv",
        3,
        {"visit": ""},
        "column visit (session_id), session_id (empty), row 3: null; allowed: a session of the sessions file",
    ),
    ("events.csv", 1, {"no": ""}, "column no (position), session_id V08, row 1: null; allowed: not empty"),
    (
        "events.csv",
        1,
        {"no": "x"},
        "1 fault:\n  RAW/events.csv: column no (position), session_id V08, row 1: 'x'; allowed: a number (",
    ),
    (
        "events.csv",
        23,
        {"no": " 1.0"},
        "column no (position), session_id V08, row 23: '1.0', as in row 9; allowed: a position once",
    ),
    (
        "events.csv",
        1,
        {"thumb": "sideways"},
        "column thumb (rating), session_id V08, row 1: 'sideways'; allowed: up, down",
    ),
    ("events.csv", 1, {"played_s": "-3"}, "column played_s (engagement), session_id V08, item 3: -0."),
    (
        "catalogue.csv",
        2,
        {"vec_3": ""},
        "columns vec_* (embedding), track_id S002, item 3: null; allowed: finite",
    ),
    (
        "catalogue.csv",
        2,
        {"vec_3": "nan"},
        "(embedding), track_id S002: 'nan'; allowed: a number (not nan, infinite or empty)",
    ),
    ("catalogue.csv", 2, {"vec_3": "x"}, "columns vec_* (embedding), track_id S002: 'x'; allowed: a number"),
    (
        "catalogue.csv",
        2,
        {"song": "S001"},
        "column song (track_id), track_id S001: given again; allowed: every track",
    ),
    (
        "catalogue.csv",
        1,
        {"good_for": "relax;party"},
        "(modes), track_id S001: 'party'; allowed: relax, workout, study",
    ),
]


@pytest.mark.parametrize(("file", "row", "values", "message"), BAD_CELLS)
def test_a_bad_cell_is_named_by_file_column_row_and_what_is_allowed(
    raw: Path, tmp_path: Path, file: str, row: int, values: dict[str, str], message: str
) -> None:
    change(raw / file, row, **values)
    assert message in refusal(raw, tmp_path / "run").replace(str(raw), "RAW")


def test_a_session_without_tracks_is_refused(raw: Path, tmp_path: Path) -> None:
    write(raw / "events.csv", [row for row in cells(raw / "events.csv") if row["visit"] != "V04"])
    assert "(track_id), session_id V04: an empty session; allowed: 1 track or more" in refusal(
        raw, tmp_path / "run"
    )


def test_embeddings_of_different_length_are_refused(raw: Path, tmp_path: Path) -> None:
    rows: list[dict[str, Any]] = [row | {"vector": "1;2;3"} for row in cells(raw / "catalogue.csv")]
    rows[4]["vector"] = "1;2"
    write(raw / "catalogue.csv", rows)
    edit_map(raw, lambda m: m["catalogue"]["columns"].update(embedding="vector"))
    assert "(embedding), track_id S005: 2 numbers; allowed: 3 numbers" in refusal(raw, tmp_path / "run")


def test_local_times_without_a_zone_are_refused(raw: Path, tmp_path: Path) -> None:
    edit_map(raw, lambda m: m["sessions"]["columns"]["started_at"].pop("zone"))
    assert "with offset (or give its zone in the map)" in refusal(raw, tmp_path / "run")


def test_a_skipped_local_time_is_refused_as_iso_8601_and_as_a_time_of_parquet_too() -> None:
    text = pa.array(
        ["2025-03-30 01:59", "2025-03-30 02:00", "2025-03-30 02:30+01:00", "2025-03-30 03:00", "?", None]
    )
    stamps, bad, skipped = times(text, None, None, "Europe/Berlin")
    assert skipped.tolist() == [False, True, False, False, False, False]
    assert bad.tolist() == [False, False, False, False, True, False]
    assert stamps[2].as_py() == datetime(2025, 3, 30, 1, 30, tzinfo=UTC)
    naive = pa.array([datetime(2025, 3, 30, 2, 59), datetime(2025, 3, 30, 3), None])
    assert times(naive, None, None, "Europe/Berlin")[2].tolist() == [True, False, False]
    without = times(naive, None, None, None)
    assert without[1].tolist() == [True, True, False] and not without[2].any()


_TIMES = {
    "2025-03-30T01:59:00Z": True,
    "2025-03-30 01:59:00.5Z": True,
    "2025-03-30 01:59:00.123456+02:00": True,
    "1969-12-31 23:59:59.9999-05:30": True,
    "2025-02-30 01:59:00Z": False,
    "2025-13-01 01:59:00Z": False,
    "2025-03-30 24:00:00Z": False,
    "2025-03-30 01:59:60Z": False,
    "2025-03-30 01:59:00+25:00": False,
    "2025-03-30 01:59:00.1234567Z": False,
    "2025-03-30 01:59:00z": False,
    "2025-03-30 01:59:00+0200": False,
    "2025-03-30 01:59:00+02": False,
    "2025-03-30 01:59Z": False,
    "2025-03-30 01:59:00": False,
    "2025-03-30 02:30:00": False,
    "2025-03-30T01Z": False,
    "2025-03-30Z": False,
    "2025-03-30": False,
    "0001-01-01 00:00:00Z": False,
    "soon": False,
}
"""Cells, and whether a column of such is cast in one go."""


@pytest.mark.parametrize(("cell", "usual"), _TIMES.items())
def test_times_that_are_cast_in_one_go_are_those_of_the_general_way(
    monkeypatch: pytest.MonkeyPatch, cell: str, usual: bool
) -> None:
    column = pa.array(["2025-03-30 01:59:00Z", cell, None, "2025-06-01T00:00:00.001+05:30"])
    assert (times_module._usual(column) is not None) == usual
    at_once = times(column, None, None, None)
    in_a_zone = times(column, None, None, "Europe/Berlin") if usual else at_once
    monkeypatch.setattr(times_module, "_usual", lambda text: None)
    stamps, bad, skipped = times(column, None, None, None)
    assert not skipped.any() and bad.tolist() == [False, stamps[1].as_py() is None, False, False]
    for found in (at_once, in_a_zone):  # where there is an offset, no zone matters
        assert found[0].equals(stamps)
        assert found[1].tolist() == bad.tolist() and not found[2].any()


_NUMBERS = {
    **dict.fromkeys(["7", "-0", "007", "1.", "-.5", "1e3", "1E-3", "1e+2", "1e-999"], True),
    **dict.fromkeys(
        ["+1", "nan", "-NaN", "nan(1)", "inf", "-Infinity", "1e999", "0x10", "1_0", "1,5"], False
    ),
    **dict.fromkeys([" 1", "1\u00a0", "1 0", "", " ", "NA", " null ", ".", "-", "1e", "\uff11", "x"], False),
}
"""Likewise."""


@pytest.mark.parametrize(("cell", "finite"), _NUMBERS.items())
def test_numbers_that_are_cast_in_one_go_are_those_of_the_general_way(cell: str, finite: bool) -> None:
    raw = Raw(Path("x.csv"), pa.table({"x": ["1", cell, None, "2.5"]}))
    assert (reading._all_finite(raw.table["x"].combine_chunks()) is not None) == finite
    given, value, bad = raw.numbers("x")
    general, no_number = numbers(raw.column("x"))
    assert given.equals(raw.column("x")) and bad.tolist() == no_number.tolist()
    assert repr(value.to_pylist()) == repr(general.to_pylist())  # in which nan is nan


@pytest.mark.parametrize("blank", ["", " ", "\t", "\x1f", "\u00a0", "\u2003"])
@pytest.mark.parametrize("cell", ["V01", "Band 1", "\u00e9", "NA", "N/A", "null", "none", ""])
def test_text_has_no_blanks_around_it_and_is_null_where_empty(cell: str, blank: str) -> None:
    """Alone, and beside cells that let it be looked at more closely."""
    expected = None if cell in reading.MISSING else cell
    for others in ([], ["V02345", None], ["a b"]):
        raw = Raw(Path("x.csv"), pa.table({"x": pa.array([blank + cell + blank, *others], pa.string())}))
        assert raw.column("x").to_pylist() == [expected, *others]


def test_plays_are_ordered_by_session_then_key_then_as_they_came() -> None:
    generator = np.random.default_rng(0)
    session_E, position_E = generator.integers(-1, 9, 500), generator.integers(0, 5, 500)
    for key_E in (position_E, position_E * 0.5, np.where(position_E == 4, np.nan, position_E)):
        assert ordered(session_E, key_E).tolist() == np.lexsort((key_E, session_E)).tolist()
    played_at_E = position_E.astype("datetime64[ms]")
    assert ordered(session_E, played_at_E).tolist() == np.lexsort((played_at_E, session_E)).tolist()
    assert ordered(session_E, None).tolist() == np.argsort(session_E, kind="stable").tolist()


def columns(part: str, **given: Any) -> Edit:
    return lambda m: m[part]["columns"].update(given)


BAD_MAPS: list[tuple[Edit, str]] = [
    (
        columns("sessions", moode="activity"),
        "sessions.columns has the key moode; allowed: session_id, user_id, ",
    ),
    (columns("sessions", moode="activity"), "Did you mean mode?"),
    (
        lambda m: m.update(songs={}),
        "the map has the key songs; allowed: name, embedding_is, sessions, events, catalogue",
    ),
    (lambda m: m.pop("events"), "the map lacks events; it needs sessions, events, catalogue"),
    (
        lambda m: m["sessions"]["columns"].pop("user_id"),
        "sessions.columns lacks user_id; it needs session_id, user_id",
    ),
    (
        columns("sessions", mode="mood"),
        "sessions.csv: no column mood; its columns are visit, listener, begin",
    ),
    (
        columns("catalogue", embedding={"prefix": "mert_"}),
        "catalogue.csv: no column mert_*; its columns are song, name",
    ),
    (lambda m: m["events"].update(file="plays.csv"), "plays.csv is missing in"),
    (
        lambda m: m["events"].update(file="map.yaml"),
        "files of type .yaml are not read; allowed: .csv, .parquet",
    ),
    (
        columns("sessions", pre_valence={"column": "mood_before", "scale": ["7", "1"]}),
        "sessions.columns.pre_valence.scale: ['7', '1']; allowed: [lowest, highest]",
    ),
    (
        columns("sessions", pre_valence={"column": "mood_before", "unit": "s"}),
        "sessions.columns.pre_valence has the key unit; allowed: column, scale",
    ),
    (
        columns("sessions", started_at={"column": "begin", "unit": "h"}),
        "started_at.unit: h; allowed: s, ms, us",
    ),
    *(
        (
            columns("sessions", started_at={"column": "begin", "format": form, "zone": "Europe/Berlin"}),
            f"started_at.format: {form}; allowed: strptime's signs, such as %d.%m.%Y %H:%M; an offset as %z",
        )
        for form in ("ISO8601", "%Y-%m-%d %H:%M %Z", "%Y-%m-%d %H:%M+02:00")
    ),
    (
        columns("sessions", started_at={"column": "begin", "zone": "Mars"}),
        "zone: Mars; allowed: a name like UTC",
    ),
    (
        columns("events", rating={"column": "thumb", "like": "4"}),
        "events.columns.rating; allowed: like and dislike",
    ),
    (
        columns("events", rating={"column": "thumb", "like": "2", "dislike": "4"}),
        "like 2; allowed: above dislike, 4",
    ),
    (
        columns("events", rating={"column": "thumb", "values": {"up": "yes"}}),
        "events.columns.rating.values.up: yes; allowed: 0, 1, empty",
    ),
    (
        columns("events", played_at="played_s"),
        "events.columns has position and played_at; allowed: one of them",
    ),
    (columns("sessions", context="pulse"), "sessions.columns.context: pulse; allowed: a list of columns"),
]


@pytest.mark.parametrize(("edit", "message"), BAD_MAPS, ids=[m[:50] for _, m in BAD_MAPS])
def test_a_bad_map_is_refused_with_what_is_allowed(
    raw: Path, tmp_path: Path, edit: Edit, message: str
) -> None:
    edit_map(raw, edit)
    assert message in refusal(raw, tmp_path / "run")


def test_a_map_that_is_missing_or_no_yaml_is_refused(raw: Path, tmp_path: Path) -> None:
    (raw / "map.yaml").write_text("sessions: [")
    assert "map.yaml: not YAML" in refusal(raw, tmp_path / "a")
    (raw / "map.yaml").unlink()
    assert "map.yaml: the column map is missing or not UTF-8; write one" in refusal(raw, tmp_path / "b")


def test_a_row_with_too_few_cells_is_named_by_its_number(raw: Path, tmp_path: Path) -> None:
    lines = (raw / "events.csv").read_text().splitlines()
    (raw / "events.csv").write_text("\n".join([*lines[:3], "V08,1", *lines[3:]]) + "\n")
    assert "events.csv: row 3 has 2 cells; allowed: 5, as in the first line" in refusal(raw, tmp_path / "run")


@pytest.mark.parametrize(
    ("file", "old", "new", "line"),
    [
        ("sessions.csv", "panel", "Fläche", 1),
        ("catalogue.csv", "Band 3,", "Bänd 3,", 4),
        ("events.csv", "V01,9,", "V01,ä\n", 43),
    ],
    ids=["in the first line", "in a cell", "in a row with too few cells"],
)
def test_a_file_in_latin_1_is_refused_with_what_to_do(
    raw: Path, tmp_path: Path, file: str, old: str, new: str, line: int
) -> None:
    text = (raw / file).read_text() + "V01,9,"
    (raw / file).write_bytes(text.replace(old, new, 1).encode("latin-1"))
    assert (
        f"{file}: line {line} is not in UTF-8; allowed: text in UTF-8. Save it so (spreadsheets call it "
        f"CSV UTF-8), or, if it is in Latin-1: iconv -f LATIN1 -t UTF-8 {file} > NEW.csv"
    ) in refusal(raw, tmp_path / "run")


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        (
            ",",
            ";",
            "no column visit; its columns are visit;no;song;played_s;thumb. The first line holds semicolons",
        ),
        (
            ",",
            "\t",
            "thumb. The first line holds tabs: if they separate the columns, write the file with commas",
        ),
        (".", ",", "as in the first line. The first line holds semicolons: if they"),
    ],
    ids=["semicolons", "tabs", "semicolons and decimal commas"],
)
def test_another_separator_than_a_comma_is_told(
    raw: Path, tmp_path: Path, old: str, new: str, message: str
) -> None:
    text = (raw / "events.csv").read_text()
    if old == ".":
        text = text.replace(",", ";")
    (raw / "events.csv").write_text(text.replace(old, new))
    assert message in refusal(raw, tmp_path / "run")


def test_a_missing_raw_dir_is_refused(tmp_path: Path) -> None:
    with pytest.raises(LogError, match=r"data\.raw_dir is not given; give the folder of your tables"):
        IMPORTERS["table"](DataConfig(name="table"), tmp_path)


def test_the_first_twenty_bad_cells_are_listed_and_the_rest_counted(raw: Path, tmp_path: Path) -> None:
    rows = cells(raw / "events.csv")
    write(raw / "events.csv", [row | {"thumb": "?"} for row in rows])
    text = refusal(raw, tmp_path / "run")
    assert f"{len(rows)} faults" in text and text.count("'?'") == 20
    assert f"... and {len(rows) - 20} more" in text


def test_a_fault_found_late_does_not_disturb_a_finished_log(raw: Path, tmp_path: Path) -> None:
    before = run(raw, tmp_path / "run").fingerprint
    with pytest.raises(LogError, match="exists; a log is written once"):
        run(raw, tmp_path / "run")
    assert run(raw, tmp_path / "other").fingerprint == before
