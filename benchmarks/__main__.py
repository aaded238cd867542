"""Measure speed on the machine at hand, each figure next to its bound.

    python -m benchmarks [item ...]

Without items: all but the long ones. One process an item, pinned to one thread. Writes
benchmarks/results/<processor or GPU>.json (items that were not measured keep their rows) and prints a table.
"""

import json
import os
import re
import subprocess
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from benchmarks.timing import Row

RESULTS = Path(__file__).parent / "results"
ITEMS = {
    "rectools_sasrec": ("training", "peer"),
    "world_model_train": ("training", "world_model_train"),
    "copycat_train": ("training", "copycat_train"),
    "dpo_train": ("training", "dpo_train"),
    "closed_loop_64": ("rollouts", "closed_loop_64"),
    "closed_loop_1024": ("rollouts", "closed_loop_1024"),
    "score_6k": ("rollouts", "score_6k"),
    "score_100k": ("rollouts", "score_100k"),
    "score_1m": ("rollouts", "score_1m"),
    "batches_1m": ("logs", "batches_1m"),
    "prepare_csv": ("logs", "prepare_csv"),
    "prepare_parquet": ("logs", "prepare_parquet"),
    "first_step": ("startup", "first_step"),
}
"""Item to its module and function."""
LONG = {
    "world_model_train_5": ("training", "world_model_train_5"),
    "batches_20m": ("logs", "batches_20m"),
    "batches_100m": ("logs", "batches_100m"),
}
"""Only when named."""
COSTS = {f"cost_{kind}_{times}": (kind, times) for kind in ("users", "tracks") for times in (1, 10, 100)}
"""Likewise: cost curves, the published number of users or tracks so many times."""
GPU = {name: ("gpu", name) for name in ("gpu_closed_loop", "gpu_train_100m", "gpu_evaluate")}
"""Likewise, on one GPU."""
_THREADS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")
_PEER, _TRAINED = "rectools_sasrec", ("world_model_train", "world_model_train_5", "copycat_train")


def processor() -> str:
    """Name of the CPU model."""
    found = re.search(r"model name\s*:\s*(.+)", Path("/proc/cpuinfo").read_text())
    return found.group(1).strip() if found else "unknown"


def graphics() -> str | None:
    """Name of the GPU model, where there is one."""
    import torch

    return torch.cuda.get_device_name() if torch.cuda.is_available() else None


def measure(item: str) -> None:
    """Measure one item in this process and print its rows as JSON."""
    from importlib import import_module

    from amrs.execution import reuse_freed_memory
    from benchmarks.reference import one_thread

    if item not in GPU:
        one_thread()
    reuse_freed_memory()  # as every command of train.py
    work: Callable[[], list[Row]]
    if item in COSTS:
        work = partial(import_module("benchmarks.costs").cost, *COSTS[item])
    else:
        module, function = {**ITEMS, **LONG, **GPU}[item]
        work = getattr(import_module(f"benchmarks.{module}"), function)
    print(json.dumps([row.as_json() for row in work()]))


def _in_own_process(item: str) -> list[dict[str, Any]]:
    command = [sys.executable, "-m", "benchmarks", "--measure", item]
    environment = os.environ if item in GPU else os.environ | dict.fromkeys(_THREADS, "1")
    done = subprocess.run(command, env=environment, stdout=subprocess.PIPE, text=True, check=False)
    if done.returncode:
        return [{"name": item, "note": f"failed with exit status {done.returncode}"}]
    rows: list[dict[str, Any]] = json.loads(done.stdout.splitlines()[-1])
    return rows


def _beside_peer(rows: dict[str, dict[str, Any]]) -> None:
    """Fill of_peer, once the peer has been measured."""
    speed = rows.get(_PEER, {}).get("cpu")
    for name in _TRAINED:
        if speed and name in rows and "cpu" in rows[name]:
            rows[name]["of_peer"] = float(f"{rows[name]['cpu'] / speed:.4g}")


def table(rows: list[dict[str, Any]]) -> str:
    """The rows as text."""
    lines = [f"{'':26}{'unit':>11}{'per CPU-s':>12}{'per s':>12}{'of bound':>10}{'of peer':>9}"]
    for row in rows:
        figures = [row.get(key) for key in ("cpu", "wall", "of_bound", "of_peer")]
        shown = ["-" if f is None else f"{f:,.0f}" if f >= 1000 else f"{f:.3g}" for f in figures]
        widths = zip(shown, (12, 12, 10, 9), strict=True)
        lines.append(f"{row['name']:26}{row.get('unit', ''):>11}" + "".join(f"{s:>{w}}" for s, w in widths))
        lines.append(f"    {row.get('note', '')}")
    return "\n".join(lines)


def main(arguments: list[str]) -> int:
    """Measure the items and write the results."""
    every = {**ITEMS, **LONG, **COSTS, **GPU}
    if {"-h", "--help"} & set(arguments):
        print(
            __doc__, f"\nItems: {', '.join(ITEMS)}\nLong: {', '.join((*LONG, *COSTS))}\nGPU: {', '.join(GPU)}"
        )
        return 0
    unknown = [item for item in arguments if item not in every]
    if unknown:
        allowed = ", ".join(every)
        print(f"benchmarks: no item {', '.join(unknown)}; allowed: {allowed}", file=sys.stderr)
        return 2
    if set(arguments) & set(GPU) and set(arguments) - set(GPU):
        print(f"benchmarks: name {', '.join(GPU)} alone: they go to the GPU's own file", file=sys.stderr)
        return 2
    if set(arguments) & set(GPU) and graphics() is None:
        print(
            f"benchmarks: {', '.join(arguments)}: not measured, for torch sees no GPU here", file=sys.stderr
        )
        return 2
    RESULTS.mkdir(exist_ok=True)
    machine = (graphics() if set(arguments) & set(GPU) else None) or processor()
    path = RESULTS / (re.sub(r"[^a-z0-9]+", "-", machine.lower()).strip("-") + ".json")
    rows = {row["name"]: row for row in json.loads(path.read_text())["rows"]} if path.exists() else {}
    measured: list[str] = []
    for item in arguments or ITEMS:
        print(f"benchmarks: {item}", file=sys.stderr)
        new = {row["name"]: row for row in _in_own_process(item)}
        rows, measured = rows | new, [*measured, *new]
        _beside_peer(rows)
        path.write_text(json.dumps({"processor": machine, "rows": list(rows.values())}, indent=1) + "\n")
    missing = (
        [] if arguments else [{"name": x, "note": "not measured: only when named, on a GPU"} for x in GPU]
    )
    print(table([*(rows[name] for name in measured), *missing]))
    if set(arguments) & set(COSTS):
        from benchmarks.costs import fit

        for name, exponent in fit(path).items():
            print(f"exponent of CPU time over {name}: {exponent:.2f}")
    return 0


if __name__ == "__main__":
    if sys.argv[1:2] == ["--measure"]:
        measure(sys.argv[2])
    else:
        sys.exit(main(sys.argv[1:]))
