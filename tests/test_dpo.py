"""The rules around the loss: budgets, the way back, and what is said where the chosen lose likelihood."""

from pathlib import Path
from subprocess import CompletedProcess
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from conftest import TINY
from torch import nn

from amrs.config import parse
from amrs.config.stages import DpoConfig
from amrs.guidance import boltzmann
from amrs.lineup import Parts, guided
from amrs.losses import DPO_LOSSES
from amrs.runs import plan
from amrs.stages.dpo import HORIZON, DirectPreference, Divergence, falling_chosen, label_temperature
from amrs.stages.prepare import open_data


def test_a_policy_is_within_budget_only_by_both_measures() -> None:
    section = DpoConfig(kl_budget=0.05, kl_session_budget=0.4)
    assert Divergence(0.05, 0.4).within(section)
    assert not Divergence(0.051, 0.1).within(section)
    assert not Divergence(0.01, 0.41).within(section)


def test_falling_chosen_likelihood_is_answered_with_a_remedy() -> None:
    assert falling_chosen(-0.05, DpoConfig()) is None
    advice = falling_chosen(-0.5, DpoConfig(loss="hard"))
    assert advice is not None
    assert "fallen by 0.50 nats" in advice and "dpo.tau" in advice and "now hard" in advice


def test_the_temperature_is_that_of_the_tilt_which_spends_the_budget(
    evaluated: tuple[Path, CompletedProcess[str]],
) -> None:
    taus = {}
    for setting in ("dpo.beta=1", "dpo.beta=2", "dpo.kl_budget=0.2", "dpo.tau=3", "dpo.loss=hard"):
        (run,) = [x for x in plan(parse(["stage=evaluate", *TINY, f"runs={evaluated[0]}", setting]).config)
                  if x.role == "dpo"]  # fmt: skip
        data = open_data(run, users="labeller")
        parts = Parts(run, data, HORIZON)
        taus[setting] = label_temperature(parts)
    strength = guided(parts, boltzmann, parts.utility, DpoConfig().kl_budget).strength
    assert taus["dpo.beta=1"] == pytest.approx(1 / strength)
    assert taus["dpo.beta=2"] == pytest.approx(1 / strength / 2)
    assert taus["dpo.kl_budget=0.2"] < 0.8 * taus["dpo.beta=1"]  # farther from Copycat, so cooler
    assert taus["dpo.tau=3"] == 3


class Line(DirectPreference):
    """A policy of one number w, whose divergence is w^2 and whose loss falls as w grows."""

    def __init__(self, **settings: Any) -> None:
        nn.Module.__init__(self)
        self.config: Any = SimpleNamespace(dpo=DpoConfig(**settings))
        self.model: Any = nn.Linear(1, 1, bias=False)
        self.model.weight.data.zero_()
        self.kl: Any = lambda model: Divergence(model.weight.item() ** 2, 0.0)
        self.best, self.worse, self.over, self.ahead, self.warned = float("inf"), 0, 0, False, False
        self.tau = 1.0
        self.stopped = SimpleNamespace(should_stop=False)
        self.saved: list[float] = []
        self.validation: Any = SimpleNamespace(reset=lambda: None, compute=self._found)
        self._keep()

    trainer = property(lambda self: self.stopped)

    def _found(self) -> dict[str, torch.Tensor]:
        loss = torch.tensor(-self.model.weight.item())
        return {"loss": loss, "chosen": loss.abs(), "rejected": loss, "accuracy": loss, "copycat": 0 * loss}

    def log_dict(self, *_: Any, **__: Any) -> None:
        pass

    def _keep(self) -> None:
        self.kept = {key: value.clone() for key, value in self.model.state_dict().items()}
        self.saved.append(self.model.weight.item())

    def check(self, w: float) -> None:
        self.model.weight.data.fill_(w)
        self.on_validation_epoch_end()


def test_a_policy_that_is_over_the_budget_on_its_way_goes_on() -> None:
    line = Line(kl_budget=0.04, patience=3)
    line.check(0.3)
    assert not line.stopped.should_stop and line.saved == [0.0]
    line.check(0.15)
    line.on_train_end()
    assert line.saved == pytest.approx([0.0, 0.15]), "the last was within the budget: nothing to go back to"


@pytest.mark.parametrize("loss", ["soft", "hard"])
def test_a_policy_that_ends_over_the_budget_is_met_at_the_budget(loss: str) -> None:
    line = Line(kl_budget=0.04, patience=3, loss=loss)
    line.check(0.1)
    for w in (0.5, 0.6, 0.7):
        line.check(w)
    assert line.stopped.should_stop == (loss == "hard"), "soft labels have an optimum that may yet come"
    line.on_train_end()
    assert 0.185 < line.saved[-1] <= 0.2 and line.model.weight.item() == pytest.approx(line.saved[-1])


def test_a_policy_that_does_not_improve_stops_and_the_best_is_kept() -> None:
    line = Line(kl_budget=0.04, patience=2)
    for w in (0.15, 0.1, 0.05):
        line.check(w)
    assert line.stopped.should_stop and line.saved == pytest.approx([0.0, 0.15])


def test_what_is_worse_than_copycat_does_not_take_its_place() -> None:
    line = Line(kl_budget=0.04, patience=2)
    line.check(-0.1)  # its loss is .1, Copycat's 0
    assert line.saved == [0.0] and not line.stopped.should_stop
    line.check(-0.05)
    line.on_train_end()
    assert line.saved == [0.0] and line.stopped.should_stop


@pytest.mark.parametrize("loss", list(DPO_LOSSES))
def test_copycats_loss_is_that_of_a_policy_equal_to_it(loss: str) -> None:
    line = Line(loss=loss)
    chosen_B, others_BJ = torch.tensor([-2.0, -3.0]), torch.tensor([[4, 5], [6, -1]])
    found = torch.tensor([[-1.0, -4.0], [-2.5, 0.0]])
    batch: Any = SimpleNamespace(
        ref_chosen_B=chosen_B, ref_rejected_B=chosen_B - 1, others_BJ=others_BJ, ref_others_BJ=found,
        du_others_BJ=torch.tensor([[0.2, 0.1], [1.0, 0.0]]),
        du_B=torch.tensor([0.5, 2.0]),
    )  # fmt: skip
    line.log_probs = lambda _: (chosen_B, chosen_B - 1, found)  # type: ignore[method-assign]
    assert line._copycat_losses(batch).tolist() == pytest.approx(line._losses(batch)[0].tolist())
