"""Where that is computed which Lightning does not place: the linear start, pairs, rollouts."""

import os

import torch

from amrs.runs import RunError

_LOCAL_RANK = ("LOCAL_RANK", "SLURM_LOCALID")
"""What launchers set; the first that is there is the rank on this machine."""


def chosen_device(accelerator: str) -> torch.device:
    """As `trainer.accelerator` says; each process of a machine has a GPU of its own.

    Raises:
        RunError: a GPU is asked for, and torch sees none.
    """
    if accelerator == "cpu" or (accelerator == "auto" and not torch.cuda.is_available()):
        return torch.device("cpu")
    if not torch.cuda.is_available():
        raise RunError(
            f"trainer.accelerator={accelerator}, but torch sees no GPU here; allowed: cpu, auto, or a "
            "machine with a GPU and torch's CUDA build"
        )
    local = next((int(os.environ[name]) for name in _LOCAL_RANK if name in os.environ), 0)
    return torch.device("cuda", local % torch.cuda.device_count())
