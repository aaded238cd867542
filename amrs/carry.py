"""What a track's effect now is still worth when the session ends, as the labeller imagines it.

A world model says what the report would be *if the session ended after this track*. Most tracks do not
end it: affect forgets, and a report weighs all tracks of its session. For the track at step s the carry
of signal x is the slope of what it changes at the end on what it changes at once,

    c_x(s) = sum d_T d_s / sum d_s^2,

over pairs of imagined sessions that share listener, luck and all other tracks, and differ in track s: two
draws from Copycat. d_s is the difference in E[x] right after track s, d_T in the session's outcome: E[x]
after its last track for valence and arousal, the mean of E[x] over its tracks for engagement and rating.
With c the effect of any candidate on the session's outcome is c_x(s) times its effect now: a value of the
rest of the session that costs nothing to ask for. It is linear, and the same for all listeners.
Shape suffixes: B sessions, T steps, K tracks.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from amrs.fidelity.targets import AFFECT
from amrs.listeners import ImaginedListeners
from amrs.noise import hash_keys, uniform
from amrs.policies import NeuralPolicy
from amrs.rollout import choose
from amrs.rules import Rules, log_softmax_allowed

CARRY = 410
"""Purpose of the draws."""


class Effects(NamedTuple):
    """Predicted effects of tracks under Copycat."""

    spread: dict[str, float]
    """Root mean square over steps of a track's effect on the session's outcome, in scale points; of its
    effect at once where the utility looks no further."""
    carry: dict[str, list[float]]
    """c_x(s) for each step s; empty where the utility looks no further than the track."""


@torch.inference_mode()
def measure_effects(
    listeners: ImaginedListeners, copycat: NeuralPolicy, rules: Rules, mode_B: Tensor, row_B: Tensor,
    seed: int, horizon: int, session: bool = True,
) -> Effects:  # fmt: skip
    """Spread and carry of each signal, from the starts of sessions `row_B`, with `horizon` tracks each."""
    key_B = hash_keys(seed, CARRY, row_B)
    played_BT, other_BT = _two_draws(listeners, copycat, rules, mode_B, row_B, key_B, horizon)
    base = _expected(listeners, row_B, key_B, played_BT)
    now: dict[str, list[Tensor]] = {name: [] for name in base}
    later: dict[str, list[Tensor]] = {name: [] for name in base}
    for s in range(horizon):
        changed_BT = played_BT.clone()
        changed_BT[:, s] = other_BT[:, s]
        for name, x_BT in _expected(listeners, row_B, key_B, changed_BT).items():
            difference_BT = x_BT - base[name]
            now[name].append(difference_BT[:, s])
            later[name].append(_outcome(name, difference_BT))
    spread, carry = {}, {}
    for name in base:
        now_BT, later_BT = torch.stack(now[name], 1), torch.stack(later[name], 1)
        slope_T = (later_BT * now_BT).sum(0) / (now_BT**2).sum(0).clamp(min=1e-12)
        carried_BT = now_BT * slope_T if session else now_BT
        # Two draws differ by a variance of two tracks.
        spread[name] = float((carried_BT**2 / 2).mean().sqrt())
        carry[name] = slope_T.tolist()
    return Effects(spread, carry if session else {})


def _outcome(name: str, x_BT: Tensor) -> Tensor:
    return x_BT[:, -1] if name in AFFECT else x_BT.mean(1)


def _two_draws(
    listeners: ImaginedListeners, copycat: NeuralPolicy, rules: Rules, mode_B: Tensor, row_B: Tensor,
    key_B: Tensor, horizon: int,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """Copycat's tracks (B, T), and at each step another that it might as well have played."""
    world, mind = listeners.start(row_B, key_B), copycat.start(row_B)
    played_BT, other_BT = (torch.full((len(row_B), horizon), -1) for _ in range(2))
    for t in range(horizon):
        allowed_BK = rules.allowed(mode_B, played_BT[:, :t])
        log_p_BK = log_softmax_allowed(copycat.logits(mind).cpu(), allowed_BK)
        u_B2 = uniform(key_B[:, None], t, CARRY, torch.arange(2))
        played_BT[:, t], other_BT[:, t] = choose(log_p_BK, u_B2).unbind(1)
        world, feedback, _ = listeners.step(world, played_BT[:, t], t)
        mind = copycat.observe(mind, played_BT[:, t], feedback)
    return played_BT, other_BT


def _expected(
    listeners: ImaginedListeners, row_B: Tensor, key_B: Tensor, track_BT: Tensor
) -> dict[str, Tensor]:
    """Expected signals (B, T) of sessions of given tracks; nobody leaves."""
    state, record = listeners.start(row_B, key_B), []
    for t in range(track_BT.shape[1]):
        state, _, expected = listeners.step(state, track_BT[:, t], t)
        record.append({name: value_B.cpu() for name, value_B in expected.items()})
    return {name: torch.stack([step[name] for step in record], 1) for name in record[0]}
