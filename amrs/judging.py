"""Policies judged side by side: by judge and labeller, and on the platform where there is one.

`judged` puts policies of your own beside those of an evaluation that is finished.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch

from amrs.cluster.shares import Share, alone
from amrs.config import load
from amrs.data import SessionDataModule
from amrs.devices import chosen_device
from amrs.example_sessions import example_sessions
from amrs.lineup import Parts, lineup
from amrs.listeners import ImaginedListeners
from amrs.logs.splits import TEST, VALIDATION
from amrs.outcomes import (
    Sessions,
    choose_sessions,
    diversity_rows,
    gain_rows,
    roll_out,
    several_times,
    utility_rows,
)
from amrs.platform import load_truth
from amrs.report import Report, Row, finite_rows
from amrs.rollout import Environment, Policy, Rollouts
from amrs.runs import Run, RunError, plan, read_json
from amrs.stages import world_model
from amrs.stages.prepare import open_data
from amrs.utility import Utility, yardstick

PARTS = {"test": TEST, "validation": VALIDATION}
_ON_CPU, _ON_GPU = 256, 4096
"""Rollouts at a time; a large catalogue makes it fewer."""


def judged(
    arguments: Sequence[str],
    own: Mapping[str, Callable[[Parts], Policy]],
    others: Sequence[str] = ("random", "greedy", "dpo"),
) -> Report:
    """Gains over Copycat and diversity of your policies and of `others`, as `evaluate` has them.

    Args:
        arguments: those of `train.py` for an evaluation that is finished; users, sessions and luck are
            its own.
        own: for each name (letters and digits) what makes the policy, a `rollout.Policy`. It gets the data
            (`parts.data`), the most tracks of a session (`parts.horizon`), and the run with its parents.
        others: names of `evaluate.policies`.

    Raises:
        RunError: there is no such finished evaluation, or a name of `others` is not known.
    """
    run = plan(load(list(arguments)))[-1]
    if run.stage != "evaluate" or not run.finished:
        raise RunError(f"no finished evaluation; make it first: python train.py {' '.join(arguments)}")
    if "judge" not in run.parents:
        raise RunError("an evaluation of one split with its policies is needed: no splits, folds or study")
    section, data = run.config.evaluate, open_data(run)
    part = PARTS[section.users]
    sessions = choose_sessions(data, section.sessions, section.horizon, run.config.seed, part)
    policies = lineup(run, data, sessions.horizon, others)
    parts = Parts(run, data, sessions.horizon)
    policies |= {f"own:{name}": make(parts) for name, make in own.items()}
    return Report(finite_rows(policy_rows(run, data, sessions, policies)[0]), {})


def rolled_out(
    run: Run, data: SessionDataModule, sessions: Sessions, policies: Mapping[str, Policy], share: Share
) -> dict[str, dict[str, Rollouts]]:
    """Every policy among the listeners of each section of the report, `evaluate.simulations` times a
    session."""
    rules, sessions = data.rules(), several_times(sessions, run.config.evaluate.simulations)
    on_cpu = chosen_device(run.config.trainer.accelerator).type == "cpu"
    batch = _ON_CPU if on_cpu else _ON_GPU
    return {
        name: roll_out(policies, world, rules, sessions, batch, share, f"rollouts {name}")
        for name, world in _worlds(run, data, sessions.horizon).items()
    }


def policy_rows(
    run: Run, data: SessionDataModule, sessions: Sessions, policies: Mapping[str, Policy],
    share: Share = alone,
) -> tuple[list[Row], list[dict[str, Any]]]:  # fmt: skip
    """Gains and diversity of policies, Copycat first, and example sessions.

    Predicted by judge and labeller, and realised where there is a platform.
    """
    draws, seed = run.config.evaluate.bootstrap, run.config.seed
    spread = read_json(run.parents["preferences"].folder / "summary.json")["effect_spread"]
    worlds = rolled_out(run, data, sessions, policies, share)
    best = "realised" if "realised" in worlds else "predicted"
    rows: list[Row] = []
    examples: list[dict[str, Any]] = []
    for name, found in worlds.items():
        rows += gain_rows(name, found, sessions, data, run.config.utility, seed, draws)
        rows += utility_rows(name, found, sessions, data, run.config.utility, spread, seed, draws)
        if name == best:
            first = torch.arange(len(sessions.row_B)) * run.config.evaluate.simulations
            once = {policy: rollouts.at(first) for policy, rollouts in found.items()}
            rows += diversity_rows(once, sessions, data, seed, draws)
            examples = example_sessions(once, sessions, data)
    return rows, examples


def _worlds(run: Run, data: SessionDataModule, horizon: int) -> dict[str, Environment]:
    """Listeners by the section of the report that they fill."""
    worlds: dict[str, Environment] = {}
    targets = Utility(yardstick(run.config.utility), data.log.metadata.modes).targets
    device = chosen_device(run.config.trainer.accelerator)
    for section, role in (("predicted", "judge"), ("predicted_labeller", "labeller")):
        model = world_model.load(run.parents[role].folder, data).to(device)
        worlds[section] = ImaginedListeners(model, data, horizon, targets)
    truth = run.parents["prepare"].folder / "truth"
    if truth.exists():
        worlds["realised"] = load_truth(truth).environment(targets=targets)
    return worlds
