"""The session log and the catalogue: columns, versions, and how they are written and read.

A log is a folder: `sessions/shard-00000/`, ... and `catalogue/` (Hugging Face datasets) and `metadata.json`.
One row per session, one row per track; unknown is null, never 0. Scales are [0, 1], times are UTC.
"""

import hashlib
import json
import shutil
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from datasets import ClassLabel, Features, List, Value

from amrs.logs.columns import conform, even_lists, save
from amrs.logs.faults import Faults, LogError, Source
from amrs.logs.validation import REPORTS, check_catalogue, check_sessions, given_again

__all__ = [
    "FORMAT_VERSION",
    "SIGNALS_ORDER",
    "LogError",
    "Metadata",
    "SessionLog",
    "catalogue_schema",
    "checked_sessions",
    "new_log",
    "read_log",
    "read_shards",
    "session_schema",
    "validate",
    "write_log",
]

FORMAT_VERSION = 1
SIGNALS_ORDER = ("engagement", "rating", "valence", "arousal")
KINDS = {"engagement": "bounded", "rating": "binary", "valence": "bounded", "arousal": "bounded"}


@dataclass(frozen=True)
class Metadata:
    """What a log says about itself."""

    name: str
    """Name of the data set."""
    modes: tuple[str, ...]
    """Names of the listening modes; empty where none are recorded."""
    cohorts: tuple[str, ...]
    """Names of the groups of users; empty where none are recorded."""
    context: tuple[str, ...]
    """Names of the numbers in `context`, in order."""
    signals: dict[str, str]
    """Declared signals and their kind, bounded or binary."""
    repeats: bool
    """True where the service plays a track twice in a session; then no no-repeat mask is used."""
    embedding: str
    """What the embeddings are, in words."""
    format_version: int = FORMAT_VERSION

    def __post_init__(self) -> None:
        """Refuse unknown signals and names given twice."""
        for signal, kind in self.signals.items():
            if KINDS.get(signal) != kind:
                allowed = ", ".join(f"{name}: {of}" for name, of in KINDS.items())
                raise LogError(f"metadata of {self.name}: signal {signal}: {kind} is not among {allowed}")
        for field in ("modes", "cohorts", "context"):
            names = getattr(self, field)
            if len(set(names)) < len(names) or not all(names):
                raise LogError(f"metadata: {field} {names}; allowed: different names, none empty")


@dataclass(frozen=True)
class SessionLog:
    """A log on disk, memory-mapped."""

    sessions: datasets.Dataset
    catalogue: datasets.Dataset
    metadata: Metadata
    fingerprint: str
    """Hash of the content of sessions, catalogue and metadata."""


def session_schema(metadata: Metadata) -> Features:
    """Columns of the sessions; lists have one item per track played."""
    number, text = Value("float32"), Value("string")
    context = List(number, length=len(metadata.context)) if metadata.context else List(number)
    return Features(
        {
            "session_id": text,
            "user_id": text,
            "started_at": Value("timestamp[ms, tz=UTC]"),
            "ended_at": Value("timestamp[ms, tz=UTC]"),
            "utc_offset_min": Value("int16"),
            # A class label needs a name: where none exist, all rows are null.
            "mode": ClassLabel(names=list(metadata.modes) or ["unknown"]),
            "cohort": ClassLabel(names=list(metadata.cohorts) or ["unknown"]),
            "context": context,
            **dict.fromkeys(REPORTS, number),
            "ended": text,
            "track_id": List(text),
            "engagement": List(number),
            "rating": List(Value("int8")),
            "track_valence": List(number),
            "track_arousal": List(number),
            "propensity": List(number),
            "arm": text,
        }
    )


def catalogue_schema(metadata: Metadata, dimension: int) -> Features:
    """Columns of the catalogue, for embeddings of `dimension` numbers; `modes` null means every mode."""
    text = Value("string")
    return Features(
        {
            "track_id": text,
            "embedding": List(Value("float32"), length=dimension),
            "artist": text,
            "genre": text,
            "duration_s": Value("float32"),
            "modes": List(text),
            "title": text,
        }
    )


def validate(sessions: pa.Table, catalogue: pa.Table, metadata: Metadata, source: Source) -> None:
    """Raise LogError naming the first faults, if the tables break the format.

    `source` is the file (or folder) that the tables came from, for the message; a mapping from
    "sessions.mode", "catalogue.modes", ... names it per column. Columns may be wider than on disk
    (float64, int64, class names or codes), and those that may be null may be left out.
    """
    catalogue = _checked_catalogue(catalogue, metadata, source)
    checked_sessions(sessions, catalogue, metadata, source)


def write_log(
    folder: Path, shards: Iterable[pa.Table], catalogue: pa.Table, metadata: Metadata, source: Source
) -> None:
    """Validate and write a log to `folder`, which must not exist; all of it or, on a fault, nothing.

    Shards are tables of sessions, written one by one; all sessions of a user are in one shard.
    """
    with new_log(folder) as partial:
        catalogue = _checked_catalogue(catalogue, metadata, source)
        fingerprint = _write_tables(partial, shards, catalogue, metadata, source)
        about = {**asdict(metadata), "fingerprint": fingerprint}
        (partial / "metadata.json").write_text(json.dumps(about, indent=1) + "\n")


@contextmanager
def new_log(folder: Path) -> Iterator[Path]:
    """A folder to write a log in, which becomes `folder` if all goes well and else is removed."""
    if folder.exists():
        raise LogError(f"{folder} exists; a log is written once, into a new folder")
    partial = folder.with_name(folder.name + ".partial")
    shutil.rmtree(partial, ignore_errors=True)
    try:
        partial.mkdir(parents=True)
        yield partial
        partial.rename(folder)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def read_log(folder: Path) -> SessionLog:
    """Open a log that `write_log` wrote, memory-mapped; LogError in words if it is none."""
    file = folder / "metadata.json"
    try:
        about: dict[str, Any] = json.loads(file.read_text())
        version, fingerprint = about["format_version"], about.pop("fingerprint")
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise LogError(
            f"{folder} holds no session log: {file.name} is missing or damaged "
            f"({type(error).__name__}); run stage=prepare"
        ) from error
    if version != FORMAT_VERSION:
        raise LogError(
            f"{folder} has format version {version}, this program reads {FORMAT_VERSION}: "
            f"{'run stage=prepare again' if version < FORMAT_VERSION else 'update amrs'}"
        )
    modes, cohorts, context = (tuple(about[key]) for key in ("modes", "cohorts", "context"))
    metadata = Metadata(
        about["name"], modes, cohorts, context, about["signals"], about["repeats"], about["embedding"]
    )
    try:
        sessions = [datasets.Dataset.load_from_disk(str(part)) for part in _parts(folder)]
        catalogue = datasets.Dataset.load_from_disk(str(folder / "catalogue"))
        return SessionLog(datasets.concatenate_datasets(sessions), catalogue, metadata, fingerprint)
    except (OSError, ValueError) as error:
        raise LogError(f"{folder} is damaged: {error}; run stage=prepare again") from error


def read_shards(folder: Path, log: SessionLog) -> Iterator[SessionLog]:
    """The log in `folder` one shard at a time, each with whole users."""
    for part in _parts(folder):
        yield replace(log, sessions=datasets.Dataset.load_from_disk(str(part)))


def _parts(folder: Path) -> list[Path]:
    return sorted((folder / "sessions").glob("shard-*"))


def _checked_catalogue(catalogue: pa.Table, metadata: Metadata, source: Source) -> pa.Table:
    faults = Faults(source)
    wide = conform(catalogue, catalogue_schema(metadata, 1), "catalogue", faults)
    faults.raise_any()
    check_catalogue(wide, metadata.modes, faults)
    faults.raise_any()
    return wide


def checked_sessions(sessions: pa.Table, catalogue: pa.Table, metadata: Metadata, source: Source) -> pa.Table:
    """The sessions as wide columns; LogError that names what is wrong with them."""
    faults = Faults(source)
    wide = conform(sessions, session_schema(metadata), "sessions", faults)
    faults.raise_any()
    check_sessions(
        wide, catalogue, metadata.modes, metadata.cohorts, len(metadata.context), metadata.repeats, faults
    )
    faults.raise_any()
    return wide


def _write_tables(
    folder: Path, shards: Iterable[pa.Table], catalogue: pa.Table, metadata: Metadata, source: Source
) -> str:
    """Write catalogue and shards; the fingerprint of the content."""
    digest = hashlib.sha256(json.dumps(asdict(metadata), sort_keys=True).encode())
    dimension = pc.list_value_length(catalogue["embedding"])[0].as_py()
    save(catalogue, catalogue_schema(metadata, dimension), folder / "catalogue", digest)
    session_ids: list[pa.ChunkedArray] = []
    users: list[pa.Array] = []
    for sessions in shards:
        if not len(sessions):
            continue
        wide = checked_sessions(sessions, catalogue, metadata, source)
        path = folder / "sessions" / f"shard-{len(users):05d}"
        save(even_lists(wide), session_schema(metadata), path, digest)
        session_ids.append(wide["session_id"])
        users.append(pc.unique(wide["user_id"]))
    if not users:
        raise LogError(f"{Faults(source).origin.places.get('', 'the log')}: no sessions")
    _check_across(session_ids, users, source)
    return digest.hexdigest()[:16]


def _check_across(session_ids: list[pa.ChunkedArray], users: list[pa.Array], source: Source) -> None:
    """No session id twice and no user in two shards."""
    faults = Faults(source)
    ids = pa.chunked_array([chunk for array in session_ids for chunk in array.chunks])
    twice = ids.filter(pa.array(given_again(ids))).combine_chunks()
    faults.add_rows(
        "sessions.session_id", np.ones(len(twice), bool), twice, "given again", "every session once"
    )
    shard = np.repeat(np.arange(len(users)), [len(part) for part in users])
    for part in np.unique(shard[given_again(pa.chunked_array(users))]).tolist():
        faults.add(
            "sessions.user_id",
            f"shard {part}",
            "users of an earlier shard",
            "all sessions of a user in one shard",
        )
    faults.raise_any()
