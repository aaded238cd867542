"""What a resumed run takes over from its earlier life, besides what Lightning's checkpoints hold."""

from pathlib import Path
from typing import Any

import lightning
import pandas as pd
import torch
from lightning.pytorch.callbacks import Callback
from torch import Tensor

_ASIDE = "metrics.before.csv"


class Luck(Callback):
    """Dropout's random numbers go on where they were: without it a resumed run draws those of a new one.

    The state of every process, on CPU or GPU, is in the checkpoint; with another number of processes, or on
    another kind of device, draws begin anew.
    """

    def __init__(self) -> None:
        self.before: Tensor | None = None

    def on_save_checkpoint(
        self, trainer: lightning.Trainer, pl_module: lightning.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """States as (processes, bytes)."""
        state = _random_state(pl_module).to(pl_module.device)
        gathered = trainer.strategy.all_gather(state)
        checkpoint["luck"] = gathered.reshape(-1, len(state)).cpu()

    def on_load_checkpoint(
        self, trainer: lightning.Trainer, pl_module: lightning.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Kept until training begins: setting up draws, too."""
        self.before = checkpoint.get("luck")

    def on_train_batch_start(
        self, trainer: lightning.Trainer, pl_module: lightning.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Before the first step after a resume."""
        before, self.before = self.before, None
        like = _random_state(pl_module)
        if before is not None and before.shape == (trainer.world_size, len(like)):
            setter = torch.cuda.set_rng_state if pl_module.device.type == "cuda" else torch.set_rng_state
            setter(before[trainer.global_rank].clone())  # torch reads past a state that is part of a tensor


def _random_state(module: lightning.LightningModule) -> Tensor:
    """Of the generator that dropout draws from, as bytes."""
    return torch.cuda.get_rng_state() if module.device.type == "cuda" else torch.get_rng_state()


def set_aside(folder: Path) -> None:
    """A resumed run keeps the rows of its earlier life, which Lightning's logger would overwrite."""
    path, aside = folder / "metrics.csv", folder / _ASIDE
    if path.exists():
        join(folder)
        path.rename(aside)


def join(folder: Path) -> None:
    """Put rows that were set aside before those of metrics.csv; a repeated step counts once."""
    path, aside = folder / "metrics.csv", folder / _ASIDE
    if not aside.exists():
        return
    now = pd.read_csv(path) if path.exists() else pd.DataFrame({"step": []})
    before = pd.read_csv(aside)
    before = before[before["step"] < (now["step"].min() if len(now) else float("inf"))]
    joined, temporary = pd.concat([before, now]), folder / "metrics.csv.tmp"
    joined.to_csv(temporary, index=False)
    temporary.replace(path)
    aside.unlink()
