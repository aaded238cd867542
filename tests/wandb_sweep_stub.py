"""Loopback stand-in for the W&B sweep API: what `wandb sweep` and `wandb agent` ask of a server.

    python wandb_sweep_stub.py PORT RUNS

It hands out RUNS runs, proposed by W&B's own search engine (PyPI `sweeps`) with the seed that
`amrs.sweep_engine` takes, and then tells the agent to exit. Every call is told on stderr.
"""

import json
import random
import re
import sys
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import numpy as np
import yaml

import sweeps

Answer = dict[str, Any]
NAME, AGENT = "stubswp1", "agent1"
LIMIT = int(sys.argv[2])
SWEEP: dict[str, Any] = {}
RUNS: list[sweeps.SweepRun] = []


def upsert_sweep(given: Answer) -> Answer:
    """Take the sweep's file."""
    SWEEP.update(yaml.safe_load(given["config"]))
    project = {"id": "p", "name": given.get("projectName") or "amrs", "entity": {"id": "e", "name": "local"}}
    faults = sweeps.schema_violations_from_proposed_config(SWEEP)
    return {"upsertSweep": {"sweep": {"name": NAME, "project": project}, "configValidationWarnings": faults}}


def create_agent(given: Answer) -> Answer:
    """Every agent is the same."""
    return {"createAgent": {"agent": {"id": AGENT}}}


def heartbeat(given: Answer) -> Answer:
    """What an agent shall do: nothing while it runs something, else the next run, or exit."""
    busy = bool(json.loads(given["runState"] or "{}"))
    commands = [] if busy else [next_command()]
    return {"agentHeartbeat": {"agent": {"id": AGENT}, "commands": json.dumps(commands)}}


def next_command() -> Answer:
    """The engine's next proposal as a command."""
    random.seed(len(RUNS))
    np.random.seed(len(RUNS))
    run = sweeps.next_run(sweeps.SweepConfig(SWEEP), RUNS) if len(RUNS) < LIMIT else None
    if run is None:
        return {"type": "exit"}
    RUNS.append(run)
    run.name, run.state = f"stubrun{len(RUNS)}", "finished"
    run.summary_metrics = {SWEEP["metric"]["name"]: 0.5}
    given = json.loads(json.dumps(run.config, default=float))
    return {"type": "run", "run_id": run.name, "args": given, "program": SWEEP["program"]}


def sweep(given: Answer) -> Answer:
    """The sweep as an agent reads it back."""
    absent = ("description", "createdAt", "heartbeatAt", "updatedAt", "bestLoss", "controller", "scheduler")
    found = {**dict.fromkeys(absent), "id": "s", "name": NAME, "method": SWEEP["method"],
             "config": yaml.safe_dump(SWEEP), "earlyStopJobRunning": False, "runs": {"edges": []},
             "state": "RUNNING"}  # fmt: skip
    return {"project": {"sweep": found}}


def server_info(given: Answer) -> Answer:
    """Any version will do."""
    newest = {"outOfDate": False, "latestVersionString": "99", "versionOnThisInstanceString": "99"}
    versions = {"min_cli_version": "0.0.1", "max_cli_version": "99.0.0"}
    return {"serverInfo": {"cliVersionInfo": versions, "latestLocalVersionInfo": newest, "features": []}}


def viewer(given: Answer) -> Answer:
    """Somebody who is logged in."""
    names = dict.fromkeys(("entity", "username", "name"), "local")
    teams = {"edges": [{"node": {"name": "local"}}]}
    who = {"id": "u", "flags": "{}", "email": "x@localhost", "admin": False, "apiKeys": {"edges": []}}
    return {"viewer": {**who, **names, "teams": teams}}


def types(given: Answer) -> Answer:
    """No type has a field that an older client would not know."""
    return {name: {"fields": []} for name in ("__type", "QueryType", "MutationType", "ServerInfoType")}


ANSWERS: list[tuple[str, Callable[[Answer], Answer]]] = [
    ("upsertSweep", upsert_sweep), ("createAgent", create_agent), ("agentHeartbeat", heartbeat),
    (r"sweep\(", sweep), ("[sS]erverInfo", server_info), ("viewer", viewer), ("__type", types),
]  # fmt: skip
"""What a query must hold, and who answers it; the first that fits."""


def answer(query: str, given: Answer) -> Answer:
    """Answer a GraphQL query with its variables."""
    print(re.findall(r"\w+", query)[:2], sorted(given), file=sys.stderr, flush=True)
    return next((found(given) for pattern, found in ANSWERS if re.search(pattern, query)), {})


class Handler(BaseHTTPRequestHandler):
    """GraphQL by POST; whatever is asked by GET is empty."""

    def log_message(self, *words: Any) -> None:
        """Say nothing of addresses."""

    def do_GET(self) -> None:
        self.reply({})

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        try:
            asked = json.loads(body)
            self.reply({"data": answer(asked["query"], asked.get("variables") or {})})
        except Exception as error:
            print(self.path, repr(error), body[:200], file=sys.stderr, flush=True)
            self.reply({"errors": [{"message": repr(error)}]})

    def reply(self, content: Answer) -> None:
        data = json.dumps(content).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)


if __name__ == "__main__":
    ThreadingHTTPServer(("127.0.0.1", int(sys.argv[1])), Handler).serve_forever()
