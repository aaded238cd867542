"""Settings: one dataclass a section, and `load(argv)`; nothing here imports torch or lightning.

Names are imported when they are asked for, so that a policy can be served where only torch is installed:
it needs the dataclasses, not the reading of arguments.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from amrs.config.arguments import Arguments, as_arguments, dump, load, parse, to_dict
    from amrs.config.graph import PARENTS, SHARED, STAGES, Config, Stage, accepted, ancestors
    from amrs.config.help import help_text
    from amrs.config.refusals import ConfigError

_ROOMS = {
    "arguments": ("Arguments", "as_arguments", "dump", "load", "parse", "to_dict"),
    "graph": ("PARENTS", "SHARED", "STAGES", "Config", "Stage", "accepted", "ancestors"),
    "help": ("help_text",),
    "refusals": ("ConfigError",),
}

__all__ = [
    "PARENTS",
    "SHARED",
    "STAGES",
    "Arguments",
    "Config",
    "ConfigError",
    "Stage",
    "accepted",
    "ancestors",
    "as_arguments",
    "dump",
    "help_text",
    "load",
    "parse",
    "to_dict",
]


def __getattr__(name: str) -> Any:
    for room, names in _ROOMS.items():
        if name in names:
            return getattr(import_module(f"amrs.config.{room}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
