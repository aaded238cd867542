"""Seconds from `python train.py` to the first training step, data prepared."""

import resource
import shutil
import statistics
import subprocess
import sys
import time
from pathlib import Path

from benchmarks.reference import ROOT
from benchmarks.timing import REPEATS, Row

IMPORTS = "import torch, lightning, datasets, wandb"
TRAIN_PY = str(Path(__file__).parents[1] / "train.py")
UNTIL = """
import os, runpy, sys
import lightning, torch
lightning.LightningModule.on_train_batch_start = lambda *_: os._exit(0)
if sys.argv.pop(1) == "first":
    torch.optim.LBFGS.step = lambda *_: os._exit(0)
runpy.run_path(sys.argv.pop(1), run_name="__main__")
"""
"""train.py until its first training step, which ends the process: that of the linear part's fit (L-BFGS), or
that of the first batch."""


def _seconds(command: list[str]) -> tuple[float, float]:
    """CPU and wall seconds of a process and its children."""
    before, start = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    subprocess.run(command, check=True, capture_output=True)
    wall, after = time.perf_counter() - start, resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime, wall


def first_step() -> list[Row]:
    """The world model at the defaults, without W&B."""
    runs = ROOT / "runs"
    ask = [TRAIN_PY, "stage=world_model", "log=disabled", f"runs={runs}"]
    _seconds([sys.executable, TRAIN_PY, "stage=prepare", f"runs={runs}"])
    ours, imports = [], []
    for _ in range(REPEATS + 1):
        shutil.rmtree(runs / "world_model", ignore_errors=True)
        ours.append(_seconds([sys.executable, "-c", UNTIL, "first", *ask]))
        imports.append(_seconds([sys.executable, "-c", IMPORTS]))
    ours, imports = ours[1:], imports[1:]  # the first reads from disk
    (cpu, wall), (bound_cpu, bound) = (
        [statistics.median(column) for column in zip(*found, strict=True)] for found in (ours, imports)
    )
    low, high = min(x for x, _ in ours), max(x for x, _ in ours)
    shutil.rmtree(runs / "world_model", ignore_errors=True)
    fitted, _ = _seconds([sys.executable, "-c", UNTIL, "batch", *ask])
    note = (
        f"{low:.2f} to {high:.2f} CPU-s; {cpu - bound_cpu:+.2f} CPU-s and {wall - bound:+.2f} s over "
        f"importing torch, lightning, datasets, wandb ({bound_cpu:.2f} CPU-s); to the first batch, "
        f"behind the linear part's fit, {fitted:.1f} CPU-s (once)"
    )
    return [Row("first_step", "s", cpu, wall, bound_cpu / cpu, note=note)]
