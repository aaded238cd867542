"""Arrow columns of a log: from what an importer hands in to what lies on disk."""

import hashlib
import io
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.types as pt
from datasets import ClassLabel, Features, List

from amrs.logs.faults import Faults
from amrs.logs.validation import PLAY_COLUMNS, mask

REQUIRED = {
    "sessions": ("session_id", "user_id", "started_at", "track_id"),
    "catalogue": ("track_id", "embedding"),
}


def conform(table: pa.Table, features: Features, part: str, faults: Faults) -> pa.Table:
    """The table with every column of `features`, as wide Arrow types and in one chunk.

    Wide: string, float32, int64, timestamp[ms, UTC], and lists of them; class labels as their names.
    Types that lose information are noted as faults, and so are missing and unknown columns.
    """
    for name in table.column_names:
        if name not in features:
            faults.add(f"{part}.{name}", "every row", "no such column", f"the columns {', '.join(features)}")
    columns: dict[str, pa.Array] = {}
    for name, feature in features.items():
        target = _wide(feature)
        if name not in table.column_names:
            if name in REQUIRED[part]:
                faults.add(f"{part}.{name}", "every row", "the column is missing", "a column of that name")
            columns[name] = pa.nulls(len(table), target)
            continue
        array = _named(table[name].combine_chunks(), feature)
        if _loses(array.type, target):
            faults.add(f"{part}.{name}", "every row", f"type {array.type}", _allowed(target))
            columns[name] = pa.nulls(len(table), target)
        else:
            columns[name] = array.cast(target, safe=False)
    return pa.table(columns)


def even_lists(sessions: pa.Table) -> pa.Table:
    """Checked sessions with one item per track in all play columns: a null list becomes nulls."""
    tracks = sessions["track_id"].combine_chunks()
    length_S = np.asarray(pc.list_value_length(tracks), dtype=np.int64)
    plays = int(length_S.sum())
    offset_S = pa.array(np.concatenate([[0], np.cumsum(length_S)]), pa.int32())
    for name in PLAY_COLUMNS:
        lists = sessions[name].combine_chunks()
        if lists.null_count == len(lists):
            items = pa.nulls(plays, lists.type.value_type)
        else:
            given_P = np.repeat(mask(pc.is_valid(lists)), length_S)
            item_P = pa.array(np.cumsum(given_P) - 1, pa.int64(), mask=~given_P)
            items = pc.list_flatten(lists).take(item_P)
        even = pa.ListArray.from_arrays(offset_S, items)
        sessions = sessions.set_column(sessions.schema.get_field_index(name), name, even)
    return sessions


def _narrow(table: pa.Table, features: Features) -> pa.Table:
    """A checked table in the types of its features, class labels as codes."""
    columns = []
    for name, feature in features.items():
        array = table[name].combine_chunks()
        if isinstance(feature, ClassLabel):
            array = pc.index_in(array, value_set=pa.array(feature.names, pa.string()), skip_nulls=True)
        columns.append(array.cast(features.arrow_schema.field(name).type))
    return pa.Table.from_arrays(columns, schema=features.arrow_schema)


def save(table: pa.Table, features: Features, folder: Path, digest: "hashlib._Hash") -> None:
    """Write a checked table as a Hugging Face dataset, and add its content to the digest."""
    table = _narrow(table, features)
    with pa.ipc.new_stream(_Sink(digest), table.schema) as stream:
        stream.write_table(table)
    datasets.disable_progress_bars()
    info = datasets.DatasetInfo(features=features)
    # The files of an empty dataset with the digest so far as fingerprint, then the rows as `save_to_disk`
    # writes them: that works out the types of every thousand rows anew, which takes twice as long.
    empty = datasets.Dataset(table[:0], info=info, fingerprint=digest.hexdigest()[:16])
    empty.save_to_disk(str(folder), num_shards=1)
    (file,) = folder.glob("*.arrow")
    with pa.ipc.new_stream(str(file), table.schema) as stream:
        stream.write_table(table, max_chunksize=datasets.config.DEFAULT_MAX_BATCH_SIZE)


class _Sink(io.RawIOBase):
    """A file that keeps only the digest of what is written."""

    def __init__(self, digest: "hashlib._Hash") -> None:
        self.digest = digest

    def writable(self) -> bool:
        return True

    def write(self, data: Any, /) -> int:
        self.digest.update(data)
        return memoryview(data).nbytes


def _named(array: pa.Array, feature: object) -> pa.Array:
    """Codes of a class label as their names; a code without a name becomes its number, to be refused."""
    if not (isinstance(feature, ClassLabel) and pt.is_integer(array.type)):
        return array
    names = pa.array(feature.names, pa.string())
    known = pc.and_(pc.greater_equal(array, 0), pc.less(array, len(names)))
    return pc.if_else(known, names.take(pc.if_else(known, array, 0)), pc.cast(array, pa.string()))


def _wide(feature: object) -> pa.DataType:
    """The type in which a column is checked."""
    if isinstance(feature, List):
        return pa.list_(_wide(feature.feature))
    if isinstance(feature, ClassLabel):
        return pa.string()
    kind: pa.DataType = feature.pa_type  # type: ignore[attr-defined]
    return pa.int64() if pt.is_integer(kind) else kind


def _loses(given: pa.DataType, target: pa.DataType) -> bool:
    """True if a cast could lose or invent information (a float cut to an integer, a time without zone)."""
    if pt.is_null(given):
        return False
    if pt.is_list(target):
        lists = pt.is_list(given) or pt.is_large_list(given) or pt.is_fixed_size_list(given)
        return not lists or _loses(given.value_type, target.value_type)
    if pt.is_dictionary(given):
        given = given.value_type
    if pt.is_string(target):
        return not (pt.is_string(given) or pt.is_large_string(given) or pt.is_string_view(given))
    if pt.is_timestamp(target):
        return not pt.is_timestamp(given) or given.tz is None
    return not (pt.is_integer(given) or (pt.is_floating(given) and pt.is_floating(target)))


def _allowed(target: pa.DataType) -> str:
    if pt.is_list(target):
        return f"a list of {_allowed(target.value_type)}"
    if pt.is_timestamp(target):
        return "timestamp with a time zone"
    if pt.is_integer(target):
        return "integers"
    return "numbers" if pt.is_floating(target) else "strings"
