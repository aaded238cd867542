"""The policies of a run by name: what `evaluate` compares, `stress` tries and `export` serves.

All of them are a `rollout.Policy`, so each runs in the world model and on the platform alike.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple

import torch
from torch import Tensor

from amrs.data import SessionDataModule
from amrs.devices import chosen_device
from amrs.guidance import GuidedPolicy, Tilt, best_of, boltzmann, calibrate
from amrs.listeners import ImaginedListeners
from amrs.logs.splits import TRAIN, VALIDATION
from amrs.models.policy import PolicyModel
from amrs.models.world_model import WorldModel
from amrs.noise import hash_keys, uniform
from amrs.platform import load_truth
from amrs.policies import FixedPolicy, GreedyPolicy, NeuralPolicy, Scorer
from amrs.rollout import Policy, imagine
from amrs.runs import Run, RunError, read_json
from amrs.stages import bc, world_model
from amrs.utility import Utility

CALIBRATION = 510
"""Purpose of the draws that temperatures are calibrated with."""


class Starts(NamedTuple):
    """Sessions of validation users in which divergences are compared, with their luck."""

    row_B: Tensor
    key_B: Tensor


@dataclass
class Parts:
    """What policies are made of; each part is read when the first policy needs it."""

    run: Run
    data: SessionDataModule
    horizon: int
    """Tracks of a session for which policies keep room in their history."""

    @cached_property
    def device(self) -> torch.device:
        """Where the models are."""
        return chosen_device(self.run.config.trainer.accelerator)

    @cached_property
    def labeller(self) -> WorldModel:
        """The world model that labelled the pairs and drives Greedy."""
        return world_model.load(self.run.parents["labeller"].folder, self.data).to(self.device)

    @cached_property
    def copycat(self) -> PolicyModel:
        """The frozen reference."""
        return bc.load(self.run.parents["bc"].folder, self.data).to(self.device)

    @cached_property
    def utility(self) -> Utility:
        """The utility as the pairs were labelled with."""
        return self._utility(self.summary["carry"])

    @cached_property
    def utility_at_once(self) -> Utility:
        """The same utility of a track's effect at once."""
        return self._utility({})

    def _utility(self, carry: dict[str, list[float]]) -> Utility:
        modes = self.data.log.metadata.modes
        spread, entropy = self.summary["effect_spread"], self.summary.get("entropy_after")
        return Utility(self.run.config.utility, modes, spread, carry, entropy)

    @cached_property
    def summary(self) -> dict[str, Any]:
        """What the pairs' run measured."""
        found: dict[str, Any] = read_json(self.run.parents["preferences"].folder / "summary.json")
        return found

    @cached_property
    def starts(self) -> Starts:
        """Of at most dpo.kl_sessions sessions."""
        config, rows = self.run.config, self.data.rows(VALIDATION)
        row_B = rows[uniform(config.seed, CALIBRATION, rows).argsort()[: config.dpo.kl_sessions]]
        return Starts(row_B, hash_keys(config.seed, CALIBRATION, row_B))

    @cached_property
    def listeners(self) -> ImaginedListeners:
        """Those of the labeller."""
        return ImaginedListeners(self.labeller, self.data, self.horizon)

    @cached_property
    def divergence(self) -> float:
        """KL(DPO || Copycat) in nats a track on DPO's own histories, which may be less than its budget."""
        return imagine(
            _dpo(self), self.listeners, self.data.rules(), self.data.flat.mode_S[self.starts.row_B],
            *self.starts, self.horizon, NeuralPolicy(self.copycat, self.data, self.horizon),
        ).divergence()  # fmt: skip

    def scorer(self, utility: Utility) -> Scorer:
        """The labeller following a session."""
        return Scorer(self.labeller, utility, self.data, self.horizon)


def lineup(run: Run, data: SessionDataModule, horizon: int, names: Sequence[str]) -> dict[str, Policy]:
    """The policies `names` in their order, Copycat first: it is what the others are compared with.

    Production is left out where the data set is no platform.

    Raises:
        RunError: for a name that is not in LINEUP.
    """
    there = (*LINEUP, *variants(run))
    unknown = [name for name in names if name not in there]
    if unknown:
        raise RunError(f"no policy is called {', '.join(unknown)}; there are {', '.join(there)}")
    parts = Parts(run, data, horizon)
    made = {name: _made(parts, name) for name in dict.fromkeys(["copycat", *names])}
    return {name: policy for name, policy in made.items() if policy is not None}


def variants(run: Run) -> list[str]:
    """Names of the DPO policies that `evaluate.dpo` adds."""
    return [role for role in run.parents if role.startswith("dpo:")]


def _made(parts: Parts, name: str) -> Policy | None:
    return LINEUP[name](parts) if name in LINEUP else _dpo(parts, name)


def _popularity(parts: Parts) -> Policy:
    plays_K = parts.data.plays(TRAIN) + parts.run.config.bc.popularity_smoothing
    return FixedPolicy(plays_K.log().to(parts.device))


def guided(parts: Parts, tilt: Tilt, utility: Utility, divergence: float) -> GuidedPolicy:
    """Copycat tilted until its divergence is `divergence` nats a track, on sessions of validation users that
    the labeller imagines."""
    clone = NeuralPolicy(parts.copycat, parts.data, parts.horizon)
    policy = GuidedPolicy(clone, parts.scorer(utility), parts.data.rules(), tilt, 1.0)
    calibrate(policy, divergence, parts.listeners, *parts.starts, parts.horizon)
    return policy


def _dpo(parts: Parts, role: str = "dpo") -> Policy:
    folders = [parts.run.parents[name].folder for name in (role, "bc")]
    model = bc.load(folders[0], parts.data, folders[1]).to(parts.device)
    return NeuralPolicy(model, parts.data, parts.horizon)


def _production(parts: Parts) -> Policy | None:
    truth = parts.run.parents["prepare"].folder / "truth"
    return load_truth(truth).production() if truth.exists() else None


LINEUP: dict[str, Callable[[Parts], Policy | None]] = {
    "copycat": lambda p: NeuralPolicy(p.copycat, p.data, p.horizon),
    "random": lambda p: FixedPolicy(torch.zeros(p.data.tracks, device=p.device)),
    "popularity": _popularity,
    "greedy": lambda p: GreedyPolicy(p.scorer(p.utility)),
    "boltzmann": lambda p: guided(p, boltzmann, p.utility_at_once, p.divergence),
    "soft_boltzmann": lambda p: guided(p, boltzmann, p.utility, p.divergence),
    "best_of_n": lambda p: guided(p, best_of, p.utility, p.divergence),
    "dpo": _dpo,
    "production": _production,
}
"""Policies by name; None where the data set has no such policy."""
