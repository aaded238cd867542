"""A Slurm job that is signalled before its time ends: saved, put back in the queue, and resumed there."""

import os
import signal
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any, NoReturn

import lightning
from lightning.pytorch.callbacks import Checkpoint

from amrs.runs import RunError


class Requeue(Checkpoint):
    """Saves after the optimiser step in which SIGUSR1 came to any process, then puts the job back.

    Lightning's own handler saves wherever the signal finds it: in the midst of an optimiser step, and on
    each process at another place. Here all of them agree on the step, and a validation that is due after it
    is done first: a resumed run would leave it out. (A Checkpoint: Lightning calls it after the others.)

    Args:
        path: the checkpoint that a resumed run starts from.
        validated: optimiser steps between validations.
    """

    def __init__(self, path: Path, validated: int) -> None:
        self.path, self.validated, self.signalled, self.seen = path, validated, False, -1

    def _note(self, number: int, frame: FrameType | None) -> None:
        self.signalled = True

    def on_train_start(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        """From here on a signal waits for the end of the step."""
        self.before = signal.signal(signal.SIGUSR1, self._note)
        self.seen = trainer.global_step

    def on_train_end(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        """Training is over; what follows is put back at once."""
        signal.signal(signal.SIGUSR1, self.before)

    def on_train_batch_end(
        self, trainer: lightning.Trainer, pl_module: lightning.LightningModule, outputs: Any, batch: Any,
        batch_idx: int,
    ) -> None:  # fmt: skip
        """Between two steps, unless a validation comes first."""
        if trainer.global_step > self.seen and trainer.global_step % self.validated:
            self._look(trainer)

    def on_validation_end(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        """After a validation."""
        self._look(trainer)

    def _look(self, trainer: lightning.Trainer) -> None:
        self.seen = trainer.global_step
        if trainer.strategy.reduce_boolean_decision(self.signalled, all=False):
            for logger in trainer.loggers:
                logger.save()
            trainer.save_checkpoint(self.path, weights_only=False)
            put_back(trainer.global_rank)


@contextmanager
def requeued_on_signal(rank: int) -> Iterator[None]:
    """Within a Slurm job: SIGUSR1 puts it back in the queue at once; trained stages save first."""

    def handle(number: int, frame: FrameType | None) -> None:
        put_back(rank)

    before = signal.signal(signal.SIGUSR1, handle)
    try:
        yield
    finally:
        signal.signal(signal.SIGUSR1, before)


def put_back(rank: int) -> NoReturn:
    """Requeue this job, from the first process; every process then waits for Slurm to end it.

    None of them may end by itself: a job whose tasks have ended counts as done.
    """
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    signal.signal(signal.SIGUSR1, signal.SIG_IGN)
    if rank == 0:
        job = os.environ["SLURM_JOB_ID"]
        done = subprocess.run(["scontrol", "requeue", job], capture_output=True, text=True, check=False)
        if done.returncode != 0:
            raise RunError(f"job {job} could not be put back in the queue: {done.stderr.strip()}")
    while True:
        time.sleep(1)
