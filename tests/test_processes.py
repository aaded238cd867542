"""Several processes, accumulation, and a run that was killed: none of them changes what is learned."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pandas as pd
import pytest
import torch
from conftest import ROOT, TINY, train
from test_stages import Done, folders

EXACT = [
    *[a for a in TINY if a.startswith(("data", "log"))], "model=tiny", "model.dropout=0",
    "trainer.accelerator=cpu", "data.platform.users=40",
]  # fmt: skip


def losses(folder: Path) -> pd.Series:
    return pd.read_csv(folder / "metrics.csv").set_index("step")["train/loss"].dropna()


def validation(folder: Path) -> pd.Series:
    return pd.read_csv(folder / "metrics.csv").set_index("step")["val/loss"].dropna()


def weights(folder: Path) -> dict[str, torch.Tensor]:
    found: dict[str, torch.Tensor] = torch.load(folder / "checkpoints" / "last.ckpt", weights_only=True)[
        "state_dict"
    ]
    return found


@pytest.mark.parametrize("stage", ["world_model", "bc"])
def test_two_processes_or_accumulation_give_the_loss_curve_of_one(tmp_path: Path, stage: str) -> None:
    arguments = [f"stage={stage}", *EXACT, "trainer.max_steps=12", f"{stage}.batch_size=16",
                 f"{stage}.validate_every=4"]  # fmt: skip
    arguments += ["world_model.members=1"] if stage == "world_model" else []
    curves = {}
    for name, extra in {
        "one": [],
        "accumulate": ["trainer.accumulate_grad_batches=4"],
        "ddp": ["trainer.strategy=ddp", "trainer.devices=2"],
    }.items():
        train(*arguments, *extra, f"runs={tmp_path / name}")
        curves[name] = validation(folders(tmp_path / name, stage)[0])
    assert len(curves["one"]) == 3
    for name in ("accumulate", "ddp"):
        pd.testing.assert_series_equal(curves[name], curves["one"], rtol=2e-4)


def test_every_stage_runs_in_two_processes(tmp_path: Path) -> None:
    done = train(
        "stage=evaluate", *TINY, "data.platform.users=40", "trainer.max_steps=6", "trainer.strategy=ddp",
        "trainer.devices=2", "trainer.accelerator=cpu", f"runs={tmp_path}",
    )  # fmt: skip
    folder = Path(done.stdout.splitlines()[-1])
    assert folder.parent.name == "evaluate" and (folder / "report.json").exists()


def test_a_killed_run_resumes_to_the_same_weights(tmp_path: Path) -> None:
    arguments = ["stage=world_model", *EXACT, "trainer.max_steps=300", "world_model.members=1",
                 "world_model.patience=99", "world_model.validate_every=10"]  # fmt: skip
    whole = Path(train(*arguments, f"runs={tmp_path / 'whole'}").stdout.splitlines()[-1])
    command = [sys.executable, str(ROOT / "train.py"), *arguments, f"runs={tmp_path / 'killed'}"]
    process = subprocess.Popen(command, env={**os.environ, "OMP_NUM_THREADS": "1"}, stderr=subprocess.PIPE)
    pattern = "killed/world_model/*.partial/checkpoints/last.ckpt"
    while process.poll() is None and not list(tmp_path.glob(pattern)):
        time.sleep(0.05)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert list(tmp_path.glob(pattern)), "the run was not killed while under way"
    done = train(*arguments, f"runs={tmp_path / 'killed'}")
    assert "resuming" in done.stderr
    resumed = Path(done.stdout.splitlines()[-1])
    for key, expected in weights(whole).items():
        torch.testing.assert_close(weights(resumed)[key], expected, rtol=1e-5, atol=1e-6)
    pd.testing.assert_series_equal(losses(resumed), losses(whole), rtol=1e-4)


def test_two_commands_at_once_train_a_parent_once(tmp_path: Path) -> None:
    arguments = [
        "stage=world_model",
        *EXACT,
        "trainer.max_steps=6",
        "world_model.members=1",
        f"runs={tmp_path}",
    ]
    command = [sys.executable, str(ROOT / "train.py"), *arguments]
    both = [
        subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) for _ in range(2)
    ]
    outputs = [process.communicate() for process in both]
    assert [process.returncode for process in both] == [0, 0]
    said = "".join(err for _, err in outputs)
    assert said.count("world_model: finished") == 1 and outputs[0][0] == outputs[1][0]


def test_a_process_more_than_units_of_a_batch_is_refused(evaluated: Done) -> None:
    small = [a for a in TINY if a.startswith(("data", "model", "log"))]
    too_many = ["bc.batch_size=2", "trainer.accumulate_grad_batches=4"]
    done = train("stage=bc", *small, *too_many, f"runs={evaluated[0]}", check=False)
    assert done.returncode == 1 and "raise it to 4 or more" in done.stderr
