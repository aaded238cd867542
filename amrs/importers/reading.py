"""Raw CSV and Parquet files: columns of text to numbers and times, every unreadable value named."""

import csv
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, NoReturn

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv
import pyarrow.parquet
from numpy.typing import NDArray

from amrs.logs.faults import Bools, Faults, Ints, LogError
from amrs.logs.validation import mask

Floats = NDArray[np.float64]

MISSING = ["", "NA", "N/A", "null", "NULL"]
_NUMBER = r"^-?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?$|^(?i:-?(nan|inf|infinity))$"
_BLOCK, _ROWS = 1 << 23, 1 << 18
"""Bytes of CSV, and rows of Parquet, that are read at a time."""


@dataclass(frozen=True)
class Raw:
    """A file as it came: CSV columns are all text, Parquet columns have their types."""

    file: Path
    table: pa.Table
    ROW: ClassVar[str] = "number of the row in the file"
    """A column of ours, where the table is a part of the file."""

    def rows(self) -> pa.Array:
        """Numbers of the rows in the file, from 1."""
        if self.ROW in self.table.column_names:
            return self.table[self.ROW].combine_chunks()
        return pa.array(np.arange(1, len(self.table) + 1))

    def column(self, name: str) -> pa.Array:
        """A column in one chunk, text without surrounding blanks and null where empty.

        LogError that lists the columns if it is not there.
        """
        if name not in self.table.column_names:
            self.missing(name)
        array = self.table[name].combine_chunks()
        if pa.types.is_dictionary(array.type):
            array = array.dictionary_decode()
        if pa.types.is_string(array.type) or pa.types.is_large_string(array.type):
            if _bytes(array).min(initial=127) <= ord(" "):  # some blank, or a sign that may be one
                array = pc.utf8_trim_whitespace(array)
            shortest = pc.min(pc.binary_length(array)).as_py()
            if shortest is not None and shortest <= max(map(len, MISSING)):
                array = pc.if_else(pc.is_in(array, pa.array(MISSING, array.type)), None, array)
        return array

    def missing(self, name: str) -> NoReturn:
        """Say that there is no such column, and which there are."""
        names = self.table.column_names
        hint = _separator_hint(names) if self.file.suffix == ".csv" else ""
        raise LogError(f"{self.file}: no column {name}; its columns are {', '.join(names)}{hint}")

    def text(self, name: str) -> pa.Array:
        """A column as strings, null where empty; whole numbers as integers."""
        array = self.column(name)
        if pa.types.is_floating(array.type) and pc.all(pc.equal(array, pc.floor(array))).as_py():
            array = array.cast(pa.int64())  # ids of a column with gaps come as floats
        return array.cast(pa.string())

    def numbers(self, name: str) -> tuple[pa.Array, pa.Array, Bools]:
        """A column, it as float64, and where a value is no number (null there)."""
        if name in self.table.column_names and pa.types.is_string(self.table[name].type):
            array = self.table[name].combine_chunks()
            value = _all_finite(array)
            if value is not None:  # then there were no blanks, and no words for what is missing
                return array, value, np.zeros(len(array), dtype=bool)
        array = self.column(name)
        return array, *numbers(array)

    def floats(self, *names: str) -> list[Floats]:
        """Columns of numbers, NaN where empty; LogError naming the rows that hold none."""
        faults = Faults(str(self.file))
        columns, no_ids = [], pa.nulls(len(self.table), pa.string())
        for name in names:
            array, value, bad = self.numbers(name)
            bad |= np.isinf(np.asarray(value, dtype=float))
            faults.add_rows(name, bad, no_ids, array, "a number, or empty")
            columns.append(np.asarray(value, dtype=float))
        faults.raise_any()
        return columns

    def integers(self, *names: str) -> list[Ints]:
        """Columns of whole numbers, none empty: ids, times, ranks."""
        faults = Faults(str(self.file))
        columns, no_ids = self.floats(*names), pa.nulls(len(self.table), pa.string())
        for name, values in zip(names, columns, strict=True):
            faults.add_rows(name, values != np.floor(values), no_ids, self.column(name), "a whole number")
        faults.raise_any()
        return [values.astype(np.int64) for values in columns]


def read_raw(file: Path, advice: str) -> Raw:
    """Read a `.csv` or `.parquet` file; `advice` says what to do if it is missing."""
    with _readable(file, advice):
        return Raw(file, pa.parquet.read_table(file) if file.suffix == ".parquet" else _read_csv(file))


def read_batches(file: Path, advice: str) -> Iterator[pa.Table]:
    """The same file, some rows at a time."""
    with _readable(file, advice):
        if file.suffix == ".parquet":
            for batch in pa.parquet.ParquetFile(file).iter_batches(_ROWS):
                yield pa.table(
                    {
                        name: array.dictionary_decode() if pa.types.is_dictionary(array.type) else array
                        for name, array in zip(batch.schema.names, batch.columns, strict=True)
                    }
                )
        else:
            yield from _csv_batches(file)


def raw_bytes(file: Path) -> int:
    """Bytes of a file's text, or of its columns before compression; 0 where it cannot be read."""
    try:
        if file.suffix != ".parquet":
            return file.stat().st_size
        about = pa.parquet.read_metadata(file)
        return sum(about.row_group(n).total_byte_size for n in range(about.num_row_groups))
    except (OSError, pa.ArrowInvalid):
        return 0  # `read_raw` says what is wrong


@contextmanager
def _readable(file: Path, advice: str) -> Iterator[None]:
    """LogError, in words, where the file is missing, of another type, or damaged."""
    if not file.is_file():
        raise LogError(f"{file.name} is missing in {file.parent}; {advice}")
    if file.suffix not in (".csv", ".parquet"):
        raise LogError(f"{file}: files of type {file.suffix or 'none'} are not read; allowed: .csv, .parquet")
    try:
        yield
    except (pa.ArrowInvalid, UnicodeDecodeError, csv.Error) as error:
        line = _first_not_utf8(file) if file.suffix == ".csv" else None
        if line:
            raise LogError(
                f"{file}: line {line} is not in UTF-8; allowed: text in UTF-8. Save it so (spreadsheets call "
                f"it CSV UTF-8), or, if it is in Latin-1: iconv -f LATIN1 -t UTF-8 {file.name} > NEW.csv"
            ) from error
        raise LogError(
            f"{file} is not a readable {file.suffix[1:]} file: {type(error).__name__}"
        ) from error  # its text could quote a row


def _first_not_utf8(file: Path) -> int | None:
    """Number of the first line that is not UTF-8, from 1."""
    with file.open("rb") as lines:
        for number, line in enumerate(lines, 1):
            try:
                line.decode("utf-8")
            except UnicodeDecodeError:
                return number
    return None


def _separator_hint(names: list[str]) -> str:
    """What to do where the first line of a CSV seems to have another separator than commas."""
    for sign, word in ((";", "semicolons"), ("\t", "tabs")):
        if any(sign in name for name in names):
            return (
                f". The first line holds {word}: if they separate the columns, write the file with commas "
                "instead, and with points in decimal numbers"
            )
    return ""


def _read_csv(file: Path) -> pa.Table:
    return pa.concat_tables(_csv_batches(file)).combine_chunks()


def _csv_batches(file: Path) -> Iterator[pa.Table]:
    with file.open(encoding="utf-8-sig", newline="") as lines:
        names = next(csv.reader(lines), [])
    if not names or len(set(names)) < len(names):
        raise LogError(
            f"{file}: the first line has {', '.join(names) or 'nothing'}; "
            f"allowed: the names of the columns, each once{_separator_hint(names)}"
        )
    broken: list[str] = []

    def skip(row: pyarrow.csv.InvalidRow) -> str:
        broken.append(f"row {row.number - 1} has {row.actual_columns} cells")  # as rows are counted elsewhere
        return "skip"

    reader = pa.csv.open_csv(
        file,
        read_options=pa.csv.ReadOptions(use_threads=False, block_size=_BLOCK),  # only then are rows numbered
        parse_options=pa.csv.ParseOptions(newlines_in_values=True, invalid_row_handler=skip),
        convert_options=pa.csv.ConvertOptions(
            column_types=dict.fromkeys(names, pa.string()), null_values=MISSING, strings_can_be_null=True
        ),
    )
    with reader:
        yield pa.Table.from_batches([], reader.schema)
        for batch in reader:
            yield pa.Table.from_batches([batch])
    if broken:
        more = f", and {len(broken) - 20} more" if len(broken) > 20 else ""
        hint = _separator_hint(names)
        raise LogError(
            f"{file}: {', '.join(broken[:20])}{more}; allowed: {len(names)}, as in the first line{hint}"
        )


def numbers(array: pa.Array) -> tuple[pa.Array, Bools]:
    """Text or numbers as float64, and where a value is no number (null there)."""
    if pa.types.is_integer(array.type) or pa.types.is_floating(array.type) or pa.types.is_boolean(array.type):
        return array.cast(pa.float64()), np.zeros(len(array), dtype=bool)
    text = pc.utf8_trim_whitespace(array.cast(pa.string()))
    good = pc.match_substring_regex(text, _NUMBER)
    return pc.if_else(good, text, None).cast(pa.float64()), mask(pc.invert(good))


def _bytes(text: pa.Array) -> NDArray[np.int8]:
    """The bytes of all cells, those beyond ASCII negative."""
    return np.frombuffer(text.buffers()[2] or b"", np.int8)


def _all_finite(text: pa.Array) -> pa.Array | None:
    """Cells that are finite numbers or null, cast in one go; None if any is not.

    Of what the cast takes, `_NUMBER` refuses only a leading plus and unusual ways to write NaN.
    """
    if ord("+") in _bytes(text) and pc.any(pc.starts_with(text, "+")).as_py():
        return None
    try:
        value = text.cast(pa.float64())
    except pa.ArrowInvalid:
        return None
    return value if pc.all(pc.is_finite(value)).as_py() in (True, None) else None


def scaled(
    raw: Raw, name: str, low: float, high: float, column: str, ids: pa.Array, faults: Faults
) -> pa.Array:
    """Numbers in [low, high] mapped linearly to [0, 1]; others are noted as faults of `column`."""
    array, value, bad = raw.numbers(name)
    inside = pc.and_(pc.greater_equal(value, low), pc.less_equal(value, high))
    bad |= mask(pc.invert(inside))
    faults.add_rows(column, bad, ids, array, f"a number in [{low:g}, {high:g}], or empty")
    return pc.divide(pc.subtract(value, low), high - low)
