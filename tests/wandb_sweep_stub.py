"""Loopback stand-in for the W&B sweep API: viewer, upsertSweep, sweep, createAgent, agentHeartbeat."""

import json
import re
import sys
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import yaml

try:
    import sweeps
except ImportError:
    sweeps = None
S = {"cfg": None, "runs": [], "n": 0, "done": set()}
CAP = int(sys.argv[2]) if len(sys.argv) > 2 else 3


def answer(q, v):
    name = re.search(r"(?:query|mutation)\s+(\w+)", q)
    op = name.group(1) if name else q[:60]
    print("OP", op, {k: (str(x)[:90]) for k, x in (v or {}).items()}, file=sys.stderr, flush=True)
    if "upsertSweep" in q:
        S["cfg"] = yaml.safe_load(v["config"])
        w = sweeps.schema_violations_from_proposed_config(S["cfg"]) if sweeps else []
        return {
            "upsertSweep": {
                "sweep": {
                    "name": "stubswp1",
                    "project": {
                        "id": "p",
                        "name": v.get("projectName") or "amrs",
                        "entity": {"id": "e", "name": "local"},
                    },
                },
                "configValidationWarnings": w,
            }
        }
    if "createAgent" in q:
        return {"createAgent": {"agent": {"id": "agent1"}}}
    if "agentHeartbeat" in q:
        st = json.loads(v["runState"] or "{}")
        live = list(st)
        cmds = []
        if not live:
            if S["n"] >= CAP:
                cmds = [{"type": "exit"}]
            else:
                r = sweeps.next_run(sweeps.SweepConfig(S["cfg"]), S["runs"])
                if r is None:
                    cmds = [{"type": "exit"}]
                else:
                    S["n"] += 1
                    r.name = f"stubrun{S['n']}"
                    S["runs"].append(r)
                    r.state = "finished"
                    r.summary_metrics = {S["cfg"]["metric"]["name"]: 0.5}
                    args = json.loads(json.dumps(r.config, default=float))
                    cmds = [{"type": "run", "run_id": r.name, "args": args, "program": S["cfg"]["program"]}]
        return {"agentHeartbeat": {"agent": {"id": "agent1"}, "commands": json.dumps(cmds)}}
    if "SweepWithRuns" in q or "sweep(" in q:
        return {
            "project": {
                "sweep": {
                    "id": "s",
                    "name": "stubswp1",
                    "method": S["cfg"]["method"] if S["cfg"] else "random",
                    "state": "RUNNING",
                    "description": None,
                    "config": yaml.safe_dump(S["cfg"]),
                    "createdAt": None,
                    "heartbeatAt": None,
                    "updatedAt": None,
                    "earlyStopJobRunning": False,
                    "bestLoss": None,
                    "controller": None,
                    "scheduler": None,
                    "runs": {"edges": []},
                }
            }
        }
    if "serverInfo" in q.lower() or "ServerInfo" in op:
        return {
            "serverInfo": {
                "cliVersionInfo": {"min_cli_version": "0.0.1", "max_cli_version": "99.0.0"},
                "latestLocalVersionInfo": {
                    "outOfDate": False,
                    "latestVersionString": "99",
                    "versionOnThisInstanceString": "99",
                },
                "features": [],
            }
        }
    if "viewer" in q:
        return {
            "viewer": {
                "id": "u",
                "flags": "{}",
                "entity": "local",
                "username": "local",
                "email": "x@localhost",
                "name": "local",
                "admin": False,
                "apiKeys": {"edges": []},
                "teams": {"edges": [{"node": {"name": "local"}}]},
            }
        }
    if "__type" in q:
        return {
            "__type": {"fields": []},
            "QueryType": {"fields": []},
            "MutationType": {"fields": []},
            "ServerInfoType": {"fields": []},
        }
    return {}


class H(BaseHTTPRequestHandler):
    def log_message(self, *a):
        pass

    def do_GET(self):
        self._out({})

    def _out(self, d):
        b = json.dumps(d).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(b)))
        self.end_headers()
        self.wfile.write(b)

    def do_POST(self):
        d = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        try:
            j = json.loads(d)
            self._out({"data": answer(j["query"], j.get("variables") or {})})
        except Exception as e:
            print("ERR", self.path, repr(e), d[:200], file=sys.stderr, flush=True)
            self._out({"errors": [{"message": repr(e)}]})


ThreadingHTTPServer(("127.0.0.1", int(sys.argv[1])), H).serve_forever()
