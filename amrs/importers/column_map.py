"""The YAML file that says which of your columns is which of ours, and how values are converted."""

import difflib
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from zoneinfo import available_timezones

import yaml

from amrs.logs.faults import LogError

TIME = ("unit", "format", "zone")
LABEL = ("values",)
SCALE = ("scale",)
COLUMNS: dict[str, dict[str, tuple[str, ...]]] = {
    "sessions": {
        "session_id": (),
        "user_id": (),
        "started_at": TIME,
        "ended_at": TIME,
        "utc_offset_min": (),
        "mode": LABEL,
        "cohort": LABEL,
        "context": (),
        "pre_valence": SCALE,
        "pre_arousal": SCALE,
        "post_valence": SCALE,
        "post_arousal": SCALE,
        "ended": LABEL,
        "arm": LABEL,
    },
    "events": {
        "session_id": (),
        "track_id": (),
        "position": (),
        "played_at": TIME,
        "engagement": ("scale", "unit"),
        "rating": ("values", "like", "dislike"),
        "track_valence": SCALE,
        "track_arousal": SCALE,
        "propensity": (),
    },
    "catalogue": {
        "track_id": (),
        "embedding": ("prefix",),
        "artist": (),
        "genre": (),
        "duration_s": ("unit",),
        "modes": ("values", "separator"),
        "title": (),
    },
}
"""Our columns by file, each with the conversions it takes."""
REQUIRED = {
    "sessions": ("session_id", "user_id", "started_at"),
    "events": ("session_id", "track_id"),
    "catalogue": ("track_id", "embedding"),
}
_OFFSET_IN_WORDS = re.compile(r"%Z|[+-]\d\d:?\d\d$")
"""A zone's short name, which is no zone, or an offset that the format takes for letters."""
UNITS = {
    "started_at": ("s", "ms", "us"),
    "ended_at": ("s", "ms", "us"),
    "played_at": ("s", "ms", "us"),
    "engagement": ("s", "ms"),
    "duration_s": ("s", "ms"),
}


@dataclass(frozen=True)
class Column:
    """Where one of our columns comes from. Options that are not given are None."""

    ours: str
    theirs: tuple[str, ...]
    """Their column; several for context."""
    names: tuple[str, ...] = ()
    """Context only: our name of each number."""
    prefix: str | None = None
    """Embedding only: all their columns that begin so, in the order of the file."""
    scale: tuple[float, float] | None = None
    """Their lowest and highest value, mapped to 0 and 1."""
    values: dict[str, str] | None = None
    """Their value to ours; an empty text means unknown."""
    like: float | None = None
    """Ratings from this one up are a like."""
    dislike: float | None = None
    """Ratings from this one down are a dislike; those between are no rating."""
    unit: str | None = None
    """Of numbers: s, ms, us since 1970; of engagement, the time played (divided by `duration_s`)."""
    format: str | None = None
    """strptime format of a time; ISO 8601 without it."""
    zone: str | None = None
    """Time zone of times without offset, such as Europe/Berlin."""
    separator: str = ";"
    """Between modes in one text."""

    @property
    def shown(self) -> str:
        """Their column in words."""
        return f"columns {self.prefix}*" if self.prefix else f"column {', '.join(self.theirs)}"


@dataclass(frozen=True)
class Part:
    """One of the three files and its columns, by our name."""

    file: str
    columns: dict[str, Column]


@dataclass(frozen=True)
class ColumnMap:
    """A whole map."""

    name: str
    embedding_is: str
    """What the embeddings are, in words."""
    parts: dict[str, Part]


def read_map(file: Path, embedding: bool = True) -> ColumnMap:
    """Read a map; LogError on an unknown or missing key, a bad value, or YAML that does not parse.

    Without `embedding` the catalogue need not have one: it comes from a table of its own.
    """
    try:
        # BaseLoader keeps every value as text, so `yes`, `no` and `1` in your data stay what they are.
        top = yaml.load(file.read_text(encoding="utf-8"), Loader=yaml.BaseLoader)
    except (OSError, UnicodeDecodeError) as error:
        raise LogError(
            f"{file}: the column map is missing or not UTF-8; write one "
            "(see examples/own_log/map.yaml) or name it with data.map"
        ) from error
    except yaml.YAMLError as error:
        raise LogError(f"{file}: not YAML: {error}") from error
    _keys(file, "the map", top, ("name", "embedding_is", *COLUMNS), tuple(COLUMNS))
    parts = {}
    for part in COLUMNS:
        _keys(file, part, top[part], ("file", "columns"), ("file", "columns"))
        required = tuple(name for name in REQUIRED[part] if embedding or name != "embedding")
        _keys(file, f"{part}.columns", top[part]["columns"], tuple(COLUMNS[part]), required)
        columns = {ours: _column(file, part, ours, given) for ours, given in top[part]["columns"].items()}
        parts[part] = Part(_text(file, f"{part}.file", top[part]["file"]), columns)
    if "position" in parts["events"].columns and "played_at" in parts["events"].columns:
        raise LogError(f"{file}: events.columns has position and played_at; allowed: one of them")
    name = _text(file, "name", top.get("name", "own_log"))
    return ColumnMap(name, _text(file, "embedding_is", top.get("embedding_is", "not described")), parts)


def _column(file: Path, part: str, ours: str, given: object) -> Column:
    key = f"{part}.columns.{ours}"
    if ours == "context":
        return _context(file, key, given)
    if not isinstance(given, Mapping):
        return Column(ours, (_text(file, key, given),))
    by_prefix = "prefix" in given
    _keys(
        file,
        key,
        given,
        (*(() if by_prefix else ("column",)), *COLUMNS[part][ours]),
        ("prefix",) if by_prefix else ("column",),
    )
    options: dict[str, Any] = {}
    for option, value in given.items():
        where = f"{key}.{option}"
        if option == "scale":
            options[option] = _scale(file, where, value)
        elif option == "values":
            options[option] = _values(file, where, value, ours)
        elif option in ("like", "dislike"):
            options[option] = _number(file, where, value)
        elif option != "column":
            options[option] = _text(file, where, value)
    column = Column(ours, () if by_prefix else (_text(file, f"{key}.column", given["column"]),), **options)
    _check_together(file, key, column)
    return column


def _check_together(file: Path, key: str, column: Column) -> None:
    """Refuse options that exclude each other, or an option without its partner."""
    units = UNITS.get(column.ours, ())
    if column.unit is not None and column.unit not in units:
        raise LogError(f"{file}: {key}.unit: {column.unit}; allowed: {', '.join(units)}")
    if column.unit and (column.format or column.scale):
        other = "format" if column.format else "scale"
        raise LogError(f"{file}: {key} has unit and {other}; allowed: one of them")
    if column.format and ("%" not in column.format or _OFFSET_IN_WORDS.search(column.format)):
        allowed = "strptime's signs, such as %d.%m.%Y %H:%M; an offset as %z, or a Z at the end for UTC"
        raise LogError(f"{file}: {key}.format: {column.format}; allowed: {allowed}")
    if column.zone and column.zone not in available_timezones():
        raise LogError(f"{file}: {key}.zone: {column.zone}; allowed: a name like UTC or Europe/Berlin")
    if (column.like is None) != (column.dislike is None) or (column.like is not None and column.values):
        raise LogError(f"{file}: {key}; allowed: like and dislike together, or values")
    if column.like is not None and column.dislike is not None and column.like <= column.dislike:
        raise LogError(f"{file}: {key}: like {column.like:g}; allowed: above dislike, {column.dislike:g}")


def _context(file: Path, key: str, given: object) -> Column:
    """A list of columns, or a mapping from our names to columns."""
    pairs = (
        given
        if isinstance(given, Mapping)
        else dict(zip(given, given, strict=True))
        if isinstance(given, list) and all(isinstance(name, str) for name in given)
        else None
    )
    if not pairs:
        raise LogError(f"{file}: {key}: {given}; allowed: a list of columns, or names with their columns")
    theirs = tuple(_text(file, f"{key}.{name}", column) for name, column in pairs.items())
    return Column("context", theirs, names=tuple(pairs))


def _keys(file: Path, where: str, given: object, allowed: Sequence[str], required: Sequence[str]) -> None:
    if not isinstance(given, Mapping):
        raise LogError(f"{file}: {where}: {given!r}; allowed: keys {', '.join(allowed)}")
    for key in given:
        if key not in allowed:
            near = difflib.get_close_matches(str(key), allowed, 1)
            hint = f" Did you mean {near[0]}?" if near else ""
            raise LogError(f"{file}: {where} has the key {key}; allowed: {', '.join(allowed)}.{hint}")
    for key in required:
        if key not in given:
            raise LogError(f"{file}: {where} lacks {key}; it needs {', '.join(required)}")


def _text(file: Path, where: str, given: object) -> str:
    if not isinstance(given, str) or not given:
        raise LogError(f"{file}: {where}: {given!r}; allowed: a text")
    return given


def _number(file: Path, where: str, given: object) -> float:
    try:
        return float(str(given))
    except ValueError as error:
        raise LogError(f"{file}: {where}: {given}; allowed: a number") from error


def _scale(file: Path, where: str, given: object) -> tuple[float, float]:
    ends = [_number(file, where, end) for end in given] if isinstance(given, list) else []
    if len(ends) != 2 or not ends[0] < ends[1]:
        raise LogError(f"{file}: {where}: {given}; allowed: [lowest, highest], such as [1, 7]")
    return ends[0], ends[1]


def _values(file: Path, where: str, given: object, ours: str) -> dict[str, str]:
    allowed = {"rating": ("0", "1", ""), "ended": ("left", "completed", "")}.get(ours)
    if not isinstance(given, Mapping) or not all(isinstance(v, str) for v in given.values()):
        raise LogError(f"{file}: {where}: {given}; allowed: yours with ours, such as {{up: 1, down: 0}}")
    for theirs, value in given.items():
        if allowed and value not in allowed:
            names = ", ".join(v or "empty" for v in allowed)
            raise LogError(f"{file}: {where}.{theirs}: {value}; allowed: {names}")
    return {str(theirs): value for theirs, value in given.items()}
