"""What lies in a folder of runs: as one table, and as a list with sizes, ages and what nothing needs."""

import json
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
from filelock import FileLock, Timeout

from amrs.config.graph import PARENTS
from amrs.runs import REPEATED, read_config, read_json


def table(folder: Path | str = "runs") -> pd.DataFrame:
    """One row per run under `folder`, finished or not, offline W&B runs included.

    Columns: `run` (its folder), `stage`, `role`, `state` (finished, partial, or W&B's own word),
    `finished_at` (UTC), `seconds`; settings by their keys (`dpo.beta`); parents' fingerprints (`parent/bc`);
    and metrics by the names under which they were logged, which hold a slash (`val/loss`): the last value of
    each. A cell is NaN where a run has no such value. Of a finished run its own files are read; of any other
    the offline W&B files, if it has some.

    Raises:
        FileNotFoundError: there is no such folder.
    """
    root = Path(folder)
    if not root.is_dir():
        raise FileNotFoundError(f"{root} is no folder; give the one that holds the runs")
    finished = sorted(path.parent for path in root.glob("**/provenance.json"))
    rows = [_finished(run) for run in finished]
    inside = {run.resolve() for run in finished}
    others = {path.resolve(): path for path in root.glob("**/*.partial") if path.is_dir()}
    inside.add((root / REPEATED).resolve())
    logs = [p for p in sorted(root.glob("**/offline-run-*")) if not inside & set(p.resolve().parents)]
    for log in logs:
        mine = [others.pop(parent) for parent in log.resolve().parents if parent in others]
        rows.append(_offline(log, mine[0] if mine else log))
    rows += [{"run": str(path), "stage": path.parent.name, "state": "partial"} for path in others.values()]
    return pd.DataFrame(rows, columns=_columns(rows))


def _columns(rows: list[dict[str, Any]]) -> list[str]:
    """What a run is first, then settings, parents and metrics."""
    first = ["run", "stage", "role", "state", "finished_at", "seconds"]
    names = list(dict.fromkeys(name for row in rows for name in row if name not in first))
    settings = [name for name in names if "/" not in name]
    parents = [name for name in names if name.startswith("parent/")]
    return [*first, *settings, *parents, *(n for n in names if n not in {*settings, *parents})]


def _finished(folder: Path) -> dict[str, Any]:
    provenance = read_json(folder / "provenance.json")
    found = {key: provenance[key] for key in ("stage", "role", "seconds")}
    ended = (folder / "provenance.json").stat().st_mtime
    parents = {f"parent/{role}": parent for role, parent in provenance["fingerprints"].items()}
    return {
        "run": str(folder), "state": "finished",
        "finished_at": pd.Timestamp(round(ended), unit="s", tz="UTC"), **found,
        **flat_settings(read_config(folder)), **parents, **_last_values(folder / "metrics.csv"),
    }  # fmt: skip


def _last_values(file: Path) -> dict[str, float]:
    """The last value of each metric, as W&B's summary has it."""
    if not file.exists():
        return {}
    last = pd.read_csv(file).ffill().iloc[-1].dropna()
    return {str(name): float(value) for name, value in last.items() if "/" in str(name)}


def flat_settings(config: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Settings by their dotted keys; the stage is a column of its own."""
    found: dict[str, Any] = {}
    for key, value in config.items():
        if isinstance(value, Mapping):
            found |= flat_settings(value, f"{prefix}{key}.")
        elif prefix + key != "stage":
            found[prefix + key] = value
    return found


def _offline(log: Path, run: Path) -> dict[str, Any]:
    """An offline W&B run, read by W&B's own reader."""
    wandb = Path(sys.executable).with_name("wandb")
    command = [str(wandb), "leet", "inspect", "--summary", "--json", str(log)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    try:
        content = json.loads(done.stdout)
    except json.JSONDecodeError:
        return {"run": str(run), "state": "unreadable"}
    config = content.get("config", {})
    metrics = {k: v for k, v in content.get("summary", {}).items() if "/" in k and isinstance(v, int | float)}
    state = "partial" if run.suffix == ".partial" else content.get("state")
    return {"run": str(run), "stage": config.get("stage"), "state": state, **flat_settings(config), **metrics}


@dataclass(frozen=True)
class Listed:
    """A run folder in the list."""

    folder: Path
    bytes: int
    days: float
    """Since it was last changed."""
    why: str
    """Why nothing finished depends on it, or nothing where something does."""


def listed(folder: Path) -> list[Listed]:
    """Every run folder under `folder`, and whether anything finished depends on it.

    A finished run with a report, or of a stage that is no other's parent, is a result: it stays, and so do
    the runs that it stands on. Unfinished runs stay while a process makes them.
    """
    finished = {path.parent: read_json(path) for path in sorted(folder.glob("*/*/provenance.json"))}
    by_fingerprint = {run["fingerprint"]: run for run in finished.values()}
    ends = {stage for stage in PARENTS if not any(stage in parents for parents in PARENTS.values())}
    needed: set[str] = set()
    results = [
        run for path, run in finished.items() if run["stage"] in ends or (path / "report.json").exists()
    ]
    todo = [run["fingerprint"] for run in results]
    while todo:
        name = todo.pop()
        if name not in needed:
            needed.add(name)
            todo += by_fingerprint.get(name, {"fingerprints": {}})["fingerprints"].values()
    found = [
        _listed(run, "" if entry["fingerprint"] in needed else "no finished result stands on it")
        for run, entry in finished.items()
    ]
    partial = [path for path in sorted(folder.glob("*/*.partial")) if path.is_dir()]
    return found + [
        _listed(path, "" if _under_way(path) else "unfinished, nothing makes it") for path in partial
    ]


def _listed(folder: Path, why: str) -> Listed:
    files = [path.stat() for path in folder.rglob("*") if path.is_file()]
    newest = max((file.st_mtime for file in files), default=folder.stat().st_mtime)
    return Listed(folder, sum(file.st_size for file in files), (time.time() - newest) / 86400, why)


def _under_way(partial: Path) -> bool:
    lock = FileLock(partial.with_suffix(".lock"))
    try:
        with lock.acquire(timeout=0):
            return False
    except Timeout:
        return True


def lines(runs: list[Listed]) -> Iterator[str]:
    """The list as text."""
    for run in runs:
        age = f"{run.days:.0f} days" if run.days >= 2 else f"{24 * run.days:.1f} h"
        yield f"{run.bytes / 1e6:10.1f} MB  {age:>8}  {run.folder}  {run.why}".rstrip()
    yield f"{sum(run.bytes for run in runs) / 1e6:10.1f} MB in {len(runs)} runs"


def main(argv: list[str]) -> int:
    """List, then remove what nothing finished depends on, after asking."""
    if len(argv) > 1 or any(word.startswith("-") for word in argv):
        print("python -m amrs.runs [FOLDER]: lists the runs in FOLDER (runs) and removes those that nothing\n"
              "finished depends on, after asking")  # fmt: skip
        return 0 if {"-h", "--help"} & set(argv) else 2
    folder = Path(argv[0] if argv else "runs")
    if not folder.is_dir():
        print(f"amrs.runs: {folder} is no folder; give the one that holds the runs", file=sys.stderr)
        return 2
    runs = listed(folder)
    print("\n".join(lines(runs)))
    unused = [run for run in runs if run.why]
    if not unused or not sys.stdin.isatty():
        return 0
    size = sum(run.bytes for run in unused) / 1e6
    if (
        input(f"Remove the {len(unused)} that nothing finished depends on ({size:.1f} MB)? [y/N] ").strip()
        == "y"
    ):
        for run in unused:
            shutil.rmtree(run.folder)
        print(f"removed {len(unused)}")
    return 0
