"""Checks of a session log on Arrow columns, without a loop over rows.

Arrays called `bad` are boolean masks over rows (or over plays: the items of a session's lists, in order).
"""

from collections.abc import Sequence
from datetime import UTC, datetime

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from amrs.logs.faults import Bools, Faults, Ints

UNIT = "a number in [0, 1], or null"
# Outside these years a number of seconds was almost surely read as milliseconds, or the reverse.
EARLIEST, LATEST = datetime(1971, 1, 1, tzinfo=UTC), datetime(2100, 1, 1, tzinfo=UTC)
PLAY_COLUMNS = ("engagement", "rating", "track_valence", "track_arousal", "propensity")
REPORTS = ("pre_valence", "pre_arousal", "post_valence", "post_arousal")


def mask(array: pa.Array | pa.ChunkedArray) -> Bools:
    """An Arrow boolean column as numpy, null counting as False."""
    known = pc.and_kleene(array, pc.is_valid(array))  # fill_null goes through the bits one by one
    return np.asarray(known.to_numpy(zero_copy_only=False), dtype=bool)


def codes(array: pa.Array, names: pa.Array | None = None) -> Ints:
    """Position of each value in `names` (default: its own distinct ones), -1 where null or not there."""
    if names is not None:
        found = pc.index_in(array, value_set=names, skip_nulls=True)
    else:
        one = array.combine_chunks() if isinstance(array, pa.ChunkedArray) else array
        found = one.dictionary_encode().indices
    return np.asarray(pc.fill_null(found, -1), dtype=np.int64)


def repeated(keys: Ints) -> Bools:
    """True where a key has come before."""
    order = stable_order(keys)
    again = np.zeros(len(keys), dtype=bool)
    again[order[1:]] = np.diff(keys[order]) == 0
    return again


def stable_order(keys: NDArray[np.generic]) -> Ints:
    """`argsort(kind="stable")`, faster for whole numbers: one integer of key and row needs no stable sort."""
    with np.errstate(invalid="ignore"):
        whole = keys.astype(np.int64)
    if len(keys) and keys.dtype.kind != "u" and (whole.astype(keys.dtype) == keys).all():
        low, high, bits = int(whole.min()), int(whole.max()), len(keys).bit_length()
        if high - low < 1 << (63 - bits):
            return np.sort((whole - low << bits) | np.arange(len(keys))) & ((1 << bits) - 1)
    return np.argsort(keys, kind="stable")


def hashes(ids: pa.Array) -> NDArray[np.uint64]:
    """A number for each id, the same wherever the id stands; null as the empty text."""
    text = pc.fill_null(ids, "").to_numpy(zero_copy_only=False)
    return pd.util.hash_array(text, categorize=False)


def given_again(ids: pa.ChunkedArray) -> Bools:
    """True where an id has come before, as `repeated(codes(ids))` of a whole log.

    Only ids of one hash are compared themselves: a table of ten million takes gigabytes.
    """
    hash_N = np.concatenate([hashes(chunk) for chunk in ids.chunks])
    sorted_N = np.sort(hash_N)
    again = np.isin(hash_N, sorted_N[1:][sorted_N[1:] == sorted_N[:-1]])
    again[again] = repeated(codes(ids.filter(pa.array(again)).combine_chunks()))
    return again


def check_catalogue(table: pa.Table, modes: Sequence[str], faults: Faults) -> None:
    """Note every fault of a conformed catalogue (see `amrs.logs.columns.conform`)."""
    add = faults.add_rows
    ids = table["track_id"]
    present = pc.drop_null(ids)
    add("catalogue.track_id", mask(pc.is_null(ids)), ids, ids, "an id")
    add("catalogue.track_id", repeated(codes(present)), present, "given again", "every track once")
    lengths = pc.list_value_length(table["embedding"])
    usual = pc.mode(lengths)
    size = usual[0]["mode"].as_py() if len(usual) else 0
    add("catalogue.embedding", mask(pc.is_null(lengths)), ids, "null", "a list of numbers")
    add(
        "catalogue.embedding",
        mask(pc.not_equal(lengths, size)),
        ids,
        lambda i: f"{lengths[i]} numbers",
        f"{size} numbers, as most tracks have",
    )
    if size == 0:
        faults.add("catalogue.embedding", "every row", "empty", "1 number or more")
    _check_finite("catalogue.embedding", table["embedding"], ids, False, faults)
    seconds = table["duration_s"]
    wrong = pc.invert(pc.and_(pc.is_finite(seconds), pc.greater(seconds, 0)))
    add("catalogue.duration_s", mask(wrong), ids, seconds, "seconds above 0, or null")
    flat, row = pc.list_flatten(table["modes"]), _parents(table["modes"])
    known = ", ".join(modes) or "none, as the log has no modes"
    add(
        "catalogue.modes",
        codes(flat, pa.array(modes, pa.string())) < 0,
        ids,
        flat,
        f"a mode of this log ({known})",
        row,
    )
    add(
        "catalogue.modes",
        mask(pc.equal(pc.list_value_length(table["modes"]), 0)),
        ids,
        "an empty list",
        "1 mode or more, or null for every mode",
    )


def check_sessions(
    table: pa.Table,
    catalogue: pa.Table,
    modes: Sequence[str],
    cohorts: Sequence[str],
    context: int,
    repeats: bool,
    faults: Faults,
) -> None:
    """Note every fault of conformed sessions; `context` is the number of context values."""
    add = faults.add_rows
    ids = table["session_id"]
    for name, names in (("mode", modes), ("cohort", cohorts)):
        unknown = (codes(table[name], pa.array(names, pa.string())) < 0) & mask(pc.is_valid(table[name]))
        allowed = f"{', '.join(names) or 'none, as the metadata names none'}, or null"
        add(f"sessions.{name}", unknown, ids, table[name], allowed)
    for name in ("session_id", "user_id", "started_at", "track_id"):
        add(f"sessions.{name}", mask(pc.is_null(table[name])), ids, "null", "not null")
    present = pc.drop_null(ids)
    add("sessions.session_id", repeated(codes(present)), present, "given again", "every session once")
    _check_scalars(table, ids, faults)
    _check_times(table, ids, faults)
    _check_order(table, ids, faults)
    lengths = pc.list_value_length(table["context"])
    add(
        "sessions.context",
        mask(pc.not_equal(lengths, context)),
        ids,
        lambda i: f"{lengths[i]} numbers",
        f"{context} numbers, or null",
    )
    _check_finite("sessions.context", table["context"], ids, True, faults)
    _check_plays(table, ids, faults)
    _check_tracks(table, catalogue, modes, repeats, faults)


def _check_scalars(table: pa.Table, ids: pa.Array, faults: Faults) -> None:
    add = faults.add_rows
    for name in REPORTS:
        add(f"sessions.{name}", _outside_unit(table[name]), ids, table[name], UNIT)
    ended = table["ended"]
    add(
        "sessions.ended",
        mask(pc.invert(pc.is_in(ended, pa.array(["left", "completed", None])))),
        ids,
        ended,
        "left, completed or null",
    )
    offset = table["utc_offset_min"]
    add(
        "sessions.utc_offset_min",
        mask(pc.greater(pc.abs(offset), 14 * 60)),
        ids,
        offset,
        "minutes in [-840, 840], or null",
    )


def _check_times(table: pa.Table, ids: pa.Array, faults: Faults) -> None:
    add = faults.add_rows
    start, end = table["started_at"], table["ended_at"]
    for name, times in (("started_at", start), ("ended_at", end)):
        early, late = pc.less(times, pa.scalar(EARLIEST)), pc.greater_equal(times, pa.scalar(LATEST))
        bad = mask(pc.or_(early, late))
        add(f"sessions.{name}", bad, ids, times, f"{EARLIEST:%Y} up to {LATEST:%Y}, UTC")
    add(
        "sessions.ended_at",
        mask(pc.less(end, start)),
        ids,
        end,
        lambda i: f"not before started_at, {faults.cell('sessions.started_at', ids, start, i)}, or null",
    )


def _check_order(table: pa.Table, ids: pa.Array, faults: Faults) -> None:
    """A user's sessions lie together, in order, and do not overlap."""
    add = faults.add_rows
    user = codes(table["user_id"])
    if len(user) < 2:
        return
    same = (user[1:] == user[:-1]) & (user[1:] >= 0)
    starts = np.concatenate([[True], ~same])
    split = np.zeros(len(user), dtype=bool)
    split[np.flatnonzero(starts)] = repeated(user[starts]) & (user[starts] >= 0)
    add(
        "sessions.user_id",
        split,
        ids,
        "apart from other sessions of this user",
        "all sessions of a user next to each other",
    )
    start, end = table["started_at"], table["ended_at"]
    late = np.concatenate([[False], same & mask(pc.less(start[1:], start[:-1]))])
    add(
        "sessions.started_at",
        late,
        ids,
        start,
        lambda i: (
            "not before this user's previous session, "
            + faults.session("sessions.started_at", ids, start, i - 1)
        ),
    )
    over = np.concatenate([[False], same & mask(pc.less(start[1:], end[:-1]))]) & ~late
    add(
        "sessions.started_at",
        over,
        ids,
        start,
        lambda i: (
            "not before the end of this user's previous session, "
            + faults.session("sessions.ended_at", ids, end, i - 1)
            + ", or they overlap"
        ),
    )


def _check_plays(table: pa.Table, ids: pa.Array, faults: Faults) -> None:
    add = faults.add_rows
    tracks = pc.list_value_length(table["track_id"])
    add("sessions.track_id", mask(pc.equal(tracks, 0)), ids, "an empty session", "1 track or more")
    for name in PLAY_COLUMNS:
        column = f"sessions.{name}"
        given = pc.list_value_length(table[name])
        add(
            column,
            mask(pc.not_equal(given, tracks)),
            ids,
            lambda i, given=given: f"{given[i]} items for {tracks[i]} tracks",
            "as many items as track_id has (null where unknown), or null for the whole list",
        )
        flat, row = pc.list_flatten(table[name]), _parents(table[name])
        if name == "rating":
            bad, allowed = mask(pc.invert(pc.or_(pc.equal(flat, 0), pc.equal(flat, 1)))), "0, 1 or null"
        elif name == "propensity":
            bad, allowed = _outside_unit(flat) | mask(pc.equal(flat, 0)), "a probability in (0, 1], or null"
        else:
            bad, allowed = _outside_unit(flat), UNIT
        add(column, bad, ids, flat, allowed, row)


def _check_tracks(
    table: pa.Table, catalogue: pa.Table, modes: Sequence[str], repeats: bool, faults: Faults
) -> None:
    """Every play is of a known track, allowed in the mode, and no repeat where there are none."""
    add = faults.add_rows
    ids, column = table["session_id"], "sessions.track_id"
    flat, row = pc.list_flatten(table["track_id"]), _parents(table["track_id"])
    track = codes(flat, catalogue["track_id"].combine_chunks())
    add(column, track < 0, ids, flat, "a track_id of the catalogue", row)
    if not repeats:
        again = repeated(row * (len(catalogue) + 1) + track) & (track >= 0)
        add(
            column,
            again,
            ids,
            flat,
            "a track once in a session (or declare that this service repeats tracks)",
            row,
        )
    names = pa.array(modes, pa.string())
    mode = codes(table["mode"], names)
    if not len(catalogue) or not modes:
        return
    allowed_KM = np.repeat(mask(pc.is_null(catalogue["modes"]))[:, None], len(modes), axis=1)
    allowed_mode = codes(pc.list_flatten(catalogue["modes"]), names)
    allowed_KM[_parents(catalogue["modes"])[allowed_mode >= 0], allowed_mode[allowed_mode >= 0]] = True
    bad = (track >= 0) & (mode[row] >= 0)
    bad[bad] = ~allowed_KM[track[bad], mode[row][bad]]
    add(column, bad, ids, flat, "a track whose modes include the mode of the session", row)


def _check_finite(column: str, lists: pa.ChunkedArray, ids: pa.Array, null_too: bool, faults: Faults) -> None:
    flat = pc.list_flatten(lists)
    bad = ~mask(pc.fill_null(pc.is_finite(flat), null_too))
    allowed = "finite numbers, or null" if null_too else "finite numbers"
    faults.add_rows(column, bad, ids, flat, allowed, _parents(lists))


def _outside_unit(values: pa.Array | pa.ChunkedArray) -> Bools:
    """NaN and infinity lie outside, null does not."""
    return mask(pc.invert(pc.and_(pc.greater_equal(values, 0), pc.less_equal(values, 1))))


def _parents(lists: pa.ChunkedArray) -> Ints:
    return np.asarray(pc.list_parent_indices(lists), dtype=np.int64)
