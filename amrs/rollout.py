"""A policy acting on imagined or true listeners, with common random numbers.

Randomness is a function of (key, step, purpose) only, so the batch never changes a rollout and two
policies meet the same listener with the same luck. A rollout runs on the device of its policy's logits (CPU
or GPU); sessions and keys come from the CPU, and what happened goes back there.
Shape suffixes: B rollouts, T steps, K tracks.
"""

from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from amrs.losses import kl_divergence
from amrs.noise import uniform
from amrs.rules import Rules

ACTION = 100
"""Purpose of the draw that picks a track; environments use purposes of their own."""
_BLOCK = 64
"""Tracks whose probabilities are summed before the cumulative sum."""


class Feedback(NamedTuple):
    """What a listener shows after one track."""

    engagement_B: Tensor
    """Fraction played, [0, 1]; NaN where the data set has none."""
    rating_B: Tensor
    """1 like, 0 dislike, NaN where not given."""
    left_B: Tensor
    """True where the listener leaves after this track."""

    def to(self, device: torch.device) -> "Feedback":
        """The same on another device."""
        return Feedback(*(x.to(device) for x in self))


def distance_to(signal: str, target: float) -> str:
    """Name under which E|x - target| of a signal stands among expected signals."""
    return f"{signal} from {target:g}"


class Environment(Protocol):
    """Listeners: the world model or the platform."""

    def start(self, row_B: Tensor, key_B: Tensor) -> Any:
        """Listeners as sessions `row_B` of the log start; `key_B` seeds each rollout's luck."""
        ...

    def step(self, state: Any, track_B: Tensor, t: int) -> tuple[Any, Feedback, dict[str, Tensor]]:
        """Play a track (on any device): the next state, sampled feedback, and expected signals (B,) by name;
        with targets, also the expected distances to them, by `distance_to`."""
        ...


class Policy(Protocol):
    """A recommender, for simulation."""

    def start(self, row_B: Tensor) -> Any:
        """What the policy knows as sessions `row_B` of the log start."""
        ...

    def logits(self, state: Any) -> Tensor:
        """(B, K) unnormalised log-probabilities over the whole catalogue, before the rules."""
        ...

    def observe(self, state: Any, track_B: Tensor, feedback: Feedback) -> Any:
        """The state after a track and its feedback, which are on the device of this policy's logits."""
        ...


@dataclass
class Rollouts:
    """What happened; steps after a listener left hold -1 or NaN."""

    track_BT: Tensor
    played_BT: Tensor
    engagement_BT: Tensor
    rating_BT: Tensor
    left_B: Tensor
    """True where the listener left; False where the horizon (or a small catalogue) ended."""
    expected: dict[str, Tensor]
    """Expected signals (B, T); valence and arousal mean the report if the session ended there."""
    kl_BT: Tensor | None
    """KL(policy || reference) in nats at each state visited, if a reference was given."""

    @staticmethod
    def join(parts: "list[Rollouts]") -> "Rollouts":
        """Batches of rollouts as one."""

        def cat(name: str) -> Tensor:
            return torch.cat([getattr(part, name) for part in parts])

        expected = {name: torch.cat([p.expected[name] for p in parts]) for name in parts[0].expected}
        kl_BT = None if parts[0].kl_BT is None else cat("kl_BT")
        return Rollouts(cat("track_BT"), cat("played_BT"), cat("engagement_BT"), cat("rating_BT"),
                        cat("left_B"), expected, kl_BT)  # fmt: skip

    def at(self, index_B: Tensor) -> "Rollouts":
        """Some of them, by number."""
        expected = {name: value_BT[index_B] for name, value_BT in self.expected.items()}
        kl_BT = None if self.kl_BT is None else self.kl_BT[index_B]
        return Rollouts(self.track_BT[index_B], self.played_BT[index_B], self.engagement_BT[index_B],
                        self.rating_BT[index_B], self.left_B[index_B], expected, kl_BT)  # fmt: skip

    def final(self, signal: str) -> Tensor:
        """The expected signal after each rollout's last track, (B,)."""
        last_B = self.played_BT.sum(1) - 1
        return self.expected[signal].gather(1, last_B[:, None])[:, 0]

    def divergence(self) -> float:
        """Mean KL to the reference in nats a track; asks for rollouts with one."""
        assert self.kl_BT is not None
        return float(self.kl_BT.nansum() / self.played_BT.sum())

    def per_play(self, signal: str) -> Tensor:
        """The expected signal averaged over each rollout's own plays, (B,)."""
        total_B = self.expected[signal].where(self.played_BT, 0.0).sum(1)
        return total_B / self.played_BT.sum(1)


def choose(log_p_BK: Tensor, u_B: Tensor) -> Tensor:
    """The track at quantile `u_B` of the distribution, as (B,); log-probabilities may lack a constant.

    Several quantiles, (B, C), give as many tracks. One uniform a track and a cumulative sum, first over
    blocks of tracks and then inside one block. Where probabilities are no numbers it is any track.
    """
    tracks = log_p_BK.shape[1]
    padded_BX = F.pad(log_p_BK, (0, -tracks % _BLOCK), value=-torch.inf)
    p_BX = padded_BX.softmax(1)
    if u_B.ndim == 1:
        return _at_quantile(p_BX, u_B).clamp_(max=tracks - 1)
    return torch.stack([_at_quantile(p_BX, one_B) for one_B in u_B.unbind(1)], 1).clamp_(max=tracks - 1)


def _at_quantile(p_BX: Tensor, u_B: Tensor) -> Tensor:
    """The same from probabilities of a whole number of blocks."""
    p_BNX = p_BX.unflatten(1, (-1, _BLOCK))
    count, blocks, _ = p_BNX.shape
    sum_BN = p_BNX.sum(2).double()
    edge_BN = sum_BN.cumsum(1)
    threshold_B1 = u_B.double()[:, None] * edge_BN[:, -1:]
    block_B1 = torch.searchsorted(edge_BN, threshold_B1).clamp_(max=blocks - 1)
    cell_B = block_B1[:, 0] + blocks * torch.arange(count, device=p_BX.device)
    edge_BY = p_BNX.flatten(0, 1).index_select(0, cell_B).cumsum(1, dtype=torch.float64)
    before_B1 = edge_BN.gather(1, block_B1) - sum_BN.gather(1, block_B1)
    # Rounding must not choose what has no probability, before the block's first track or behind its last.
    inside_B1 = (threshold_B1 - before_B1).clamp_(min=1e-300).minimum(edge_BY[:, -1:])
    return (block_B1 * _BLOCK + torch.searchsorted(edge_BY, inside_B1))[:, 0]


class _Choices:
    """Which tracks may still be chosen, and the tables as wide as the catalogue that choosing takes.

    Adding -inf is faster than filling by a mask, and fresh memory as wide as the catalogue costs more than
    the arithmetic: what is barred is a table of numbers, and one table of probabilities is written over.
    """

    def __init__(self, allowed_BK: Tensor, repeats: bool) -> None:
        self.repeats, self.tracks = repeats, allowed_BK.shape[1]
        self.barred_BK = torch.zeros(allowed_BK.shape, device=allowed_BK.device)
        self.barred_BK.masked_fill_(~allowed_BK, -torch.inf)
        size = len(allowed_BK), self.tracks + -self.tracks % _BLOCK
        self.mine_BX = torch.full(size, -torch.inf, device=allowed_BK.device)

    def offered(self, logits_BK: Tensor) -> Tensor:
        """Log-probabilities (B, K) that lack a constant; written over by the next `draw`."""
        return torch.add(logits_BK, self.barred_BK, out=self.mine_BX[:, : self.tracks])

    def draw(self, u_B: Tensor) -> Tensor:
        """The track at quantile `u_B` of what was offered, (B,)."""
        p_BX = torch.softmax(self.mine_BX, 1, out=self.mine_BX)
        track_B = _at_quantile(p_BX, u_B).clamp_(max=self.tracks - 1)
        self.mine_BX[:, self.tracks :] = -torch.inf
        if not self.repeats:
            self.barred_BK.scatter_(1, track_B[:, None], -torch.inf)
        return track_B


@torch.inference_mode()
def imagine(
    policy: Policy,
    environment: Environment,
    rules: Rules,
    mode_B: Tensor,
    row_B: Tensor,
    key_B: Tensor,
    horizon: int,
    reference: Policy | None = None,
) -> Rollouts:
    """Roll `policy` out for up to `horizon` tracks from the start of sessions `row_B`.

    A rollout ends when the listener leaves or at the horizon, or where a small catalogue has no allowed
    track left. With a `reference`, the exact KL over allowed tracks is taken at every state that the policy
    itself visits.
    """
    world, mind = environment.start(row_B, key_B), policy.start(row_B)
    shadow = reference.start(row_B) if reference is not None else None
    logits_BK = policy.logits(mind)
    device = logits_BK.device if logits_BK.device.type != "mps" else torch.device("cpu")  # it has no doubles
    allowed_BK = rules.allowed(mode_B, torch.empty(len(row_B), 0, dtype=torch.int64)).to(device)
    choices, left_over_B = _Choices(allowed_BK, rules.repeats), allowed_BK.sum(1)
    u_BT = uniform(key_B.to(device)[:, None], torch.arange(horizon, device=device), ACTION)
    here_B = torch.ones(len(row_B), dtype=torch.bool, device=device)
    left_B, track_BT = ~here_B, torch.full((len(row_B), horizon), -1, device=device)
    record: dict[str, list[Tensor]] = {}
    for t in range(horizon):
        logits_BK = policy.logits(mind) if t else logits_BK
        here_B = here_B & (left_over_B > (0 if rules.repeats else t))
        log_p_BK = choices.offered(logits_BK.to(device))
        if reference is not None:
            log_q_BK = torch.add(reference.logits(shadow).to(device), choices.barred_BK).log_softmax(1)
            record.setdefault("kl", []).append(kl_divergence(log_p_BK.log_softmax(1), log_q_BK))
        track_B = choices.draw(u_BT[:, t])
        world, feedback, expected = environment.step(world, track_B, t)
        feedback = feedback.to(device)
        mind = policy.observe(mind, track_B, feedback)
        if reference is not None:
            shadow = reference.observe(shadow, track_B, feedback)
        track_BT[:, t] = torch.where(here_B, track_B, -1)
        for name, value_B in {**expected, "_engagement": feedback.engagement_B,
                              "_rating": feedback.rating_B}.items():  # fmt: skip
            record.setdefault(name, []).append(value_B)
        record.setdefault("_here", []).append(here_B)
        left_B = left_B | (here_B & feedback.left_B)
        here_B = here_B & ~feedback.left_B
    found = {name: torch.stack(values, 1).cpu() for name, values in record.items()}
    return _rollouts(track_BT.cpu(), left_B.cpu(), found)


def _rollouts(track_BT: Tensor, left_B: Tensor, record: dict[str, Tensor]) -> Rollouts:
    played_BT = record.pop("_here")
    record = {name: value.where(played_BT, torch.nan) for name, value in record.items()}
    kl_BT = record.pop("kl", None)
    return Rollouts(
        track_BT, played_BT, record.pop("_engagement"), record.pop("_rating"), left_B, record, kl_BT
    )
