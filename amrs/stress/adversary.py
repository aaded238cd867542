"""A bounded search for the history on which a policy does worst against Copycat in the judge.

It stays inside the data: real histories of the users who are judged, in which the feedback to some earlier
plays is exchanged for feedback that one of them really gave, to the same track where there is any.
Shape suffixes: C candidates, V variants, N plays.
"""

from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from amrs.data import SessionDataModule
from amrs.fidelity.targets import Columns, Ints
from amrs.noise import uniform
from amrs.outcomes import Sessions, mean_outcome
from amrs.rollout import Environment, Policy
from amrs.stress.counterfactual import Histories, as_data, gather, logged, reading, rows_of
from amrs.stress.simulation import simulate, simulations

EXCHANGE, SEARCH, AGAIN = 920, 921, 922
"""Purposes of draws: which feedback is exchanged, luck in the search, luck of the figures it ends with."""
_SHARE = 0.5
"""Share of earlier plays whose feedback is exchanged."""
_SEARCHED, SIMULATIONS = 4, 16
"""Simulations of each history in the search, and of what it found."""


class Worst(NamedTuple):
    """One history on which the policy does badly."""

    delta: float
    """E[valence | policy] - E[valence | Copycat], under luck that the search did not use."""
    row: int
    """Session of the log whose history it is."""
    changed: int
    """Earlier plays whose feedback was exchanged."""


def search(
    policy: Policy, copycat: Policy, judge: Environment, data: SessionDataModule, columns: Columns,
    sessions: Sessions, delta_B: np.ndarray, candidates: int, variants: int, seed: int,
) -> list[Worst]:  # fmt: skip
    """The worst of the sessions' histories and of their variants, worst first.

    Args:
        policy: what is tried.
        copycat: what it is compared with, under the same luck.
        judge: the listeners.
        data: what all three read histories from.
        columns: the log's columns.
        sessions: the real sessions.
        delta_B: what simulations of these said already; the worst are where the search begins.
        candidates: of them, how many.
        variants: how many are tried of each, the real one among them.
        seed: of all draws.
    """
    worst_C = np.argsort(delta_B, kind="stable")[:candidates]
    row_C = sessions.row_B.numpy()[worst_C]
    real = logged(columns, np.repeat(row_C, variants))
    part_S = data.part_S.numpy()
    tried = exchanged(real, columns, part_S == part_S[row_C[0]], variants, seed)
    delta_CV = _deltas(policy, copycat, judge, data, tried, sessions.horizon, _SEARCHED, seed, SEARCH)
    best_C = delta_CV.reshape(-1, variants).argmin(1) + np.arange(len(row_C)) * variants
    chosen = _only(tried, best_C)
    delta_C = _deltas(policy, copycat, judge, data, chosen, sessions.horizon, SIMULATIONS, seed, AGAIN)
    changed_C = _differences(_only(real, best_C), chosen)
    found = [Worst(*each) for each in zip(delta_C.tolist(), row_C.tolist(), changed_C, strict=True)]
    return sorted(found)


def exchanged(
    histories: Histories, columns: Columns, donor_S: np.ndarray, variants: int, seed: int
) -> Histories:
    """Of every `variants` histories the first stays; in the others earlier feedback is exchanged.

    Donors are plays of the same track in sessions `donor_S` (bool, those of the users who are judged: on
    validation users nothing of test users is looked at), else any play of theirs.
    """
    mine = histories.columns
    number_N = np.arange(len(mine.track_N))
    pick_N, which_N = (
        uniform(seed, EXCHANGE, purpose, torch.from_numpy(number_N)).numpy() for purpose in (0, 1)
    )
    swap_N = histories.earlier_N & (pick_N < _SHARE) & (mine.user_S[mine.row_N] % variants != 0)
    pool = np.flatnonzero(donor_S[columns.row_N])
    pool = pool[np.argsort(columns.track_N[pool], kind="stable")]
    track = columns.track_N[pool]
    low_N, high_N = (np.searchsorted(track, mine.track_N, side=side) for side in ("left", "right"))
    none_N = low_N == high_N
    low_N, high_N = np.where(none_N, 0, low_N), np.where(none_N, len(pool), high_N)
    donor_N = pool[(low_N + which_N * (high_N - low_N)).astype(np.int64).clip(0, len(pool) - 1)]
    play_N = {
        name: np.where(swap_N, columns.play_N[name][donor_N], value_N)
        for name, value_N in mine.play_N.items()
    }
    return Histories(replace(mine, play_N=play_N), histories.row_Q)


def _only(histories: Histories, keep: Ints) -> Histories:
    first_Q = np.r_[0, histories.row_Q[:-1] + 1]
    return gather(histories.columns, [np.arange(first_Q[q], histories.row_Q[q] + 1) for q in keep])


def _differences(real: Histories, chosen: Histories) -> list[int]:
    """Earlier plays with other feedback, by history."""
    apart_N = np.zeros(len(real.columns.track_N), dtype=bool)
    for name, value_N in real.columns.play_N.items():
        other_N = chosen.columns.play_N[name]
        apart_N |= (value_N != other_N) & ~(np.isnan(value_N) & np.isnan(other_N))
    owner_N = real.columns.user_S[real.columns.row_N]
    counted: list[int] = np.bincount(owner_N[apart_N], minlength=len(real.row_Q)).tolist()
    return counted


def _deltas(
    policy: Policy, copycat: Policy, judge: Environment, data: SessionDataModule, histories: Histories,
    horizon: int, count: int, seed: int, purpose: int,
) -> np.ndarray:  # fmt: skip
    view, row_Q = as_data(data, histories), rows_of(histories)
    nobody_Q: Tensor = torch.zeros_like(row_Q)
    starts = Sessions(row_Q, row_Q, view.flat.mode_S[row_Q], nobody_Q, nobody_Q, horizon)
    lucky = simulations(starts, count, seed, purpose)
    world: Any = reading(judge, data, view)
    valence = [
        mean_outcome(simulate(reading(p, data, view), world, view.rules(), lucky), "valence", len(row_Q))
        for p in (policy, copycat)
    ]
    delta_Q: np.ndarray = valence[0] - valence[1]
    return delta_Q
