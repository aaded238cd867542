"""Policies that can be rolled out: one interface in world model and platform.

Shape suffixes: B rollouts, K tracks.
"""

import torch
from torch import Tensor

from amrs.data import SessionDataModule
from amrs.listeners import HistoryReader, Mind
from amrs.models.policy import PolicyModel
from amrs.models.world_model import WorldModel
from amrs.rollout import Feedback
from amrs.utility import Utility

_CERTAIN = 1e6
"""Logits per unit of utility that make a softmax an argmax."""
_CHUNK = 64
"""Histories whose whole catalogue is scored at a time, to bound memory."""


class FixedPolicy:
    """The same logits for everybody: Random (all equal) and Popularity (log of plays)."""

    def __init__(self, logits_K: Tensor) -> None:
        self.logits_K = logits_K

    def start(self, row_B: Tensor) -> int:
        """Knows only how many there are."""
        return len(row_B)

    def logits(self, state: int) -> Tensor:
        """(B, K), the same for all."""
        return self.logits_K.expand(state, -1)

    def observe(self, state: int, track_B: Tensor, feedback: Feedback) -> int:
        """Learns nothing."""
        return state


class NeuralPolicy:
    """Copycat or a DPO policy."""

    def __init__(self, model: PolicyModel, data: SessionDataModule, horizon: int) -> None:
        self.model = model.eval()
        self.reader = HistoryReader(model.encoder, data, horizon)

    @torch.inference_mode()
    def start(self, row_B: Tensor) -> Mind:
        """Read the logged history."""
        self.tracks = self.model.tracks()
        return self.reader.start(row_B)

    @torch.inference_mode()
    def logits(self, state: Mind) -> Tensor:
        """(B, K) over the whole catalogue."""
        return self.model.logits(state.h_BD, self.tracks).cpu()

    @torch.inference_mode()
    def observe(self, state: Mind, track_B: Tensor, feedback: Feedback) -> Mind:
        """Read one more play."""
        return self.reader.append(state, track_B, feedback)


class GreedyPolicy:
    """The track of highest utility as a world model (the labeller) predicts it."""

    def __init__(self, model: WorldModel, utility: Utility, data: SessionDataModule, horizon: int) -> None:
        self.model, self.utility = model.eval(), utility
        self.readers = [HistoryReader(member.encoder, data, horizon) for member in model.ensemble]

    @torch.inference_mode()
    def start(self, row_B: Tensor) -> list[Mind]:
        """Read the logged history, once a member."""
        return [reader.start(row_B) for reader in self.readers]

    @torch.inference_mode()
    def logits(self, state: list[Mind]) -> Tensor:
        """(B, K): so steep in utility that a softmax is the argmax."""
        return _CERTAIN * catalogue_utility(
            self.model, self.utility, [m.h_BD for m in state], state[0].mode_B
        )

    @torch.inference_mode()
    def observe(self, state: list[Mind], track_B: Tensor, feedback: Feedback) -> list[Mind]:
        """Read one more play, once a member."""
        return [r.append(mind, track_B, feedback) for r, mind in zip(self.readers, state, strict=True)]


def catalogue_utility(model: WorldModel, utility: Utility, h_MBD: list[Tensor], mode_B: Tensor) -> Tensor:
    """Utility (B, K) of every track next, averaged over members; `h_MBD` has one (B, D) a member."""
    total_BK: Tensor | None = None
    for member, h_BD in zip(model.ensemble, h_MBD, strict=True):
        candidates = member.candidates()
        chunks = [
            utility(member.kinds, member.score(h, candidates, list(utility.weights)), mode)
            for h, mode in zip(h_BD.split(_CHUNK), mode_B.split(_CHUNK), strict=True)
        ]
        total_BK = torch.cat(chunks) if total_BK is None else total_BK + torch.cat(chunks)
    assert total_BK is not None
    return total_BK / len(h_MBD)
