"""Work in fixed units, shared by the processes of a run through files in its folder.

A unit's result depends on nothing but its number, and results are put together in the order of the units:
so the whole is the same for any number of processes, bit for bit.
"""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from amrs.execution import PARTS, process_count, process_rank
from amrs.runs import Run

Work = Callable[[int], Any]
"""The result of one unit: tensors, numbers and texts, in lists and dicts."""
Share = Callable[[str, int, Work], list[Any]]
"""(name, units, work) -> the results of all units in order, in every process."""


def alone(name: str, units: int, work: Work) -> list[Any]:
    """All units in this process."""
    return [work(unit) for unit in tqdm(range(units), name, disable=None)]


def shared(run: Run, folder: Path) -> Share:
    """How the processes of `run` share its work; `folder` is where it is while under way."""
    ranks = process_count(run.config)
    if ranks == 1:
        return alone
    return lambda name, units, work: share(folder / PARTS / name, process_rank(), ranks, units, work)


def share(folder: Path, rank: int, ranks: int, units: int, work: Work) -> list[Any]:
    """Do the units of process `rank` and then, from the end, what others have not done: nobody waits for a
    process that is slow or gone.

    Raises:
        FileNotFoundError: where the run's folder is gone, because another process has finished the run.
    """
    for place in (folder.parent, folder):  # never the run's folder itself
        place.mkdir(exist_ok=True)
    files = [folder / f"{unit:06d}.pt" for unit in range(units)]
    mine = range(rank, units, ranks)
    order = [*mine, *(unit for unit in reversed(range(units)) if unit not in mine)]
    for unit in tqdm(order, folder.name, disable=None if rank == 0 else True):
        if not files[unit].exists():
            temporary = files[unit].with_suffix(f".{rank}")
            result = work(unit)
            with temporary.open("wb") as file:
                torch.save(result, file)
            os.replace(temporary, files[unit])
    return [torch.load(file, weights_only=True) for file in files]
