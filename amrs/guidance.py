"""Copycat guided by a utility, without training: Boltzmann policies and best-of-N at a chosen divergence.

With q Copycat's distribution over the allowed tracks and u(k) the labeller's utility of track k next,

    Boltzmann     pi(k) ~ q(k) exp(u(k) / tau)
    best of N     pi(k) = F(u(k))^N - F(u(k)-)^N,   F the distribution function of u under q,

the law of the best of N independent draws; it is a law for every real N >= 1, so that N can be set for any
divergence (for many tracks KL = log N - (N - 1) / N: Beirami et al. 2024). Boltzmann is the policy that gains
most u at its divergence (Rafailov et al. 2023, eq. 4) where u is all that a track does.

One-step Boltzmann takes u as the effect at once. Soft-Q Boltzmann (Haarnoja et al. 2017) takes
Q(k) = E[U of the session | k now] + the soft value of what follows. Here the expectation is the carried
effect (`carry.py`), u(k) = sum of w_x c_x(s) g_x / s_x, and the rest of the soft value, which pays for
future divergence, is taken to be the same whichever track is played now.
Shape suffixes: B histories, K tracks, N visited states.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from amrs.listeners import Mind
from amrs.losses import kl_divergence
from amrs.policies import NeuralPolicy, Scorer, Scores
from amrs.rollout import Environment, Feedback, imagine
from amrs.rules import Rules, log_softmax_allowed

Tilt = Callable[[Tensor, Tensor, float], Tensor]
"""(log q (B, K), u (B, K), strength above 0) -> log pi (B, K), -inf where log q is."""
_STRENGTHS, _HALVINGS, _ROUNDS = (1e-3, 1e3), 30, 2
_CHUNK = 64


def boltzmann(log_q_BK: Tensor, u_BK: Tensor, strength: float) -> Tensor:
    """q exp(strength u), normalised; strength is 1 / tau."""
    return (log_q_BK + strength * u_BK).log_softmax(-1)


def best_of(log_q_BK: Tensor, u_BK: Tensor, strength: float) -> Tensor:
    """The law of the best of N = 1 + strength draws from q; equal utilities are ranked by their order."""
    n = 1.0 + strength
    order_BK = u_BK.argsort(dim=-1, stable=True)
    q_BK = log_q_BK.gather(-1, order_BK).double().exp()
    above_BK = q_BK.cumsum(-1)
    below_BK = (above_BK - q_BK).clamp(min=0)
    share_BK = 1 - (below_BK / above_BK.clamp(min=1e-300)) ** n
    log_p_BK = n * above_BK.clamp(min=1e-300).log() + share_BK.clamp(min=1e-300).log()
    log_p_BK = torch.empty_like(log_p_BK).scatter(-1, order_BK, log_p_BK)
    return log_p_BK.masked_fill(log_q_BK == -torch.inf, -torch.inf).log_softmax(-1).float()


class _State(NamedTuple):
    copycat: Mind
    scores: Scores
    track_BT: Tensor


@dataclass
class GuidedPolicy:
    """Copycat's distribution over the allowed tracks, tilted by utility."""

    copycat: NeuralPolicy
    scorer: Scorer
    rules: Rules
    tilt: Tilt
    strength: float

    def start(self, row_B: Tensor) -> _State:
        """Read the logged history, once for Copycat and once a member."""
        copycat = self.copycat.start(row_B)
        none_BT = copycat.mode_B.new_zeros(len(row_B), 0)
        return _State(copycat, self.scorer.start(row_B), none_BT)

    def inputs(self, state: _State) -> tuple[Tensor, Tensor]:
        """log q and u, both (B, K)."""
        mode_B = state.copycat.mode_B
        allowed_BK = self.rules.to(mode_B.device).allowed(mode_B, state.track_BT)
        allowed_BK = allowed_BK | ~allowed_BK.any(1, keepdim=True)
        log_q_BK = log_softmax_allowed(self.copycat.logits(state.copycat), allowed_BK)
        return log_q_BK, self.scorer.utility_of_all(state.scores)

    def logits(self, state: _State) -> Tensor:
        """(B, K) log-probabilities in nats, -inf where the rules forbid a track."""
        return self.tilt(*self.inputs(state), self.strength)

    def observe(self, state: _State, track_B: Tensor, feedback: Feedback) -> _State:
        """Read one more play."""
        return _State(
            self.copycat.observe(state.copycat, track_B, feedback),
            self.scorer.observe(state.scores, track_B, feedback),
            torch.cat([state.track_BT, track_B.to(state.track_BT.device)[:, None]], 1),
        )


class _Recorder:
    """A guided policy that keeps what its tilt was given at every state."""

    def __init__(self, policy: GuidedPolicy) -> None:
        self.policy = policy
        self.start, self.observe = policy.start, policy.observe
        self.seen: list[tuple[Tensor, Tensor]] = []

    def logits(self, state: _State) -> Tensor:
        """The policy's own."""
        self.seen.append(self.policy.inputs(state))
        return self.policy.tilt(*self.seen[-1], self.policy.strength)


def calibrate(
    policy: GuidedPolicy, budget: float, environment: Environment, row_B: Tensor, key_B: Tensor, horizon: int
) -> None:
    """Set the policy's strength so that KL(policy || Copycat) on its own histories is `budget`.

    The budget is in nats a track. Histories are imagined from sessions `row_B` (validation users'). Each
    round takes the states that the policy visits and halves the strength's range on them, on a log scale;
    the first round starts from Copycat.
    """
    policy.strength = _STRENGTHS[0]
    for _ in range(_ROUNDS):
        recorder = _Recorder(policy)
        mode_B = policy.scorer.data.flat.mode_S[row_B]
        found = imagine(recorder, environment, policy.rules, mode_B, row_B, key_B, horizon)
        log_q_NK, u_NK = (
            torch.stack([step[i] for step in recorder.seen], 1)[found.played_BT] for i in range(2)
        )
        low, high = _STRENGTHS
        for _ in range(_HALVINGS):
            middle = (low * high) ** 0.5
            close = _divergence(policy.tilt, log_q_NK, u_NK, middle) <= budget
            low, high = (middle, high) if close else (low, middle)
        policy.strength = low


def _divergence(tilt: Tilt, log_q_NK: Tensor, u_NK: Tensor, strength: float) -> float:
    def chunks() -> Iterator[Tensor]:
        for log_q, u in zip(log_q_NK.split(_CHUNK), u_NK.split(_CHUNK), strict=True):
            yield kl_divergence(tilt(log_q, u, strength), log_q)

    return float(torch.cat(list(chunks())).mean())
