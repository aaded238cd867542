"""A prepared log in a few lines: enough to see a wrong scale, or a column that came out empty.

Only figures of the whole log. Columns are read where they lie, memory-mapped and in the chunks of the shards.
"""

from collections import Counter
from collections.abc import Iterator

import pyarrow as pa
import pyarrow.compute as pc

from amrs.logs.schema import SIGNALS_ORDER, SessionLog

COLUMNS = {
    "engagement": {"engagement": "for"},
    "rating": {"rating": "for"},
    "valence": {"pre_valence": "before", "post_valence": "after", "track_valence": "after"},
    "arousal": {"pre_arousal": "before", "post_arousal": "after", "track_arousal": "after"},
}
"""Where the values of a signal stand, and how they lie to the session or play that they belong to."""
MODES_SHOWN = 10


def summary(log: SessionLog, listeners: int) -> Iterator[str]:
    """At most six lines: how much there is, then one a signal, then modes."""
    table: pa.Table = log.sessions.with_format("arrow")[:]
    ends = pc.min_max(table["started_at"]).as_py()
    first, last = ends["min"].date(), ends["max"].date()
    plays, days = len(pc.list_flatten(table["track_id"])), (last - first).days + 1
    yield (
        f"listeners {listeners:,}, sessions {len(table):,}, plays {plays:,}, "
        f"tracks in the catalogue {len(log.catalogue):,}, days {days:,} ({first} to {last}, UTC)"
    )
    for signal in SIGNALS_ORDER:
        if signal in log.metadata.signals:
            known = [_known(table[name], when) for name, when in COLUMNS[signal].items()]
            yield f"{signal} (scale 0 to 1) known {'; '.join(filter(None, known)) or 'nowhere'}"
    if log.metadata.modes:
        yield f"sessions in modes: {', '.join(_ranked(sessions_in_modes(log)))}"


def sessions_in_modes(log: SessionLog) -> Counter[str | None]:
    """Sessions in each mode that there are any in; under None those whose mode is not known."""
    table: pa.Table = log.sessions.with_format("arrow")[:]
    counts = Counter[str | None]()
    for found in pc.value_counts(table["mode"]).to_pylist():
        code = found["values"]
        counts[None if code is None else log.metadata.modes[code]] += found["counts"]
    return counts


def _known(array: pa.ChunkedArray, when: str) -> str:
    """Share and range of what is known in a column; empty where nothing is."""
    of = "sessions"
    if pa.types.is_list(array.type):
        array, of = pc.list_flatten(array), "plays"
    if array.null_count == len(array):
        return ""
    ends, percent = pc.min_max(array).as_py(), 100 * (1 - array.null_count / len(array))
    share = "under 1" if percent < 1 else "over 99" if 99 < percent < 100 else f"{percent:.0f}"
    return f"{when} {share} % of {of}, from {ends['min']:.2f} to {ends['max']:.2f}"


def _ranked(sessions_in: Counter[str | None]) -> Iterator[str]:
    ranked = [(mode, count) for mode, count in sessions_in.most_common() if mode is not None]
    yield from (f"{mode} {count:,}" for mode, count in ranked[:MODES_SHOWN])
    if rest := ranked[MODES_SHOWN:]:
        yield f"{len(rest)} others {sum(count for _, count in rest):,}"
    yield f"none {sessions_in[None]:,}"
