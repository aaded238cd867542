"""What all trained stages share."""

import pytest
import torch

from amrs.training import running_average


def test_the_first_weights_are_soon_forgotten_by_hand() -> None:
    """Decays 1/10, 2/11, 3/12 after the first copy: 0 -> .9 -> .9 * 2/11 + 9/11 = .9818 ..."""
    update, average = running_average(0.98), torch.tensor(0.0)
    average = update(average, torch.tensor(1.0), 0)
    assert average.item() == pytest.approx(0.9)
    average = update(average, torch.tensor(1.0), torch.tensor(1))
    assert average.item() == pytest.approx(1 - 0.1 * 2 / 11)


def test_in_the_long_run_the_decay_is_the_one_asked_for() -> None:
    assert running_average(0.98)(torch.tensor(1.0), torch.tensor(0.0), 10_000).item() == pytest.approx(0.98)
