"""Your own logs: sessions, events and catalogue as CSV or Parquet, and a column map in YAML.

Nothing need be sorted: sessions are put in the order of their user and time, events in that of `position`
or `played_at` (without either, of the file). Letters: S sessions, E events.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from amrs.config.data import DataConfig
from amrs.importers import ADVICE
from amrs.importers.column_map import Column, ColumnMap, Part, read_map
from amrs.importers.convert import convert
from amrs.importers.delivery import delivered
from amrs.importers.embeddings import embedding_is, with_embeddings
from amrs.importers.order import check_positions, ordered
from amrs.importers.places import NamedRows, places, session_cell
from amrs.importers.reading import Raw, read_raw
from amrs.importers.times import offsets_min
from amrs.logs.adding import add_sessions
from amrs.logs.faults import Faults, LogError, Origin
from amrs.logs.schema import KINDS, Metadata, write_log
from amrs.logs.validation import codes, mask, repeated

SHARD_SESSIONS = 50_000
_REPORTS = {"engagement": {"engagement"}, "rating": {"rating"}, "valence": {"post_valence", "track_valence"},
            "arousal": {"post_arousal", "track_arousal"}}  # fmt: skip
"""Columns of which one must be given for a signal to be declared."""


def importer(config: DataConfig, folder: Path) -> None:
    """Write `folder/log` from the tables in `data.raw_dir`, as `data.map` says."""
    if config.raw_dir is None:
        raise LogError(f"data.raw_dir is not given; {ADVICE['table']}")
    root = Path(config.raw_dir)
    file = Path(config.map) if config.map else root / "map.yaml"
    columns = read_map(file, embedding=config.embeddings is None)
    advice = f"{file} says that it is there"
    files = {name: root / part.file for name, part in columns.parts.items()}
    named = places(columns, files, str(root))
    faults = Faults(named)
    folder.mkdir(parents=True, exist_ok=True)
    with delivered(columns, files, advice, folder) as parts, TemporaryDirectory(dir=folder) as scratch:
        catalogue = _catalogue(read_raw(files["catalogue"], advice), columns.parts["catalogue"], faults)
        joined, seen = _Kept(Path(scratch), len(parts)), _Seen()
        for raw in parts:
            sessions = _sessions(raw["sessions"], columns.parts["sessions"], faults)
            events = _events(raw["events"], columns.parts["events"], sessions, catalogue, faults)
            if not faults.count:
                seen.look(sessions, events)
                joined.keep(_join(sessions, events))
        faults.raise_any()
        catalogue = with_embeddings(catalogue, config.embeddings)
        columns = replace(columns, embedding_is=embedding_is(config.embeddings) or columns.embedding_is)
        source = Origin(named, partial(session_cell, parts, columns.parts["sessions"]))
        found = (joined.shards(), catalogue, seen.metadata(columns, catalogue), source)
        if config.base is None:
            write_log(folder / "log", *found)
        else:
            add_sessions(folder / "log", Path(config.base) / "log", *found)


def _ids(raw: Raw, part: Part, key: str) -> pa.Array:
    return raw.text(part.columns[key].theirs[0])


def _catalogue(raw: Raw, part: Part, faults: Faults) -> pa.Table:
    ids = _ids(raw, part, "track_id")
    table = {name: convert(raw, column, "catalogue", ids, faults) for name, column in part.columns.items()}
    return pa.table(table)


def _sessions(raw: Raw, part: Part, faults: Faults) -> pa.Table:
    """Sessions in the order of user and time."""
    ids = _ids(raw, part, "session_id")
    named = NamedRows(raw, ids)
    table = {name: convert(raw, column, "sessions", named, faults) for name, column in part.columns.items()}
    zone = part.columns["started_at"].zone
    if zone and "utc_offset_min" not in table:
        table["utc_offset_min"] = offsets_min(table["started_at"], zone)
    again = repeated(codes(ids)) & mask(pc.is_valid(ids))
    faults.add_rows("sessions.session_id", mask(pc.is_null(ids)), named, ids, "not empty")
    faults.add_rows("sessions.session_id", again, ids, "given again", "every session once")
    sessions = pa.table({**table, "row": np.arange(len(ids))})
    keys = [(name, "ascending") for name in ("user_id", "started_at", "row")]
    return sessions.take(pc.sort_indices(sessions, keys)).drop_columns("row")


def _events(raw: Raw, part: Part, sessions: pa.Table, catalogue: pa.Table, faults: Faults) -> pa.Table:
    """Events with `session`, the row of their session (-1 if unknown), in the order of their plays."""
    given = _ids(raw, part, "session_id")
    ids = NamedRows(raw, given, always=True)
    others = {name: column for name, column in part.columns.items() if name != "session_id"}
    table = {name: convert(raw, column, "events", ids, faults) for name, column in others.items()}
    session = codes(given, sessions["session_id"].combine_chunks())
    faults.add_rows("events.session_id", session < 0, ids, given, "a session of the sessions file")
    for name in ("position", "played_at"):
        if name in table and table[name].null_count:
            # Only cells that are empty: of those that do not convert it is said already.
            cells = raw.column(part.columns[name].theirs[0])
            allowed = "not empty: it orders the tracks of a session"
            empty = mask(pc.is_null(cells)) & mask(pc.is_valid(given))
            faults.add_rows(f"events.{name}", empty, ids, cells, allowed)
    if part.columns.get("engagement", Column("", ())).unit:
        table["engagement"] = _fraction(table["engagement"], table["track_id"], catalogue, faults)
    keys = [table.pop(name) for name in ("position", "played_at") if name in table]
    keys = [key.to_numpy(zero_copy_only=False) for key in keys]  # one or none
    order_E = ordered(session, *keys)
    if "position" in others:
        check_positions(raw, others["position"], session, keys[0], order_E, ids, faults)
    table |= {"session": pa.array(session), "track_id": table["track_id"].dictionary_encode()}
    return pa.table({name: array.take(pa.array(order_E)) for name, array in table.items()})


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
    """Sessions with the lists of their plays."""
    length_S = np.bincount(events["session"].to_numpy(), minlength=len(sessions))
    offset_S = pa.array(np.r_[0, np.cumsum(length_S)], pa.int32())
    for name in events.column_names:
        if name != "session":
            items = pa.ListArray.from_arrays(offset_S, events[name].combine_chunks())
            sessions = sessions.append_column(name, items)
    return sessions


@dataclass
class _Seen:
    """What the metadata say of the sessions, part by part."""

    given: set[str] = field(default_factory=set)
    modes: set[str] = field(default_factory=set)
    cohorts: set[str] = field(default_factory=set)
    repeats: bool = False

    def look(self, sessions: pa.Table, events: pa.Table) -> None:
        """At one more part."""
        for table in (sessions, events):
            self.given |= {name for name in table.column_names if table[name].null_count < len(table)}
        self.modes |= _names(sessions, "mode")
        self.cohorts |= _names(sessions, "cohort")
        track = codes(events["track_id"])
        again = repeated(events["session"].to_numpy() * (track.max(initial=0) + 1) + track) & (track >= 0)
        self.repeats |= bool(again.any())

    def metadata(self, columns: ColumnMap, catalogue: pa.Table) -> Metadata:
        """Names in sorted order; a signal is declared if it was ever given."""
        context, modes = columns.parts["sessions"].columns.get("context"), self.modes
        if "modes" in catalogue.column_names:
            modes = modes | set(pc.unique(pc.drop_null(pc.list_flatten(catalogue["modes"]))).to_pylist())
        return Metadata(
            name=columns.name,
            modes=tuple(sorted(modes)),
            cohorts=tuple(sorted(self.cohorts)),
            context=context.names if context else (),
            repeats=self.repeats,
            embedding=columns.embedding_is,
            signals={signal: KINDS[signal] for signal, names in _REPORTS.items() if self.given & names},
        )


def _names(table: pa.Table, column: str) -> set[str]:
    return set(pc.unique(pc.drop_null(table[column])).to_pylist()) if column in table.column_names else set()


class _Kept:
    """Joined sessions, part by part: of several parts, on disk."""

    def __init__(self, folder: Path, parts: int) -> None:
        self.folder, self.parts, self.tables = folder, parts, list[pa.Table]()

    def keep(self, sessions: pa.Table) -> None:
        """One more part."""
        if self.parts > 1:
            path = str(self.folder / f"{len(self.tables)}.arrow")
            with pa.ipc.new_stream(path, sessions.schema) as stream:
                stream.write_table(sessions)
            with pa.ipc.open_stream(pa.memory_map(path)) as mapped:
                sessions = mapped.read_all()
        self.tables.append(sessions)

    def shards(self) -> Iterator[pa.Table]:
        """All parts, in shards of whole users."""
        for sessions in self.tables:
            yield from _shards(sessions)


def _shards(sessions: pa.Table) -> Iterator[pa.Table]:
    """Parts of about `SHARD_SESSIONS` rows, each with whole users."""
    user = codes(sessions["user_id"])
    first = np.flatnonzero(np.r_[True, user[1:] != user[:-1]])
    cuts = [int(first[i]) for i in np.unique(first // SHARD_SESSIONS, return_index=True)[1]]
    for start, end in zip(cuts, [*cuts[1:], len(sessions)], strict=True):
        yield sessions.slice(start, end - start)
