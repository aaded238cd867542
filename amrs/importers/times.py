"""Times of raw files to UTC: numbers, texts in any format, and local times of a zone."""

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc

from amrs.importers.reading import numbers
from amrs.logs.faults import Bools
from amrs.logs.validation import mask

_USUAL = r"^(19|20)\d\d-\d\d-\d\d[ T]\d\d:\d\d:\d\d(\.\d{1,6})?(Z|[+-]\d\d:\d\d)$"
_OFFSET = r"[T ]\p{Nd}{2}.*(?:[zZ]|[+-]\p{Nd}{2}(?::?\p{Nd}{2})?)$"
"""Behind a time, so that the day of a date is no offset."""
_UNITS_MS = {"s": 1000.0, "ms": 1.0, "us": 0.001}


def times(
    array: pa.Array, unit: str | None, form: str | None, zone: str | None
) -> tuple[pa.Array, Bools, Bools]:
    """Times as timestamp[ms, UTC], where a value is none, and where `zone` never had it (null at both).

    `unit` (s, ms, us) reads numbers since 1970; `form` is a strptime format; without either the text is
    ISO 8601. A time without offset is local in `zone`; without `zone` it is none. Of a time that a clock
    change repeats the first is meant: it did come. A time that it skips never came, so that something else
    is wrong, the zone perhaps, and no guess would be better founded than another.
    """
    missing = mask(pc.is_null(array))
    if unit:
        value, bad = numbers(array)
        value = np.where(bad | missing, np.nan, np.asarray(value, dtype=float)) * _UNITS_MS[unit]
        bad |= ~missing & ~(np.abs(value) < 1e14)
        milliseconds = pa.array(np.where(bad | missing, 0, value).astype(np.int64), mask=bad | missing)
        return milliseconds.cast(pa.timestamp("ms", "UTC")), bad, np.zeros(len(array), dtype=bool)
    if pa.types.is_timestamp(array.type):
        local = pd.Series(array.to_pandas())
        stamps = local if local.dt.tz is not None else _localized(local, zone)
    else:
        cells = array.cast(pa.string())
        usual = None if form else _usual(cells)
        if usual is not None:
            return usual, np.zeros(len(array), dtype=bool), np.zeros(len(array), dtype=bool)
        # A format says itself whether there is an offset: 20:10 01-07-2025 only looks as if there were one.
        in_utc_or_offset = form is not None and ("%z" in form or form.endswith("Z"))
        zoned = np.full(len(cells), in_utc_or_offset)
        if form is None:
            zoned = mask(pc.match_substring_regex(cells, _OFFSET))
        text = pd.Series(cells.to_pandas(), dtype=object)
        form = form or "ISO8601"
        local = pd.to_datetime(text.mask(zoned), format=form, errors="coerce")
        exact = pd.to_datetime(text.where(zoned), format=form, errors="coerce", utc=True)
        stamps = _localized(local, zone).where(~zoned, exact)
    result = pa.Array.from_pandas(stamps.dt.tz_convert("UTC")).cast(pa.timestamp("ms", "UTC"), safe=False)
    none = mask(pc.is_null(result)) & ~missing
    skipped = none & local.notna().to_numpy() & (zone is not None)
    return result, none & ~skipped, skipped


def _usual(text: pa.Array) -> pa.Array | None:
    """Cells that are whole ISO 8601 times with their offset, or null, cast in one go; None if any is not."""
    if pc.all(pc.match_substring_regex(text, _USUAL)).as_py() is False:
        return None
    try:
        exact = text.cast(pa.timestamp("us", "UTC"))
    except pa.ArrowInvalid:  # no such day, hour or offset
        return None
    return exact.cast(pa.timestamp("ms", "UTC"), safe=False)


def _localized(series: "pd.Series[pd.Timestamp]", zone: str | None) -> "pd.Series[pd.Timestamp]":
    """In UTC; null where the zone skipped that time, or where there is no zone."""
    if zone is None:
        return pd.Series(pd.NaT, index=series.index, dtype="datetime64[ms, UTC]")
    first = np.ones(len(series), dtype=bool)
    return series.dt.tz_localize(zone, ambiguous=first, nonexistent="NaT").dt.tz_convert("UTC")


def offsets_min(stamps: pa.Array, zone: str) -> pa.Array:
    """Local time in `zone` minus UTC, in minutes."""
    local = pc.local_timestamp(stamps.cast(pa.timestamp("ms", zone)))
    minutes = pc.divide(pc.subtract(local.cast(pa.int64()), stamps.cast(pa.int64())), 60_000)
    return minutes.cast(pa.int16())
