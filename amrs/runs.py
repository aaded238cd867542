"""Run folders: fingerprints, the plan of parents, locks, and how a run is finished.

runs/<stage>/<fingerprint>/ is a finished run and never changes; <fingerprint>.partial/ beside it is one
under way or killed, which the same command resumes.
"""

import hashlib
import importlib.metadata
import json
import os
import platform
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, cast

import yaml
from filelock import FileLock

from amrs.config.graph import Config

RUN_FORMAT = 1
"""Version of run folders; a change of meaning makes old runs be trained again."""
READS: dict[str, tuple[str, ...]] = {
    "prepare": (),
    "world_model": ("model", "world_model", "seed", "split", "trainer"),
    "bc": ("model", "bc", "seed", "split", "trainer"),
    "preferences": ("preferences", "utility", "seed", "split"),
    "dpo": ("dpo", "seed", "split", "trainer"),
    "evaluate": ("evaluate", "utility", "seed", "split"),
}
"""What a stage's result depends on besides the data and its parents."""
ROLES: dict[str, tuple[str, ...]] = {
    "prepare": (),
    "world_model": ("prepare",),
    "bc": ("prepare",),
    "preferences": ("prepare", "labeller", "bc"),
    "dpo": ("prepare", "labeller", "bc", "preferences"),
    "evaluate": ("prepare", "world_model", "labeller", "judge", "bc", "preferences", "dpo"),
}
"""The parents of each stage by role; labeller and judge are world models on halves of the users."""
DISTRIBUTED = ("world_model", "bc", "dpo")
"""Stages that every process takes part in; the others run on the first process alone."""
_PACKAGES = ("amrs", "torch", "lightning", "torchmetrics", "datasets", "pyarrow", "numpy", "scikit-learn")
_RESULT_TRAINER = ("max_steps", "precision")


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
    """The run that `config` asks for, last, after all that it stands on."""
    made: dict[tuple[str, str], Run] = {}
    _plan(config, _role(config), made)
    return list(made.values())


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
        return made.setdefault((role, pin), _pinned(stage, role, config, Path(pin)))
    if stage == "world_model":
        users: Any = "all" if role == "world_model" else role
        config = replace(config, world_model=replace(config.world_model, users=users))
    if stage == "evaluate" and config.evaluate.splits > 1:
        splits = [_split_config(config, k) for k in range(config.evaluate.splits)]
        parents = {f"split_{k}": _plan(split, role, made) for k, split in enumerate(splits)}
    else:
        parents = {name: _plan(config, name, made) for name in ROLES[stage]}
    fingerprint = _fingerprint(stage, config, parents)
    run = Run(stage, role, config, parents, fingerprint, Path(config.runs) / stage / fingerprint)
    return made.setdefault((role, fingerprint), run)


def _split_config(config: Config, k: int) -> Config:
    """The k-th Monte Carlo split; on the platform each draws a world of its own, too."""
    data = config.data
    split = replace(data.split, seed=data.split.seed + k)
    platform = replace(data.platform, seed=data.platform.seed + k)
    return replace(
        config,
        data=replace(data, split=split, platform=platform),
        evaluate=replace(config.evaluate, splits=1),
    )


def _pinned(stage: str, role: str, config: Config, folder: Path) -> Run:
    try:
        provenance = json.loads((folder / "provenance.json").read_text())
    except FileNotFoundError:
        raise RunError(
            f"parents.{role}={folder}: no finished run there (no provenance.json); "
            f"give a run folder of stage {stage}"
        ) from None
    if provenance["stage"] != stage:
        raise RunError(f"parents.{role}={folder}: a run of stage {provenance['stage']}, not {stage}")
    return Run(stage, role, config, {}, provenance["fingerprint"], folder, pinned=True)


def _fingerprint(stage: str, config: Config, parents: dict[str, Run]) -> str:
    reads = _settings(stage, config)
    key = {"format": RUN_FORMAT, "stage": stage, "settings": reads,
           "parents": {role: run.fingerprint for role, run in parents.items()}}  # fmt: skip
    return hashlib.sha256(json.dumps(key, sort_keys=True, default=str).encode()).hexdigest()[:12]


def _settings(stage: str, config: Config) -> dict[str, Any]:
    from dataclasses import asdict

    data = asdict(config.data)
    split = data.pop("split")
    if stage == "prepare":
        if config.data.name != "platform":
            data.pop("platform")
            data["files"] = _files(config.data.raw_dir)
        return data
    reads: dict[str, Any] = {}
    for name in READS[stage]:
        if name == "split":
            reads[name] = split
        elif name == "trainer":
            reads[name] = {key: getattr(config.trainer, key) for key in _RESULT_TRAINER}
        else:
            value = getattr(config, name)
            reads[name] = value if isinstance(value, int) else asdict(value)
    return reads


def _files(raw_dir: str | None) -> list[tuple[str, int, int]]:
    """Name, size and time of change of the raw files: other files are other data."""
    folder = Path(raw_dir or "")
    found = sorted(path for path in folder.rglob("*") if path.is_file()) if raw_dir else []
    return [(str(p.relative_to(folder)), p.stat().st_size, p.stat().st_mtime_ns) for p in found]


def process_rank() -> int:
    """This process's rank over all machines, from the launcher's environment."""
    for name in ("RANK", "SLURM_PROCID", "LOCAL_RANK"):
        if name in os.environ:
            return int(os.environ[name])
    return 0


Stage = Callable[[Run, Path], None]


def execute(runs: list[Run], stages: dict[str, Stage], say: Callable[[str], None]) -> Path:
    """Run what is not finished, in order; returns the last run's folder."""
    for run in runs:
        if run.finished:
            say(f"{run.role}: reusing {run.folder}")
        elif process_rank() == 0:
            _first_process(run, stages[run.stage], say)
        else:
            _other_process(run, stages[run.stage])
    return runs[-1].folder


def _first_process(run: Run, stage: Stage, say: Callable[[str], None]) -> None:
    run.folder.parent.mkdir(parents=True, exist_ok=True)
    with _lock(run, say):
        if run.finished:
            say(f"{run.role}: reusing {run.folder} (another process finished it)")
            return
        say(f"{run.role}: {'resuming' if run.partial.exists() else 'running'} {run.folder}")
        run.partial.mkdir(exist_ok=True)
        begun = time.time()
        try:
            stage(run, run.partial)
        except Exception:
            if not (run.partial / "checkpoints" / "last.ckpt").exists():  # nothing to resume from
                shutil.rmtree(run.partial, ignore_errors=True)
            raise
        _finish(run, time.time() - begun)
        say(f"{run.role}: finished in {time.time() - begun:.0f} s")


@contextmanager
def _lock(run: Run, say: Callable[[str], None]) -> Iterator[None]:
    """Held while a run is made, so that two agents never make the same one."""
    lock = FileLock(run.folder.with_name(run.folder.name + ".lock"))
    if not _try(lock):
        say(f"{run.role}: waiting for another process that is making {run.folder}")
        lock.acquire()
    try:
        yield
    finally:
        lock.release()


def _try(lock: FileLock) -> bool:
    from filelock import Timeout

    try:
        lock.acquire(timeout=0)
    except Timeout:
        return False
    return True


def _other_process(run: Run, stage: Stage) -> None:
    """Take part in a distributed stage; wait for the first process in the others."""
    while not run.finished and not (run.stage in DISTRIBUTED and run.partial.exists()):
        time.sleep(0.2)
    if not run.finished:
        stage(run, run.partial)
        while not run.finished:
            time.sleep(0.2)


def _finish(run: Run, seconds: float) -> None:
    from amrs.config import dump

    (run.partial / "config.yaml").write_text(dump(replace(run.config, stage=cast(Any, run.stage))))
    provenance = {
        "stage": run.stage,
        "role": run.role,
        "fingerprint": run.fingerprint,
        "run_format": RUN_FORMAT,
        "parents": {role: str(parent.folder) for role, parent in run.parents.items()},
        "fingerprints": {role: parent.fingerprint for role, parent in run.parents.items()},
        "settings": _settings(run.stage, run.config),
        "seed": run.config.seed,
        "seconds": round(seconds, 1),
        **environment(),
    }
    write_json(run.partial / "provenance.json", provenance)
    os.replace(run.partial, run.folder)


def environment() -> dict[str, Any]:
    """Git commit, versions and machine: what else a result may depend on."""
    return {
        "git_commit": _git_commit(),
        "command": ["python", *sys.argv],
        "versions": {name: _version(name) for name in _PACKAGES},
        "python": platform.python_version(),
        "machine": f"{platform.system()} {platform.machine()}, {os.cpu_count()} CPU cores",
    }


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "unknown"


def _git_commit() -> str | None:
    command = ["git", "-C", str(Path(__file__).parent), "describe", "--always", "--dirty", "--abbrev=12"]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    return result.stdout.strip() or None


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
