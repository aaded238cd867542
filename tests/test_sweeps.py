"""Sweep files: their keys, the real `wandb sweep` and `wandb agent`, and the same files without a server."""

import itertools
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_args

import pytest
import yaml
from conftest import ROOT, TINY
from test_stages import Done

from amrs import sweep as sweeps
from amrs.config import load
from amrs.config.stages import Loss
from amrs.run_table import table
from amrs.runs import plan

FILES = sorted((ROOT / "sweeps").glob("*.yaml"))
BIN = Path(sys.executable).parent
pytestmark = pytest.mark.skipif(not sweeps.ENGINE.exists(), reason=f"no {sweeps.ENGINE}: make setup makes it")


def ends(parameter: dict[str, Any]) -> list[Any]:
    """Every listed value of a parameter, or both ends of its range."""
    values: list[Any] = parameter.get("values") or [parameter.get("value", parameter.get("min"))]
    return [*values, parameter["max"]] if "max" in parameter else values


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sweeps, "_POLL", 0.05)


# The files


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_every_value_of_every_parameter_is_a_setting_that_loads(file: Path) -> None:
    sweep = sweeps.read_sweep(file)
    fixed = [str(word) for word in sweep["command"] if "=" in str(word)]
    for key, parameter in sweep["parameters"].items():
        for value in ends(parameter):
            load([*fixed, f"{key}={value}"])


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_only_the_cold_start_sweep_looks_at_test_users(file: Path) -> None:
    command = yaml.safe_load(file.read_text())["command"]
    assert ("stage=evaluate" in command) == (
        "evaluate.users=validation" in command
    ) or file.stem == "cold_start"


def test_the_sweep_over_dpo_tries_every_loss() -> None:
    parameters = yaml.safe_load((ROOT / "sweeps/dpo.yaml").read_text())["parameters"]
    assert set(parameters["dpo.loss"]["values"]) == set(get_args(Loss))


def test_the_weights_of_the_grid_are_all_points_of_the_simplex() -> None:
    points = yaml.safe_load((ROOT / "sweeps/utility_grid.yaml").read_text())["parameters"]["utility.weights"][
        "values"
    ]
    thirds = [tuple(round(3 * w) for w in point.values()) for point in points]
    assert sorted(thirds) == sorted(p for p in itertools.product(range(4), repeat=4) if sum(p) == 3)
    assert all(abs(sum(point.values()) - 1) < 1e-3 for point in points)


def test_a_sweep_over_weights_has_one_labeller_one_judge_and_one_copycat() -> None:
    plans = [plan(load(["stage=evaluate", f"utility.weights.valence={w}"])) for w in (0.1, 0.9)]
    roles: list[dict[str, str]] = [{run.role: run.fingerprint for run in runs} for runs in plans]
    same = {role for role in roles[0] if roles[0][role] == roles[1][role]}
    assert same == {"prepare", "world_model", "labeller", "judge", "bc"}


# With a server

SMALL = [a for a in TINY if not a.startswith(("evaluate", "log"))]
MORE = {
    "world_model": [a for a in SMALL if a.startswith(("data", "model", "trainer"))],
    "cold_start": [*SMALL, "evaluate.chapters=[fidelity]", "evaluate.bootstrap=100"],
}
"""What makes a run of a file tiny; the labeller, judge and Copycat of the others are those of `evaluated`."""
_POLICIES = [*SMALL, "evaluate.sessions=10", "evaluate.bootstrap=100"]


def tiny_file(file: Path, folder: Path, runs: Path) -> Path:
    """A copy of a sweep file whose runs take seconds."""
    sweep = yaml.safe_load(file.read_text())
    more = [*MORE.get(file.stem, _POLICIES), "log=offline", f"runs={runs}"]
    sweep["command"] = [*sweep["command"], *more]
    sweep["program"] = str(ROOT / "train.py")
    copy = folder / file.name
    copy.write_text(yaml.safe_dump(sweep))
    return copy


def serve() -> tuple[subprocess.Popen[bytes], int]:
    """The stand-in for the API, listening, and its port."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    stub = [sweeps.ENGINE, ROOT / "tests" / "wandb_sweep_stub.py", str(port), "1"]
    server = subprocess.Popen(stub, stderr=subprocess.DEVNULL)
    for _ in range(300):
        with socket.socket() as trial:
            if trial.connect_ex(("127.0.0.1", port)) == 0:
                break
        time.sleep(0.1)
    return server, port


@pytest.fixture(scope="module")
def tiny_files(tmp_path_factory: pytest.TempPathFactory, evaluated: Done) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("agents")
    return {file.stem: tiny_file(file, folder, evaluated[0]) for file in FILES}


@pytest.fixture(scope="module")
def agents(tiny_files: dict[str, Path]) -> Iterator[dict[str, str]]:
    """What `wandb sweep` and `wandb agent` printed, by sweep file; a server for each, all at once."""
    servers, running = [], {}
    for stem, file in tiny_files.items():
        server, port = serve()
        servers.append(server)
        environment = {
            **os.environ, "WANDB_BASE_URL": f"http://127.0.0.1:{port}", "WANDB_API_KEY": "0" * 40,
            "PATH": f"{BIN}:{os.environ['PATH']}", "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1",
        }  # fmt: skip
        script = f"wandb sweep {file.name} 2>&1 && wandb agent --count 1 local/amrs/stubswp1 2>&1"
        running[stem] = subprocess.Popen(
            ["bash", "-c", script], cwd=file.parent, env=environment, stdout=subprocess.PIPE, text=True
        )
    yield {stem: process.communicate(timeout=400)[0] for stem, process in running.items()}
    for server in servers:
        server.terminate()


def run_folder(file: Path, printed: str) -> Path:
    """The run that an agent made."""
    stage = "world_model" if file.stem == "world_model" else "evaluate"
    found = re.findall(rf"^/\S*/{stage}/\w+$", printed, re.MULTILINE)
    assert found, printed
    return Path(found[-1])


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_wandb_agent_makes_a_run_that_logs_the_objective(file: Path, agents: dict[str, str]) -> None:
    printed = agents[file.stem]
    assert "Running runs: ['stubrun1']" in printed and "Traceback" not in printed, printed
    folder = run_folder(file, printed)
    metric = yaml.safe_load(file.read_text())["metric"]["name"]
    assert sweeps.history(folder, metric), printed
    assert list((folder / "wandb").glob("offline-run-*"))


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_the_same_file_without_a_server_asks_for_the_same_run(
    file: Path, agents: dict[str, str], tiny_files: dict[str, Path], evaluated: Done
) -> None:
    """W&B's engine proposes in both, so the first run is the agent's; of weights, a second one is made."""
    folder, count = run_folder(file, agents[file.stem]), 2 if file.stem == "utility_weights" else 1
    assert sweeps.main([str(tiny_files[file.stem]), "--count", str(count)]) == 0
    (left,) = (evaluated[0] / "sweeps").glob(f"{file.stem}-*/sweep.json")
    runs = json.loads(left.read_text())["runs"]
    assert [run["state"] for run in runs] == ["finished"] * count
    assert Path(runs[0]["folder"]) == folder and all(run["history"] for run in runs)
    assert len({run["folder"] for run in runs}) == count


def test_sweeps_over_policies_trained_no_second_labeller_judge_or_copycat(
    agents: dict[str, str], evaluated: Done
) -> None:
    first = json.loads((Path(evaluated[1].stdout.splitlines()[-1]) / "provenance.json").read_text())
    for stem in ("utility_weights", "utility_grid", "dpo"):
        made = json.loads((run_folder(Path(stem), agents[stem]) / "provenance.json").read_text())
        for role in ("labeller", "judge", "bc"):
            assert made["fingerprints"][role] == first["fingerprints"][role]
        assert made["fingerprints"]["dpo"] != first["fingerprints"]["dpo"]


def test_an_agent_whose_run_exists_already_gets_its_figures(evaluated: Done) -> None:
    from amrs.training import log_again

    small = [a for a in TINY if not a.startswith(("evaluate", "log"))]
    done = plan(load(["stage=dpo", *small, "log=offline", f"runs={evaluated[0]}"]))[-1]
    assert done.finished
    before, rows = sorted(done.folder.rglob("*")), len(table(evaluated[0]))
    log_again(done)
    assert sorted(done.folder.rglob("*")) == before
    assert list((evaluated[0] / "repeated" / "wandb").glob("offline-run-*"))
    assert len(table(evaluated[0])) == rows  # it is no run of its own


# Without a server


def write_file(folder: Path, **changes: Any) -> Path:
    """A sweep over dpo.beta whose program is the stand-in."""
    sweep = {
        "program": str(ROOT / "tests" / "sweep_program.py"), "method": "grid",
        "metric": {"name": "val/loss", "goal": "minimize"},
        "parameters": {"dpo.beta": {"values": [3.0, 1.0, 2.0]}},
        "command": ["${env}", "${interpreter}", "${program}", "stage=dpo", "dpo.max_steps=3",
                    f"runs={folder / 'runs'}", "${args_no_hyphens}"], **changes,
    }  # fmt: skip
    file = folder / "beta.yaml"
    file.write_text(yaml.safe_dump(sweep))
    (folder / "runs").mkdir(exist_ok=True)
    return file


def state(folder: Path) -> list[dict[str, Any]]:
    """The runs that the sweep's state knows."""
    (file,) = (folder / "runs" / "sweeps").glob("*/sweep.json")
    runs: list[dict[str, Any]] = json.loads(file.read_text())["runs"]
    return runs


def text(folder: Path) -> str:
    """The sweep's state as it lies on disk."""
    return "".join(file.read_text() for file in folder.glob("runs/sweeps/*/sweep.json"))


def test_a_grid_runs_once_each_and_the_best_is_told_first(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = write_file(tmp_path)
    assert sweeps.main([str(file), "--parallel", "2"]) == 0
    runs = state(tmp_path)
    assert [run["arguments"]["dpo.beta"] for run in runs] == [3.0, 1.0, 2.0]
    assert {run["state"] for run in runs} == {"finished"}
    assert [point["val/loss"] for point in runs[1]["history"]] == pytest.approx([1, 0.9, 0.81])
    first = capsys.readouterr().out.partition("best first")[2].splitlines()[1]
    assert "run-002" in first and "0.81" in first


def test_count_is_the_total_over_restarts(tmp_path: Path) -> None:
    file = write_file(tmp_path, method="bayes", parameters={"dpo.beta": {"min": 0.1, "max": 3.0}})
    for count, expected in ((2, 2), (3, 3), (1, 3)):
        assert sweeps.main([str(file), "--count", str(count)]) == 0
        assert len(state(tmp_path)) == expected
    assert len({run["folder"] for run in state(tmp_path)}) == 3


def test_a_failed_run_is_recorded_and_the_sweep_goes_on(tmp_path: Path) -> None:
    for parameters in ({"seed": {"values": [666, 1]}}, {"dpo.beta": {"values": [-1.0, 1.0]}}):
        shutil.rmtree(tmp_path / "runs", ignore_errors=True)
        assert sweeps.main([str(write_file(tmp_path, parameters=parameters))]) == 0
        assert [run["state"] for run in state(tmp_path)] == ["failed", "finished"]


def test_a_sweep_whose_runs_all_fail_ends_non_zero(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = write_file(tmp_path, parameters={"seed": {"values": [666]}})
    assert sweeps.main([str(file)]) == 1
    assert "failed: no such luck" in capsys.readouterr().out


def test_a_run_that_was_killed_says_so(tmp_path: Path) -> None:
    sweep = sweeps.Sweep(write_file(tmp_path), [])
    sweep.folder.mkdir(parents=True)
    (sweep.folder / "run-001.log").write_text("dpo: running runs/dpo/0\n")
    run = {"name": "run-001", "state": "failed", "exit": -9}
    assert sweep.say(run) == "failed: killed by signal 9, after dpo: running runs/dpo/0"
    assert sweep.say(run | {"exit": 1}) == "failed: dpo: running runs/dpo/0"


def test_early_termination_ends_the_worse_run(tmp_path: Path) -> None:
    early = {"type": "hyperband", "min_iter": 2, "eta": 2}
    file = write_file(tmp_path, early_terminate=early, parameters={"dpo.beta": {"values": [0.1, 9.0, 0.2]}})
    (tmp_path / "runs" / "hold").touch()
    process = subprocess.Popen([sys.executable, "-m", "amrs.sweep", file, "--parallel", "3"], cwd=ROOT)
    deadline = time.time() + 60
    while time.time() < deadline and "stopped" not in str(
        list(tmp_path.glob("runs/sweeps/*/sweep.json")) and state(tmp_path)
    ):
        time.sleep(0.1)
    (tmp_path / "runs" / "hold").unlink()
    assert process.wait(timeout=60) == 0
    ended = {run["arguments"]["dpo.beta"]: run["state"] for run in state(tmp_path)}
    assert ended[9.0] == "stopped" and ended[0.1] == "finished"


def test_an_interrupted_sweep_ends_its_runs_and_goes_on(tmp_path: Path) -> None:
    file = write_file(tmp_path)
    (tmp_path / "runs" / "hold").touch()
    process = subprocess.Popen([sys.executable, "-m", "amrs.sweep", file, "--parallel", "2"], cwd=ROOT)
    while len(list(tmp_path.glob("runs/dpo/*.partial/metrics.csv"))) < 2:
        time.sleep(0.05)
    process.send_signal(signal.SIGTERM)
    assert process.wait(timeout=60) == 130
    assert [run["state"] for run in state(tmp_path)] == ["running", "running"]
    (tmp_path / "runs" / "hold").unlink()
    time.sleep(0.2)
    assert (
        not list(tmp_path.glob("runs/dpo/*/folder")) and len(list(tmp_path.glob("runs/dpo/*.partial"))) == 2
    )
    assert sweeps.main([str(file)]) == 0
    assert [run["state"] for run in state(tmp_path)] == ["finished"] * 3


def test_what_cannot_run_is_refused_in_words(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for changes, words in (
        ({"parameters": {"dpo.bta": {"values": [1]}}}, "Did you mean dpo.beta?"),
        ({"method": "guess"}, "guess"),
        ({"method": "random"}, "give --count N"),
        ({"command": ["${program}"]}, "${args_no_hyphens}"),
    ):
        assert sweeps.main([str(write_file(tmp_path, **changes))]) != 0
        shown = capsys.readouterr()
        assert words in shown.out + shown.err
    assert sweeps.main([str(tmp_path / "none.yaml")]) == 2
