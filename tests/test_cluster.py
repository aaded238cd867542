"""Files for a cluster: what they ask for, their order, and that each makes the run it was written for."""

import shlex
import subprocess
from pathlib import Path

import pytest
from conftest import train

from amrs.cluster.jobs import JOB, in_job, job_file, launch, sweep_file, torchrun_file
from amrs.config import ConfigError, as_arguments, load
from amrs.execution import DISTRIBUTED
from amrs.runs import Run, RunError, plan

SLURM = ["stage=evaluate", "cluster=slurm", "cluster.nodes=2", "cluster.gpus_per_node=8"]


def options(text: str) -> dict[str, str]:
    """Options of an sbatch file."""
    lines = [line.removeprefix("#SBATCH --") for line in text.splitlines() if line.startswith("#SBATCH --")]
    return {line.partition("=")[0]: line.partition("=")[2] for line in lines}


def planned(*argv: str) -> dict[str, Run]:
    """Runs of a plan by role."""
    return {run.role: run for run in plan(load(list(argv)))}


@pytest.mark.parametrize(
    "argv",
    [
        [
            "stage=evaluate",
            "utility=published",
            "experiment=demo",
            "model.dropout=.1",
            "evaluate.horizon=None",
        ],
        [
            "stage=dpo",
            "data=table",
            "data.raw_dir=some dir",
            "parents.labeller=x",
            "utility.modes.commute.arousal=0.6",
        ],
        [*SLURM, "cluster.options=[qos=high,exclude=n7]", "cluster.before=module load cuda; true"],
    ],
)
def test_arguments_written_from_settings_give_them_back(argv: list[str]) -> None:
    config = load(argv)
    assert load(as_arguments(config)) == config


def test_a_job_makes_the_run_that_it_was_written_for(tmp_path: Path) -> None:
    for run in plan(load([*SLURM, "evaluate.splits=2", "dpo.beta=.5"])):
        command = shlex.split(job_file(run, tmp_path).splitlines()[-1])
        assert command[0] == "srun"
        again = plan(load(command[command.index(str(Path("train.py").absolute())) + 1 :]))
        assert again[-1].folder == run.folder


def test_trained_stages_take_the_cluster_and_the_others_one_task(tmp_path: Path) -> None:
    for run in plan(load([*SLURM, "cluster.cpus_per_task=3", "cluster.partition=big"])):
        asked = options(job_file(run, tmp_path))
        size = ("2", "8", "gpu:8") if run.stage in DISTRIBUTED else ("1", "1", "gpu:1")
        assert (asked["nodes"], asked["ntasks-per-node"], asked["gres"]) == size
        assert (asked["cpus-per-task"], asked["partition"]) == ("3", "big")
        assert asked["signal"] == "SIGUSR1@60" and "requeue" in asked and "time" not in asked


def test_without_submission_files_are_written_whose_order_is_that_of_the_plan(tmp_path: Path) -> None:
    runs, said = plan(load([*SLURM, "cluster.submit=false", f"runs={tmp_path / 'a b'}"])), []
    launch(runs, said.append)
    jobs = tmp_path / "a b" / "jobs"
    assert {path.name for path in jobs.glob("*.sbatch")} == {f"{r.role}-{r.fingerprint}.sbatch" for r in runs}
    (submit,) = jobs.glob("*.submit.sh")
    for path in jobs.iterdir():
        subprocess.run(["bash", "-n", str(path)], check=True)
    assert "not submitted" in said[-1]
    # Slurm's commands replaced by ones that answer 1, 2, ... and write down what they were asked.
    (tmp_path / "bin").mkdir()
    for name, body in {
        "squeue": "exit 0",
        "sbatch": f'echo "$@" >> "{tmp_path}/asked"; wc -l < "{tmp_path}/asked"',
    }.items():
        (tmp_path / "bin" / name).write_text(f"#!/bin/sh\n{body}\n")
        (tmp_path / "bin" / name).chmod(0o755)
    environment = {"PATH": f"{tmp_path / 'bin'}:/usr/bin:/bin"}
    subprocess.run(["bash", str(submit)], check=True, env=environment, capture_output=True)
    asked = (tmp_path / "asked").read_text().splitlines()
    number = {run.fingerprint: str(n) for n, run in enumerate(runs, 1)}
    for run, line in zip(runs, asked, strict=True):
        after = {number[parent.fingerprint] for parent in run.parents.values()}
        found = [word for word in line.split() if word.startswith("--dependency=afterok:")]
        assert after == (set(found[0].split(":")[1:]) if found else set())


def test_after_a_submission_that_fails_nothing_more_is_submitted(tmp_path: Path) -> None:
    runs = plan(load([*SLURM, "cluster.submit=false", f"runs={tmp_path}"]))
    launch(runs, lambda _: None)
    (submit,) = (tmp_path / "jobs").glob("*.submit.sh")
    (tmp_path / "bin").mkdir()
    for name, body in {"squeue": "exit 0", "sbatch": f'echo "$@" >> "{tmp_path}/asked"; exit 1'}.items():
        (tmp_path / "bin" / name).write_text(f"#!/bin/sh\n{body}\n")
        (tmp_path / "bin" / name).chmod(0o755)
    environment = {"PATH": f"{tmp_path / 'bin'}:/usr/bin:/bin"}
    done = subprocess.run(["bash", str(submit)], env=environment, capture_output=True, text=True, check=False)
    assert done.returncode != 0 and "submitted" not in done.stderr
    assert len((tmp_path / "asked").read_text().splitlines()) == 1


def test_a_job_with_gpus_insists_on_them_unless_it_is_told_otherwise(tmp_path: Path) -> None:
    for argv, written in (
        ([], True),
        (["trainer.accelerator=cpu"], False),
        (["cluster.gpus_per_node=0"], False),
    ):
        run = plan(load([*SLURM, *argv]))[-1]
        assert ("trainer.accelerator=gpu" in job_file(run, tmp_path)) == written


@pytest.mark.parametrize(
    "given", ["time=1:00", "partition=big", "memory=4G", "account=x", "options=[qos=high]"]
)
def test_what_only_slurm_reads_is_refused_elsewhere(given: str) -> None:
    with pytest.raises(ConfigError, match=rf"cluster.{given.partition('=')[0]}.*without cluster=slurm"):
        load(["stage=bc", "cluster=torchrun", f"cluster.{given}"])


def test_a_torchrun_file_for_several_nodes_asks_for_their_address() -> None:
    one, two = (
        torchrun_file(plan(load(["stage=bc", "cluster=torchrun", f"cluster.nodes={n}"]))[-1]) for n in (1, 2)
    )
    assert "127.0.0.1" in one and "MASTER_ADDR:?" not in one
    assert "${MASTER_ADDR:?name one of the nodes" in two and "OMP_NUM_THREADS=4" in two


def test_a_job_written_for_other_settings_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    runs = plan(load(SLURM))
    assert not in_job(runs)
    monkeypatch.setenv(JOB, runs[-1].fingerprint)
    assert in_job(runs)
    monkeypatch.setenv(JOB, "0123")
    with pytest.raises(RunError, match="written for run 0123"):
        in_job(runs)


def test_nodes_and_devices_are_said_in_one_place() -> None:
    for argv in (["cluster.nodes=2"], ["cluster=slurm", "trainer.devices=2"], ["cluster.sweep=a/b/c"]):
        with pytest.raises(ConfigError, match="cluster"):
            load(["stage=bc", *argv])


def test_an_array_runs_one_agent_of_a_sweep_a_task() -> None:
    text = sweep_file(load([*SLURM, "cluster.sweep=me/amrs/x1", "cluster.agents=20", "cluster.at_once=5"]))
    asked = options(text)
    assert asked["array"] == "1-20%5" and "no-requeue" in asked
    assert text.splitlines()[-1].endswith("-m wandb agent --count 1 me/amrs/x1")


def test_the_torchrun_file_trains_with_two_processes(tmp_path: Path) -> None:
    arguments = ["stage=bc", "data.platform.users=40", "data.platform.tracks=300", "data.platform.artists=40"]
    arguments += ["model=tiny", "trainer.max_steps=4", "trainer.accelerator=cpu", "log=disabled"]
    cluster = ["cluster=torchrun", "cluster.gpus_per_node=2", f"runs={tmp_path}"]
    done = train(*arguments, *cluster)
    folder = Path(done.stdout.splitlines()[-1])
    assert not folder.exists()
    (file,) = (tmp_path / "jobs").glob("bc-*.torchrun.sh")
    assert "--nproc-per-node=2" in file.read_text()
    subprocess.run(["bash", str(file)], check=True, capture_output=True)
    assert (folder / "checkpoints" / "best.ckpt").exists()
    assert torchrun_file(planned(*arguments, *cluster)["bc"]).count("--nnodes=1 ") == 1
