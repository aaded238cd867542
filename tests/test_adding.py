"""New sessions in a prepared log: the same histories as all sessions prepared together."""

import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from conftest import train
from test_table import EXAMPLE, cells, write

from amrs.config.data import DataConfig
from amrs.importers import IMPORTERS, table
from amrs.logs.mapped import open_flat
from amrs.logs.schema import LogError, SessionLog, read_log

Part = Callable[[dict[str, str]], bool]


def split(folder: Path, keep: Part) -> Path:
    """The example with the sessions that `keep` picks, and their events."""
    raw = Path(shutil.copytree(EXAMPLE, folder))
    sessions = [row for row in cells(raw / "sessions.csv") if keep(row)]
    visits = {row["visit"] for row in sessions}
    write(raw / "sessions.csv", sessions)
    write(raw / "events.csv", [row for row in cells(raw / "events.csv") if row["visit"] in visits])
    return raw


def prepared(raw: Path, folder: Path, base: Path | None = None) -> SessionLog:
    folder.mkdir()
    config = DataConfig(name="table", raw_dir=str(raw), base=str(base) if base else None)
    IMPORTERS["table"](config, folder)
    return read_log(folder / "log")


def histories(log: SessionLog) -> dict[str, list[dict[str, Any]]]:
    """Every user's sessions in order."""
    found: dict[str, list[dict[str, Any]]] = {}
    for session in log.sessions:
        found.setdefault(session["user_id"], []).append(session)
    return found


def late(row: dict[str, str]) -> bool:
    """The later half of the sessions, and all of a listener who is new then."""
    begins = sorted(session["begin"] for session in cells(EXAMPLE / "sessions.csv"))
    return row["begin"] >= begins[len(begins) // 2] or row["listener"] == "L5"


def test_added_sessions_give_the_histories_of_all_prepared_together(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(table, "SHARD_SESSIONS", 2)
    whole = prepared(EXAMPLE, tmp_path / "whole")
    early = split(tmp_path / "early", lambda row: not late(row))
    first = prepared(early, tmp_path / "first")
    both = prepared(split(tmp_path / "late", late), tmp_path / "both", tmp_path / "first")
    assert 0 < len(first.sessions) < len(both.sessions) == len(whole.sessions)
    assert histories(both) == histories(whole)
    assert set(histories(whole)) > set(histories(first)), "nobody is new"
    assert both.fingerprint not in (first.fingerprint, whole.fingerprint)
    flat = open_flat(tmp_path / "both" / "log", both)
    assert sorted(flat.length_S.tolist()) == sorted(
        open_flat(tmp_path / "whole" / "log", whole).length_S.tolist()
    )


def test_shards_without_new_sessions_are_not_written_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(table, "SHARD_SESSIONS", 1)
    first, both = tmp_path / "first", tmp_path / "both"
    prepared(split(tmp_path / "early", lambda row: row["visit"] != "V07"), first)
    prepared(split(tmp_path / "late", lambda row: row["visit"] == "V07"), both, first)
    same = []
    for part in sorted((first / "log" / "sessions").iterdir()):
        file = next(part.glob("*.arrow"))
        same.append(os.path.samefile(file, both / "log" / "sessions" / part.name / file.name))
    assert sum(same) == len(same) - 1 >= 1


def test_a_session_that_is_there_and_one_that_overlaps_are_refused(tmp_path: Path) -> None:
    prepared(EXAMPLE, tmp_path / "first")
    first = cells(EXAMPLE / "sessions.csv")[0]["visit"]
    again = split(tmp_path / "again", lambda row: row["visit"] == first)
    with pytest.raises(LogError, match="in the log already; allowed: every session once"):
        prepared(again, tmp_path / "a", tmp_path / "first")
    for name in ("sessions", "events"):
        rows = [{**row, "visit": "W99"} for row in cells(again / f"{name}.csv")]
        write(again / f"{name}.csv", rows)
    with pytest.raises(LogError, match="overlap") as error:
        prepared(again, tmp_path / "b", tmp_path / "first")
    assert (
        "session_id W99, row 1: '03.03.2025 08:15'; allowed: not before the end of this user's previous "
        f"session, session_id {first} (2025-03-03T07:29:00 in UTC), or"
    ) in str(error.value)
    assert not (tmp_path / "b" / "log").exists() and not (tmp_path / "b" / "log.partial").exists()


def test_a_cohort_that_the_log_does_not_have_is_refused(tmp_path: Path) -> None:
    prepared(split(tmp_path / "early", lambda row: row["panel"] == "trial"), tmp_path / "first")
    public = split(tmp_path / "late", lambda row: row["panel"] == "public")
    with pytest.raises(LogError, match="cohorts of the new sessions: public; allowed: trial, as in"):
        prepared(public, tmp_path / "both", tmp_path / "first")


def test_a_run_with_a_base_says_so_and_is_another_run(tmp_path: Path) -> None:
    early = split(tmp_path / "early", lambda row: not late(row))
    common = ["stage=prepare", "data=table", f"runs={tmp_path / 'runs'}"]
    first = train(*common, f"data.raw_dir={early}").stdout.splitlines()[-1]
    more = [*common, f"data.raw_dir={split(tmp_path / 'late', late)}"]
    both = train(*more, f"data.base={first}").stdout.splitlines()[-1]
    assert len(read_log(Path(both) / "log").sessions) == 10 and both != first
    refused = train(*more, f"data.base={tmp_path}", check=False)
    assert refused.returncode == 1 and "no finished run there" in refused.stderr
