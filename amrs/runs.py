"""Run folders: fingerprints and the plan of parents.

runs/<stage>/<fingerprint>/ is a finished run and never changes; <fingerprint>.partial/ beside it is one
under way or killed, which the same command resumes.
"""

import hashlib
import json
import os
import sys
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from amrs.config.data import DataConfig
from amrs.config.graph import Config, Stage
from amrs.importers import ADVICE

if TYPE_CHECKING:
    import pandas as pd

RUN_FORMAT = 4
"""Version of run folders; a change of meaning makes old runs be trained again."""
REPEATED = "repeated"
"""Folder of runs for what W&B is told a second time about finished ones; it holds no runs of its own."""
READS: dict[str, tuple[str, ...]] = {
    "prepare": (),
    "world_model": ("model", "world_model", "seed", "split", "trainer"),
    "bc": ("model", "bc", "seed", "split", "trainer"),
    "preferences": ("preferences", "utility", "seed", "split"),
    "dpo": ("dpo", "seed", "split", "trainer"),
    "evaluate": ("evaluate", "utility", "seed", "split"),
    "stress": ("stress", "gate", "utility", "seed", "split"),
    "export": ("export",),
    "embed": (),
}
"""What a stage's result depends on besides the data and its parents."""
ROLES: dict[str, tuple[str, ...]] = {
    "prepare": (),
    "world_model": ("prepare",),
    "bc": ("prepare",),
    "preferences": ("prepare", "labeller", "bc"),
    "dpo": ("prepare", "labeller", "bc", "preferences"),
    "evaluate": ("prepare", "world_model", "labeller", "judge", "bc", "preferences", "dpo"),
    "stress": ("prepare", "labeller", "judge", "bc", "preferences", "dpo", "evaluate"),
    "export": ("prepare", "labeller", "bc", "preferences", "dpo", "stress"),
    "embed": (),
}
"""The parents of each stage by role; labeller and judge are world models on halves of the users."""
_CHAPTERS = {
    "fidelity": ("prepare", "world_model"),
    "policies": ("prepare", "labeller", "judge", "bc", "preferences", "dpo"),
}
"""Of an evaluation's parents, those that each chapter needs."""
_MERGED = "study_"
"""Before the name of a study in its role as parent of a report."""
_RESULT_TRAINER = ("max_steps", "precision")
_REJECTED = 4
"""Rejected tracks of a pair where `evaluate.dpo` names S-DPO and `preferences.rejected` is not set."""
_PROTOCOL = {"mccv": ("splits",), "kfold": ("folds", "repeats")}
"""Settings of an evaluation that count under one protocol only."""
_NOT_OF_A_STUDY = ("chapters", "studies", "protocol", "splits", "folds", "repeats", "dpo")
"""Settings of an evaluation that its studies do not depend on."""
_OF_STUDIES = ("worlds", "curve", "front", "gate_effects")
"""Settings that only studies depend on."""


class RunError(RuntimeError):
    """A run that cannot go on, with what to do about it."""


@dataclass(frozen=True)
class Run:
    """One stage with all that its result depends on."""

    stage: str
    role: str
    config: Config
    parents: dict[str, "Run"]
    fingerprint: str
    folder: Path
    pinned: bool = False

    @property
    def finished(self) -> bool:
        """True where the folder is complete (it appears by an atomic rename)."""
        return (self.folder / "provenance.json").exists()

    @property
    def partial(self) -> Path:
        """Where the run is while it is under way."""
        return self.folder.with_name(self.folder.name + ".partial")

    def describe(self) -> str:
        """One line for the plan."""
        state = "pinned" if self.pinned else "finished" if self.finished else "to run"
        if state == "to run" and self.partial.exists():
            state = "to resume"
        return f"{self.role:<12} {state:<9} {self.folder}"


def plan(config: Config) -> list[Run]:
    """The run that `config` asks for, last, after all that it stands on.

    Raises:
        RunError: a pin that cannot be, or settings by which one of the runs cannot be made.
    """
    made: dict[tuple[str, str], Run] = {}
    _plan(config, _role(config), made)
    for run in made.values():
        averaging = getattr(getattr(run.config, run.stage, None), "averaging", 0)
        if averaging and run.config.trainer.strategy == "fsdp2" and not run.finished:
            raise RunError(
                f"trainer.strategy=fsdp2 cannot average weights ({run.stage}.averaging={averaging:g}), for "
                f"it cannot copy what is shared out: write {run.stage}.averaging=0, or trainer.strategy=ddp"
            )
    return list(made.values())


def show_plan(config: Config) -> int:
    """Print the plan, and nothing else: no torch is imported; returns the exit status."""
    try:
        print("\n".join(run.describe() for run in plan(config)))
    except RunError as error:
        print(f"train.py: {error}", file=sys.stderr)
        return 1
    return 0


def reuse(config: Config) -> int | None:
    """Where all that `config` asks for is finished, say so as `execution.execute` does; else None.

    What cannot be planned is refused. It imports no torch. An agent of a W&B sweep wants figures besides,
    and clusters have plans of their own.
    """
    if config.cluster.name != "local" or "WANDB_SWEEP_ID" in os.environ:
        return None
    try:
        runs = plan(config)
    except RunError as error:
        print(f"train.py: {error}", file=sys.stderr)
        return 1
    if not all(run.finished for run in runs):
        return None
    for run in runs:
        print(f"{run.role}: reusing {run.folder}", file=sys.stderr)
    print(runs[-1].folder)
    return 0


def _role(config: Config) -> str:
    return (
        config.world_model.users
        if config.stage == "world_model" and config.world_model.users != "all"
        else config.stage
    )


def _plan(config: Config, role: str, made: dict[tuple[str, str], Run]) -> Run:
    stage = "world_model" if role in ("labeller", "judge") else role
    pin = getattr(config.parents, role, None)
    if pin is not None and role != _role(config):
        run = _pinned(stage, role, config, Path(pin))
        if stage != "prepare":
            _check_log(run, _plan(config, "prepare", made), "parents.")
        return made.setdefault((role, pin), run)
    if stage == "world_model":
        users: Any = "all" if role == "world_model" else role
        config = replace(config, world_model=replace(config.world_model, users=users))
    if stage == "preferences" and config.preferences.policy is not None:  # an earlier round's, only read
        policy = _pinned("dpo", "policy", config, Path(config.preferences.policy), "preferences.")
        _check_log(policy, _plan(config, "prepare", made), "preferences.")
    wanted = _wanted(stage, config)
    parents = {
        name: _plan(part, name if part is config else _role(part), made) for name, part in wanted.items()
    }
    fingerprint = _fingerprint(stage, config, parents)
    run = Run(stage, role, config, parents, fingerprint, Path(config.runs) / stage / fingerprint)
    return made.setdefault((role, fingerprint), run)


def _wanted(stage: str, config: Config) -> dict[str, Config]:
    """The parents of a stage by name, with the settings that each is made with."""
    if stage == "evaluate":
        return _evaluate_parents(config)
    if stage in ("stress", "export") and config.evaluate.protocol == "kfold":
        raise RunError(f"evaluate.protocol=kfold: stage={stage} tries the policy of one split; write splits")
    if stage == "stress" and config.evaluate.splits > 1:
        splits = [_split_config(config, "stress", k) for k in range(config.evaluate.splits)]
        return {f"split_{k}": split for k, split in enumerate(splits)}
    if stage == "export" and config.evaluate.splits > 1:
        raise RunError(
            f"evaluate.splits={config.evaluate.splits}: one split's policy is exported; write "
            "evaluate.splits=1, and data.split.seed for another split"
        )
    variants = dpo_variants(config) if stage in ("stress", "export") else {}
    return {role: config for role in ROLES[stage]} | variants


def _evaluate_parents(config: Config) -> dict[str, Config]:
    """What an evaluation stands on, by name; parts with settings of their own are runs of their own."""
    section = config.evaluate
    if section.study is not None:
        from amrs.studies import STUDIES  # imports torch; planning a training does not need it

        study = STUDIES[section.study]
        return {**{name: config for name in study.parents}, **study.parts(config)}
    studies = {
        f"{_MERGED}{name}": replace(
            config, stage="evaluate", evaluate=replace(section, study=name, studies=[])
        )
        for name in section.studies
    }
    if section.protocol == "kfold":
        parts = [(r, f) for r in range(section.repeats) for f in range(section.folds)]
        return {f"split_{r}_{f}": _fold_config(config, r, f) for r, f in parts} | studies
    if section.splits > 1:
        splits = [_split_config(config, "evaluate", k) for k in range(section.splits)]
        return {f"split_{k}": split for k, split in enumerate(splits)} | studies
    needed = {role for chapter in section.chapters for role in _CHAPTERS[chapter]}
    variants = dpo_variants(config) if "policies" in section.chapters else {}
    return {role: config for role in ROLES["evaluate"] if role in needed} | variants | studies


def dpo_variants(config: Config) -> dict[str, Config]:
    """The DPO policies of `evaluate.dpo` by their names in the report, each a run of its own."""
    found = {}
    for name in config.evaluate.dpo:
        sampler, _, loss = name.partition(":")
        loss = loss or config.dpo.loss
        rejected = config.preferences.rejected
        if loss == "s_dpo" and rejected is None:
            rejected = _REJECTED
        pairs: dict[str, Any] = {"sampler": sampler, "policy": None, "rejected": rejected}
        section: dict[str, Any] = {"loss": loss}
        found[f"dpo:{name}"] = replace(
            config, stage="dpo", preferences=replace(config.preferences, **pairs),
            dpo=replace(config.dpo, **section), parents=replace(config.parents, preferences=None, dpo=None),
        )  # fmt: skip
    return found


def merged_studies(run: Run) -> list[Run]:
    """The studies whose rows go into this run's report."""
    return [parent for name, parent in run.parents.items() if name.startswith(_MERGED)]


def splits_of(run: Run) -> list[Run]:
    """The runs of the single splits that this run puts together, in order."""
    return [parent for name, parent in run.parents.items() if name.startswith("split_")]


def _split_config(config: Config, stage: Stage, k: int) -> Config:
    """The k-th Monte Carlo split; on the platform each draws a world of its own, too."""
    data = config.data
    split = replace(data.split, seed=data.split.seed + k)
    worlds = k if data.name == "platform" else 0
    platform = replace(data.platform, seed=data.platform.seed + worlds)
    return replace(
        config,
        stage=stage,
        data=replace(data, split=split, platform=platform),
        evaluate=replace(config.evaluate, splits=1, studies=[]),
    )


def _fold_config(config: Config, repeat: int, fold: int) -> Config:
    """One fold of one repeat, of the same world and log."""
    section, split = config.evaluate, config.data.split
    split = replace(split, seed=split.seed + repeat, folds=section.folds, fold=fold)
    single = replace(section, protocol="mccv", splits=1, studies=[])
    return replace(config, data=replace(config.data, split=split), evaluate=single)


def _pinned(stage: str, role: str, config: Config, folder: Path, key: str = "parents.") -> Run:
    named = f"{key}{role}={folder}"
    try:
        provenance = json.loads((folder / "provenance.json").read_text())
    except FileNotFoundError:
        raise RunError(
            f"{named}: no finished run there (no provenance.json); give a run folder of stage {stage}"
        ) from None
    if provenance["stage"] != stage:
        raise RunError(f"{named}: a run of stage {provenance['stage']}, not {stage}")
    if provenance["run_format"] != RUN_FORMAT:
        raise RunError(
            f"{named}: made by another program (run format {provenance['run_format']}, this one makes "
            f"{RUN_FORMAT}): run its command again, or leave out the pin"
        )
    split = provenance["settings"].get("split", asdict(config.data.split))  # prepare has none
    if split != asdict(config.data.split):
        raise RunError(
            f"{named}: trained on the user split {split}, but this command tests on "
            f"{asdict(config.data.split)}: its training users may be test users here"
        )
    if role == "judge" and (users := provenance["settings"]["world_model"]["users"]) != "judge":
        raise RunError(
            f"{named}: trained with world_model.users={users}, so it saw the labeller's listeners; give a "
            "run with world_model.users=judge"
        )
    return Run(stage, role, config, {}, provenance["fingerprint"], folder, pinned=True)


def _check_log(pinned: Run, prepare: Run, key: str) -> None:
    """Refuses a run on another log than this command's, or than the one that it adds sessions to."""
    there = json.loads((pinned.folder / "provenance.json").read_text())["fingerprints"]["prepare"]
    base = prepare.config.data.base
    known = [prepare.fingerprint, *([_base(prepare.config, base)] if base is not None else [])]
    if there not in known:
        raise RunError(
            f"{key}{pinned.role}={pinned.folder}: trained on the log {there}, but this command's is "
            f"{prepare.fingerprint}: its training users may be test users here. Leave out the pin, or take "
            f"its log, too: parents.prepare={Path(pinned.config.runs) / 'prepare' / there}"
        )


def _base(config: Config, folder: str) -> str:
    """Fingerprint of the log that sessions are added to."""
    return _pinned("prepare", "prepare", config, Path(folder), "data.base: ").fingerprint


def _fingerprint(stage: str, config: Config, parents: dict[str, Run]) -> str:
    reads = result_settings(stage, config)
    key = {"format": RUN_FORMAT, "stage": stage, "settings": reads,
           "parents": {role: run.fingerprint for role, run in parents.items()}}  # fmt: skip
    return hashlib.sha256(json.dumps(key, sort_keys=True, default=str).encode()).hexdigest()[:12]


def result_settings(stage: str, config: Config) -> dict[str, Any]:
    """The settings that a stage's result depends on."""
    if stage == "embed":
        return _embed_settings(config)
    data = asdict(config.data)
    split = data.pop("split")
    if stage == "prepare":
        if config.data.name != "platform":
            _check_raw_files(config.data)
            data.pop("platform")
            data["files"] = _files(config.data.raw_dir)
        if data["base"] is None:
            data.pop("base")
        else:
            data["base"] = _base(config, data["base"])
        if data["embeddings"] is None:
            data.pop("embeddings")  # as before the setting was there
        else:
            data["embeddings"] = _files(data["embeddings"])
        return data
    reads: dict[str, Any] = {}
    for name in _reads(stage, config):
        if name == "split":
            reads[name] = split
        elif name == "trainer":
            reads[name] = {key: getattr(config.trainer, key) for key in _RESULT_TRAINER}
        else:
            value = getattr(config, name)
            reads[name] = value if isinstance(value, int) else asdict(value)
    if stage == "evaluate":
        section = config.evaluate
        idle = _PROTOCOL["mccv" if section.protocol == "kfold" else "kfold"]
        idle += _OF_STUDIES if section.study is None else _NOT_OF_A_STUDY
        reads["evaluate"] = {key: x for key, x in reads["evaluate"].items() if key not in idle}
    return reads


def _reads(stage: str, config: Config) -> tuple[str, ...]:
    """The sections that count; the utility does not where no policy is judged."""
    if stage == "evaluate" and config.evaluate.study is None and config.evaluate.chapters == ["fidelity"]:
        return tuple(name for name in READS[stage] if name != "utility")
    return READS[stage]


def _check_raw_files(data: DataConfig) -> None:
    """Refuse what is not there before libraries are loaded and parents made."""
    if data.raw_dir is None:
        raise RunError(f"data.raw_dir is not given; {ADVICE[data.name]}")
    if not Path(data.raw_dir).is_dir():
        raise RunError(f"data.raw_dir={data.raw_dir}: no such folder; {ADVICE[data.name]}")
    for key in ("map", "embeddings"):
        file = getattr(data, key)
        if file is not None and not Path(file).is_file():
            raise RunError(f"data.{key}={file}: no such file")


def _embed_settings(config: Config) -> dict[str, Any]:
    """Audio, weights and how they are used; not how many windows are worked on at once."""
    section = asdict(config.embed)
    if section["audio_dir"] is None or not Path(section["audio_dir"]).is_dir():
        raise RunError(
            f"embed.audio_dir={section['audio_dir']}: no such folder; give the one that holds the audio"
        )
    for name in ("audio_dir", "weights", "clamp3_weights"):
        section[name] = _files(section[name]) or section[name]
    section.pop("batch_size")
    return section


def _files(place: str | None) -> list[tuple[str, int, int]]:
    """Name, size and time of change of a file, or of those in a folder: other files are other data."""
    folder = Path(place or "")
    found = sorted(path for path in folder.rglob("*") if path.is_file()) if place else []
    if place and folder.is_file():
        found, folder = [folder], folder.parent
    return [(str(p.relative_to(folder)), p.stat().st_size, p.stat().st_mtime_ns) for p in found]


def write_json(path: Path, value: Any) -> None:
    """Write JSON atomically: the file is whole or not there."""
    temporary = path.with_name(path.name + ".tmp")
    temporary.write_text(json.dumps(value, indent=1, default=str) + "\n")
    os.replace(temporary, path)


def read_config(folder: Path) -> dict[str, Any]:
    """The resolved settings of a finished run."""
    found: dict[str, Any] = yaml.safe_load((folder / "config.yaml").read_text())
    return found


def read_json(path: Path) -> Any:
    """A JSON file of a run folder."""
    return json.loads(path.read_text())


def load(folder: Path | str = "runs") -> "pd.DataFrame":
    """Config, metrics and parents of all runs under `folder`: one row a run (`amrs.run_table.table`).

    Raises:
        FileNotFoundError: there is no such folder.
    """
    from amrs.run_table import table  # pandas, which a plan does not need

    return table(folder)


if __name__ == "__main__":
    import signal

    from amrs.run_table import main

    signal.signal(signal.SIGPIPE, signal.SIG_DFL)  # `| head` reads no further
    sys.exit(main(sys.argv[1:]))
