"""One of our columns from one of theirs, every value that does not convert being noted as a fault."""

from collections.abc import Callable, Sequence

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from amrs.importers.column_map import Column
from amrs.importers.reading import Raw, numbers, scaled
from amrs.importers.times import times
from amrs.logs.faults import Bools, Faults
from amrs.logs.validation import mask

Converter = Callable[[Raw, Column, str, pa.Array, Faults], pa.Array]
_PER_SECOND = {"s": 1.0, "ms": 0.001}
_NUMBER, _NEEDED = "a number, or empty", "a number (not nan, infinite or empty)"
"""What is allowed where a cell may be empty, and where it may not."""


def convert(raw: Raw, column: Column, part: str, ids: pa.Array, faults: Faults) -> pa.Array:
    """The column in our values; faults are noted under `<part>.<our name>` and the ids of the rows."""
    return CONVERTERS.get(column.ours, text)(raw, column, f"{part}.{column.ours}", ids, faults)


def text(raw: Raw, column: Column, where: str, ids: pa.Array, faults: Faults) -> pa.Array:
    """Ids and names; with `values`, theirs to ours."""
    given = raw.text(column.theirs[0])
    return given if column.values is None else _translated(given, column.values, where, ids, faults)


def moment(raw: Raw, column: Column, where: str, ids: pa.Array, faults: Faults) -> pa.Array:
    """A time, as timestamp[ms, UTC]."""
    given = raw.column(column.theirs[0])
    stamps, bad, skipped = times(given, column.unit, column.format, column.zone)
    if column.unit:
        allowed = f"a number, in {column.unit} since 1970"
    else:
        allowed = f"a time like {column.format}" if column.format else "an ISO 8601 time"
        allowed += f", in {column.zone}" if column.zone else " with offset (or give its zone in the map)"
    faults.add_rows(where, bad, ids, given, allowed)
    allowed = f"a time that clocks in {column.zone} showed: this one they skipped (is the zone right?)"
    faults.add_rows(where, skipped, ids, given, allowed)
    return stamps


def share(raw: Raw, column: Column, where: str, ids: pa.Array, faults: Faults) -> pa.Array:
    """A number on their scale, mapped to [0, 1]; as seconds where it has a unit (engagement only)."""
    if column.unit:
        return pc.multiply(_plain(raw, column, where, ids, faults), _PER_SECOND[column.unit])
    low, high = column.scale or (0.0, 1.0)
    return scaled(raw, column.theirs[0], low, high, where, ids, faults)


def rating(raw: Raw, column: Column, where: str, ids: pa.Array, faults: Faults) -> pa.Array:
    """Like 1, dislike 0, null between and where none was given."""
    if column.values is not None:
        given = _translated(raw.text(column.theirs[0]), column.values, where, ids, faults)
        return given.cast(pa.int64())
    number = _plain(raw, column, where, ids, faults)
    if column.like is not None:
        liked, disliked = pc.greater_equal(number, column.like), pc.less_equal(number, column.dislike)
        return pc.if_else(liked, 1, pc.if_else(disliked, 0, None)).cast(pa.int64())
    binary = pc.is_in(number, pa.array([0.0, 1.0, None]))
    bad = mask(pc.invert(binary))
    if bad.any():
        allowed = "0, 1 or empty (or give like and dislike, or values, in the map)"
        faults.add_rows(where, bad, ids, raw.column(column.theirs[0]), allowed)
    return pc.if_else(binary, number, None).cast(pa.int64())


def amount(raw: Raw, column: Column, where: str, ids: pa.Array, faults: Faults) -> pa.Array:
    """A number; in seconds where it has a unit."""
    allowed = _NEEDED if column.ours == "position" else _NUMBER
    number = _plain(raw, column, where, ids, faults, allowed)
    return pc.multiply(number, _PER_SECOND[column.unit]) if column.unit else number


def minutes(raw: Raw, column: Column, where: str, ids: pa.Array, faults: Faults) -> pa.Array:
    """Whole minutes."""
    number = _plain(raw, column, where, ids, faults)
    whole = pc.fill_null(pc.and_(pc.equal(number, pc.floor(number)), pc.less(pc.abs(number), 1e6)), True)
    faults.add_rows(where, ~mask(whole), ids, number, "whole minutes, or empty")
    return pc.if_else(whole, number, None).cast(pa.int64())


def context(raw: Raw, column: Column, where: str, ids: pa.Array, faults: Faults) -> pa.Array:
    """Several columns as one list a row; null where all are empty."""
    return _vectors(raw, column.theirs, where, ids, faults, _NUMBER)


def _vectors(
    raw: Raw, names: Sequence[str], where: str, ids: pa.Array, faults: Faults, allowed: str
) -> pa.Array:
    each = [_plain(raw, Column("", (name,)), where, ids, faults, allowed) for name in names]
    values = np.column_stack([np.asarray(array, dtype=float) for array in each])
    offsets = np.arange(len(values) + 1) * values.shape[1]
    flat = pa.array(values.ravel(), pa.float32(), from_pandas=True)
    empty = pa.array(np.isnan(values).all(1))
    return pa.ListArray.from_arrays(pa.array(offsets, pa.int32()), flat, mask=empty)


def embedding(raw: Raw, column: Column, where: str, ids: pa.Array, faults: Faults) -> pa.Array:
    """A list column (Parquet), a text of numbers ("[1, 2]" or "1;2"), or all columns with a prefix."""
    if column.prefix:
        names = [name for name in raw.table.column_names if name.startswith(column.prefix)]
        if not names:
            raw.missing(f"{column.prefix}*")
        return _vectors(raw, names, where, ids, faults, _NEEDED)
    given = raw.column(column.theirs[0])
    if _is_list(given):
        return given
    bare = pc.utf8_trim(given.cast(pa.string()), " \t[]")
    lists = pc.split_pattern_regex(pc.if_else(pc.equal(bare, ""), None, bare), r"\s*[;,\s]\s*")
    flat, row = pc.list_flatten(lists), np.asarray(pc.list_parent_indices(lists), dtype=np.int64)
    value, bad = numbers(flat)
    faults.add_rows(where, bad, ids, flat, "numbers separated by ; or ,", row)
    length = pc.fill_null(pc.list_value_length(lists), 0)
    offsets = pa.array(np.r_[0, np.cumsum(np.asarray(length, dtype=np.int64))], pa.int32())
    return pa.ListArray.from_arrays(offsets, value.cast(pa.float32()), mask=pc.is_null(lists))


def modes(raw: Raw, column: Column, where: str, ids: pa.Array, faults: Faults) -> pa.Array:
    """A list column (Parquet) or one text with a separator; null (every mode) where empty."""
    given = raw.column(column.theirs[0])
    lists = (
        given.cast(pa.list_(pa.string()))
        if _is_list(given)
        else pc.split_pattern(raw.text(column.theirs[0]), column.separator)
    )
    flat = pc.utf8_trim_whitespace(pc.list_flatten(lists))
    row = pc.list_parent_indices(lists)
    if column.values is not None:
        flat = _translated(flat, column.values, where, ids.take(row), faults)
    length = pc.fill_null(pc.list_value_length(lists), 0)
    offsets = pa.array(np.r_[0, np.cumsum(np.asarray(length, dtype=np.int64))], pa.int32())
    return pa.ListArray.from_arrays(offsets, flat, mask=pc.is_null(lists))


CONVERTERS: dict[str, Converter] = {
    "started_at": moment,
    "ended_at": moment,
    "played_at": moment,
    "pre_valence": share,
    "pre_arousal": share,
    "post_valence": share,
    "post_arousal": share,
    "track_valence": share,
    "track_arousal": share,
    "engagement": share,
    "rating": rating,
    "propensity": amount,
    "position": amount,
    "duration_s": amount,
    "utc_offset_min": minutes,
    "context": context,
    "embedding": embedding,
    "modes": modes,
}
"""How each of our columns is read; those not named here are text."""


def _plain(
    raw: Raw, column: Column, where: str, ids: pa.Array, faults: Faults, allowed: str = _NUMBER
) -> pa.Array:
    given, value, bad = raw.numbers(column.theirs[0])
    bad |= mask(pc.invert(pc.is_finite(value)))
    faults.add_rows(where, bad, ids, given, allowed)
    return value


def _translated(
    given: pa.Array, values: dict[str, str], where: str, ids: pa.Array, faults: Faults
) -> pa.Array:
    at = pc.index_in(given, value_set=pa.array(list(values), pa.string()), skip_nulls=True)
    bad: Bools = mask(pc.and_(pc.is_null(at), pc.is_valid(given)))
    faults.add_rows(where, bad, ids, given, f"{', '.join(values)} (the values in the map), or empty")
    ours = pa.array([value or None for value in values.values()], pa.string())
    return ours.take(at)


def _is_list(array: pa.Array) -> bool:
    kind = array.type
    return bool(pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind))
