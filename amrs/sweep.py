"""A W&B sweep file without a server: python -m amrs.sweep sweeps/x.yaml --count N --parallel P

W&B's own search engine proposes (`amrs.sweep_engine`, in an environment of its own); every proposal is the
command that the file names. What is known of the sweep lies in <runs>/sweeps/<file>-<hash>/sweep.json, so
starting again after an interruption goes on.
"""

import argparse
import csv
import functools
import hashlib
import json
import math
import os
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import yaml
from filelock import FileLock, Timeout

from amrs.config import ConfigError, load
from amrs.runs import RunError, plan, write_json

ENGINE = Path(sys.prefix).with_name(".venv-sweeps") / "bin" / "python"
"""The engine's Python, beside the environment that this runs in; `make setup` makes both."""
_POLL = 1.0
"""Seconds between looks at running commands."""


class SweepError(RuntimeError):
    """A sweep that cannot run, with what to do about it."""


class Sweep:
    """A sweep file, its runs so far, and the commands under way.

    A run is a dict: `name`, `arguments` (what was proposed), `state` (running, finished, failed, stopped),
    `history` (values of the metric, in order), and `folder` and the status `exit` once it has them.
    """

    def __init__(self, file: Path, extra: list[str]) -> None:
        self.file, self.extra = file, extra
        self.sweep = read_sweep(file)
        self.metric: str = self.sweep["metric"]["name"]
        # Text and arguments make the sweep: with another file or other arguments it is another one.
        key = json.dumps([self.sweep, extra], sort_keys=True)
        first = load(self.settings({}))
        name = f"{file.stem}-{hashlib.sha256(key.encode()).hexdigest()[:8]}"
        self.folder = Path(first.runs) / "sweeps" / name
        self.runs: list[dict[str, Any]] = []
        if (self.folder / "sweep.json").exists():
            self.runs = json.loads((self.folder / "sweep.json").read_text())["runs"]
        self.under_way: dict[str, subprocess.Popen[bytes]] = {}
        self.partial: dict[str, Path] = {}
        """Where each run's folder is while it is under way."""

    def command(self, arguments: dict[str, Any]) -> list[str]:
        """The file's command with these arguments, its macros filled in as `wandb agent` does it."""
        given = [f"{key}={value}" for key, value in arguments.items()]
        macros = {"${env}": ["/usr/bin/env"], "${interpreter}": [sys.executable],
                  "${program}": [self.sweep["program"]], "${args_no_hyphens}": given}  # fmt: skip
        words = [word for part in self.sweep["command"] for word in macros.get(str(part), [str(part)])]
        return [*words, *self.extra]

    def settings(self, arguments: dict[str, Any]) -> list[str]:
        """What the command gives to the program."""
        words = self.command(arguments)
        return words[words.index(self.sweep["program"]) + 1 :]

    def save(self) -> None:
        """The state as it is now, whole or not at all."""
        write_json(self.folder / "sweep.json", {"file": str(self.file), "extra": self.extra,
                                                "sweep": self.sweep, "runs": self.runs})  # fmt: skip

    def start(self, run: dict[str, Any], threads: int) -> None:
        """Start a run's command; what it prints goes to <folder>/<name>.log."""
        print(f"{run['name']}: {' '.join(f'{k}={v}' for k, v in run['arguments'].items())}", flush=True)
        try:
            self.partial[run["name"]] = plan(load(self.settings(run["arguments"])))[-1].partial
        except (ConfigError, RunError):  # the command is refused, too, and says why in its log
            self.partial[run["name"]] = self.folder / run["name"]
        environment = {"OMP_NUM_THREADS": str(threads), **os.environ}
        with (self.folder / f"{run['name']}.log").open("wb") as log, \
                (self.folder / f"{run['name']}.out").open("wb") as out:  # fmt: skip
            # A session of its own, so that stopping it stops the processes that it starts, too.
            self.under_way[run["name"]] = subprocess.Popen(
                self.command(run["arguments"]), stdout=out, stderr=log, env=environment,
                start_new_session=True,
            )  # fmt: skip

    def look(self, run: dict[str, Any]) -> bool:
        """Take in what a running command has logged, and its end; True where something is new."""
        status = self.under_way[run["name"]].poll()
        before = len(run["history"])
        if status is None:
            run["history"] = history(self.partial[run["name"]], self.metric)
            return len(run["history"]) > before
        del self.under_way[run["name"]]
        run["state"], run["exit"] = "finished" if status == 0 else "failed", status
        if status == 0:
            lines = (self.folder / f"{run['name']}.out").read_text().splitlines()
            run["folder"] = lines[-1] if lines else ""
            run["history"] = history(Path(run["folder"]), self.metric)
        self.save()
        print(f"{run['name']}: {self.say(run)}", flush=True)
        return True

    def say(self, run: dict[str, Any]) -> str:
        """How a run ended."""
        if run["state"] == "failed":
            lines = (self.folder / f"{run['name']}.log").read_text().strip().splitlines()
            killed = f"killed by signal {-run['exit']}, after " if run.get("exit", 0) < 0 else ""
            return f"failed: {killed}{lines[-1] if lines else 'it printed nothing'}"
        best = self.best(run)
        return f"{run['state']}, {self.metric} {'was not logged' if best is None else f'= {best:.6g}'}"

    def best(self, run: dict[str, Any]) -> float | None:
        """The best value of the metric that a run logged."""
        values: list[float] = [point[self.metric] for point in run["history"]]
        return (max if self.sweep["metric"]["goal"] == "maximize" else min)(values) if values else None

    def stop_early(self) -> None:
        """End the runs that early termination gives up."""
        for name in ask("stop", self.sweep, self.runs):
            if name in self.under_way:
                end(self.under_way.pop(name))
                run = next(run for run in self.runs if run["name"] == name)
                run["state"] = "stopped"
                print(f"{name}: {self.say(run)} (early termination)", flush=True)
        self.save()

    def go(self, count: int | None, parallel: int) -> None:
        """Run until there are `count` runs in all, or the grid is used up."""
        threads = max(1, (os.cpu_count() or 1) // parallel)
        waiting = [run for run in self.runs if run["state"] == "running"]  # when it was interrupted
        exhausted = False
        while True:
            while len(self.under_way) < parallel and (waiting or not exhausted):
                if waiting:
                    self.start(waiting.pop(0), threads)
                elif count is not None and len(self.runs) >= count:
                    exhausted = True
                elif (arguments := ask("next", self.sweep, self.runs)) is None:
                    exhausted = True
                else:
                    run = {"name": f"run-{len(self.runs) + 1:03d}", "arguments": arguments,
                           "state": "running", "history": []}  # fmt: skip
                    self.runs.append(run)
                    self.save()
                    self.start(run, threads)
            if not self.under_way:
                return
            time.sleep(_POLL)
            looked = [self.look(run) for run in self.runs if run["name"] in self.under_way]
            if any(looked) and self.under_way and "early_terminate" in self.sweep:
                self.stop_early()


def read_sweep(file: Path) -> dict[str, Any]:
    """A sweep file, with what the search engine and this runner need."""
    if not file.is_file():
        raise SweepError(f"{file}: no such file; the sweeps of this repository are in sweeps/")
    sweep: dict[str, Any] = yaml.safe_load(file.read_text())
    for key in ("method", "metric", "parameters", "program", "command"):
        if not isinstance(sweep, dict) or key not in sweep:
            raise SweepError(f"{file}: no `{key}`; see sweeps/dpo.yaml for one that runs")
    if "${program}" not in sweep["command"] or "${args_no_hyphens}" not in sweep["command"]:
        raise SweepError(f"{file}: `command` must hold ${{program}} and ${{args_no_hyphens}}")
    sweep["metric"].setdefault("goal", "minimize")
    if faults := ask("check", sweep, []):
        raise SweepError(f"{file}: {'; '.join(faults)}")
    return sweep


def ask(what: str, sweep: dict[str, Any], runs: list[dict[str, Any]]) -> Any:
    """One question to the search engine."""
    engine = _engine()
    assert engine.stdin is not None and engine.stdout is not None
    print(json.dumps({"ask": what, "sweep": sweep, "runs": runs}), file=engine.stdin, flush=True)
    said = json.loads(engine.stdout.readline() or '{"error": "it ended"}')
    if "error" in said:
        raise SweepError(f"W&B's search engine refused: {said['error']}")
    return said["answer"]


@functools.cache
def _engine() -> subprocess.Popen[str]:
    """The search engine's process, which ends with this one."""
    if not ENGINE.exists():
        raise SweepError(f"{ENGINE} is missing: make setup makes it (from requirements/sweeps.txt)")
    # Isolated (-I): beside the script lie modules with names of the standard library's. A session of its
    # own: Ctrl-C is for us.
    command = [str(ENGINE), "-I", str(Path(__file__).with_name("sweep_engine.py"))]
    return subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, start_new_session=True
    )


def history(folder: Path, metric: str) -> list[dict[str, float]]:
    """The finite values of `metric` in a run's metrics.csv, in the order in which they were logged."""
    found = []
    for name in ("metrics.before.csv", "metrics.csv"):  # the former while a resumed run is under way
        with suppress(FileNotFoundError), (folder / name).open(newline="") as file:
            values = [_number(line.get(metric)) for line in csv.DictReader(file)]
            found += [{metric: value} for value in values if math.isfinite(value)]
    return found


def _number(text: str | None) -> float:
    """NaN where there is none: of a file that is being written, the last line may be half a line."""
    try:
        return float(text or "nan")
    except ValueError:
        return math.nan


def end(process: subprocess.Popen[bytes]) -> None:
    """End a command and all that it started."""
    for number in (signal.SIGTERM, signal.SIGKILL):
        try:
            os.killpg(process.pid, number)
            process.wait(timeout=10)
            return
        except subprocess.TimeoutExpired:
            continue
        except ProcessLookupError:
            process.wait()
            return


def summary(sweep: Sweep) -> str:
    """The runs, best first."""
    goal = -1 if sweep.sweep["metric"]["goal"] == "maximize" else 1
    ended = [run for run in sweep.runs if run["state"] != "running"]
    ended.sort(key=lambda run: math.inf if (best := sweep.best(run)) is None else goal * best)
    lines = [
        f"  {run['name']}  {sweep.say(run)}  {' '.join(f'{k}={v}' for k, v in run['arguments'].items())}"
        for run in ended
    ]
    return "\n".join([f"{len(ended)} runs, best first; {sweep.folder}", *lines])


def main(argv: list[str]) -> int:
    """Run a sweep; 1 where every run failed, 2 where it cannot begin."""
    parser = argparse.ArgumentParser("python -m amrs.sweep", description="A W&B sweep file, with no server.")
    parser.add_argument("file", type=Path, help="a file of sweeps/")
    parser.add_argument("--count", type=int, help="runs in all; a grid needs none")
    parser.add_argument("--parallel", type=int, default=1, help="runs at once (1)")
    parser.add_argument("settings", nargs="*", help="key=value for every run, such as runs=DIR")
    given = parser.parse_intermixed_args(argv)
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        if (given.count or 1) < 1 or given.parallel < 1:
            raise SweepError("--count and --parallel must be 1 or more")
        sweep = Sweep(given.file, given.settings)
        if given.count is None and sweep.sweep["method"] != "grid":
            raise SweepError(f"method {sweep.sweep['method']} never ends by itself: give --count N")
        sweep.folder.mkdir(parents=True, exist_ok=True)
        with FileLock(sweep.folder / "lock", timeout=0):
            return _run(sweep, given.count, given.parallel)
    except (SweepError, ConfigError, RunError) as error:
        print(f"amrs.sweep: {error}", file=sys.stderr)
    except Timeout:
        print(f"amrs.sweep: another process runs this sweep; see {sweep.folder}", file=sys.stderr)
    return 2


def _run(sweep: Sweep, count: int | None, parallel: int) -> int:
    try:
        sweep.go(count, parallel)
    except KeyboardInterrupt:
        print("interrupted; the same command goes on", file=sys.stderr)
        return 130
    finally:
        for process in sweep.under_way.values():
            end(process)
        sweep.save()
    print(summary(sweep))
    return 1 if sweep.runs and all(run["state"] == "failed" for run in sweep.runs) else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
