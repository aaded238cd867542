"""On a real Slurm: a plan as a chain of jobs, and a job that is signalled while it trains.

Run by `pytest -m slurm` (minutes); skipped where Slurm cannot be started, which needs root.
"""

import os
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pandas as pd
import pytest
import torch
from conftest import ROOT, TINY, train
from test_processes import EXACT, validation, weights
from test_stages import folders

pytestmark = pytest.mark.slurm
UP = ROOT / "tests" / "slurm" / "up.sh"
JOBS = [
    "cluster=slurm",
    "cluster.nodes=2",
    "cluster.gpus_per_node=2",
    "cluster.cpus_per_task=1",
    "trainer.accelerator=cpu",
]


@pytest.fixture(scope="module")
def slurm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Slurm with two nodes, named by the environment."""
    folder = tmp_path_factory.mktemp("slurm")
    if os.geteuid() != 0:
        pytest.skip("Slurm's daemons need root")
    done = subprocess.run([str(UP), "up", str(folder)], capture_output=True, text=True, check=False)
    if done.returncode != 0:
        pytest.skip(f"no Slurm could be started here: {done.stderr.strip()[-300:]}")
    own = {"SLURM_CONF": str(folder / "slurm.conf"), "MASTER_ADDR": "127.0.0.1"}
    before = {name: os.environ.get(name) for name in own}
    os.environ.update(own)
    yield
    subprocess.run(["scancel", "--me"], check=False)
    subprocess.run([str(UP), "down", str(folder)], check=False)
    for name, value in before.items():
        os.environ.pop(name) if value is None else os.environ.update({name: value})


def queue(fields: str) -> list[str]:
    """A line of `fields` (squeue's format) for each job that has not ended."""
    done = subprocess.run(
        ["squeue", "--noheader", f"--format={fields}"], capture_output=True, text=True, check=True
    )
    return done.stdout.split("\n")[:-1]


def wait_until(holds: object, seconds: float) -> None:
    """Look twice a second until `holds()`, which must happen within `seconds`."""
    assert callable(holds)
    end = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < end, queue("%i %j %T %r")
        time.sleep(0.5)


def said(runs: Path, role: str) -> str:
    """What the jobs of that role wrote."""
    return "".join(path.read_text() for path in sorted((runs / "jobs").glob(f"{role}-*.log")))


def test_a_plan_becomes_a_chain_of_jobs_of_two_by_two_processes(slurm: None, tmp_path: Path) -> None:
    submitted = train("stage=evaluate", *TINY, *JOBS, f"runs={tmp_path}")
    after = {line.split(":")[0]: line for line in submitted.stderr.splitlines() if "submitted as job" in line}
    assert len(after) == 8 and "after" not in after["prepare"] and "after" in after["dpo"]
    again = train("stage=dpo", *[a for a in TINY if not a.startswith("evaluate")], *JOBS, f"runs={tmp_path}")
    assert "submitted" not in again.stderr, "jobs that are queued already are not submitted again"
    wait_until(lambda: not queue("%i"), 500)
    for role in after:
        assert f"{role}: finished" in said(tmp_path, role), said(tmp_path, role)
    assert (Path(submitted.stdout.splitlines()[-1]) / "report.json").exists()
    assert "reusing" in train("stage=evaluate", *TINY, *JOBS, f"runs={tmp_path}").stderr
    assert not queue("%i"), "a finished plan submits nothing"


def test_a_signalled_job_is_put_back_and_ends_with_the_same_weights(slurm: None, tmp_path: Path) -> None:
    arguments = ["stage=world_model", *EXACT, "trainer.max_steps=100", "world_model.members=1",
                 "world_model.patience=99", "world_model.validate_every=10"]  # fmt: skip
    whole = tmp_path / "whole"
    train(*arguments, "trainer.devices=4", "trainer.strategy=ddp", f"runs={whole}")
    runs = tmp_path / "signalled"
    train(*arguments, *JOBS, f"runs={runs}")
    wait_until(lambda: list(runs.glob("world_model/*.partial/checkpoints/last.ckpt")), 200)
    (job,) = [line.split()[0] for line in queue("%i %j") if "world_model" in line]
    subprocess.run(["scancel", "--signal=USR1", job], check=True)
    wait_until(lambda: any(line.startswith(f"{job} PENDING") for line in queue("%i %T")), 60)
    (checkpoint,) = runs.glob("world_model/*.partial/checkpoints/last.ckpt")
    step = torch.load(checkpoint, weights_only=True)["global_step"]
    assert 0 < step < 100
    # Slurm holds a job that was put back for two minutes.
    wait_until(lambda: not queue("%i"), 400)
    assert "resuming" in said(runs, "world_model") and "finished" in said(runs, "world_model")
    (expected,), (found,) = folders(whole, "world_model"), folders(runs, "world_model")
    # Rounding differs: gradients are summed in another order after a start, as DDP sorts them anew.
    for key, value in weights(expected).items():
        torch.testing.assert_close(weights(found)[key], value, rtol=0, atol=1e-3)
    pd.testing.assert_series_equal(validation(found), validation(expected), rtol=1e-3, atol=1e-3)
