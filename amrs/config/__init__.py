"""Settings: one dataclass a section, and `load(argv)`; nothing here imports torch or lightning."""

from amrs.config.arguments import Arguments, as_arguments, dump, load, parse, to_dict
from amrs.config.graph import PARENTS, SHARED, STAGES, Config, Stage, accepted, ancestors
from amrs.config.help import help_text
from amrs.config.refusals import ConfigError

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
