"""What tests share: one small run of the whole method, made once."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from filelock import FileLock

# Tests run on all cores at once (pytest -n): more threads each would only get in one another's way.
os.environ["OMP_NUM_THREADS"] = "1"

ROOT = Path(__file__).parents[1]
TINY = [
    "data.platform.users=60", "data.platform.tracks=300", "data.platform.artists=40", "model=tiny",
    "trainer.max_steps=30", "world_model.members=1", "evaluate.sessions=40", "evaluate.bootstrap=100",
    "preferences.min_pairs=5", "dpo.kl_sessions=8", "log=disabled",
]  # fmt: skip


def train(*arguments: str, cwd: Path = ROOT, check: bool = True) -> subprocess.CompletedProcess[str]:
    """`python train.py` as a user runs it, without a network."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "WANDB_MODE": "offline"}
    command = [sys.executable, str(ROOT / "train.py"), *arguments]
    done = subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True, check=False)
    assert not check or done.returncode == 0, done.stderr
    return done


@pytest.fixture(scope="session")
def evaluated(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, subprocess.CompletedProcess[str]]:
    """Folder of run folders after `stage=evaluate` on a tiny platform, and what was printed.

    The processes of one `pytest -n` share it: the first makes it, the others wait.
    """
    base = tmp_path_factory.getbasetemp()
    folder = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "evaluated"
    with FileLock(f"{folder}.lock"):
        printed = folder / "printed.json"
        if not printed.exists():
            done = train("stage=evaluate", *TINY, f"runs={folder / 'runs'}")
            printed.write_text(json.dumps([done.args, done.returncode, done.stdout, done.stderr]))
        return folder / "runs", subprocess.CompletedProcess(*json.loads(printed.read_text()))
