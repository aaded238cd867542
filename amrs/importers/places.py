"""Where something stands in the users' own files, in their words: for what is said of a fault."""

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


def named_rows(raw: Raw, ids: pa.Array, always: bool = False) -> pa.Array:
    """The id of each row, and the row's number in the file where there is none, or `always`."""
    if not always and not ids.null_count:
        return ids
    rows = raw.rows().cast(pa.string())
    numbered = pc.binary_join_element_wise(
        ids, rows, ", row ", null_handling="replace", null_replacement="(empty)"
    )
    return numbered if always else pc.coalesce(ids, numbered)


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
