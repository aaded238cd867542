"""A run folder opened as a world of listeners to play to, from outside any stage.

Shape suffixes: B listeners.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from amrs.config import load
from amrs.config.data import SplitConfig
from amrs.data import SessionDataModule
from amrs.fidelity.ignorance import disagreement
from amrs.listeners import MEMBER, HistoryReader, Mind, luck, sample_feedback
from amrs.logs.splits import TEST, TRAIN, VALIDATION
from amrs.models.world_model import WorldModel
from amrs.noise import uniform
from amrs.platform import Platform, load_truth
from amrs.rollout import Feedback
from amrs.runs import RunError, read_config, read_json
from amrs.stages import world_model
from amrs.utility import Utility

PARTS = {"train": TRAIN, "validation": VALIDATION, "test": TEST}


@dataclass
class Source:
    """A world model with its data, or a prepared log."""

    folder: Path
    data: SessionDataModule
    model: WorldModel | None
    prepared: Path

    def part(self, users: str) -> int:
        """The part of that name."""
        if users not in PARTS:
            raise RunError(f"users={users}: must be one of {', '.join(PARTS)}")
        return PARTS[users]

    def utility(self, name: str, spread: Mapping[str, float] | None) -> Utility:
        """The utility configs/utility/<name>.yaml."""
        config = load(["stage=preferences", f"utility={name}"]).utility
        if config.standardise and spread is None:
            raise RunError(
                f"utility={name} divides by the spread of effects under Copycat: give spread= (effect_spread "
                "in a preferences run's summary.json), or take utility='published', which does not divide"
            )
        return Utility(config, self.data.log.metadata.modes, spread)

    def platform(self, observation: str) -> Platform:
        """The platform behind a prepare run; it has no encoder, so observations are raw."""
        if observation != "raw":
            raise RunError(
                f"{self.folder} has no encoder: write observation='raw', or give a world model's run"
            )
        return load_truth(self.prepared / "truth")


def open_source(folder: Path) -> Source:
    """A finished run of stage world_model, or of prepare with data=platform.

    Raises:
        RunError: no such run there.
    """
    if not (folder / "provenance.json").exists():
        raise RunError(f"{folder}: no finished run there (no provenance.json)")
    provenance, config = read_json(folder / "provenance.json"), read_config(folder)
    if provenance["stage"] not in ("world_model", "prepare"):
        raise RunError(f"{folder}: a run of stage {provenance['stage']}; give one of world_model or prepare")
    prepared = folder
    if provenance["stage"] == "world_model":
        named = Path(provenance["parents"]["prepare"])
        beside = folder.parents[1] / "prepare" / provenance["fingerprints"]["prepare"]
        prepared = named if named.exists() else beside  # runs were moved, or it is another working directory
    users = config["world_model"]["users"] if "world_model" in config else "all"
    split = SplitConfig(**config["data"]["split"])
    data = SessionDataModule(prepared / "log", split, config["model"]["history"], users)
    model = world_model.load(folder, data) if provenance["stage"] == "world_model" else None
    return Source(folder, data, model, prepared)


@dataclass
class Minds:
    """Listeners as every member of the ensemble has read them."""

    minds: list[Mind]
    member_B: Tensor
    key_B: Tensor


class ImaginedWorld:
    """The ensemble: each listener lives in one member, and all members say what they would expect."""

    def __init__(self, model: WorldModel, data: SessionDataModule, horizon: int, utility: Utility) -> None:
        self.members, self.utility = model.eval().ensemble, utility
        self.readers = [HistoryReader(member.encoder, data, horizon) for member in self.members]
        self.width = self.members[0].encoder.size

    def start(self, row_B: Tensor, key_B: Tensor) -> Minds:
        """As `ImaginedListeners.start`, read by every member."""
        member_B = (uniform(key_B, MEMBER) * len(self.members)).long()
        return Minds([reader.start(row_B) for reader in self.readers], member_B, key_B)

    def step(
        self, state: Minds, track_B: Tensor, t: int
    ) -> tuple[Minds, Feedback, dict[str, Tensor], Tensor, dict[str, Tensor]]:
        """State, sampled feedback, expected signals, utility and ignorance (standard deviations), (B,)."""
        pairs = zip(self.members, state.minds, strict=True)
        answers = [member.answer(mind.h_BD, member.candidates(track_B)) for member, mind in pairs]
        row_B, kinds = torch.arange(len(track_B)), self.members[0].kinds
        own = {name: torch.stack([a[name] for a in answers])[state.member_B, row_B] for name in kinds}
        feedback = sample_feedback(self.members[0], own, luck(state.key_B, t))
        expected = {name: kind.mean(own[name]) for name, kind in kinds.items()}
        mode_B = state.minds[0].mode_B
        reward_B = self.utility(kinds, own, mode_B, torch.full_like(mode_B, t))
        means = {name: torch.stack([k.mean(a[name]) for a in answers]) for name, k in kinds.items()}
        minds = [r.append(m, track_B, feedback) for r, m in zip(self.readers, state.minds, strict=True)]
        return Minds(minds, state.member_B, state.key_B), feedback, expected, reward_B, disagreement(means)

    def encoded(self, state: Minds) -> Tensor:
        """The first member's view (B, D): whose listener it is must not show."""
        return state.minds[0].h_BD


class TrueWorld:
    """The platform's listeners; nothing is unknown to them, so there is no ignorance and no encoding."""

    width = 0

    def __init__(self, platform: Platform, data: SessionDataModule, utility: Utility) -> None:
        self.world = platform.environment(targets=utility.targets)
        self.utility, self.data = utility, data

    def start(self, row_B: Tensor, key_B: Tensor) -> tuple[Any, Tensor]:
        """The platform's own state, and modes."""
        return self.world.start(row_B, key_B), self.data.flat.mode_S[row_B]

    def step(
        self, state: tuple[Any, Tensor], track_B: Tensor, t: int
    ) -> tuple[tuple[Any, Tensor], Feedback, dict[str, Tensor], Tensor, dict[str, Tensor]]:
        """The same of true listeners."""
        inner, feedback, found = self.world.step(state[0], track_B, t)
        reward_B = self.utility.of_values(found, state[1], torch.full_like(state[1], t))
        expected = {name: found[name] for name in self.data.log.metadata.signals}
        return (inner, state[1]), feedback, expected, reward_B, {}
