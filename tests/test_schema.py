"""The session log on disk: what is written reads back the same, and nothing half-written stays."""

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import pyarrow as pa
import pytest
from small_log import METADATA, TIME, catalogue, hour, many, sessions

from amrs.logs.columns import _narrow, conform, even_lists, save
from amrs.logs.faults import Faults
from amrs.logs.schema import FORMAT_VERSION, LogError, Metadata, read_log, session_schema, validate, write_log


def test_a_log_reads_back_as_it_was_written(tmp_path: Path) -> None:
    table = sessions()
    write_log(tmp_path / "log", [table.slice(0, 2), table.slice(2)], catalogue(), METADATA, "test")
    log = read_log(tmp_path / "log")
    assert log.metadata == METADATA
    assert log.sessions["session_id"][:] == ["s1", "s2", "s3"]
    assert log.sessions["mode"][:] == [0, None, 1]
    assert log.sessions["track_id"][:] == [["a", "b"], ["c"], ["b", "c"]]
    assert log.sessions["started_at"][:] == [hour(1), hour(5), hour(2)]
    assert log.sessions["context"][:] == [[0.5, 70.0], None, [None, 80.0]]
    assert log.catalogue["embedding"][:] == [[0.0, 1.0], [2.0, 3.0], [4.0, 5.0]]
    assert log.catalogue["modes"][:] == [["calm"], None, ["calm", "focus"]]
    assert {p.name for p in (tmp_path / "log" / "sessions").iterdir()} == {"shard-00000", "shard-00001"}


def test_missing_feedback_stays_null_and_null_lists_become_lists_of_nulls(tmp_path: Path) -> None:
    write_log(tmp_path / "log", [sessions()], catalogue(), METADATA, "test")
    log = read_log(tmp_path / "log")
    assert log.sessions["engagement"][:] == [[0.5, None], [None], [1.0, 0.0]]
    assert log.sessions["rating"][:] == [[1, 0], [None], [None, None]]
    assert log.sessions["track_arousal"][:] == [
        [None, None],
        [None],
        [None, None],
    ]  # no such column was given
    assert log.sessions["post_arousal"][:] == [None, None, None]
    assert log.sessions["arm"][:] == [None, None, None]


def test_a_written_log_passes_validation_again(tmp_path: Path) -> None:
    write_log(tmp_path / "log", [sessions()], catalogue(), METADATA, "test")
    log = read_log(tmp_path / "log")
    validate(log.sessions.data.table, log.catalogue.data.table, METADATA, "log")


@pytest.mark.parametrize("table", [sessions(), many(2500)])
def test_the_files_are_those_that_datasets_writes(tmp_path: Path, table: pa.Table) -> None:
    """To the byte; also of more rows than it takes at a time."""
    features = session_schema(METADATA)
    wide = even_lists(conform(table, features, "sessions", Faults("test")))
    digest = hashlib.sha256()
    save(wide, features, tmp_path / "ours", digest)
    plain, info = _narrow(wide, features), datasets.DatasetInfo(features=features)
    named = datasets.Dataset(plain, info=info, fingerprint=digest.hexdigest()[:16])
    named.save_to_disk(str(tmp_path / "theirs"), num_shards=1)
    ours, theirs = (
        {file.name: file.read_bytes() for file in (tmp_path / name).iterdir()} for name in ("ours", "theirs")
    )
    assert len(ours) == 3 and ours == theirs


def test_a_column_of_null_lists_is_that_of_lists_of_nulls(tmp_path: Path) -> None:
    nulls = [[None, None], [None], [None, None]]
    write_log(tmp_path / "a", [sessions(propensity=[None] * 3)], catalogue(), METADATA, "test")
    write_log(tmp_path / "b", [sessions(propensity=nulls)], catalogue(), METADATA, "test")
    assert read_log(tmp_path / "a").fingerprint == read_log(tmp_path / "b").fingerprint


def test_the_fingerprint_follows_the_content(tmp_path: Path) -> None:
    def fingerprint(name: str, table: pa.Table, tracks: pa.Table) -> str:
        write_log(tmp_path / name, [table], tracks, METADATA, "test")
        return read_log(tmp_path / name).fingerprint

    first = fingerprint("a", sessions(), catalogue())
    assert fingerprint("b", sessions(), catalogue()) == first
    assert fingerprint("c", sessions(pre_valence=[0.2, None, 1.0]), catalogue()) != first
    assert fingerprint("d", sessions(), catalogue(duration_s=[181.0, None, 200.0])) != first


def with_ids(prefix: str, user: str) -> pa.Table:
    return sessions(
        session_id=[f"{prefix}{i}" for i in (1, 2, 3)],
        user_id=[user] * 3,
        started_at=pa.array([hour(1), hour(5), hour(9)], TIME),
        ended_at=None,
    )


@pytest.mark.parametrize(
    ("shards", "message"),
    [
        (
            lambda: [with_ids("s", "secret-1"), with_ids("s", "secret-2")],
            "sessions.session_id, session_id s1: given again; allowed: every session once",
        ),
        (
            lambda: [with_ids("s", "secret-1"), with_ids("t", "secret-1")],
            "sessions.user_id, shard 1: users of an earlier shard; allowed: all sessions of a user in one",
        ),
        (
            lambda: [with_ids("s", "secret-1"), sessions(pre_valence=[7.0, None, None])],
            "sessions.pre_valence, session_id s1: 7;",
        ),
        (lambda: [], "test: no sessions"),
    ],
)
def test_a_fault_in_any_shard_leaves_nothing_behind(
    tmp_path: Path, shards: Callable[[], list[pa.Table]], message: str
) -> None:
    (tmp_path / "config.yaml").write_text("seed: 0\n")
    with pytest.raises(LogError) as error:
        write_log(tmp_path / "log", shards(), catalogue(), METADATA, "test")
    assert message in str(error.value)
    assert "secret" not in str(error.value)
    assert [p.name for p in tmp_path.iterdir()] == ["config.yaml"]


def test_an_interrupted_writer_leaves_nothing_behind(tmp_path: Path) -> None:
    def shards() -> Any:
        yield sessions()
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_log(tmp_path / "log", shards(), catalogue(), METADATA, "test")
    assert list(tmp_path.iterdir()) == []


def test_a_log_is_not_written_over_another(tmp_path: Path) -> None:
    write_log(tmp_path / "log", [sessions()], catalogue(), METADATA, "test")
    before = read_log(tmp_path / "log").fingerprint
    with pytest.raises(LogError, match="log exists"):
        write_log(tmp_path / "log", [with_ids("t", "u")], catalogue(), METADATA, "test")
    assert read_log(tmp_path / "log").fingerprint == before


@pytest.mark.parametrize(
    ("version", "advice"),
    [(FORMAT_VERSION - 1, "run stage=prepare again"), (FORMAT_VERSION + 1, "update amrs")],
)
def test_another_format_version_is_refused_in_words(tmp_path: Path, version: int, advice: str) -> None:
    write_log(tmp_path / "log", [sessions()], catalogue(), METADATA, "test")
    file = tmp_path / "log" / "metadata.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"format_version": version}))
    with pytest.raises(
        LogError, match=f"format version {version}, this program reads {FORMAT_VERSION}: {advice}"
    ):
        read_log(tmp_path / "log")


def test_a_folder_without_a_log_is_refused_in_words(tmp_path: Path) -> None:
    with pytest.raises(LogError, match=r"holds no session log: metadata\.json is missing or damaged"):
        read_log(tmp_path)


def test_a_log_without_modes_cohorts_and_context_can_be_written(tmp_path: Path) -> None:
    bare = Metadata("bare", (), (), (), {}, False, "made up")
    write_log(
        tmp_path / "log", [many(3).drop_columns("pre_valence")], catalogue(modes=[None] * 3), bare, "test"
    )
    log = read_log(tmp_path / "log")
    assert log.metadata.modes == ()
    assert log.sessions["mode"][:] == [None] * 3
    assert log.sessions["context"][:] == [None] * 3
