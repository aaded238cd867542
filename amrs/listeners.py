"""The world model as an environment: listeners that are imagined.

Shape suffixes: B rollouts, G rollouts of one member, D width, F session features as the encoder reads them,
V what is known of a step, T steps.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from amrs.data import SessionDataModule
from amrs.models.folded import FoldedHead
from amrs.models.transformer import Cache, HistoryEncoder
from amrs.models.world_model import WorldModel, WorldModelMember
from amrs.noise import uniform
from amrs.rollout import Feedback

MEMBER, ENGAGEMENT, RATED, RATING, LEFT = range(200, 205)
"""Purposes of random draws."""
_DRAWN = {"engagement": ENGAGEMENT, "rated": RATED, "rating": RATING, "left": LEFT}


@dataclass
class Mind:
    """A history as an encoder has read it."""

    h_BD: Tensor
    """What the history says about the next play."""
    cache: Cache
    static_BF: Tensor
    """`HistoryEncoder.standardised`."""
    mode_B: Tensor


def repeated(mind: Mind, index_B: Tensor) -> Mind:
    """The histories `index_B`, each to go on in its own way however often it is named."""
    old = mind.cache

    def again(x: Tensor) -> Tensor:
        return x.index_select(0, index_B.to(x.device))

    slots = [x.index_select(1, index_B.to(x.device)) for x in old.slots]
    cache = Cache(slots, again(old.length_B), again(old.total_BZ), again(old.session_BY))
    return Mind(again(mind.h_BD), cache, again(mind.static_BF), again(mind.mode_B))


class HistoryReader:
    """Reads logged histories and then what happens in a rollout, one token at a time.

    Minds are on the encoder's device; sessions come from the CPU, where the log is, and plays from anywhere.

    Args:
        encoder: put in eval mode: no dropout in simulation.
        data: where logged histories come from.
        horizon: tracks for which room is kept, so that logged history and rollout together never
            exceed `model.history` tokens.
    """

    def __init__(self, encoder: HistoryEncoder, data: SessionDataModule, horizon: int) -> None:
        if horizon >= encoder.config.history:
            raise ValueError(
                f"a horizon of {horizon} tracks needs model.history above it, not {encoder.config.history}"
            )
        self.encoder, self.data, self.horizon = encoder.eval(), data, horizon

    def start(self, row_B: Tensor, step_B: Tensor | int = 0) -> Mind:
        """Read each session's history and its start token, and its first `step_B` plays.

        A session that is asked for more than once (simulated many times) is read once.
        """
        step_B = torch.as_tensor(step_B).expand_as(row_B)
        most = int(step_B.max()) + 1 if len(step_B) else 1
        once_U, index_B = (row_B * most + step_B).unique(return_inverse=True)
        if len(once_U) < len(row_B):
            return repeated(self._read(once_U // most, once_U % most), index_B)
        return self._read(row_B, step_B)

    def _read(self, row_B: Tensor, step_B: Tensor) -> Mind:
        device, flat = self.encoder.static_mean.device, self.data.flat
        batch = self.data.prefix(row_B, step_B, length=self.encoder.config.history - self.horizon)
        h_BD, cache = self.encoder.prefill(batch.to(device), self.horizon)
        static_BF = self.encoder.standardised(flat.static_SF[row_B].to(device))
        return Mind(h_BD, cache, static_BF, flat.mode_S[row_B].to(device))

    def append(self, mind: Mind, track_B: Tensor, feedback: Feedback) -> Mind:
        """Read one more play."""
        missing_B = torch.full_like(feedback.engagement_B, torch.nan)
        values_B4 = torch.stack([feedback.engagement_B, feedback.rating_B, missing_B, missing_B], 1)
        device = mind.static_BF.device
        h_BD = self.encoder.append(mind.static_BF, track_B.to(device), values_B4.to(device), mind.cache)
        return Mind(h_BD, mind.cache, mind.static_BF, mind.mode_B)

    def append_unheard(self, mind: Mind, track_B: Tensor) -> Mind:
        """Read one more track of the session whose feedback is not known yet."""
        device = mind.static_BF.device
        nothing_B4 = torch.full((len(track_B), 4), torch.nan, device=device)
        h_BD = self.encoder.append(mind.static_BF, track_B.to(device), nothing_B4, mind.cache, hidden=True)
        return Mind(h_BD, mind.cache, mind.static_BF, mind.mode_B)


@dataclass
class _Group:
    """The rollouts that live in one member of the ensemble."""

    member: WorldModelMember
    reader: HistoryReader
    index_G: Tensor
    key_G: Tensor
    luck_GT4: Tensor
    mind: Mind
    head: FoldedHead


class ImaginedListeners:
    """The world model as an environment: each rollout lives in one member, drawn by its key.

    Expected signals are the member's expectations, so an average over rollouts is one over members.
    """

    def __init__(
        self, model: WorldModel, data: SessionDataModule, horizon: int,
        targets: Sequence[tuple[str, float]] = (),
    ) -> None:  # fmt: skip
        """`targets`: signals and values whose expected distance is asked for (`rollout.distance_to`)."""
        self.members = model.ensemble
        self.targets = [(name, target) for name, target in targets if name in self.members[0].kinds]
        self.readers = [HistoryReader(member.encoder, data, horizon) for member in self.members]
        for member in self.members:
            member.eval()

    @torch.inference_mode()
    def start(self, row_B: Tensor, key_B: Tensor, step_B: Tensor | int = 0) -> list[_Group]:
        """Listeners as sessions `row_B` of the log start, or after their first `step_B` plays."""
        step_B = torch.as_tensor(step_B).expand(len(row_B))
        member_B = (uniform(key_B, MEMBER) * len(self.members)).long()
        groups = []
        for m, (member, reader) in enumerate(zip(self.members, self.readers, strict=True)):
            index_G = torch.nonzero(member_B == m)[:, 0]
            if len(index_G):
                mind = reader.start(row_B[index_G], step_B[index_G])
                key_G = key_B[index_G].to(mind.h_BD.device)
                luck_GT4 = luck(key_G[:, None], torch.arange(reader.horizon, device=key_G.device))
                head = FoldedHead(member, list(_DRAWN), self.targets, len(index_G) * reader.horizon)
                index_G = index_G.to(key_G.device)
                groups.append(_Group(member, reader, index_G, key_G, luck_GT4, mind, head))
        return groups

    @torch.inference_mode()
    def forecast(self, state: list[_Group]) -> dict[str, Tensor]:
        """Expected final report (B,) of valence and arousal at a session's start, before any track."""
        total = sum(len(group.index_G) for group in state)
        found: dict[str, Tensor] = {}
        for group in state:
            params = group.member.at_moment(group.mind.h_BD, ended=False)
            for name in {"valence", "arousal"} & set(params):
                whole = found.setdefault(name, torch.empty(total, device=params[name].device))
                whole[group.index_G] = group.member.kinds[name].mean(params[name])
        return found

    @torch.inference_mode()
    def step(
        self, state: list[_Group], track_B: Tensor, t: int
    ) -> tuple[list[_Group], Feedback, dict[str, Tensor]]:
        """Sampled feedback is fed back: mean feedback would hide variance."""
        head = state[0].head  # the members' columns are alike
        track_B = track_B.to(state[0].index_G.device)
        size = len(track_B), len(head.drawn) + len(head.expected)
        found_BV, groups = torch.empty(size, device=track_B.device), []
        for group in state:
            track_G = track_B.index_select(0, group.index_G)
            found_GV = group.head.respond(group.mind.h_BD, track_G, group.luck_GT4[:, t])
            found_BV.index_copy_(0, group.index_G, found_GV)
            feedback = _feedback(dict(zip(head.drawn, found_GV.unbind(1), strict=False)))
            groups.append(replace(group, mind=group.reader.append(group.mind, track_G, feedback)))
        columns = found_BV.unbind(1)
        feedback = _feedback(dict(zip(head.drawn, columns, strict=False)))
        return groups, feedback, dict(zip(head.expected, columns[len(head.drawn) :], strict=True))


def luck(key_G: Tensor, t: int | Tensor) -> Tensor:
    """What decides the feedback at step `t` (broadcast to the keys), uniform in (0, 1), (..., 4)."""
    t, purpose_4 = (torch.as_tensor(x).to(key_G.device) for x in (t, [*_DRAWN.values()]))
    return uniform(key_G[..., None], t[..., None], purpose_4)


def sample_feedback(member: WorldModelMember, params: dict[str, Tensor], u_G4: Tensor) -> Feedback:
    """Feedback drawn from a member's answer, by the rollouts' `luck`."""
    drawn = zip(_DRAWN, u_G4.unbind(1), strict=True)
    return _feedback(
        {name: member.kinds[name].sample(params[name], u) for name, u in drawn if name in params}
    )


def _feedback(drawn: Mapping[str, Tensor]) -> Feedback:
    """What is shown of signals that were drawn: a rating only where it is given."""
    left_G = drawn["left"] > 0.5
    missing_G = torch.full_like(drawn["left"], torch.nan)
    rating_G = missing_G
    if "rating" in drawn:
        rating_G = torch.where(drawn["rated"] > 0.5, drawn["rating"], missing_G)
    return Feedback(drawn.get("engagement", missing_G), rating_G, left_G)
