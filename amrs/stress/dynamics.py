"""The judge's listeners, made to respond otherwise than it believes.

Every perturbation has a strength s from 0 (the judge as it is) to its extreme. Reactivity and inertia change
the path of expected affect of simulations that are there already; the others change what the judge hears or
says, so they are simulated anew.
Shape suffixes: B rollouts, T steps, K tracks, E embedding.
"""

import copy
from collections.abc import Callable, Mapping, Sequence
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from amrs.data import SessionDataModule
from amrs.listeners import ImaginedListeners
from amrs.models.world_model import WorldModel
from amrs.noise import hash_keys, uniform
from amrs.rollout import Environment, Feedback

FLIP, JITTER = 900, 901
"""Purposes of the draws of which tracks are flipped, and of noise in the heads."""


def less_reactive(path_BT: Tensor, start_B: Tensor, strength: float) -> Tensor:
    """Every departure from the forecast at the session's start shrunk: x0 + (1 - s) (x - x0)."""
    return start_B[:, None] + (1 - strength) * (path_BT - start_B[:, None])


def more_inertia(path_BT: Tensor, start_B: Tensor, strength: float) -> Tensor:
    """Affect that lags behind: y_t = s y_(t-1) + (1 - s) x_t, from y_0 = the forecast at the start."""
    before_B, lagged = start_B, []
    for x_B in path_BT.unbind(1):
        before_B = strength * before_B + (1 - strength) * x_B
        lagged.append(before_B)
    return torch.stack(lagged, 1)


Change = Callable[[Tensor, Tensor, float], Tensor]
PATHS: dict[str, tuple[Change, Sequence[float]]] = {
    "reactivity": (less_reactive, (0.25, 0.5, 0.75, 1.0)),
    "inertia": (more_inertia, (0.5, 0.7, 0.9, 0.97)),
}
"""Perturbations of the path of expected affect, with the strengths tried."""


class Forecasting:
    """Listeners whose forecast at the session's start stands beside every later expectation."""

    def __init__(self, listeners: ImaginedListeners, prefix: str) -> None:
        self.listeners, self.prefix = listeners, prefix

    def start(self, row_B: Tensor, key_B: Tensor) -> Any:
        """The listeners' state and their forecast."""
        state = self.listeners.start(row_B, key_B)
        return state, self.listeners.forecast(state)

    def step(self, state: Any, track_B: Tensor, t: int) -> tuple[Any, Feedback, dict[str, Tensor]]:
        """One track."""
        inner, forecast = state
        inner, feedback, expected = self.listeners.step(inner, track_B, t)
        expected = expected | {f"{self.prefix}{name}": value_B for name, value_B in forecast.items()}
        return (inner, forecast), feedback, expected


class HeardOtherwise:
    """The judge hears the session's tracks as other points of the embedding space.

    The logged past stays as it was heard: the judge's catalogue holds every track twice.

    Args:
        judge: left as it is; its copy is perturbed.
        by_K: by what each track's embedding, in the judge's standardised space, and its levels are multiplied
            from now on.
        data: where logged histories come from.
        horizon: tracks for which room is kept.
    """

    def __init__(self, judge: WorldModel, by_K: Tensor, data: SessionDataModule, horizon: int) -> None:
        judge, by_K1 = copy.deepcopy(judge), by_K[:, None]
        self.tracks = len(by_K)
        for member in judge.ensemble:
            encoder = member.encoder
            by_K1 = by_K1.to(encoder.embedding_KE)
            encoder.embedding_KE = torch.cat([encoder.embedding_KE, by_K1 * encoder.embedding_KE])
            member.level_KV = torch.cat([member.level_KV, by_K1 * member.level_KV])
        self.listeners = ImaginedListeners(judge, data, horizon)

    def start(self, row_B: Tensor, key_B: Tensor) -> Any:
        """Listeners as the judge knows them."""
        return self.listeners.start(row_B, key_B)

    def step(self, state: Any, track_B: Tensor, t: int) -> tuple[Any, Feedback, dict[str, Tensor]]:
        """One track, heard otherwise."""
        return self.listeners.step(state, track_B + self.tracks, t)


def _tracks(judge: WorldModel) -> int:
    return len(judge.ensemble[0].encoder.embedding_KE)


def shrunk(
    judge: WorldModel, data: SessionDataModule, horizon: int, seed: int, strength: float
) -> Environment:
    """All tracks sound more alike: embeddings (1 - s) of the way from the catalogue's mean, levels (1 - s) of
    what they are."""
    return HeardOtherwise(judge, torch.full((_tracks(judge),), 1 - strength), data, horizon)


def flipped(
    judge: WorldModel, data: SessionDataModule, horizon: int, seed: int, strength: float
) -> Environment:
    """A random share s of tracks is heard as their opposites, mirrored in the catalogue's mean.

    In the judge's linear part and its levels the sign of their effect turns.
    """
    turned_K = uniform(seed, FLIP, torch.arange(_tracks(judge))) < strength
    return HeardOtherwise(judge, torch.where(turned_K, -1.0, 1.0), data, horizon)


def jittered(
    judge: WorldModel, data: SessionDataModule, horizon: int, seed: int, strength: float
) -> Environment:
    """Every weight of the heads times 1 + s z, with z standard normal, another for each member."""
    judge = copy.deepcopy(judge)
    for number, member in enumerate(judge.ensemble):
        generator = torch.Generator().manual_seed(int(hash_keys(seed, JITTER, number)) % 2**31)
        for layer in (member.head, *member.linear_layers, member.affinity_joined):
            noise = torch.randn(layer.weight.shape, generator=generator)
            layer.weight.data = layer.weight.data * (1 + strength * noise).to(layer.weight.device)
    return ImaginedListeners(judge, data, horizon)


Perturb = Callable[[WorldModel, SessionDataModule, int, int, float], Environment]
WORLDS: dict[str, tuple[Perturb, Sequence[float]]] = {
    "track_effect": (shrunk, (0.5, 1.0)),
    "sign_flip": (flipped, (0.1, 0.3, 0.5)),
    "heads": (jittered, (0.25, 0.5, 1.0)),
}
"""Perturbations that are simulated anew, with the strengths tried; a tenth of the tracks is flipped first."""


def breaking_point(gains: Mapping[float, float]) -> float | None:
    """The least strength at which the gain is gone, from gains by strength (0 among them), or None.

    Between two strengths tried the gain is taken to change along a straight line. A gain that was none
    from the start breaks at 0.
    """
    points = sorted(gains.items())
    if points[0][1] <= 0:
        return points[0][0]
    for (s, gain), (s_next, gain_next) in pairwise(points):
        if gain_next <= 1e-9:
            return s + (s_next - s) * gain / (gain - min(gain_next, 0.0)) if gain_next < 0 else s_next
    return None
