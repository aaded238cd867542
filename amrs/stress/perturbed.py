"""What is left of the gains in perturbed judges, and where they break.

Shape suffixes: B sessions, U users, N rollouts, T steps.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from amrs.fidelity.fit import predict
from amrs.fidelity.targets import AFFECT, Target, targets
from amrs.listeners import MEMBER
from amrs.noise import uniform
from amrs.outcomes import Sessions, outcome
from amrs.report import Row
from amrs.rollout import Rollouts
from amrs.stress.confounding import breaking_gamma
from amrs.stress.dynamics import PATHS, WORLDS, Change, breaking_point
from amrs.stress.simulation import START, last, simulations
from amrs.stress.trial import Trial, least

HALVES = 932
"""Purpose of the draws of halves of the users."""
_HALVES = 100
Found = Mapping[str, Rollouts]


def _rows(perturbation: str, gains: Mapping[float, Sequence[Row]]) -> Iterator[Row]:
    """Rows of each strength but 0, and of the breaking points."""
    for strength, rows in gains.items():
        if strength > 0:
            yield from rows
    for row in gains[0.0]:
        points = {
            strength: other.value
            for strength, rows in gains.items()
            for other in rows
            if other.signal == row.signal
        }
        point = breaking_point(points)
        if point is not None:
            yield replace(row, metric="breaking_point", group=f"perturbed:{perturbation}", value=point,
                          low=None, high=None, unit="strength")  # fmt: skip


def path_rows(trial: Trial, found: Found) -> list[Row]:
    """Reactivity and inertia: other paths of expected affect from the same simulations."""
    rows: list[Row] = []
    for perturbation, (change, strengths) in PATHS.items():
        for name in trial.names:
            gains = {}
            for strength in (0.0, *strengths):
                value, base = (_changed(trial, found[who], change, strength) for who in (name, "copycat"))
                group = f"perturbed:{perturbation}={strength:g}"
                gains[strength] = trial.gain_rows(name, value, base, group)
            rows += _rows(perturbation, gains)
    return rows


def _changed(trial: Trial, rollouts: Rollouts, change: Change, strength: float) -> dict[str, np.ndarray]:
    value = {}
    for signal in AFFECT:
        if f"{START}{signal}" in rollouts.expected:
            start_N = rollouts.expected[f"{START}{signal}"][:, 0]
            path_NT = change(rollouts.expected[signal], start_N, strength)
            value[signal] = trial.mean(last(path_NT, rollouts.played_BT))
    return value


def world_rows(trial: Trial, found: Found, luck: int) -> list[Row]:
    """Judges that hear or answer otherwise, simulated anew under the luck of the first simulations."""
    section, seed = trial.config.stress, trial.config.seed
    count = min(section.perturbed, section.simulations)
    fewer = simulations(trial.sessions, count, seed, luck)
    value = {name: _first(trial, rollouts, count) for name, rollouts in found.items()}
    rows: list[Row] = []
    for perturbation, (perturb, strengths) in WORLDS.items():
        gains: dict[str, dict[float, Sequence[Row]]] = {
            name: {0.0: trial.gain_rows(name, value[name], value["copycat"], "all")} for name in trial.names
        }
        for strength in strengths:
            world = perturb(trial.judge, trial.data, trial.sessions.horizon, seed, strength)
            changed = {who: trial.affect(x) for who, x in trial.simulate(world, fewer).items()}
            for name in trial.names:
                group = f"perturbed:{perturbation}={strength:g}"
                gains[name][strength] = trial.gain_rows(name, changed[name], changed["copycat"], group)
        for each in gains.values():
            rows += _rows(perturbation, each)
    return rows


def _first(trial: Trial, rollouts: Rollouts, count: int) -> dict[str, np.ndarray]:
    """Mean outcome over the first simulations of each session only."""
    sessions = len(trial.sessions.row_B)
    return {
        name: outcome(rollouts, name).reshape(sessions, -1)[:, :count].mean(1)
        for name in AFFECT
        if name in rollouts.expected
    }


def member_rows(trial: Trial, found: Found, lucky: Sessions) -> list[Row]:
    """The gain in the member of the ensemble that says least, all others dropped."""
    members = len(trial.judge.ensemble)
    if members < 2:
        return []
    member_N = (uniform(lucky.key_B, MEMBER) * members).long()
    rows = []
    for name in trial.names:
        by_member = []
        for m in range(members):
            value, base = (_where(trial, found[who], member_N == m) for who in (name, "copycat"))
            by_member.append(trial.gain_rows(name, value, base, "perturbed:one_member"))
        rows += least(by_member)
    return rows


def _where(trial: Trial, rollouts: Rollouts, keep_N: Tensor) -> dict[str, np.ndarray]:
    """Mean over those simulations of a session that are kept; NaN where none is."""
    keep_BR = keep_N.reshape(len(trial.sessions.row_B), -1).numpy()
    found = {}
    for name in AFFECT:
        if name in rollouts.expected:
            value_BR = outcome(rollouts, name).reshape(keep_BR.shape)
            with np.errstate(invalid="ignore"):
                found[name] = np.where(keep_BR, value_BR, 0.0).sum(1) / keep_BR.sum(1)
    return found


def half_rows(trial: Trial, found: Found) -> list[Row]:
    """The gain among the half of the users, of many halves at random, that gains least."""
    users, code_B = np.unique(trial.sessions.user_B.numpy(), return_inverse=True)
    if len(users) < 2:
        return []
    base, rows = trial.affect(found["copycat"]), []
    for name in trial.names:
        value, by_half = trial.affect(found[name]), []
        for draw in range(_HALVES):
            order_U = uniform(trial.config.seed, HALVES, draw, torch.arange(len(users))).argsort().numpy()
            keep_B = np.isin(code_B, order_U[: (len(users) + 1) // 2])
            by_half.append(trial.gains_alone(name, value, base, "perturbed:half_of_users", keep_B))
        rows += least(by_half)
    return rows


def confounding_rows(trial: Trial, rows: Sequence[Row]) -> list[Row]:
    """Bound on the odds at which the lower bound of the gain in valence is gone."""
    label = targets(trial.data.log).get("valence")
    if label is None:
        return []
    held_N = trial.data.part_S.numpy()[label.row] == trial.part
    held = Target(*(getattr(label, name)[held_N] for name in Target.__dataclass_fields__))
    if len(held.value) < 2:
        return []
    residual_N = held.value - predict(trial.judge, trial.data, "valence", held).mean_N
    found = []
    for row in rows:
        if (row.signal, row.metric, row.group) == ("valence", "gain", "all") and row.low is not None:
            gamma = breaking_gamma(row.low, residual_N)
            if gamma is not None:
                found.append(replace(
                    row, metric="breaking_point", group="perturbed:hidden_cause", value=gamma, low=None,
                    high=None, n=len(residual_N), unit="factor on the odds",
                ))  # fmt: skip
    return found
