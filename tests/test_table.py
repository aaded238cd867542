"""Users' own tables: the example's values by hand, the same log from any form of the files, and refusals."""

import csv
import random
import shutil
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet
import pytest
import yaml

from amrs.config.data import DataConfig
from amrs.importers import IMPORTERS, delivery, reading, table
from amrs.logs.schema import LogError, SessionLog, read_log

EXAMPLE = Path(__file__).parents[1] / "examples" / "own_log"
Edit = Callable[[dict[str, Any]], None]


def run(raw: Path, folder: Path, map_file: Path | None = None) -> SessionLog:
    folder.mkdir(exist_ok=True)
    settings = DataConfig(name="table", raw_dir=str(raw), map=str(map_file) if map_file else None)
    IMPORTERS["table"](settings, folder)
    return read_log(folder / "log")


def refusal(raw: Path, folder: Path) -> str:
    folder.mkdir()
    with pytest.raises(LogError) as error:
        run(raw, folder)
    assert list(folder.iterdir()) == []  # nothing half-written
    text = str(error.value)
    assert not any(f"L{k}" in text for k in range(1, 6))  # the example's user ids
    return text


@pytest.fixture
def raw(tmp_path: Path) -> Path:
    """A copy of the example to change."""
    return Path(shutil.copytree(EXAMPLE, tmp_path / "raw"))


def cells(file: Path) -> list[dict[str, str]]:
    with file.open(newline="") as lines:
        return list(csv.DictReader(lines))


def write(file: Path, rows: list[dict[str, Any]]) -> None:
    with file.open("w", newline="") as lines:
        writer = csv.DictWriter(lines, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)


def change(file: Path, row: int, **values: str) -> None:
    """Overwrite cells of a row, counted from 1 below the header."""
    rows = cells(file)
    rows[row - 1].update(values)
    write(file, rows)


def edit_map(raw: Path, edit: Edit) -> None:
    content = yaml.load((raw / "map.yaml").read_text(), Loader=yaml.BaseLoader)
    edit(content)
    (raw / "map.yaml").write_text(yaml.safe_dump(content))


def test_the_example_has_ten_sessions_with_the_values_of_its_files(tmp_path: Path) -> None:
    log = run(EXAMPLE, tmp_path)
    by_id = {session["session_id"]: session for session in log.sessions}
    assert len(log.sessions) == len(cells(EXAMPLE / "sessions.csv")) == 10
    # V06,L1,05.03.2025 20:10,05.03.2025 20:18,study,trial,5,4,5,7,end,70 in Berlin's winter time
    session = by_id["V06"]
    assert session["user_id"] == "L1"
    assert session["started_at"] == datetime(2025, 3, 5, 19, 10, tzinfo=UTC)
    assert session["ended_at"] == datetime(2025, 3, 5, 19, 18, tzinfo=UTC)
    assert session["utc_offset_min"] == 60
    assert log.metadata.modes[session["mode"]] == "focus"
    assert log.metadata.cohorts[session["cohort"]] == "trial"
    assert session["pre_valence"] == pytest.approx((5 - 1) / 6)
    assert session["post_arousal"] == 1.0
    assert session["ended"] == "completed"
    assert session["context"] == [70.0]
    events = sorted(
        (e for e in cells(EXAMPLE / "events.csv") if e["visit"] == "V06"), key=lambda e: int(e["no"])
    )
    length_s = {t["song"]: int(t["length_ms"]) / 1000 for t in cells(EXAMPLE / "catalogue.csv")}
    assert session["track_id"] == [e["song"] for e in events]
    assert session["engagement"] == pytest.approx(
        [float(e["played_s"]) / length_s[e["song"]] for e in events]
    )
    assert session["rating"] == [{"up": 1, "down": 0, "": None}[e["thumb"]] for e in events]


def test_empty_cells_stay_null(tmp_path: Path) -> None:
    by_id = {session["session_id"]: session for session in run(EXAMPLE, tmp_path).sessions}
    assert by_id["V07"]["post_valence"] is None and by_id["V07"]["post_arousal"] is None
    assert by_id["V05"]["mode"] is None
    assert by_id["V04"]["context"] is None


def test_the_catalogue_has_embeddings_modes_and_lengths(tmp_path: Path) -> None:
    tracks = {track["track_id"]: track for track in run(EXAMPLE, tmp_path).catalogue}
    # S001,Song 1,Band 1,ambient,287000,-1.1,0.7,-0.11,-0.16,relax;study
    assert tracks["S001"]["embedding"] == pytest.approx([-1.1, 0.7, -0.11, -0.16])
    assert tracks["S001"]["modes"] == ["calm", "focus"]
    assert tracks["S001"]["duration_s"] == 287
    assert [tracks["S001"][k] for k in ("title", "artist", "genre")] == ["Song 1", "Band 1", "ambient"]
    assert tracks["S002"]["modes"] is None


def test_the_order_of_rows_does_not_matter(raw: Path, tmp_path: Path) -> None:
    expected = run(EXAMPLE, tmp_path / "a").fingerprint
    for name in ("sessions.csv", "events.csv"):
        rows = cells(raw / name)
        random.Random(3).shuffle(rows)
        write(raw / name, rows)
    assert run(raw, tmp_path / "b").fingerprint == expected


def test_parquet_gives_the_same_log_as_csv(raw: Path, tmp_path: Path) -> None:
    for part in ("sessions", "events", "catalogue"):
        typed = pa.csv.read_csv(raw / f"{part}.csv")  # numbers as numbers, as other tools write Parquet
        if part == "catalogue":
            vectors = [
                list(v) for v in zip(*(typed[f"vec_{k}"].to_pylist() for k in (1, 2, 3, 4)), strict=True)
            ]
            typed = typed.append_column("vector", pa.array(vectors))
            good_for = [text.split(";") if text else None for text in typed["good_for"].to_pylist()]
            typed = typed.drop_columns("good_for").append_column("good_for", pa.array(good_for))
        pa.parquet.write_table(typed, raw / f"{part}.parquet")
        (raw / f"{part}.csv").unlink()
        edit_map(raw, lambda m, part=part: m[part].update(file=f"{part}.parquet"))
    edit_map(raw, lambda m: m["catalogue"]["columns"].update(embedding="vector"))
    assert run(raw, tmp_path / "b").fingerprint == run(EXAMPLE, tmp_path / "a").fingerprint


@pytest.mark.parametrize("form", ["[{}, {}, {}, {}]", "{};{};{};{}", "{} ; {} ; {} ; {}", "{} {} {} {}"])
def test_an_embedding_may_be_one_cell_of_numbers(raw: Path, tmp_path: Path, form: str) -> None:
    rows: list[dict[str, Any]] = []
    for row in cells(raw / "catalogue.csv"):
        vector = form.format(*(row.pop(f"vec_{k}") for k in (1, 2, 3, 4)))
        rows.append(row | {"vector": vector})
    write(raw / "catalogue.csv", rows)
    edit_map(raw, lambda m: m["catalogue"]["columns"].update(embedding="vector"))
    assert run(raw, tmp_path / "b").fingerprint == run(EXAMPLE, tmp_path / "a").fingerprint


@pytest.mark.parametrize(
    ("cell", "options"),
    [
        ("2025-07-01T20:10:00+02:00", {}),
        ("2025-07-01T18:10:00Z", {}),
        ("2025-07-01 20:10", {"zone": "Europe/Berlin"}),
        ("1751393400", {"unit": "s"}),
        ("1751393400000", {"unit": "ms"}),
        ("07/01/25 08:10 PM", {"format": "%m/%d/%y %I:%M %p", "zone": "Europe/Berlin"}),
        # A year at the end looks like an offset, and an offset need not have minutes.
        ("20:10 01-07-2025", {"format": "%H:%M %d-%m-%Y", "zone": "Europe/Berlin"}),
        ("20:10 01-07-2025 +0200", {"format": "%H:%M %d-%m-%Y %z"}),
        ("01.07.2025 18:10Z", {"format": "%d.%m.%Y %H:%MZ"}),
        ("2025-07-01 20:10:00+02", {"zone": "Europe/Berlin"}),
        ("20250701T2010+0200", {"zone": "Europe/Berlin"}),
    ],
)
def test_times_in_any_stated_form_become_utc(
    raw: Path, tmp_path: Path, cell: str, options: dict[str, str]
) -> None:
    rows: list[dict[str, Any]] = [
        row | {"listener": f"U{i}", "begin": cell} for i, row in enumerate(cells(raw / "sessions.csv"))
    ]
    write(raw / "sessions.csv", rows)

    def edit(m: dict[str, Any]) -> None:
        m["sessions"]["columns"].update(started_at={"column": "begin", **options})
        del m["sessions"]["columns"]["ended_at"]

    edit_map(raw, edit)
    log = run(raw, tmp_path / "run")
    assert set(log.sessions["started_at"]) == {datetime(2025, 7, 1, 18, 10, tzinfo=UTC)}
    assert set(log.sessions["utc_offset_min"]) == {120 if "zone" in options else None}


def test_of_a_local_time_that_comes_twice_the_first_is_meant(raw: Path, tmp_path: Path) -> None:
    change(raw / "sessions.csv", 10, begin="26.10.2025 02:30", finish="26.10.2025 03:10")
    (session,) = [s for s in run(raw, tmp_path / "run").sessions if s["session_id"] == "V10"]
    assert session["started_at"] == datetime(2025, 10, 26, 0, 30, tzinfo=UTC)
    assert session["ended_at"] == datetime(2025, 10, 26, 2, 10, tzinfo=UTC)
    assert session["utc_offset_min"] == 120


def test_stars_become_likes_and_dislikes(raw: Path, tmp_path: Path) -> None:
    rows = [row | {"stars": str(1 + i % 5)} for i, row in enumerate(cells(raw / "events.csv"))]
    write(raw / "events.csv", rows)
    edit_map(
        raw, lambda m: m["events"]["columns"].update(rating={"column": "stars", "like": "4", "dislike": "2"})
    )
    given = {(row["visit"], row["song"]): row["stars"] for row in rows}
    for session in run(raw, tmp_path / "run").sessions:
        for track, rating in zip(session["track_id"], session["rating"], strict=True):
            assert rating == {"1": 0, "2": 0, "3": None, "4": 1, "5": 1}[given[session["session_id"], track]]


def test_a_service_that_repeats_tracks_is_noticed(raw: Path, tmp_path: Path) -> None:
    assert run(EXAMPLE, tmp_path / "a").metadata.repeats is False
    rows = cells(raw / "events.csv")
    write(raw / "events.csv", [*rows, rows[0] | {"no": "99"}])
    assert run(raw, tmp_path / "b").metadata.repeats is True


def test_a_signal_that_is_never_given_is_not_declared(raw: Path, tmp_path: Path) -> None:
    edit_map(
        raw, lambda m: [m["events"]["columns"].pop("rating"), m["sessions"]["columns"].pop("post_arousal")]
    )
    assert run(raw, tmp_path / "run").metadata.signals == {"engagement": "bounded", "valence": "bounded"}


def test_many_sessions_are_written_in_shards_of_whole_users(tmp_path: Path, monkeypatch: Any) -> None:
    whole = run(EXAMPLE, tmp_path / "a")
    monkeypatch.setattr(table, "SHARD_SESSIONS", 3)
    cut = run(EXAMPLE, tmp_path / "b")
    assert len(list((tmp_path / "b" / "log" / "sessions").iterdir())) > 1
    assert cut.sessions.to_list() == whole.sessions.to_list()


@pytest.mark.parametrize("kind", ["csv", "parquet"])
def test_a_delivery_in_parts_gives_the_same_sessions(
    raw: Path, tmp_path: Path, monkeypatch: Any, kind: str
) -> None:
    if kind == "parquet":
        for part in ("sessions", "events"):
            text = pa.csv.read_csv(raw / f"{part}.csv")
            pa.parquet.write_table(text, raw / f"{part}.parquet", row_group_size=7)
            edit_map(raw, lambda m, part=part: m[part].update(file=f"{part}.parquet"))
    whole = run(raw, tmp_path / "a")
    for module, name, value in (
        (delivery, "PART_BYTES", 500),
        (reading, "_BLOCK", 300),
        (reading, "_ROWS", 5),
    ):
        monkeypatch.setattr(module, name, value)
    parts = run(raw, tmp_path / "b")
    assert len(list((tmp_path / "b" / "log" / "sessions").iterdir())) > 1
    assert [path.name for path in (tmp_path / "b").iterdir()] == ["log"]  # nothing of the parts is left
    assert parts.metadata == whole.metadata
    assert sorted(parts.sessions, key=lambda s: str(s["session_id"])) == sorted(
        whole.sessions, key=lambda s: str(s["session_id"])
    )
    users = [session["user_id"] for session in parts.sessions]
    assert len([u for u, before in zip(users, [None, *users], strict=False) if u != before]) == len(
        set(users)
    )


def test_faults_of_a_delivery_in_parts_name_rows_of_the_file(
    raw: Path, tmp_path: Path, monkeypatch: Any
) -> None:
    change(raw / "events.csv", 31, thumb="sideways")
    change(raw / "events.csv", 7, visit="V99")
    change(raw / "events.csv", 8, visit="")
    change(raw / "sessions.csv", 3, begin="soon")
    change(raw / "sessions.csv", 9, visit="")
    whole = refusal(raw, tmp_path / "a")
    monkeypatch.setattr(delivery, "PART_BYTES", 500)
    parts = refusal(raw, tmp_path / "b")
    assert sorted(parts.splitlines()) == sorted(whole.splitlines())
    assert "row 31" in parts and "row 7" in parts and "row 8" in parts
    assert "column visit (session_id), session_id (empty), row 9: null; allowed: not empty" in parts


def test_faults_of_sorted_sessions_quote_the_cells_of_a_delivery_in_parts(
    raw: Path, tmp_path: Path, monkeypatch: Any
) -> None:
    change(raw / "sessions.csv", 1, finish="06.03.2025 08:00")
    monkeypatch.setattr(delivery, "PART_BYTES", 500)
    assert (
        "session_id V06, row 6: '05.03.2025 20:10'; allowed: not before the end of this user's previous "
        "session, session_id V01 (row 1: '06.03.2025 08:00')"
    ) in refusal(raw, tmp_path / "run")


def test_data_map_names_a_map_elsewhere(raw: Path, tmp_path: Path) -> None:
    elsewhere = (raw / "map.yaml").rename(tmp_path / "columns.yaml")
    assert len(run(raw, tmp_path / "run", elsewhere).sessions) == 10
