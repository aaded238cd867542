"""Where something stands in the users' own files, in their words: for what is said of a fault."""

from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc

from amrs.importers.column_map import ColumnMap, Part
from amrs.importers.delivery import Parts
from amrs.importers.reading import Raw
from amrs.logs.faults import Cell, shown


def places(columns: ColumnMap, files: dict[str, Path], root: str) -> dict[str, str]:
    """File and column, in the user's names, of each of ours; plays are checked as columns of sessions."""
    found = {"": root}
    for name, part in columns.parts.items():
        for ours, column in part.columns.items():
            place = f"{files[name]}: {column.shown} ({ours})"
            found[f"{name}.{ours}"] = place
            if name == "events":
                found.setdefault(f"sessions.{ours}", place)
    return found


@dataclass(frozen=True)
class NamedRows:
    """The id of each row, and the row's number in the file where there is none, or `always`.

    For `Faults.add_rows`: put into words only where a fault is found.
    """

    raw: Raw
    ids: pa.Array
    always: bool = False

    def __len__(self) -> int:
        return len(self.ids)

    def __getitem__(self, at: int) -> pa.Scalar:
        name = self.ids[at].as_py()
        if name is not None and not self.always:
            return self.ids[at]
        return pa.scalar(f"{'(empty)' if name is None else name}, row {self.raw.rows()[at]}")


def session_cell(parts: Parts, sessions: Part, column: str, session_id: str) -> Cell | None:
    """The cell of a session in the file of sessions; None where `column` comes from elsewhere.

    Looked for when a fault is found, not before: that takes a while, and no log that is right any memory.
    """
    table, _, ours = column.partition(".")
    theirs = sessions.columns[ours].theirs if ours in sessions.columns else ()
    if table != "sessions" or ours == "user_id" or len(theirs) != 1:
        return None
    for part in parts:
        raw = part["sessions"]
        at = pc.index(raw.text(sessions.columns["session_id"].theirs[0]), session_id).as_py()
        if at >= 0:
            return Cell(raw.rows()[at].as_py(), shown(raw.column(theirs[0])[at].as_py()))
    return None
