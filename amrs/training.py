"""Trainer, optimiser, loggers and checkpoints, the same for every trained stage."""

import itertools
import logging
import os
import sys
import warnings
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any, cast

import lightning
import pandas as pd
import torch
from lightning.fabric.plugins.environments.slurm import SLURMEnvironment
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch.callbacks import (
    Callback,
    EarlyStopping,
    ModelCheckpoint,
    TQDMProgressBar,
    WeightAveraging,
)
from lightning.pytorch.loggers import CSVLogger, Logger, WandbLogger
from torch import Tensor, nn
from torchmetrics import Metric

from amrs.cluster.requeue import Requeue
from amrs.cluster.sharding import strategy
from amrs.config.graph import Config
from amrs.data import SessionDataModule
from amrs.execution import process_rank
from amrs.logs.splits import TRAIN
from amrs.resuming import Luck, join, set_aside
from amrs.runs import REPEATED, Run, RunError

BEST, LAST = "best.ckpt", "last.ckpt"
_LINEAR_DECAY = 0.05
"""Most decoupled weight decay of the linear parts of a model."""
_LINEAR_STEP = 0.3
"""Their learning rate over that of the rest."""
_SHORTEST = 5
"""Fewest optimiser steps between validations."""
_LIGHTNING_NOISE = (
    ".*does not have many workers.*",
    ".*IterableDataset.*__len__.*",
    ".*LeafSpec.*",
    ".*functional.*all_gather.*",
    ".*exists and is not empty.*",
    ".*You're resuming from a checkpoint that ended.*",
    ".*isinstance.*treespec.*",
    r".*module\(s\) in eval mode at the start.*",
    ".*`srun` command is available.*",
    ".*WeightAveraging callback with a model that overrides.*",  # weights are shared out by FSDP2 only
    ".*returned a view tensor.*",  # FSDP2 of a block's keys and values, which nothing changes in place
)


_LIGHTNING = ("accelerator", "devices", "num_nodes", "strategy", "precision")
"""Settings that go to Lightning as they are."""


class RatioOfSums(Metric):
    """sum / count by name, both summed over batches and processes before they are divided.

    Shape suffix: Z names.
    """

    sums: Tensor
    counts: Tensor

    def __init__(self, names: Iterable[str]) -> None:
        super().__init__()
        self.names = tuple(names)
        zeros = torch.zeros(len(self.names), dtype=torch.float64)
        self.add_state("sums", zeros.clone(), dist_reduce_fx="sum")
        self.add_state("counts", zeros.clone(), dist_reduce_fx="sum")

    def update(self, sums_Z: Tensor, counts_Z: Tensor) -> None:
        """Add sums and counts, which may be on another device."""
        self.sums += sums_Z.detach()
        self.counts += counts_Z.to(self.counts.device)

    def compute(self) -> dict[str, Tensor]:
        """Ratio by name; names without any count are left out."""
        known = (self.counts > 0).tolist()
        ratio = self.sums / self.counts.clamp(min=1)
        return {name: value.float() for name, value, k in zip(self.names, ratio, known, strict=True) if k}


def fit(
    run: Run, folder: Path, module: lightning.LightningModule, data: SessionDataModule, section: Any,
    validate_every: int, early_stop: bool = True, callbacks: tuple[Callback, ...] = (),
) -> None:  # fmt: skip
    """Train to `<folder>/checkpoints/best.ckpt` (lowest val/loss), resuming from last.ckpt if there.

    Where the section has an `averaging`, what is validated and kept are running averages of the weights.
    Validates every `validate_every` steps, or once an epoch where epochs are shorter (small data).

    Args:
        run: whose settings hold.
        folder: the run's folder while it is under way.
        module: what is trained; it logs val/loss.
        data: its batches; seeds with the run's seed.
        section: the stage's own settings (max_steps, patience).
        validate_every: optimiser steps between validations and checkpoints.
        early_stop: stop after `section.patience` x `validate_every` steps without improvement: small data,
            which is validated more often, has as many steps to improve as large data.
        callbacks: more of them.
    """
    config = run.config
    max_steps = config.trainer.max_steps or section.max_steps
    epoch = max(_SHORTEST, data.units(TRAIN) // section.batch_size)
    steps = min(validate_every, max_steps, epoch)
    watch = [*callbacks, *_averaging(section)]
    if early_stop:
        patience = -(-section.patience * validate_every // steps)
        watch.append(EarlyStopping("val/loss", patience=patience, check_on_train_epoch_end=False))
    watch += [Luck(), *_checkpoints(folder, best=early_stop)]
    last = folder / "checkpoints" / LAST
    if config.cluster.name == "slurm":
        watch.append(Requeue(last, steps))
    if process_rank() == 0:
        set_aside(folder)
    loggers = _loggers(run, folder)
    with _quiet():
        trainer = _trainer(config, folder, max_steps, steps, watch, loggers)
        _train(trainer, module, data, last)
    if process_rank() == 0:
        join(folder)
    for logger in loggers:
        if isinstance(logger, WandbLogger) and process_rank() == 0:
            logger.experiment.finish()


def _train(
    trainer: lightning.Trainer, module: lightning.LightningModule, data: SessionDataModule, last: Path
) -> None:
    """From where `last` stands, if it is there."""
    try:
        trainer.fit(module, datamodule=data, ckpt_path=last if last.exists() else None, weights_only=True)
    except ValueError as error:
        if "parameter group" not in str(error):
            raise
        raise RunError(
            f"{last} was left by an older program, whose optimiser had other groups: remove "
            f"{last.parents[1]} and run again"
        ) from error


def _averaging(section: Any) -> list[Callback]:
    """Running averages of the weights, where the stage has them."""
    averaging = getattr(section, "averaging", 0)
    if not averaging:
        return []
    return [WeightAveraging(avg_fn=running_average(averaging), use_buffers=False)]


def _checkpoints(folder: Path, best: bool) -> list[Callback]:
    """The lowest val/loss, and the last weights to resume from."""
    place: dict[str, Any] = {"dirpath": folder / "checkpoints", "save_on_train_epoch_end": False,
                             "enable_version_counter": False}  # fmt: skip
    kept = [ModelCheckpoint(filename="best", monitor="val/loss", save_last=False, **place)] if best else []
    # After a validation, not before: a resumed run would leave that validation out.
    return [*kept, ModelCheckpoint(filename="last", every_n_epochs=1, **place)]


@contextmanager
def _quiet() -> Iterator[None]:
    """Lightning without what it says of things that are meant."""
    logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)
    logging.getLogger("lightning.pytorch.utilities.rank_zero").setLevel(logging.WARNING)
    with warnings.catch_warnings():
        for pattern in _LIGHTNING_NOISE:
            warnings.filterwarnings("ignore", pattern)
        yield


def _trainer(
    config: Config, folder: Path, max_steps: int, steps: int, callbacks: list[Callback], loggers: list[Logger]
) -> lightning.Trainer:
    """A Trainer that validates every `steps` optimiser steps.

    Raises:
        RunError: for settings that Lightning refuses.
    """
    shown, micro = sys.stdout.isatty(), config.trainer.accumulate_grad_batches
    try:
        return lightning.Trainer(
            accelerator=config.trainer.accelerator, **_machines(config),
            precision=cast(Any, config.trainer.precision), accumulate_grad_batches=micro,
            max_steps=max_steps, max_epochs=-1, val_check_interval=steps * micro,
            check_val_every_n_epoch=None, enable_progress_bar=shown,
            callbacks=[*callbacks, *([TQDMProgressBar()] if shown else [])],
            logger=loggers, log_every_n_steps=config.log.every, gradient_clip_val=1.0,
            enable_model_summary=False, num_sanity_val_steps=0, use_distributed_sampler=False,
            default_root_dir=folder,
        )  # fmt: skip
    except (ValueError, MisconfigurationException) as error:
        given = ", ".join(f"trainer.{key}={getattr(config.trainer, key)}" for key in _LIGHTNING)
        raise RunError(f"{given}: Lightning refuses them: {str(error).splitlines()[0]}") from error


def _machines(config: Config) -> dict[str, Any]:
    """Processes of the Trainer, those of the cluster's job or else of `trainer`, and how they share work."""
    cluster, trainer = config.cluster, config.trainer
    local = cluster.name == "local"
    devices = trainer.devices if local else cluster.devices
    nodes = trainer.num_nodes if local else cluster.nodes
    # Requeue stands in for Lightning's own requeueing.
    plugins = [SLURMEnvironment(auto_requeue=False)] if cluster.name == "slurm" else []
    shared = strategy(trainer.strategy, devices * nodes)
    return {"devices": devices, "num_nodes": nodes, "strategy": shared, "plugins": plugins}


def running_average(decay: float) -> Callable[[Tensor, Tensor, Tensor | int], Tensor]:
    """Exponential running average of weights, whose decay rises to `decay` as (1 + n) / (10 + n).

    Without that the untrained weights would still weigh .98^60 = .3 after 60 steps.
    """

    def update(average: Tensor, current: Tensor, averaged: Tensor | int) -> Tensor:
        n = int(averaged)
        return average.lerp(current, 1 - min(decay, (1 + n) / (10 + n)))

    return update


def wandb_mode(config: Config) -> str:
    """disabled, offline or online; auto is online only where a login exists."""
    if config.log.wandb != "auto":
        return config.log.wandb
    if "WANDB_MODE" in os.environ:
        return os.environ["WANDB_MODE"]
    netrc = Path(os.environ.get("NETRC", "~/.netrc")).expanduser()
    login = "WANDB_API_KEY" in os.environ or (netrc.exists() and "wandb" in netrc.read_text())
    return "online" if login else "offline"


def _loggers(run: Run, folder: Path) -> list[Logger]:
    """CSV always; W&B as the settings say. Within a sweep only the run that was asked for is W&B's."""
    loggers: list[Logger] = [CSVLogger(folder, name="", version="", flush_logs_every_n_steps=1)]
    mode = wandb_mode(run.config)
    if mode == "disabled" or ("WANDB_SWEEP_ID" in os.environ and run.role != run.config.stage):
        return loggers
    return [*loggers, _wandb_logger(run, folder, mode)]


def _wandb_logger(run: Run, folder: Path, mode: str) -> WandbLogger:
    os.environ.setdefault("WANDB_SILENT", "true")
    return WandbLogger(
        name=f"{run.role}-{run.fingerprint}", save_dir=folder, project=run.config.log.project,
        offline=mode == "offline", config=asdict(run.config),
    )  # fmt: skip


def log_again(run: Run) -> None:
    """The last values of a finished run to W&B: a sweep needs figures of a proposal that exists already."""
    mode, table = wandb_mode(run.config), run.folder / "metrics.csv"
    if mode == "disabled" or not table.exists():
        return
    values = pd.read_csv(table).ffill().iloc[-1].dropna()
    folder = Path(run.config.runs) / REPEATED  # a finished folder never changes
    folder.mkdir(exist_ok=True)
    logger = _wandb_logger(run, folder, mode)
    logger.log_metrics({str(name): float(value) for name, value in values.items() if "/" in str(name)})
    logger.experiment.finish()


def log_once(run: Run, folder: Path, values: dict[str, float]) -> None:
    """Figures of a stage that has no steps, to metrics.csv and W&B under the same names."""
    for logger in _loggers(run, folder):
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", ".*exists and is not empty.*")
            logger.log_metrics(values, step=0)
            logger.save()
        if isinstance(logger, WandbLogger):
            logger.experiment.finish()


def linear_schedule(module: nn.Module, section: Any, max_steps: int) -> dict[str, Any]:
    """AdamW with a one-cycle schedule (Smith 2018), stepped with the optimiser.

    The parts of a linear model (named *_linear) were fitted before (`linear_start`), so they move little.
    Groups are runs of the module's own order, in which FSDP2 numbers the optimiser's parameters: so a
    checkpoint goes from one strategy to another.
    """
    groups, peaks = [], []
    decay = {False: section.weight_decay, True: min(section.weight_decay, _LINEAR_DECAY)}
    for linear, run in itertools.groupby(module.named_parameters(), lambda named: "_linear." in named[0]):
        groups.append({"params": [parameter for _, parameter in run], "weight_decay": decay[linear]})
        peaks.append(section.learning_rate * (_LINEAR_STEP if linear else 1.0))
    optimiser = torch.optim.AdamW(groups, lr=section.learning_rate)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimiser, peaks, total_steps=max_steps + 1, pct_start=min(0.1, 50 / max_steps)
    )
    return {"optimizer": optimiser, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}


def load_weights(folder: Path, module: nn.Module, prefix: str) -> None:
    """Fill `module` from a finished run's best checkpoint; only tensors and plain values are read."""
    path = folder / "checkpoints" / BEST
    if not path.exists():
        raise RunError(f"{path} is missing: the run is not complete; remove {folder} and run it again")
    state = torch.load(path, map_location="cpu", weights_only=True)["state_dict"]
    own = {key.removeprefix(prefix): value for key, value in state.items() if key.startswith(prefix)}
    try:
        module.load_state_dict(own)
    except RuntimeError as error:
        what = str(error).splitlines()[-1].strip()
        raise RunError(
            f"{path} is of another model than this data set asks for, by another catalogue or an older "
            f"program ({what}): take a run on this data set, made by this program"
        ) from error
