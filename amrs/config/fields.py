"""The settings one by one: key, type, default, and the docstring below the field."""

import ast
import functools
import inspect
import itertools
import sys
import types
from collections.abc import Iterator
from dataclasses import MISSING, Field, dataclass, fields, is_dataclass
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints


@dataclass(frozen=True)
class Setting:
    """One key that can be set; `key` of an open mapping stands for all keys below it."""

    key: str
    hint: Any
    default: Any
    doc: str

    @property
    def is_list(self) -> bool:
        """Whether several values can be given."""
        return get_origin(self.hint) is list

    @property
    def choices(self) -> tuple[str, ...]:
        """The values that are allowed, where they are a closed list."""
        hint = get_args(self.hint)[0] if self.is_list else self.hint
        inner = (*_without_none(hint), hint)[0]
        return get_args(inner) if get_origin(inner) is Literal else ()

    @property
    def is_text(self) -> bool:
        """Whether the value is taken as it is written, not read as YAML."""
        return not self.is_list and (self.choices != () or str in (self.hint, *_without_none(self.hint)))

    @property
    def is_open(self) -> bool:
        """Whether the keys below are the user's own (a mode, a signal)."""
        return get_origin(self.hint) is dict

    def below(self, name: str) -> "Setting":
        """The setting `key.name` of an open mapping."""
        return Setting(f"{self.key}.{name}", get_args(self.hint)[1], None, self.doc)

    @property
    def allowed(self) -> str:
        """What the value must be, in words."""
        return type_words(self.hint)


def settings(section: type, prefix: str = "") -> Iterator[Setting]:
    """Every setting of a dataclass and of the sections in it, in their order."""
    hints, docs = get_type_hints(section), field_docs(section)
    for item in fields(section):
        key, hint = prefix + item.name, hints[item.name]
        if is_dataclass(hint):
            assert isinstance(hint, type)
            yield from settings(hint, f"{key}.")
        else:
            yield Setting(key, hint, _default(item), docs.get(item.name, ""))


def sections(section: type, prefix: str = "") -> dict[str, type]:
    """The dataclass of every section, by its key."""
    found: dict[str, type] = {}
    for name, hint in get_type_hints(section).items():
        if is_dataclass(hint):
            assert isinstance(hint, type)
            found[prefix + name] = hint
            found |= sections(hint, f"{prefix}{name}.")
    return found


def type_words(hint: Any) -> str:
    """A type as a user reads it: `an integer`, `one of a, b`, `text, or null`."""
    plain = {int: "an integer", float: "a number", bool: "true or false", str: "text"}
    if hint in plain:
        return plain[hint]
    inner = _without_none(hint)
    if inner:
        return f"{type_words(inner[0])}, or null"
    origin, args = get_origin(hint), get_args(hint)
    if origin is Literal:
        return "one of " + ", ".join(map(str, args)) if len(args) > 1 else str(args[0])
    if origin is dict:
        return f"a mapping to {type_words(args[1])}"
    if origin is tuple and args[-1] is not Ellipsis:
        return "a list [" + ", ".join(map(type_words, args)) + "]"
    return f"a list, each {type_words(args[0])}" if args else str(hint)


@functools.cache
def field_docs(section: type) -> dict[str, str]:
    """The docstring below each field of a dataclass, its lines joined; read from the source."""
    tree = ast.parse(inspect.getsource(sys.modules[section.__module__]))
    body = next(n.body for n in tree.body if isinstance(n, ast.ClassDef) and n.name == section.__name__)
    found = {}
    for line, below in itertools.pairwise(body):
        match line, below:
            case ast.AnnAssign(target=ast.Name(id=name)), ast.Expr(value=ast.Constant(value=str(text))):
                found[name] = " ".join(text.split())
    return found


def _default(item: Field[Any]) -> Any:
    return item.default_factory() if item.default_factory is not MISSING else item.default


def _without_none(hint: Any) -> tuple[Any, ...]:
    """The types beside None in `X | None`; empty where None is not allowed."""
    args = get_args(hint) if get_origin(hint) in (types.UnionType, Union) else ()
    return tuple(arg for arg in args if arg is not type(None)) if type(None) in args else ()
