"""The stages of an experiment; the file name is the stage's name."""

import os
import sys
from contextlib import nullcontext
from functools import partial
from importlib import import_module
from pathlib import Path

from amrs.batches import BatchSizeError
from amrs.cluster.jobs import in_job, launch
from amrs.cluster.requeue import requeued_on_signal
from amrs.config import graph
from amrs.config.graph import Config
from amrs.execution import Stage, execute, process_rank
from amrs.logs.mapped import open_flat
from amrs.logs.schema import LogError, read_log
from amrs.logs.splits import TooFewUsersError, assigned
from amrs.runs import Run, RunError, plan


def _stage(name: str, run: Run, folder: Path) -> None:
    """A stage is read when it runs: stages use parts that themselves load what other stages trained."""
    import_module(f"amrs.stages.{name}").run(run, folder)


def _world_model(runs: list[Run], run: Run, folder: Path) -> None:
    """Before a world model is trained, its log must have users for all those that `runs` want of it."""
    log = run.parents["prepare"].folder / "log"
    user_ids = open_flat(log, read_log(log)).user_ids
    for other in runs:
        if other.stage == "world_model" and other.parents.get("prepare") is run.parents["prepare"]:
            assigned(user_ids, other.config.data.split, other.config.world_model.users)
    _stage("world_model", run, folder)


STAGES: dict[str, Stage] = {name: partial(_stage, name) for name in graph.STAGES}


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def run(config: Config) -> int:
    """Make the stage that `config` names and the parents that it lacks; returns the exit status.

    The last line on stdout is the run folder; with a cluster, where it will be.
    """
    try:
        runs = plan(config)
        if "WANDB_SWEEP_ID" in os.environ and runs[-1].finished and process_rank() == 0:
            import_module("amrs.training").log_again(runs[-1])
        if in_job(runs):
            with requeued_on_signal(process_rank()) if config.cluster.name == "slurm" else nullcontext():
                execute(runs, STAGES | {"world_model": partial(_world_model, runs)}, _say)
        else:
            launch(runs, _say)
    except (LogError, RunError, BatchSizeError, TooFewUsersError) as error:
        print(f"train.py: {error}", file=sys.stderr)
        return 1
    if process_rank() == 0:
        print(runs[-1].folder)
    return 0
