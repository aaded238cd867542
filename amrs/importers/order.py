"""The order of the plays of a session, and plays that have none. Letter: E events."""

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from amrs.importers.column_map import Column
from amrs.importers.reading import Floats, Raw
from amrs.logs.faults import Faults, Ints, shown
from amrs.logs.validation import stable_order


def ordered(session_E: Ints, key_E: NDArray[np.generic] | None = None) -> Ints:
    """Rows by session, then by key where there is one, then as they came."""
    if key_E is None:
        return stable_order(session_E)
    order_E = stable_order(key_E)
    return order_E[stable_order(session_E[order_E])]


def check_positions(
    raw: Raw,
    column: Column,
    session_E: Ints,
    position_E: Floats,
    order_E: Ints,
    ids: pa.Array,
    faults: Faults,
) -> None:
    """Two plays at one position have no order; `order_E` has put them next to each other."""
    session_E, position_E = session_E[order_E], position_E[order_E]
    same = (session_E[1:] == session_E[:-1]) & (position_E[1:] == position_E[:-1]) & (session_E[1:] >= 0)
    if not same.any():
        return
    first, second = order_E[:-1][same], order_E[1:][same]
    again = np.zeros(len(order_E), dtype=bool)
    again[second] = True
    cells, rows = raw.column(column.theirs[0]), raw.rows()
    faults.add_rows(
        "events.position",
        again,
        ids,
        lambda i: f"{shown(cells[i].as_py())}, as in row {rows[int(first[second == i][0])]}",
        "a position once in a session",
    )
