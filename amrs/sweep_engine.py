"""W&B's own search engine (PyPI `sweeps`), asked in JSON.

It needs numpy < 2, so `amrs.sweep` runs this file in an environment of its own, `.venv-sweeps`. Nothing of
amrs or torch is imported here. A question a line on stdin, an answer a line on stdout:
  {"ask": "check", "sweep": ...}              -> faults of a sweep file, in the engine's words
  {"ask": "next", "sweep": ..., "runs": ...}  -> the next run's arguments, or null where a grid is used up
  {"ask": "stop", "sweep": ..., "runs": ...}  -> names of running runs that early termination ends
An answer is {"answer": ...}, or {"error": words}.
"""

import importlib
import json
import random
import sys
import warnings
from typing import Any

STATES = {"running": "running", "finished": "finished", "stopped": "finished", "failed": "failed"}
"""Ours to the engine's: a run that was stopped early has the values that it logged."""


def answer(question: dict[str, Any]) -> Any:
    """What the engine says."""
    import numpy as np

    sweeps = importlib.import_module("sweeps")  # a folder of that name lies beside amrs

    config = question["sweep"]
    if question["ask"] == "check":
        return sweeps.schema_violations_from_proposed_config(config)
    config = sweeps.SweepConfig(config)
    runs = [
        sweeps.SweepRun(
            name=run["name"], state=STATES[run["state"]], history=run["history"],
            config={key: {"value": value} for key, value in run["arguments"].items()},
        )
        for run in question["runs"]
    ]  # fmt: skip
    if question["ask"] == "stop":
        return [run.name for run in sweeps.stop_runs(config, runs)]
    # The draws of proposal k are the same whenever it is asked for: a sweep can be repeated.
    random.seed(len(runs))
    np.random.seed(len(runs))
    proposal = sweeps.next_run(config, runs)
    return proposal and {key: entry["value"] for key, entry in proposal.config.items()}


if __name__ == "__main__":
    warnings.filterwarnings("ignore")
    for line in sys.stdin:
        try:
            said = {"answer": answer(json.loads(line))}
        except Exception as error:
            said = {"error": f"{type(error).__name__}: {error}"}
        print(json.dumps(said, default=float), flush=True)
