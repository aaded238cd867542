"""The error that names what is wrong with a log: file, column, row id, value and what is allowed.

User ids are never shown: a fault is found by its session or track.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import date, datetime, timedelta
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

Bools = NDArray[np.bool_]
Ints = NDArray[np.int64]

SHOWN = 20


@dataclass(frozen=True)
class Cell:
    """A cell as it stands in a file."""

    row: int
    """Number of its row, from 1; the first line of a CSV is not counted."""
    text: str


@dataclass(frozen=True)
class Origin:
    """The files that a log is read from."""

    places: Mapping[str, str]
    """File and column, in words, of "sessions.mode", ...; "" names them all."""
    cell: Callable[[str, str], Cell | None]
    """The cell of such a column and a session id; None where it is not known."""


Source = str | Mapping[str, str] | Origin
"""Where a log comes from: the file of all columns, a text for each, or the files themselves."""


class LogError(ValueError):
    """A log that cannot be used; the message says where, what was given and what is allowed."""


class Faults:
    """Faults found so far: the first `SHOWN` in words and a count of all."""

    def __init__(self, source: Source) -> None:
        """A text names the file of every column, a mapping that of "sessions.mode", ... and ""."""
        if not isinstance(source, Origin):
            source = Origin({"": source} if isinstance(source, str) else source, lambda column, key: None)
        self.origin = source
        self.lines: list[str] = []
        self.count = 0

    def place(self, column: str) -> str:
        """File and column in words, for a column given as `sessions.mode`."""
        places = self.origin.places
        return places.get(column) or f"{places.get('', 'log')}: column {column}"

    def add(self, column: str, row: str, value: str, allowed: str) -> None:
        """Note one fault."""
        self.count += 1
        if len(self.lines) < SHOWN:
            self.lines.append(f"{self.place(column)}, {row}: {value}; allowed: {allowed}")

    def add_rows(
        self,
        column: str,
        bad: Bools,
        ids: pa.Array,
        values: Any,
        allowed: str | Callable[[int], str],
        row: Ints | None = None,
    ) -> None:
        """Note a fault for every True in `bad`, whose value is `values[i]`, `values(i)` or one text for all.

        `ids` are the session or track ids of the rows; `row` gives the row of each play (or other
        item of a list) where `bad` is over these. A value of a session is quoted as it stands in its file,
        where that is known.
        """
        where = np.flatnonzero(bad)
        for i in where[: SHOWN - len(self.lines)].tolist():
            at = i if row is None else int(row[i])
            name = _row_name(column, ids, at)
            if row is not None:
                name += f", item {i - int(np.searchsorted(row, at)) + 1}"
            if isinstance(values, str):
                value = values
            elif callable(values):
                value = values(i)
            elif row is None:
                name, value = self._found(column, name, ids, values, at)
            else:
                value = shown(values[i].as_py())
            self.add(column, name, value, allowed if isinstance(allowed, str) else allowed(i))
            where = where[1:]
        self.count += len(where)

    def cell(self, column: str, ids: pa.Array, values: pa.Array, at: int) -> str:
        """The cell of a session in its file, quoted; our value where that is not known."""
        cell = self._cell(column, ids, at)
        return cell.text if cell else shown(values[at].as_py())

    def session(self, column: str, ids: pa.Array, values: pa.Array, at: int) -> str:
        """A session that a fault of another one mentions, with its cell in that column."""
        cell = self._cell(column, ids, at)
        row = f"row {cell.row}: " if cell else ""
        return f"{_row_name(column, ids, at)} ({row}{self.cell(column, ids, values, at)})"

    def _cell(self, column: str, ids: pa.Array, at: int) -> Cell | None:
        key = ids[at].as_py() if at < len(ids) else None
        return None if key is None else self.origin.cell(column, key)

    def _found(self, column: str, name: str, ids: pa.Array, values: pa.Array, at: int) -> tuple[str, str]:
        """The row's name and value, of the file where they are known."""
        cell, value = self._cell(column, ids, at), values[at].as_py()
        if cell:
            return f"{name}, row {cell.row}", cell.text
        if isinstance(value, datetime) and value.tzinfo:  # of checked sessions, whose times are in UTC
            return name, f"{shown(value)}, as converted (search for {name})"
        return name, shown(value)

    def raise_any(self) -> None:
        """Raise LogError if there are any."""
        if self.count:
            noun = "fault" if self.count == 1 else "faults"
            more = [f"... and {self.count - len(self.lines)} more"] if self.count > len(self.lines) else []
            lines = "\n  ".join([*self.lines, *more])
            raise LogError(f"the log is refused, {self.count} {noun}:\n  {lines}")


def shown(value: object) -> str:
    """A value as text, short enough for a line."""
    text = f"{value:.6g}" if isinstance(value, float) else "null" if value is None else f"{value!r}"
    if isinstance(value, datetime) and value.utcoffset() == timedelta(0):
        text = f"{value.replace(tzinfo=None).isoformat()} in UTC"
    elif isinstance(value, date):
        text = value.isoformat()
    return text if len(text) <= 60 else text[:57] + "..."


def _row_name(column: str, ids: pa.Array, row: int) -> str:
    key = "track_id" if column.startswith("catalogue.") else "session_id"
    name = ids[row].as_py() if row < len(ids) else None
    return f"row {row + 1}" if name is None else f"{key} {name}"
