"""Arguments -> settings; what is refused is refused here, in words, before anything is loaded."""

import dataclasses
import json
import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import yaml
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from amrs.config.fields import Setting
from amrs.config.graph import SHARED, STAGES, Config, Stage, accepted
from amrs.config.refusals import (
    EXAMPLE,
    SECTIONS,
    SETTINGS,
    ConfigError,
    bad_value,
    guess,
    is_section,
    listed,
    not_read,
    unknown_key,
)

FOLDER = Path(__file__).parents[2] / "configs"
NULLS = ("null", "None", "~")  # a W&B agent writes None


@dataclass(frozen=True)
class Arguments:
    """What a command line asks for."""

    config: Config
    dry_run: bool
    """Print the plan and do nothing."""


def load(argv: list[str]) -> Config:
    """The settings that `argv` asks for."""
    return parse(argv).config


def parse(argv: list[str]) -> Arguments:
    """Read a command line: dataclass defaults < group < stage < experiment < key=value.

    An experiment serves several stages, so its keys for sections that the stage does not read are
    checked and then left out; among the arguments such keys are refused.
    """
    given = dict(_split(argument) for argument in argv if argument != "--dry-run")
    stage = read_stage(given.pop("stage", None))
    name = given.pop("experiment", None)
    experiment = _read_file("experiment", name) if name else {}
    picks = {key: experiment.pop(key) for key in SHARED if isinstance(experiment.get(key), str)}
    picks |= {key: given.pop(key) for key in SHARED if key in given}

    config = _defaults(stage)
    for group, pick in picks.items():
        own = _read_file(group, pick)
        others = {str(key): own.pop(key) for key in STAGES if key in own}  # a data set's, of stages
        _merge(config, {group: own}, stage, f"{_path(group, pick)}: ")
        _merge(config, others, None, f"{_path(group, pick)}: ")
    if (FOLDER / "gate.yaml").exists():  # every threshold with its reason
        _merge(config, {"gate": _read_file(".", "gate")}, stage, "configs/gate.yaml: ")
    if stage in names("stage"):
        _merge(config, _read_file("stage", stage), stage, f"{_path('stage', stage)}: ")
    _merge(config, experiment, None, f"{_path('experiment', str(name))}: ")
    _merge(config, {key: _read_value(key, text, stage) for key, text in given.items()}, stage, "")
    return Arguments(_build(config, stage), "--dry-run" in argv)


def to_dict(config: Config) -> dict[str, Any]:
    """The settings that `config.stage` accepts, as plain dicts, lists, text and numbers."""
    return {key: _plain(getattr(config, key)) for key in accepted(config.stage)}


def dump(config: Config) -> str:
    """The same as YAML, of which every key is a valid argument."""
    return str(yaml.safe_dump(to_dict(config), sort_keys=False, allow_unicode=True))


def as_arguments(config: Config) -> list[str]:
    """The `key=value` arguments that give `config` again: its stage and what differs from the defaults."""
    given, default = (_flat(to_dict(c)) for c in (config, load([f"stage={config.stage}"])))
    changed = {key: value for key, value in given.items() if default.get(key, ...) != value}
    return [f"stage={config.stage}", *(f"{key}={_written(value)}" for key, value in changed.items())]


def read_stage(given: str | None) -> Stage:
    """The stage of that name."""
    if given is None:
        raise ConfigError(f"no stage: write stage=NAME, one of {listed(STAGES)}; {EXAMPLE}")
    if given not in STAGES:
        raise ConfigError(f"stage={given}: must be one of {listed(STAGES)}.{guess(given, STAGES)}")
    return given


def names(group: str) -> list[str]:
    """What `group=NAME` can pick: the files of configs/<group>."""
    return sorted(path.stem for path in (FOLDER / group).glob("*.yaml"))


def _split(argument: str) -> tuple[str, str]:
    key, equals, text = argument.partition("=")
    if key.startswith("-"):
        raise ConfigError(
            f"{argument}: the only options are --help and --dry-run; settings are key=value, {EXAMPLE}"
        )
    if not equals or not key:
        raise ConfigError(f"{argument}: settings are key=value with no spaces around =, {EXAMPLE}")
    if not text:
        raise ConfigError(f"{argument}: no value; write {key}=VALUE, or {key}=null for none")
    return key, text


def _path(group: str, name: str) -> str:
    return f"configs/{group}/{name}.yaml"


def _read_file(group: str, name: str) -> dict[str, Any]:
    known = names(group)
    if name not in known:
        if not known:
            raise is_section(group)
        raise ConfigError(
            f"{group}={name}: must be one of {listed(known)} (files of configs/{group}).{guess(name, known)}"
        )
    try:
        found = OmegaConf.to_container(OmegaConf.load(FOLDER / group / f"{name}.yaml"), resolve=True)
    except (yaml.YAMLError, OmegaConfBaseException) as error:
        raise ConfigError(f"{_path(group, name)}: {' '.join(str(error).split())}") from None
    if not isinstance(found, dict):
        raise ConfigError(f"{_path(group, name)}: must hold `key: value` lines")
    return {str(key): value for key, value in found.items()}


def _read_value(key: str, text: str, stage: Stage) -> Any:
    """The value of an argument: text where text is meant, else a YAML scalar, list or mapping."""
    setting = _find(key, stage)
    if text in NULLS:
        return None
    if setting is not None and setting.is_list and not text.startswith("["):
        text = f"[{text}]"  # one name needs no brackets
    if setting is not None and setting.is_text:
        return text
    try:
        return OmegaConf.to_container(OmegaConf.from_dotlist([f"value={text}"]))["value"]  # type: ignore[call-overload,index]
    except (yaml.YAMLError, OmegaConfBaseException):
        raise ConfigError(f"{key}={text}: not a YAML value; lists are written [a,b]") from None


def _defaults(stage: Stage) -> DictConfig:
    config = OmegaConf.structured(Config)
    # A frozen dataclass arrives read-only, which is meant for the result, not for the way to it.
    for section in SECTIONS:
        OmegaConf.set_readonly(OmegaConf.select(config, section), False)
    config.stage = stage
    return cast(DictConfig, config)


def _merge(config: DictConfig, tree: dict[str, Any], stage: Stage | None, place: str) -> None:
    """Set every key of `tree`, which comes from `place`; `stage` None takes keys of every stage."""
    try:
        for key, value in tree.items():
            for setting, leaf in _leaves(key, value, stage):
                _assign(config, setting, leaf)
    except ConfigError as error:
        raise ConfigError(f"{place}{error}") from None


def _leaves(key: str, value: Any, stage: Stage | None) -> Iterator[tuple[Setting, Any]]:
    """The settings that `key: value` sets; a section and an open mapping take a mapping of them."""
    setting = _find(key, stage)
    if setting is not None and not setting.is_open:
        yield setting, value
    elif isinstance(value, dict) and value:
        for name, inner in value.items():
            yield from _leaves(f"{key}.{name}", inner, stage)
    elif setting is not None:
        raise bad_value(setting, value)
    elif value != {}:
        raise is_section(key)


def _find(key: str, stage: Stage | None) -> Setting | None:
    """The setting of that key, or None where the key is a section."""
    first, *_ = parts = key.split(".")
    if stage is not None and first in SECTIONS and first not in accepted(stage):
        raise not_read(key, stage)
    if key in SECTIONS:
        return None
    for length in range(len(parts), 0, -1):
        setting = SETTINGS.get(".".join(parts[:length]))
        if setting is not None and setting.key != "stage":
            for name in parts[length:]:
                if not setting.is_open:
                    raise ConfigError(f"{key}: {setting.key} is {setting.allowed}, no keys are below it")
                setting = setting.below(name)
            return setting
    raise unknown_key(key, stage or "evaluate")


def _assign(config: DictConfig, setting: Setting, value: Any) -> None:
    if isinstance(value, str) and value in NULLS:
        value = None
    try:
        OmegaConf.update(config, setting.key, value)
        held = OmegaConf.select(config, setting.key)
    except OmegaConfBaseException:
        raise bad_value(setting, value) from None
    if isinstance(held, float) and not math.isfinite(held):  # `inf` and `nan` are numbers to YAML
        raise bad_value(setting, value)


def _build(config: DictConfig, stage: Stage) -> Config:
    """The dataclasses, which refuse impossible values as they are made."""
    try:
        built = cast(Config, OmegaConf.to_object(config))
    except OmegaConfBaseException as error:
        raise ConfigError(str(error).splitlines()[0]) from None
    except ValueError as error:
        raise ConfigError(str(error)) from None
    left_out = {name: SECTIONS[name]() for name in vars(built) if name not in accepted(stage)}
    return dataclasses.replace(built, **left_out)


def _flat(tree: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key, value in tree.items():
        below = isinstance(value, dict)
        found |= _flat(value, f"{prefix}{key}.") if below else {f"{prefix}{key}": value}
    return found


def _written(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)


def _plain(value: Any) -> Any:
    if dataclasses.is_dataclass(value):
        return {key: _plain(inner) for key, inner in vars(value).items()}
    if isinstance(value, dict):
        return {key: _plain(inner) for key, inner in value.items()}
    return [_plain(inner) for inner in value] if isinstance(value, tuple | list) else value
