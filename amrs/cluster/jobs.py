"""A plan as files for a cluster: Slurm jobs that wait for their parents, or one file for torchrun.

Every file lies under <runs>/jobs, is written from the settings that the Trainer reads, and is what runs:
submitting is running submit.sh. Run folders and logs are on a path that all machines share.
"""

import os
import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

from amrs.config import Config, as_arguments
from amrs.execution import DISTRIBUTED
from amrs.runs import Run, RunError

JOB = "AMRS_JOB"
"""Set where a file of ours runs: the fingerprint of the run that it makes, or `sweep`."""
NOTICE = 60
"""Seconds before its time ends at which Slurm signals a job."""
_TRAIN = Path(__file__).parents[2] / "train.py"

_SUBMIT = """\
#!/usr/bin/env bash
# Submits what is not finished yet, each run after its parents: {command}
set -euo pipefail
shopt -s inherit_errexit  # or a submission that fails would pass for an empty id
submit() {{  # ROLE JOB_NAME FILE [ID of a parent's job ...]: its id; one that is queued stays
  local role=$1 name=$2 file=$3 id after how=queued
  shift 3
  after=$(IFS=:; echo "$*")
  id=$(squeue --noheader --me --name="$name" --format=%i | tail -n 1)
  if [ -z "$id" ]; then
    id=$(sbatch --parsable ${{after:+--dependency=afterok:$after}} "$file" | cut -d';' -f1)
    how=submitted
  fi
  echo "$role: $how as job $id${{after:+ after $after}}, $file" >&2
  echo "$id"
}}
"""


def in_job(runs: list[Run]) -> bool:
    """Whether this process is to make the runs, as a job does; else it writes and submits the jobs.

    Raises:
        RunError: the job was written for another run than its settings give now.
    """
    job = os.environ.get(JOB)
    if job not in (None, "sweep", runs[-1].fingerprint):
        raise RunError(
            f"this job was written for run {job}, but its settings now give {runs[-1].folder}: raw files or "
            "the code's defaults have changed since; write and submit the jobs again"
        )
    return job is not None or runs[-1].config.cluster.name == "local"


def launch(runs: list[Run], say: Callable[[str], None]) -> None:
    """Write the files of every run of the plan that is not finished; with cluster.submit, submit them."""
    config = runs[-1].config
    folder = Path(config.runs).absolute() / "jobs"
    folder.mkdir(parents=True, exist_ok=True)
    for run in runs:
        if run.finished:
            say(f"{run.role}: reusing {run.folder}")
    if config.cluster.name == "torchrun":
        path = _write(folder / f"{_name(runs[-1])}.torchrun.sh", torchrun_file(runs[-1]))
        nodes = config.cluster.nodes
        where = f"on each of the {nodes} nodes, MASTER_ADDR naming one of them" if nodes > 1 else "here"
        say(f"{path}: run it {where}")
        return
    if config.cluster.sweep is not None:
        file = _write(folder / f"sweep-{config.cluster.sweep.rpartition('/')[2]}.sbatch", sweep_file(config))
        text = f"#!/usr/bin/env bash\nexec sbatch {shlex.quote(str(file))}\n"
        submit = _write(file.with_suffix(".submit.sh"), text)
    else:
        missing = [run for run in runs if not run.finished]
        for run in missing:
            _write(_job_path(folder, run), job_file(run, folder))
        submit = _write(folder / f"{_name(runs[-1])}.submit.sh", submit_file(missing, folder))
    if config.cluster.submit:
        _submit(submit)
    else:
        say(f"{submit}: written, not submitted (cluster.submit=false)")


def arguments(run: Run) -> list[str]:
    """What follows `python train.py` to make this very run; GPUs that were asked for must be there."""
    trainer, config = run.config.trainer, replace(run.config, stage=cast(Any, run.stage))
    if run.config.cluster.gpus_per_node and trainer.accelerator == "auto":
        config = replace(config, trainer=replace(trainer, accelerator="gpu"))
    return as_arguments(config)


def job_file(run: Run, folder: Path) -> str:
    """The sbatch file of one run; stages that one process makes take one task on one machine."""
    train = shlex.join([sys.executable, str(_TRAIN), *arguments(run)])
    parallel = run.stage in DISTRIBUTED
    head = _header(run.config, _name(run), folder / f"{_name(run)}-%j.log", parallel)
    head += ["--requeue", f"--signal=SIGUSR1@{NOTICE}", "--open-mode=append", "--kill-on-invalid-dep=yes"]
    command = f"srun --kill-on-bad-exit=1 --cpus-per-task={run.config.cluster.cpus_per_task} {train}"
    return _script(head, run.fingerprint, run.config, f"{run.role}: made by", command)


def submit_file(runs: list[Run], folder: Path) -> str:
    """The shell file that submits the runs, parents first, each after the jobs of its parents."""
    lines = [_SUBMIT.format(command=shlex.join(sys.argv))]
    for run in runs:
        after = [f'"${_variable(parent)}"' for parent in run.parents.values() if parent in runs]
        words = [run.role, f"amrs-{_name(run)}", shlex.quote(str(_job_path(folder, run))), *after]
        lines.append(f"{_variable(run)}=$(submit {' '.join(words)})\n")
    return "".join(lines)


def sweep_file(config: Config) -> str:
    """The sbatch file of an array of W&B agents, a run each; the sweep's command begins with srun.

    Not requeued: an agent that starts again is given another run, and W&B calls the first one crashed.
    """
    cluster = config.cluster
    folder, sweep = Path(config.runs).absolute() / "jobs", str(cluster.sweep)
    name = f"sweep-{sweep.rpartition('/')[2]}"
    head = _header(config, name, folder / f"{name}-%A_%a.log", parallel=True)
    head += [f"--array=1-{cluster.agents}%{cluster.at_once}", "--no-requeue"]
    agent = shlex.join([sys.executable, "-m", "wandb", "agent", "--count", "1", sweep])
    return _script(head, "sweep", config, "agents of a sweep, written by", agent)


def torchrun_file(run: Run) -> str:
    """The shell file that every node runs to make the run and the parents that it lacks."""
    cluster = run.config.cluster
    address = "${MASTER_ADDR:?name one of the nodes to all of them}" if cluster.nodes > 1 else "127.0.0.1"
    head = [
        "#!/usr/bin/env bash", f"# {run.role}: written by {shlex.join(sys.argv)}",
        "# Run it on every node, with MASTER_ADDR (and MASTER_PORT) naming one of them to all.",
        "set -euo pipefail", f"cd {shlex.quote(str(Path.cwd()))}",
        f"export {JOB}={run.fingerprint} OMP_NUM_THREADS={cluster.cpus_per_task}",
        *([cluster.before] if cluster.before else []),
    ]  # fmt: skip
    launcher = [
        shlex.quote(sys.executable), "-m torch.distributed.run", f"--nnodes={cluster.nodes}",
        f"--nproc-per-node={cluster.devices}", f"--rdzv-id={run.fingerprint}", "--rdzv-backend=c10d",
        f'--rdzv-endpoint="{address}:${{MASTER_PORT:-29400}}"', "--max-restarts=3",
        shlex.join([str(_TRAIN), *arguments(run)]),
    ]  # fmt: skip
    return "\n".join([*head, f"exec {' '.join(launcher)}", ""])


def _header(config: Config, name: str, log: Path, parallel: bool) -> list[str]:
    """Options of sbatch."""
    cluster = config.cluster
    gpus = cluster.gpus_per_node if parallel else min(1, cluster.gpus_per_node)
    options = [
        f"--job-name=amrs-{name}", f"--output={log}", f"--chdir={Path.cwd()}",
        f"--nodes={cluster.nodes if parallel else 1}",
        f"--ntasks-per-node={cluster.devices if parallel else 1}",
        f"--cpus-per-task={cluster.cpus_per_task}",
    ]  # fmt: skip
    options += [f"--gres=gpu:{gpus}"] if gpus else []
    named = {
        "time": cluster.time,
        "mem": cluster.memory,
        "partition": cluster.partition,
        "account": cluster.account,
    }
    options += [f"--{key}={value}" for key, value in named.items() if value is not None]
    return options + [f"--{option.removeprefix('--')}" for option in cluster.options]


def _script(options: list[str], job: str, config: Config, about: str, command: str) -> str:
    lines = ["#!/usr/bin/env bash", f"# {about} {shlex.join(sys.argv)}"]
    lines += [f"#SBATCH {option}" for option in options]
    lines += ["set -euo pipefail", f"export {JOB}={job} OMP_NUM_THREADS={config.cluster.cpus_per_task}"]
    lines += [config.cluster.before] if config.cluster.before else []
    return "\n".join([*lines, command, ""])


def _submit(path: Path) -> None:
    if shutil.which("sbatch") is None:
        raise RunError(
            f"no sbatch here, so nothing was submitted: run {path} on a machine of the cluster, or write "
            "cluster.submit=false"
        )
    done = subprocess.run(["bash", str(path)], stdout=subprocess.PIPE, text=True, check=False)
    if done.returncode != 0:
        raise RunError(f"{path} failed with status {done.returncode}; what Slurm says stands above")


def _write(path: Path, text: str) -> Path:
    temporary = path.with_name(path.name + ".tmp")
    temporary.write_text(text)
    temporary.chmod(0o755)
    os.replace(temporary, path)
    return path


def _name(run: Run) -> str:
    return f"{run.role}-{run.fingerprint}"


def _job_path(folder: Path, run: Run) -> Path:
    return folder / f"{_name(run)}.sbatch"


def _variable(run: Run) -> str:
    return f"job_{run.role}_{run.fingerprint}"
