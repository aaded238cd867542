"""Making runs: in order, once, by one process or many, and finished atomically."""

import atexit
import ctypes
import importlib.metadata
import os
import platform
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

from filelock import FileLock, Timeout

from amrs.config import dump
from amrs.config.graph import Config
from amrs.runs import RUN_FORMAT, Run, result_settings, write_json

PARTS = "parts"
_RESUMED_FROM = ("checkpoints/last.ckpt", PARTS)
"""What a run that failed is resumed from; without any of these it leaves nothing behind."""
SHARED = ("preferences", "evaluate")
"""Stages whose processes share fixed units of work (see `amrs.cluster.shares`)."""
DISTRIBUTED = ("world_model", "bc", "dpo", *SHARED)
"""Stages that every process takes part in; the others run on the first process alone."""
_WITHOUT_GPU = {"prepare", "export"}
"""Stages that have no use for one."""
_LAUNCHED = ("RANK", "SLURM_PROCID", "LOCAL_RANK")
"""What launchers set; the first that is there is the rank."""
_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3
"""glibc's names of what `mallopt` sets."""
_PACKAGES = ("amrs", "torch", "lightning", "torchmetrics", "datasets", "pyarrow", "numpy", "scikit-learn")


def process_rank() -> int:
    """This process's rank over all machines, from the launcher's environment."""
    for name in _LAUNCHED:
        if name in os.environ:
            return int(os.environ[name])
    return 0


def process_count(config: Config) -> int:
    """Processes of a run over all machines."""
    cluster, trainer = config.cluster, config.trainer
    if cluster.name == "local":
        return trainer.devices * trainer.num_nodes
    return cluster.devices * cluster.nodes


def _start_others(config: Config) -> None:
    """Start the other processes of this machine, where no launcher has: as Lightning does for a training,
    which later trainings of this command then join."""
    count = config.trainer.devices
    launched = any(name in os.environ for name in _LAUNCHED) or config.cluster.name != "local"
    if launched or count == 1 or config.trainer.num_nodes > 1:
        return
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=port, NODE_RANK="0", LOCAL_RANK="0")
    for rank in range(1, count):
        process = subprocess.Popen([sys.executable, *sys.argv], env={**os.environ, "LOCAL_RANK": str(rank)})
        atexit.register(process.terminate)


def reuse_freed_memory() -> None:
    """Keep up to 256 MiB of what was freed for the next tensors (with glibc; elsewhere nothing changes).

    Otherwise large blocks go back to the system, and every page of the next ones costs a fault: a tenth of
    a training step on a CPU.
    """
    if platform.libc_ver()[0] == "glibc":
        mallopt = ctypes.CDLL(None).mallopt
        mallopt(_MMAP_THRESHOLD, 32 << 20)  # the most that every version takes
        mallopt(_TRIM_THRESHOLD, 256 << 20)


Stage = Callable[[Run, Path], None]


def execute(runs: list[Run], stages: dict[str, Stage], say: Callable[[str], None]) -> Path:
    """Run what is not finished, in order; returns the last run's folder.

    Commands that share runs share the work: what another one is making is left to it, and what does not stand
    on that is made meanwhile.
    """
    reuse_freed_memory()
    ahead = {run.stage for run in runs if not run.finished} - _WITHOUT_GPU
    if ahead and runs[-1].config.trainer.accelerator == "gpu":
        from amrs.devices import chosen_device  # loads torch

        chosen_device("gpu")
    left = list(runs)
    while left:
        run = _next(left)
        left.remove(run)
        if run.finished:
            say(f"{run.role}: reusing {run.folder}")
        elif process_rank() == 0:
            if run.stage in SHARED:
                _start_others(run.config)
            _first_process(run, stages[run.stage], say)
        else:
            _other_process(run, stages[run.stage])
    return runs[-1].folder


def _next(left: list[Run]) -> Run:
    """The first run that can be made now; several processes of a run must agree, and take them in order."""
    if process_count(left[0].config) > 1:
        return left[0]
    return next((run for run in left if run.finished or _can_be_made(run)), left[0])


def _can_be_made(run: Run) -> bool:
    if not all(parent.finished for parent in run.parents.values()):
        return False
    run.folder.parent.mkdir(parents=True, exist_ok=True)
    lock = FileLock(_lock_file(run))
    free = _try(lock)
    lock.release()
    return free


def _lock_file(run: Run) -> Path:
    return run.folder.with_name(run.folder.name + ".lock")


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
        # Not before: a process that is behind would make the folder again.
        shutil.rmtree(run.folder / PARTS, ignore_errors=True)
        say(f"{run.role}: finished in {time.time() - begun:.0f} s")


@contextmanager
def _lock(run: Run, say: Callable[[str], None]) -> Iterator[None]:
    """Held while a run is made, so that two agents never make the same one."""
    lock = FileLock(_lock_file(run))
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
    parent = os.getppid()
    while not run.finished and not (run.stage in DISTRIBUTED and run.partial.exists()):
        _wait(parent)
    if not run.finished:
        with suppress(FileNotFoundError) if run.stage in SHARED else nullcontext():
            stage(run, run.partial)  # the first process removes what was shared once it has put it together
        while not run.finished:
            _wait(parent)


def _wait(parent: int) -> None:
    """A moment; the process ends where the one that started it is gone."""
    time.sleep(0.2)
    if os.getppid() != parent:
        sys.exit("train.py: the process that started this one has ended")


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
        "machine": f"{platform.system()} {platform.machine()}, {os.cpu_count()} CPU cores{_gpu()}",
    }


def _gpu() -> str:
    torch = sys.modules.get("torch")  # what needs none does not load it for this
    return f", {torch.cuda.get_device_name()}" if torch and torch.cuda.is_available() else ""


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "unknown"


def _git_commit() -> str | None:
    command = ["git", "-C", str(Path(__file__).parent), "describe", "--always", "--dirty", "--abbrev=12"]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    return result.stdout.strip() or None
