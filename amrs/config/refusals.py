"""Words for what is refused: what was given, what is allowed, and what was probably meant."""

import difflib
from collections.abc import Iterable, Sequence

from amrs.config.fields import Setting, sections, settings
from amrs.config.graph import SHARED, Config, Stage, accepted, ancestors

SETTINGS = {setting.key: setting for setting in settings(Config)}
SECTIONS = sections(Config)
EXAMPLE = "for example: python train.py stage=dpo data=platform dpo.beta=0.5"


class ConfigError(ValueError):
    """Settings that cannot be; the message is for the person who gave them."""


def listed(words: Iterable[str]) -> str:
    """The words with commas between them."""
    return ", ".join(words)


def guess(given: str, known: Sequence[str]) -> str:
    """A question after the nearest of `known`, or nothing where none is near."""
    near = difflib.get_close_matches(given, known, n=1, cutoff=0.6)
    return f" Did you mean {near[0]}?" if near else ""


def keys_of(section: str) -> str:
    """The keys of a section."""
    return f"keys of {section}: {listed(_below(section))}"


def is_section(section: str) -> ConfigError:
    """A section was given a value."""
    return ConfigError(f"{section} is a section: write {section}.KEY=VALUE; {keys_of(section)}")


def bad_value(setting: Setting, value: object) -> ConfigError:
    """A value of another type, or none of the choices."""
    text = "null" if value is None else value
    hint = guess(str(value), setting.choices)
    return ConfigError(f"{setting.key}={text}: must be {setting.allowed}.{hint}")


def unknown_key(key: str, stage: Stage) -> ConfigError:
    """No setting has that key."""
    section = key.rpartition(".")[0]
    while section and section not in SECTIONS:
        section = section.rpartition(".")[0]
    own = [other for other in SETTINGS if other.split(".")[0] in accepted(stage)]
    # The last part alone, too: `beta` is near `dpo.beta` only there.
    last = key.rpartition(".")[2]
    same = [other for other in own if other.rpartition(".")[2] == last]
    hint = f" Did you mean {same[0]}?" if same else guess(key, own)
    allowed = keys_of(section).capitalize() if section else _accepts(stage)
    return ConfigError(f"{key}: no such setting.{hint} {allowed}")


def not_read(key: str, stage: Stage) -> ConfigError:
    """The key exists, but the stage does not read its section."""
    return ConfigError(f"{key}: stage={stage} does not read {key.split('.')[0]}. {_accepts(stage)}")


def _accepts(stage: Stage) -> str:
    own = [name for name in (stage, *ancestors(stage)) if name in SECTIONS]
    return (
        f"stage={stage} accepts stage, experiment, seed, runs, the shared groups {listed(SHARED)},"
        f" and {listed(own) if own else 'no section of its own'}; see python train.py stage={stage} --help"
    )


def _below(section: str) -> list[str]:
    """The next parts of the keys in a section, sections among them marked by `.`."""
    keys = [key.removeprefix(f"{section}.") for key in SETTINGS if key.startswith(f"{section}.")]
    return list(dict.fromkeys(key.split(".")[0] + ("." if "." in key else "") for key in keys))
