"""The error that names what is wrong with a log: file, column, row id, value and what is allowed.

User ids are never shown: a fault is found by its session or track.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

Bools = NDArray[np.bool_]
Ints = NDArray[np.int64]
Source = str | Mapping[str, str]

SHOWN = 20


class LogError(ValueError):
    """A log that cannot be used; the message says where, what was given and what is allowed."""


class Faults:
    """Faults found so far: the first `SHOWN` in words and a count of all."""

    def __init__(self, source: Source) -> None:
        """`source` names the file of a column: one text for all, or one per "sessions.mode", ... and ""."""
        self.source: Mapping[str, str] = {"": source} if isinstance(source, str) else source
        self.lines: list[str] = []
        self.count = 0

    def place(self, column: str) -> str:
        """File and column in words, for a column given as `sessions.mode`."""
        return self.source.get(column) or f"{self.source.get('', 'log')}: column {column}"

    def add(self, column: str, row: str, value: str, allowed: str) -> None:
        """Note one fault."""
        self.count += 1
        if len(self.lines) < SHOWN:
            self.lines.append(f"{self.place(column)}, {row}: {value}; allowed: {allowed}")

    def add_rows(
        self, column: str, bad: Bools, ids: pa.Array, values: Any, allowed: str, row: Ints | None = None
    ) -> None:
        """Note a fault for every True in `bad`, whose value is `values[i]`, `values(i)` or one text for all.

        `ids` are the session or track ids of the rows; `row` gives the row of each play (or other
        item of a list) where `bad` is over these.
        """
        where = np.flatnonzero(bad)
        for i in where[: SHOWN - len(self.lines)].tolist():
            at = i if row is None else int(row[i])
            item = "" if row is None else f", item {i - int(np.searchsorted(row, at)) + 1}"
            if isinstance(values, str):
                value = values
            else:
                value = values(i) if callable(values) else shown(values[i].as_py())
            self.add(column, _row_name(column, ids, at) + item, value, allowed)
            where = where[1:]
        self.count += len(where)

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
    if hasattr(value, "isoformat"):
        text = value.isoformat()
    return text if len(text) <= 60 else text[:57] + "..."


def _row_name(column: str, ids: pa.Array, row: int) -> str:
    key = "track_id" if column.startswith("catalogue.") else "session_id"
    name = ids[row].as_py() if row < len(ids) else None
    return f"row {row + 1}" if name is None else f"{key} {name}"
