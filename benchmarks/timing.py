"""Work per CPU-second and per wall second: median of five with the range."""

import statistics
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

REPEATS = 5
CPU = torch.device("cpu")


@dataclass
class Row:
    """One line of the results; a figure that was not measured is None and left out of the file."""

    name: str
    unit: str
    cpu: float | None = None
    """Work per CPU-second (for unit s: CPU-seconds)."""
    wall: float | None = None
    """Work per wall second (for unit s: seconds)."""
    of_bound: float | None = None
    """Our speed over the bound's; larger is better."""
    of_peer: float | None = None
    """Our speed over RecTools SASRec's."""
    note: str = ""

    def as_json(self) -> dict[str, Any]:
        """Without what was not measured; four significant digits."""
        given = {key: value for key, value in asdict(self).items() if value is not None and value != ""}
        return {k: float(f"{v:.4g}") if isinstance(v, float) else v for k, v in given.items()}


@dataclass
class Speed:
    """Rates of the repeats, in work per second."""

    cpu: list[float]
    wall: list[float]

    @property
    def median(self) -> tuple[float, float]:
        """Per CPU-second and per wall second."""
        return statistics.median(self.cpu), statistics.median(self.wall)


class Clock:
    """CPU and wall time since it was made."""

    def __init__(self) -> None:
        self.cpu, self.wall = time.process_time(), time.perf_counter()

    def rates(self, work: float) -> tuple[float, float]:
        """Work per CPU-second and wall second."""
        cpu, wall = time.process_time() - self.cpu, time.perf_counter() - self.wall
        return work / max(cpu, 1e-9), work / max(wall, 1e-9)


def wait(device: torch.device) -> None:
    """Until a GPU has done what it was given."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def anonymous() -> float:
    """Anonymous memory of this process in GiB."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("RssAnon")) / 2**20


@contextmanager
def peak_anonymous() -> Iterator[list[float]]:
    """Anonymous memory of this process in GiB from time to time, while inside."""
    seen, over = [anonymous()], threading.Event()

    def watch() -> None:
        while not over.wait(0.02):
            seen.append(anonymous())

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        yield seen
    finally:
        over.set()
        watcher.join()


def speed(*works: Callable[[], float], seconds: float = 0.3) -> list[Speed]:
    """Speeds of several pieces of work, taken in turns so that a drifting machine treats them alike.

    Each call returns how much it did; it is repeated until `seconds` have passed.
    """
    for work in works:
        work()
    found = [Speed([], []) for _ in works]
    for _ in range(REPEATS):
        for work, into in zip(works, found, strict=True):
            clock, done = Clock(), work()
            while time.perf_counter() - clock.wall < seconds:
                done += work()
            cpu, wall = clock.rates(done)
            into.cpu.append(cpu)
            into.wall.append(wall)
    return found


def row(name: str, unit: str, ours: Speed, bound: Speed, note: str, by_wall: bool = False) -> Row:
    """The medians, and the ratio to the bound: per CPU-second, or `by_wall` per second."""
    per, rates = ("s", ours.wall) if by_wall else ("CPU-s", ours.cpu)
    ours_median, bound_median = ours.median[int(by_wall)], bound.median[int(by_wall)]
    note = f"{min(rates):,.4g} to {max(rates):,.4g} per {per}; {note}; bound {bound_median:,.4g} per {per}"
    return Row(name, unit, *ours.median, ours_median / bound_median, note=note)
