"""A delivery of raw tables, in parts that fit into memory: each holds whole users, with all that is theirs.

Sessions are dealt out by a hash of their user, events follow their session. Of the whole delivery nothing is
held but ten bytes a session: the hash of its id, and its part.
"""

import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from amrs.importers.column_map import ColumnMap
from amrs.importers.reading import Raw, raw_bytes, read_batches, read_raw
from amrs.logs.validation import hashes

PART_BYTES = 1 << 26
"""Bytes of sessions and events in a part (about): text in CSV, before compression in Parquet. While a part is
converted it takes some ten times as much memory."""
Parts = list[dict[str, Raw]]
"""Sessions and events of each part."""


@contextmanager
def delivered(columns: ColumnMap, files: dict[str, Path], advice: str, scratch: Path) -> Iterator[Parts]:
    """Sessions and events in parts; where there are several, they lie under `scratch` meanwhile."""
    names = ("sessions", "events")
    count = -(-sum(raw_bytes(files[name]) for name in names) // PART_BYTES)
    if count <= 1:
        yield [{name: read_raw(files[name], advice) for name in names}]
        return
    with tempfile.TemporaryDirectory(dir=scratch) as folder:
        user, session = (
            columns.parts["sessions"].columns[key].theirs[0] for key in ("user_id", "session_id")
        )
        theirs, their_part = _deal_sessions(files["sessions"], advice, user, session, count, Path(folder))
        session = columns.parts["events"].columns["session_id"].theirs[0]
        _deal_events(files["events"], advice, session, theirs, their_part, count, Path(folder))
        yield [{name: _opened(files[name], Path(folder), name, n) for name in names} for n in range(count)]


def _hashed(raw: Raw, name: str) -> NDArray[np.uint64]:
    return hashes(raw.text(name))


def _deal_sessions(
    file: Path, advice: str, user: str, session: str, count: int, folder: Path
) -> tuple[NDArray[np.uint64], NDArray[np.int16]]:
    """Sorted hashes of all session ids, and the part of each."""
    hashes, parts = [], []
    with _Writers(folder, "sessions", count) as writers:
        for batch in read_batches(file, advice):
            raw = Raw(file, batch)
            parts.append((_hashed(raw, user) % count).astype(np.int16))
            hashes.append(_hashed(raw, session))
            writers.write(batch, parts[-1])
    whole, part = np.concatenate(hashes), np.concatenate(parts)
    order = whole.argsort()
    return whole[order], part[order]


def _deal_events(
    file: Path, advice: str, session: str, theirs: NDArray[np.uint64], their_part: NDArray[np.int16],
    count: int, folder: Path,
) -> None:  # fmt: skip
    """An event of a session that nobody knows comes to some part, where it is refused."""
    with _Writers(folder, "events", count) as writers:
        for batch in read_batches(file, advice):
            place = np.searchsorted(theirs, _hashed(Raw(file, batch), session)).clip(max=len(theirs) - 1)
            writers.write(batch, their_part[place])


class _Writers:
    """One file a part, to which batches are dealt out row by row, their order kept."""

    def __init__(self, folder: Path, name: str, count: int) -> None:
        self.paths, self.rows = [_path(folder, name, n) for n in range(count)], 0
        self.stack, self.open = ExitStack(), dict[int, pa.ipc.RecordBatchStreamWriter]()

    def __enter__(self) -> "_Writers":
        return self

    def __exit__(self, *error: object) -> None:
        self.stack.close()

    def write(self, batch: pa.Table, part: NDArray[np.int16]) -> None:
        """Each row to its part, with its number in the file."""
        if not self.open:
            schema = batch.schema.append(pa.field(Raw.ROW, pa.int64()))
            for n, path in enumerate(self.paths):
                self.open[n] = self.stack.enter_context(pa.ipc.new_stream(str(path), schema))
        row = pa.array(np.arange(self.rows + 1, self.rows + 1 + len(batch)))
        self.rows += len(batch)
        order = part.argsort(kind="stable")
        dealt = batch.append_column(Raw.ROW, row).take(pa.array(order))
        edges = np.searchsorted(part[order], np.arange(len(self.paths) + 1))
        for n in np.flatnonzero(np.diff(edges)).tolist():
            self.open[n].write_table(dealt.slice(edges[n], edges[n + 1] - edges[n]))


def _path(folder: Path, name: str, part: int) -> Path:
    return folder / f"{name}-{part:05d}.arrow"


def _opened(file: Path, folder: Path, name: str, part: int) -> Raw:
    """A part, memory-mapped."""
    with pa.ipc.open_stream(pa.memory_map(str(_path(folder, name, part)))) as stream:
        return Raw(file, stream.read_all())
