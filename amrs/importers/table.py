"""Your own logs: sessions, events and catalogue as CSV or Parquet, and a column map in YAML.

Nothing need be sorted: sessions are put in the order of their user and time, events in that of `position`
or `played_at` (without either, of the file). Letters: S sessions, E events.
"""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from amrs.adding import add_sessions
from amrs.config.data import DataConfig
from amrs.faults import Faults, LogError
from amrs.importers import ADVICE
from amrs.importers.column_map import Column, ColumnMap, Part, read_map
from amrs.importers.convert import convert
from amrs.importers.embeddings import embedding_is, with_embeddings
from amrs.importers.reading import Raw, offsets_min, read_raw
from amrs.schema import KINDS, Metadata, write_log
from amrs.validation import codes, mask, repeated

SHARD_SESSIONS = 50_000


def importer(config: DataConfig, folder: Path) -> None:
    """Write `folder/log` from the tables in `data.raw_dir`, as `data.map` says."""
    if config.raw_dir is None:
        raise LogError(f"data.raw_dir is not given; {ADVICE['table']}")
    root = Path(config.raw_dir)
    file = Path(config.map) if config.map else root / "map.yaml"
    columns = read_map(file, embedding=config.embeddings is None)
    advice = f"{file} says that it is there"
    raw = {name: read_raw(root / part.file, advice) for name, part in columns.parts.items()}
    faults = Faults(_source(columns, raw, str(root)))
    catalogue = _catalogue(raw["catalogue"], columns.parts["catalogue"], faults)
    sessions = _sessions(raw["sessions"], columns.parts["sessions"], faults)
    events = _events(raw["events"], columns.parts["events"], sessions, catalogue, faults)
    faults.raise_any()
    catalogue = with_embeddings(catalogue, config.embeddings)
    sessions = _join(sessions, events)
    columns = replace(columns, embedding_is=embedding_is(config.embeddings) or columns.embedding_is)
    metadata = _metadata(columns, sessions, events, catalogue)
    parts = (_shards(sessions), catalogue, metadata, faults.source)
    if config.base is None:
        write_log(folder / "log", *parts)
    else:
        add_sessions(folder / "log", Path(config.base) / "log", *parts)


def _source(columns: ColumnMap, raw: dict[str, Raw], root: str) -> dict[str, str]:
    """File and column, in the user's names, of each of ours; plays are checked as columns of sessions."""
    places = {"": root}
    for name, part in columns.parts.items():
        for ours, column in part.columns.items():
            place = f"{raw[name].file}: {column.shown} ({ours})"
            places[f"{name}.{ours}"] = place
            if name == "events":
                places.setdefault(f"sessions.{ours}", place)
    return places


def _ids(raw: Raw, part: Part, key: str) -> pa.Array:
    return raw.text(part.columns[key].theirs[0])


def _catalogue(raw: Raw, part: Part, faults: Faults) -> pa.Table:
    ids = _ids(raw, part, "track_id")
    table = {name: convert(raw, column, "catalogue", ids, faults) for name, column in part.columns.items()}
    return pa.table(table)


def _sessions(raw: Raw, part: Part, faults: Faults) -> pa.Table:
    ids = _ids(raw, part, "session_id")
    table = {name: convert(raw, column, "sessions", ids, faults) for name, column in part.columns.items()}
    zone = part.columns["started_at"].zone
    if zone and "utc_offset_min" not in table:
        table["utc_offset_min"] = offsets_min(table["started_at"], zone)
    again = repeated(codes(ids)) & mask(pc.is_valid(ids))
    faults.add_rows("sessions.session_id", again, ids, "given again", "every session once")
    return pa.table(table)


def _events(raw: Raw, part: Part, sessions: pa.Table, catalogue: pa.Table, faults: Faults) -> pa.Table:
    """Events with `session`, the row of their session (-1 if unknown), in the order of the file."""
    given = _ids(raw, part, "session_id")
    row = pa.array(np.arange(1, len(given) + 1)).cast(pa.string())
    ids = pc.binary_join_element_wise(given, row, ", row ")
    table = {name: convert(raw, column, "events", ids, faults) for name, column in part.columns.items()}
    session = codes(given, sessions["session_id"].combine_chunks())
    faults.add_rows("events.session_id", session < 0, ids, given, "a session of the sessions file")
    for name in ("position", "played_at"):
        if name in table:
            faults.add_rows(
                f"events.{name}",
                mask(pc.is_null(table[name])) & mask(pc.is_valid(given)),
                ids,
                table[name],
                "not empty: it orders the tracks of a session",
            )
    if part.columns.get("engagement", Column("", ())).unit:
        table["engagement"] = _fraction(table["engagement"], table["track_id"], catalogue, faults)
    return pa.table({**table, "session": session})


def _fraction(seconds: pa.Array, tracks: pa.Array, catalogue: pa.Table, faults: Faults) -> pa.Array:
    """Seconds played as a fraction of the track, at most 1; null where its length is unknown."""
    if "duration_s" not in catalogue.column_names:
        faults.add(
            "events.engagement",
            "every row",
            "a time played, of tracks without length",
            "a unit only if the catalogue has duration_s",
        )
        return seconds
    at = pc.index_in(tracks, value_set=catalogue["track_id"].combine_chunks())
    return pc.min_element_wise(
        pc.divide(seconds, catalogue["duration_s"].combine_chunks().take(at)), 1.0, skip_nulls=False
    )


def _join(sessions: pa.Table, events: pa.Table) -> pa.Table:
    """Sessions in the order of user and time, with the lists of their plays."""
    count = len(sessions)
    place = np.empty(count, dtype=np.int64)
    order_S = pc.sort_indices(
        sessions.append_column("row", pa.array(np.arange(count))),
        [("user_id", "ascending"), ("started_at", "ascending"), ("row", "ascending")],
    )
    place[np.asarray(order_S, dtype=np.int64)] = np.arange(count)
    session_E = place[events["session"].to_numpy()]
    keys = [events[name].to_numpy() for name in ("position", "played_at") if name in events.column_names]
    order_E = pa.array(np.lexsort((*keys, session_E)))  # lexsort is stable: ties keep the file's order
    length_S = np.bincount(session_E, minlength=count)
    offset_S = pa.array(np.r_[0, np.cumsum(length_S)], pa.int32())
    sessions = sessions.take(order_S)
    for name in events.column_names:
        if name not in ("session", "session_id", "position", "played_at"):
            items = events[name].combine_chunks().take(order_E)
            sessions = sessions.append_column(name, pa.ListArray.from_arrays(offset_S, items))
    return sessions


def _metadata(columns: ColumnMap, sessions: pa.Table, events: pa.Table, catalogue: pa.Table) -> Metadata:
    """Names in sorted order; a signal is declared if it was ever given."""
    given = {
        name
        for table in (sessions, events)
        for name in table.column_names
        if table[name].null_count < len(table)
    }
    reports = {
        "engagement": {"engagement"},
        "rating": {"rating"},
        "valence": {"post_valence", "track_valence"},
        "arousal": {"post_arousal", "track_arousal"},
    }
    context = columns.parts["sessions"].columns.get("context")
    modes = set(_names(sessions, "mode"))
    if "modes" in catalogue.column_names:
        modes |= set(pc.unique(pc.drop_null(pc.list_flatten(catalogue["modes"]))).to_pylist())
    track = codes(events["track_id"])
    again = repeated(events["session"].to_numpy() * (track.max(initial=0) + 1) + track) & (track >= 0)
    return Metadata(
        name=columns.name,
        modes=tuple(sorted(modes)),
        cohorts=tuple(_names(sessions, "cohort")),
        context=context.names if context else (),
        repeats=bool(again.any()),
        embedding=columns.embedding_is,
        signals={signal: KINDS[signal] for signal, names in reports.items() if given & names},
    )


def _names(table: pa.Table, column: str) -> list[str]:
    if column not in table.column_names:
        return []
    return sorted(pc.unique(pc.drop_null(table[column])).to_pylist())


def _shards(sessions: pa.Table) -> Iterator[pa.Table]:
    """Parts of about `SHARD_SESSIONS` rows, each with whole users."""
    user = codes(sessions["user_id"])
    first = np.flatnonzero(np.r_[True, user[1:] != user[:-1]])
    cuts = [int(first[i]) for i in np.unique(first // SHARD_SESSIONS, return_index=True)[1]]
    for start, end in zip(cuts, [*cuts[1:], len(sessions)], strict=True):
        yield sessions.slice(start, end - start)
