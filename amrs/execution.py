"""Making runs: in order, once, by one process or many, and finished atomically."""

import importlib.metadata
import os
import platform
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

from filelock import FileLock, Timeout

from amrs.config import dump
from amrs.runs import RUN_FORMAT, Run, result_settings, write_json

_RESUMED_FROM = ("checkpoints/last.ckpt", "parts")
"""What a run that failed is resumed from; without any of these it leaves nothing behind."""
DISTRIBUTED = ("world_model", "bc", "dpo")
"""Stages that every process takes part in; the others run on the first process alone."""
_PACKAGES = ("amrs", "torch", "lightning", "torchmetrics", "datasets", "pyarrow", "numpy", "scikit-learn")


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
            if not any((run.partial / name).exists() for name in _RESUMED_FROM):
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
    (run.partial / "config.yaml").write_text(dump(replace(run.config, stage=cast(Any, run.stage))))
    provenance = {
        "stage": run.stage,
        "role": run.role,
        "fingerprint": run.fingerprint,
        "run_format": RUN_FORMAT,
        "parents": {role: str(parent.folder) for role, parent in run.parents.items()},
        "fingerprints": {role: parent.fingerprint for role, parent in run.parents.items()},
        "settings": result_settings(run.stage, run.config),
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
