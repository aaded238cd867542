"""What all trained stages share."""

from pathlib import Path

import pytest
import torch

from amrs.config import load
from amrs.runs import plan
from amrs.sweep import history
from amrs.training import _loggers, running_average


def test_the_first_weights_are_soon_forgotten_by_hand() -> None:
    """Decays 1/10, 2/11, 3/12 after the first copy: 0 -> .9 -> .9 * 2/11 + 9/11 = .9818 ..."""
    update, average = running_average(0.98), torch.tensor(0.0)
    average = update(average, torch.tensor(1.0), 0)
    assert average.item() == pytest.approx(0.9)
    average = update(average, torch.tensor(1.0), torch.tensor(1))
    assert average.item() == pytest.approx(1 - 0.1 * 2 / 11)


def test_in_the_long_run_the_decay_is_the_one_asked_for() -> None:
    assert running_average(0.98)(torch.tensor(1.0), torch.tensor(0.0), 10_000).item() == pytest.approx(0.98)


def test_what_validation_found_is_on_disk_at_once_since_a_sweep_may_end_the_run_by_it(tmp_path: Path) -> None:
    run = plan(load(["stage=world_model", "log=disabled", f"runs={tmp_path}"]))[-1]
    (logger,) = _loggers(run, tmp_path)
    logger.log_metrics({"val/loss": 2.5}, step=59)
    logger.log_metrics({"val/loss": 2.25}, step=119)
    assert history(tmp_path, "val/loss") == [{"val/loss": 2.5}, {"val/loss": 2.25}]
