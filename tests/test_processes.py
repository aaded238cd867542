"""Several processes, accumulation, and a run that was killed: none of them changes what is learned."""

import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pandas as pd
import pytest
import torch
from conftest import ROOT, TINY, train
from filelock import FileLock
from test_stages import Done, folders

from amrs.config import load
from amrs.execution import execute
from amrs.resuming import Luck
from amrs.runs import Run, RunError, plan
from amrs.stages import STAGES

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


TWO = ["trainer.strategy=ddp", "trainer.devices=2"]
SHARES = {
    "1 x 64": [],
    "2 x 32": TWO,
    "2 x 16, accumulation 2": [*TWO, "trainer.accumulate_grad_batches=2"],
    "2 x 32, fsdp2": ["trainer.strategy=fsdp2", "trainer.devices=2"],
}


@pytest.mark.parametrize("stage", ["world_model", "bc"])
def test_processes_accumulation_and_shards_give_the_loss_curve_of_one(tmp_path: Path, stage: str) -> None:
    arguments = [f"stage={stage}", *EXACT, "trainer.max_steps=12", f"{stage}.batch_size=64",
                 f"{stage}.validate_every=4", f"{stage}.averaging=0"]  # fmt: skip
    arguments += ["world_model.members=1"] if stage == "world_model" else []
    train("stage=prepare", *EXACT, f"runs={tmp_path / 'prepared'}")
    curves = {}
    for name, extra in SHARES.items():
        shutil.copytree(tmp_path / "prepared", tmp_path / name)
        train(*arguments, *extra, f"runs={tmp_path / name}")
        curves[name] = validation(folders(tmp_path / name, stage)[0])
    assert len(curves["1 x 64"]) >= 2
    for name in SHARES:
        pd.testing.assert_series_equal(curves[name], curves["1 x 64"], rtol=2e-4)


def test_dpo_on_shared_out_weights_gives_the_losses_and_divergence_of_one_process(
    evaluated: Done, tmp_path: Path
) -> None:
    small = [a for a in TINY if not a.startswith("evaluate")] + ["dpo.beta=0.7", "dpo.learning_rate=0.01"]
    curves = {}
    for name, extra in {"one": [], "fsdp2": SHARES["2 x 32, fsdp2"]}.items():
        runs = Path(shutil.copytree(evaluated[0], tmp_path / name))
        done = train("stage=dpo", *small, *extra, "trainer.accelerator=cpu", f"runs={runs}")
        rows = pd.read_csv(Path(done.stdout.splitlines()[-1]) / "metrics.csv")
        curves[name] = rows.set_index("step")[["val/loss", "val/kl"]].dropna()
    assert len(curves["one"]) >= 1 and (curves["one"]["val/kl"] > 0).all()
    pd.testing.assert_frame_equal(curves["fsdp2"], curves["one"], rtol=1e-3, atol=1e-5)


def test_every_stage_runs_in_two_processes(tmp_path: Path) -> None:
    done = train(
        "stage=evaluate", *TINY, "data.platform.users=40", "trainer.max_steps=6", "trainer.strategy=ddp",
        "trainer.devices=2", "trainer.accelerator=cpu", f"runs={tmp_path}",
    )  # fmt: skip
    folder = Path(done.stdout.splitlines()[-1])
    assert folder.parent.name == "evaluate" and (folder / "report.json").exists()


def kill_after_a_checkpoint(arguments: list[str], runs: Path) -> None:
    """Start a run and kill all its processes once it has written a (new) checkpoint."""
    (last,) = list(runs.glob("world_model/*.partial/checkpoints/last.ckpt")) or [None]
    before = last.stat().st_mtime_ns if last else 0
    process = subprocess.Popen(
        [sys.executable, str(ROOT / "train.py"), *arguments, f"runs={runs}"],
        env={**os.environ, "OMP_NUM_THREADS": "1"}, stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL,
        start_new_session=True,
    )  # fmt: skip

    def written() -> bool:
        found = list(runs.glob("world_model/*.partial/checkpoints/last.ckpt"))
        return bool(found) and found[0].stat().st_mtime_ns > before

    while process.poll() is None and not written():
        time.sleep(0.05)
    assert process.poll() is None, "the run ended before it was killed"
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def test_a_killed_run_resumes_to_the_same_weights(tmp_path: Path) -> None:
    """With dropout, whose draws go on where they were."""
    arguments = ["stage=world_model", *EXACT, "model.dropout=0.3", "trainer.max_steps=300",
                 "world_model.members=1", "world_model.patience=99", "world_model.validate_every=10",
                 ]  # fmt: skip
    whole = Path(train(*arguments, f"runs={tmp_path / 'whole'}").stdout.splitlines()[-1])
    kill_after_a_checkpoint(arguments, tmp_path / "killed")
    done = train(*arguments, f"runs={tmp_path / 'killed'}")
    assert "resuming" in done.stderr
    resumed = Path(done.stdout.splitlines()[-1])
    for key, expected in weights(whole).items():
        torch.testing.assert_close(weights(resumed)[key], expected, rtol=1e-5, atol=1e-6)
    pd.testing.assert_series_equal(losses(resumed), losses(whole), rtol=1e-4)
    pd.testing.assert_series_equal(validation(resumed), validation(whole), rtol=1e-4)


def test_a_checkpoint_goes_from_one_process_to_shards_and_back(tmp_path: Path) -> None:
    """The losses are compared: rounding alone moves weights whose gradient is nearly 0, by Adam's step."""
    arguments = ["stage=world_model", *EXACT, "trainer.max_steps=60", "world_model.members=1",
                 "world_model.patience=99", "world_model.validate_every=10", "world_model.averaging=0",
                 ]  # fmt: skip
    whole = Path(train(*arguments, f"runs={tmp_path / 'whole'}").stdout.splitlines()[-1])
    for shares in ([], SHARES["2 x 32, fsdp2"]):
        kill_after_a_checkpoint([*arguments, *shares], tmp_path / "killed")
    done = train(*arguments, f"runs={tmp_path / 'killed'}")
    resumed = Path(done.stdout.splitlines()[-1])
    assert "resuming" in done.stderr
    last = validation(resumed).index[-3:]
    pd.testing.assert_series_equal(validation(resumed)[last], validation(whole)[last], rtol=5e-4)


def test_averages_of_shared_out_weights_are_refused_before_any_parent_is_made(tmp_path: Path) -> None:
    arguments = ["stage=dpo", "trainer.strategy=fsdp2", f"runs={tmp_path}"]
    with pytest.raises(RunError, match="fsdp2 cannot average weights"):
        plan(load(arguments))
    plan(load([*arguments, "world_model.averaging=0", "bc.averaging=0"]))


def test_every_process_goes_on_with_its_own_random_numbers() -> None:
    states, drawn = [], []
    for seed in range(3):
        torch.manual_seed(seed)
        states.append(torch.get_rng_state())
        drawn.append(torch.rand(4))
    module: Any = SimpleNamespace(device=torch.device("cpu"))
    for rank in (2, 1, 0):
        trainer: Any = SimpleNamespace(world_size=3, global_rank=rank)
        luck = Luck()
        luck.on_load_checkpoint(trainer, module, {"luck": torch.stack(states)})
        luck.on_train_batch_start(trainer, module, None, 0)
        assert torch.equal(torch.rand(4), drawn[rank])


def test_what_an_older_program_left_is_refused_in_words(tmp_path: Path) -> None:
    arguments = ["stage=world_model", *EXACT, "trainer.max_steps=300", "world_model.validate_every=10"]
    kill_after_a_checkpoint(arguments, tmp_path)
    (left,) = tmp_path.rglob("last.ckpt")
    checkpoint = torch.load(left, weights_only=True)
    checkpoint["optimizer_states"][0]["param_groups"] *= 2
    torch.save(checkpoint, left)
    done = train(*arguments, f"runs={tmp_path}", check=False)
    assert done.returncode == 1 and "by an older program" in done.stderr and "remove " in done.stderr


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


def test_what_another_command_is_making_is_left_to_it(tmp_path: Path) -> None:
    """prepare -> Copycat and prepare -> world model: while Copycat is another's, the world model is made."""
    runs = plan(load(["stage=dpo", f"runs={tmp_path}"]))
    made: list[str] = []
    taken = next(run for run in runs if run.role == "bc")
    taken.folder.parent.mkdir(parents=True)
    other = FileLock(taken.folder.with_name(taken.folder.name + ".lock"))
    other.acquire()

    def stage(run: Run, folder: Path) -> None:
        made.append(run.role)
        if run.role == "labeller":
            other.release()  # without having finished it, as after a kill

    assert execute(runs, dict.fromkeys(STAGES, stage), lambda line: None) == runs[-1].folder
    assert sorted(made) == sorted(run.role for run in runs) and made[-1] == "dpo"
    assert made.index("labeller") < made.index("bc") < made.index("preferences")
