"""Policies that can be rolled out: one interface in world model and platform.

Shape suffixes: B rollouts, K tracks.
"""

from functools import cached_property
from typing import NamedTuple

import torch
from torch import Tensor

from amrs.data import SessionDataModule
from amrs.listeners import HistoryReader, Mind
from amrs.models.policy import PolicyModel
from amrs.models.world_model import Candidates, Question, WorldModel, WorldModelMember
from amrs.rollout import Feedback
from amrs.utility import Utility

_CERTAIN = 1e6
"""Logits per unit of utility that make a softmax an argmax."""
_SCORED = 8192
"""Tracks that are scored at a time: what lies between them and the result stays in the cache."""


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

    @cached_property
    def tracks(self) -> tuple[Tensor, Tensor]:
        """The model's, as it was at the first choice: of a large catalogue they are dear."""
        with torch.inference_mode():
            return self.model.tracks()

    @torch.inference_mode()
    def start(self, row_B: Tensor, step_B: Tensor | int = 0) -> Mind:
        """Read the logged history, and the session's first `step_B` plays."""
        return self.reader.start(row_B, step_B)

    @torch.inference_mode()
    def logits(self, state: Mind) -> Tensor:
        """(B, K) over the whole catalogue."""
        return self.model.logits(state.h_BD, self.tracks)

    @torch.inference_mode()
    def observe(self, state: Mind, track_B: Tensor, feedback: Feedback) -> Mind:
        """Read one more play."""
        return self.reader.append(state, track_B, feedback)


class Scores(NamedTuple):
    """Histories as each member of a world model has read them, and the tracks of this session so far."""

    minds: list[Mind]
    step: int


class Scorer:
    """Utility of every track next, by a world model (the labeller) that follows the session."""

    def __init__(self, model: WorldModel, utility: Utility, data: SessionDataModule, horizon: int) -> None:
        self.model, self.utility, self.data = model.eval(), utility, data
        self.readers = [HistoryReader(member.encoder, data, horizon) for member in model.ensemble]
        self.mode_MK = data.rules().mode_MK

    @torch.inference_mode()
    def start(self, row_B: Tensor) -> Scores:
        """Read the logged history, once a member."""
        return Scores([reader.start(row_B) for reader in self.readers], 0)

    @torch.inference_mode()
    def utility_of_all(self, state: Scores) -> Tensor:
        """Utility (B, K) of every track next; the lowest in its row for tracks outside the mode."""
        mode_B = state.minds[0].mode_B
        found_BK = torch.empty(len(mode_B), self.data.tracks, device=mode_B.device)
        for mode in mode_B.unique().tolist():
            row_G, track_C = (mode_B == mode).nonzero()[:, 0], self.mode_MK[mode].nonzero()[:, 0]
            track_C = track_C.to(mode_B.device)
            step_G = torch.full_like(row_G, state.step)
            h_MGD = [mind.h_BD[row_G] for mind in state.minds]
            u_GC = catalogue_utility(self.model, self.utility, h_MGD, mode_B[row_G], step_G, track_C)
            u_GK = u_GC.amin(1, keepdim=True).expand(-1, self.data.tracks).clone()
            u_GK[:, track_C] = u_GC
            found_BK[row_G] = u_GK
        return found_BK

    @torch.inference_mode()
    def observe(self, state: Scores, track_B: Tensor, feedback: Feedback) -> Scores:
        """Read one more play, once a member."""
        pairs = zip(self.readers, state.minds, strict=True)
        return Scores([reader.append(mind, track_B, feedback) for reader, mind in pairs], state.step + 1)


class GreedyPolicy:
    """The track of highest utility."""

    def __init__(self, scorer: Scorer) -> None:
        self.scorer = scorer
        self.start, self.observe = scorer.start, scorer.observe

    def logits(self, state: Scores) -> Tensor:
        """(B, K): so steep in utility that a softmax is the argmax."""
        u_BK = self.scorer.utility_of_all(state)
        return _CERTAIN * (u_BK - u_BK.amax(1, keepdim=True))


def catalogue_utility(
    model: WorldModel, utility: Utility, h_MBD: list[Tensor], mode_B: Tensor, step_B: Tensor | None = None,
    track_C: Tensor | None = None, halves: list[Candidates] | None = None,
) -> Tensor:  # fmt: skip
    """Utility (B, K) of every track as play `step_B`, or (B, C) of `track_C`; `h_MBD` has one (B, D) a
    member. `halves` are the members' `candidates`, where they are known already."""
    step_B = torch.zeros_like(mode_B) if step_B is None else step_B
    halves = [member.candidates(track_C) for member in model.ensemble] if halves is None else halves
    member_u = []
    for member, candidates, h_BD in zip(model.ensemble, halves, h_MBD, strict=True):
        chunks = [Candidates(*part) for part in zip(*(x.split(_SCORED) for x in candidates), strict=True)]
        questions = member.questions(h_BD, list(utility.weights))
        asked = zip(questions, mode_B[:, None], step_B[:, None], strict=True)
        member_u.append(torch.stack([_score(member, utility, chunks, *one) for one in asked]))
    track_C = torch.arange(len(halves[0].joined_KH), device=h_MBD[0].device) if track_C is None else track_C
    return utility.joined(torch.stack(member_u), track_C)


def _score(
    member: WorldModelMember, utility: Utility, chunks: list[Candidates], question: Question, mode_1: Tensor,
    step_1: Tensor,
) -> Tensor:  # fmt: skip
    """Utility (K,) of the tracks to one listener."""
    found = []
    for part in chunks:
        params = {name: value[None] for name, value in member.replies(question, part).items()}
        found.append(utility(member.kinds, params, mode_1, step_1)[0])
    return torch.cat(found)
