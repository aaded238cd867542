"""New sessions in a log that is prepared already: the old ones are neither parsed nor checked again.

A shard whose users are not among the new sessions' is linked as it is; a shard with some of them is
merged; new users come in shards of their own, behind the old ones.
"""

import hashlib
import json
import os
import shutil
from collections.abc import Iterable
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from amrs.logs.columns import conform, even_lists, save
from amrs.logs.faults import Faults, LogError, Source
from amrs.logs.schema import (
    Metadata,
    SessionLog,
    catalogue_schema,
    checked_sessions,
    new_log,
    read_log,
    read_shards,
    session_schema,
)  # fmt: skip
from amrs.logs.validation import check_catalogue, codes, mask


def add_sessions(
    folder: Path, base: Path, shards: Iterable[pa.Table], catalogue: pa.Table, metadata: Metadata,
    source: Source,
) -> None:  # fmt: skip
    """Write the log of `base` with the sessions of `shards` to `folder`, which must not exist.

    Tracks that `base` has stay as they are there; others are added. Every shard of new sessions holds whole
    users; all of them together fit into memory.

    Raises:
        LogError: the new sessions break the format, repeat a session, begin before a listener's last one has
            ended, or have modes, cohorts or context that `base` does not have.
    """
    old = read_log(base)
    about = _joined(old.metadata, metadata, base)
    tracks = _joined_catalogue(old, catalogue, about, source)
    new = pa.concat_tables([checked_sessions(shard, tracks, about, source) for shard in shards])
    with new_log(folder) as partial:
        digest = hashlib.sha256(f"{old.fingerprint} {json.dumps(asdict(about), sort_keys=True)}".encode())
        dimension = len(old.catalogue[0]["embedding"])
        save(tracks, catalogue_schema(about, dimension), partial / "catalogue", digest)
        rest, parts = new, sorted((base / "sessions").glob("shard-*"))
        for part, shard in zip(parts, read_shards(base, replace(old, metadata=about)), strict=True):
            rest = _merge(partial / "sessions" / part.name, part, shard, rest, new, tracks, source, digest)
        if len(rest):
            path = partial / "sessions" / f"shard-{len(parts):05d}"
            save(even_lists(rest), session_schema(about), path, digest)
        about_json = {**asdict(about), "fingerprint": digest.hexdigest()[:16]}
        (partial / "metadata.json").write_text(json.dumps(about_json, indent=1) + "\n")


def _joined(old: Metadata, new: Metadata, base: Path) -> Metadata:
    """The old log's, with signals that are new; names that it does not have are refused."""
    for name in ("modes", "cohorts", "context"):
        had, given = getattr(old, name), getattr(new, name)
        if (name == "context" and given != had) or set(given) - set(had):
            given, had = (", ".join(names) or "none" for names in (given, had))
            raise LogError(
                f"{name} of the new sessions: {given}; allowed: {had}, as in {base} (or prepare all sessions "
                "together)"
            )
    return replace(old, signals={**old.signals, **new.signals}, repeats=old.repeats or new.repeats)


def _joined_catalogue(old: SessionLog, new: pa.Table, about: Metadata, source: Source) -> pa.Table:
    """The old tracks in their order, then those that are new."""
    faults, schema = Faults(source), catalogue_schema(about, 1)
    parts = [conform(t, schema, "catalogue", faults) for t in (old.catalogue.with_format("arrow")[:], new)]
    faults.raise_any()
    had, given = (part["track_id"].combine_chunks() for part in parts)
    tracks = pa.concat_tables([parts[0], parts[1].filter(pa.array(codes(given, had) < 0))]).combine_chunks()
    check_catalogue(tracks, about.modes, faults)
    faults.raise_any()
    return tracks


def _merge(
    path: Path, part: Path, shard: SessionLog, rest: pa.Table, new: pa.Table, catalogue: pa.Table,
    source: Source, digest: "hashlib._Hash",
) -> pa.Table:  # fmt: skip
    """Write one old shard with the new sessions of its users; those of `rest` that have other users."""
    faults, schema = Faults(source), session_schema(shard.metadata)
    ids = new["session_id"].combine_chunks()
    known = shard.sessions.with_format("arrow")[:].select(["session_id", "user_id"])
    again = codes(ids, known["session_id"].combine_chunks()) >= 0
    faults.add_rows("sessions.session_id", again, ids, "in the log already", "every session once")
    faults.raise_any()
    mine = codes(rest["user_id"].combine_chunks(), pc.unique(known["user_id"])) >= 0
    if not mine.any():
        shutil.copytree(part, path, copy_function=os.link)
        return rest
    before = conform(shard.sessions.with_format("arrow")[:], schema, "sessions", faults)
    faults.raise_any()
    both = pa.concat_tables([before, rest.filter(pa.array(mine))]).combine_chunks()
    user = codes(both["user_id"].combine_chunks())
    start = both["started_at"].cast(pa.int64()).to_numpy()
    both = both.take(pa.array(np.lexsort((start, user))))  # stable: the old session first
    added = mask(pc.is_in(both["user_id"], rest.filter(pa.array(mine))["user_id"].combine_chunks()))
    checked_sessions(both.filter(pa.array(added)), catalogue, shard.metadata, source)
    save(even_lists(both), schema, path, digest)
    return rest.filter(pa.array(~mine))
