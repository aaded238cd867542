"""What only a GPU can show: each function takes a device and a size, so that the tests run it on a CPU.

Shape suffix: S x S matrices.
"""

import subprocess
import sys
import tempfile
import time
import warnings
from dataclasses import replace
from typing import Any

import lightning
import torch

from amrs.config import parse
from amrs.config.data import SplitConfig
from amrs.config.groups import ModelConfig
from amrs.data import SessionDataModule
from amrs.stages import world_model
from benchmarks.bounds import flops, products
from benchmarks.reference import data, platform_log, short_log
from benchmarks.rollouts import closed_loop
from benchmarks.startup import TRAIN_PY
from benchmarks.timing import REPEATS, Row, Speed, row, speed, wait

CUDA = torch.device("cuda", 0)
LARGE = ModelConfig(width=1024, layers=8, heads=16, history=512)
"""A hundred million weights."""
WINDOWS, SIZE = 32, 8192
"""Windows an optimiser step; rows of the matrices of the bound."""
_STEPS, _WARM = 10, 3
"""Optimiser steps a lap, and before the first."""


def gpu_closed_loop() -> list[Row]:
    """65,536 listeners at a time."""
    return [closed_loop("gpu_closed_loop", 65_536, data(short_log()), CUDA)]


def gpu_train_100m() -> list[Row]:
    """On listeners with 120 sessions on average, so that most windows are full."""
    folder = platform_log(1000, sessions=120.0)
    log = SessionDataModule(folder, SplitConfig(), LARGE.history, batch_size=WINDOWS)
    return [trained("gpu_train_100m", log, LARGE, CUDA, SIZE)]


def gpu_evaluate() -> list[Row]:
    """The published scale from nothing to the report."""
    return [evaluated("gpu_evaluate", "trainer=gpu")]


class _Laps(lightning.Callback):
    """Tokens a second of laps of `_STEPS` optimiser steps."""

    def __init__(self) -> None:
        self.start, self.tokens, self.rates = 0.0, torch.zeros(()), list[float]()

    def on_train_batch_end(self, trainer: Any, module: Any, outputs: Any, batch: Any, index: int) -> None:
        """Counts tokens where they are: the GPU is waited for between laps only."""
        tokens = batch.valid_BL.sum()
        self.tokens = self.tokens.to(tokens.device) + tokens
        if trainer.global_step >= _WARM and (trainer.global_step - _WARM) % _STEPS == 0:
            wait(module.device)
            now = time.perf_counter()
            if self.start:
                self.rates.append(float(self.tokens) / (now - self.start))
            self.start, self.tokens = now, torch.zeros(())


def trained(name: str, log: SessionDataModule, shape: ModelConfig, device: torch.device, size: int) -> Row:
    """Tokens that a world model trains on in bf16, next to as many operations in one large product."""
    config = parse(["stage=world_model", f"model.history={shape.history}"]).config
    module: Any = world_model.WorldModelTraining(world_model.build(1, 3, shape, log), config)
    laps = _Laps()
    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        lightning.Trainer(
            accelerator=device.type, devices=1, precision="bf16-mixed", max_steps=_WARM + REPEATS * _STEPS,
            max_epochs=-1, logger=False, callbacks=[laps], gradient_clip_val=1.0, limit_val_batches=0,
            num_sanity_val_steps=0, enable_checkpointing=False, enable_progress_bar=False,
            enable_model_summary=False, default_root_dir=folder,
        ).fit(module, datamodule=log)  # fmt: skip
        batch = next(iter(log.train_dataloader())).to(device)
    module.to(device).log = module.log_dict = lambda *_, **__: None
    with torch.autocast(device.type, torch.bfloat16):
        pairs = products(lambda: module.training_step(batch, 0).backward())
    tokens, weights = float(batch.valid_BL.sum()), sum(x.numel() for x in module.parameters())
    each = flops(pairs) / tokens
    left_SS, right_SS = (torch.randn(size, size, device=device, dtype=torch.bfloat16) for _ in range(2))

    def bound() -> float:
        torch.mm(left_SS, right_SS)
        wait(device)
        return 2.0 * size**3 / each

    alone = speed(bound)[0]
    note = (
        f"{weights:,} weights, {len(batch.valid_BL)} windows of {shape.history}; {each:,.3g} operations a "
        f"token; bound: {each * alone.median[1]:,.3g} operations a second, as bf16 products of {size:,} x "
        f"{size:,} do"
    )
    return replace(row(name, "tokens", Speed(laps.rates, laps.rates), alone, note, by_wall=True), cpu=None)


def evaluated(name: str, *settings: str) -> Row:
    """Wall seconds of `python train.py stage=evaluate` in an empty folder."""
    with tempfile.TemporaryDirectory() as runs:
        command = [sys.executable, TRAIN_PY, "stage=evaluate", "log=disabled", f"runs={runs}", *settings]
        start = time.perf_counter()
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
        seconds = time.perf_counter() - start
    return Row(name, "s", wall=seconds, note=f"once, from nothing to the report; {' '.join(settings)}")
