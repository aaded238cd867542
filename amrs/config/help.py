"""The text of --help: stages, and every setting with its type, default, unit and range."""

import textwrap
from collections.abc import Iterator
from typing import Any

from amrs.config.arguments import names, read_stage
from amrs.config.fields import Setting, type_words
from amrs.config.graph import PARENTS, SHARED, STAGES, Stage, accepted
from amrs.config.refusals import SECTIONS, SETTINGS, listed

WIDTH = 100
USAGE = """\
python train.py stage=NAME [experiment=NAME] [group=NAME ...] [key=VALUE ...] [--dry-run] [--help]

Missing parents of a stage are trained first, finished ones are reused. The last line on stdout is the
run folder. --dry-run prints the plan. Lists are written [a,b], none is null. Later wins:
defaults below < configs/<group>/<name>.yaml < experiment < key=VALUE.
"""


def help_text(argv: list[str]) -> str | None:
    """The help that `argv` asks for: of one stage where it names one; None where it asks for none."""
    if not {"--help", "-h"} & set(argv):
        return None
    given = [argument.partition("=")[2] for argument in argv if argument.startswith("stage=")]
    stage = read_stage(given[-1]) if given else None
    return "\n".join([USAGE, *_stages(stage), *_picks(), *_settings(stage)])


def _stages(only: Stage | None) -> Iterator[str]:
    yield "Stages" if only is None else f"Stage {only}"
    for stage in STAGES if only is None else [only]:
        yield f"  stage={stage:<13} {_from(stage)}"
    yield ""


def _from(stage: Stage) -> str:
    if stage == "embed":
        return "from audio files"
    return "from " + (listed(PARENTS[stage]) if PARENTS[stage] else "raw data, or the platform's parameters")


def _picks() -> Iterator[str]:
    yield "Groups, picked by name; each file holds what differs from the defaults"
    for group in ("experiment", *SHARED):
        if names(group):
            yield f"  {group + '=NAME':<19} {listed(names(group))}"
    yield ""


def _settings(stage: Stage | None) -> Iterator[str]:
    yield "Settings" if stage is None else f"Settings that stage={stage} accepts"
    for section in ("", *SECTIONS):
        inside = [s for s in SETTINGS.values() if _section(s.key) == section and s.key != "stage"]
        if not inside or (section and stage is not None and section.split(".")[0] not in accepted(stage)):
            continue
        if section:
            yield from ("", f"{section}: {_about(SECTIONS[section])}".rstrip(": "))
        for setting in inside:
            yield from _setting(setting)


def _section(key: str) -> str:
    return key.rpartition(".")[0] if key.rpartition(".")[0] in SECTIONS else ""


def _about(section: type) -> str:
    # A dataclass without a docstring is given its signature as one.
    text = (section.__doc__ or "").partition("\n")[0]
    return "" if text.startswith(f"{section.__name__}(") else text


def _setting(setting: Setting) -> Iterator[str]:
    if setting.is_open:
        yield from _open(setting)
    else:
        yield f"  {setting.key}={_text(setting.default)}   ({type_words(setting.hint)})"
    yield from textwrap.wrap(setting.doc, WIDTH, initial_indent=" " * 6, subsequent_indent=" " * 6)


def _open(setting: Setting) -> Iterator[str]:
    """The defaults of an open mapping, key by key."""
    for name, value in setting.default.items():
        below = setting.below(name)
        if below.is_open:
            yield from _open(Setting(below.key, below.hint, value, below.doc))
        else:
            yield f"  {below.key}={_text(value)}   ({type_words(below.hint)})"


def _text(value: Any) -> str:
    match value:
        case None:
            return "null"
        case bool():
            return str(value).lower()
        case float():
            return f"{value:.6g}"
        case tuple() | list():
            return "[" + ",".join(map(_text, value)) + "]"
    return str(value)
