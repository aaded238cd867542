"""Many paired simulations of the same sessions, and their means. Shape suffixes: B sessions, R simulations
of each, N = B R rollouts, T steps."""

import numpy as np
import torch
from torch import Tensor

from amrs.noise import hash_keys
from amrs.outcomes import Sessions, repeated
from amrs.rollout import Environment, Policy, Rollouts, imagine
from amrs.rules import Rules

_BATCH = 512
START = "start_"
"""Before a signal's name: what was expected of the session before its first track."""


def simulations(sessions: Sessions, count: int, seed: int, purpose: int) -> Sessions:
    """Each session `count` times in a row, under luck of its own: a hash of (seed, purpose, row, number)."""
    return repeated(sessions, hash_keys(seed, purpose, sessions.row_B[:, None], torch.arange(count)))


def simulate(
    policy: Policy,
    environment: Environment,
    rules: Rules,
    sessions: Sessions,
    reference: Policy | None = None,
) -> Rollouts:
    """The policy in every one of `sessions`."""
    parts = [
        imagine(policy, environment, rules, sessions.mode_B[index], sessions.row_B[index],
                sessions.key_B[index], sessions.horizon, reference)
        for index in torch.arange(len(sessions.row_B)).split(_BATCH)
    ]  # fmt: skip
    return Rollouts.join(parts)


def last(path_NT: Tensor, played_NT: Tensor) -> np.ndarray:
    """The value at each rollout's last play, (N,): a session that was left counts at its last state."""
    at_N1 = (played_NT.sum(1) - 1)[:, None]
    return path_NT.gather(1, at_N1)[:, 0].double().numpy()
