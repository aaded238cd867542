"""A world model's head for rollouts: what one track does to each listener, and what they show of it.

At 64 listeners a step costs operators, not arithmetic. So products of the same input are one, all that is
linear in what the head reads is one, the tracks' half is looked up where a catalogue is smaller than what
will be asked, and signals of a kind lie side by side. Equal to `WorldModelMember.answer`, `means` and
`listeners.sample_feedback` to rounding.
Shape suffixes: G rollouts, K tracks, D width, H hidden, P parameters, X moves, T tastes, V what is shown.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from amrs.models.linear import linear
from amrs.models.summaries import RATIOS, SESSION, TASTES
from amrs.models.world_model import WorldModelMember
from amrs.rollout import distance_to
from amrs.signals import Kind


class FoldedHead:
    """A member's head with weights as they are now.

    Args:
        member: in eval mode.
        drawn: signals whose feedback is sampled, in the order of the columns of `u_GU` below.
        targets: signals of the member and values whose expected distance is asked for.
        asked: tracks that will be asked about in all; a catalogue of more is not looked up.
    """

    def __init__(
        self, member: WorldModelMember, drawn: Sequence[str], targets: Sequence[tuple[str, float]], asked: int
    ) -> None:
        self.member, self.targets = member, targets
        by_kind: dict[Kind, list[str]] = {}
        for name in sorted(member.kinds, key=lambda name: drawn.index(name) if name in drawn else len(drawn)):
            by_kind.setdefault(member.kinds[name], []).append(name)
        at_of = {kind: [drawn.index(x) for x in names if x in drawn] for kind, names in by_kind.items()}
        self.drawn = [name for kind, names in by_kind.items() for name in names[: len(at_of[kind])]]
        device = member.head.weight.device
        self.groups = [(kind, names, torch.tensor(at_of[kind], dtype=torch.int64, device=device))
                       for kind, names in by_kind.items()]  # fmt: skip
        self.signals = [name for names in by_kind.values() for name in names]
        self.expected = [*self.signals, *(distance_to(*asked_for) for asked_for in targets)]
        self._fold(member)
        catalogue = member.encoder.embedding_KE
        self.table = self._track_half(None) if len(catalogue) <= asked else None

    def _fold(self, member: WorldModelMember) -> None:
        first, start_P = {}, 0
        for name, kind in member.kinds.items():
            first[name], start_P = start_P, start_P + kind.size
        order = [first[name] + p for name in self.signals for p in range(member.kinds[name].size)]
        index_P = torch.tensor(order, device=member.head.weight.device)
        own = member.history_affinity, member.history_joined
        self.own_weight, self.own_bias = torch.cat([x.weight for x in own]), torch.cat([x.bias for x in own])
        scale_T, scored = member.near_scale_T, member.affinity_joined.weight
        self.joined_weight = torch.cat([scored[:, : -len(TASTES)], scored[:, -len(TASTES) :] * scale_T], 1)
        crossed_XTR = member.cross_linear.weight.unflatten(1, (len(TASTES), RATIOS)) * scale_T[:, None]
        near_XT = member.near_linear.weight * scale_T
        moved = [member.session_linear.weight, member.known_linear.weight, near_XT,
                 member.of_play_X[:, None] * crossed_XTR.flatten(1)]  # fmt: skip
        self.move_XP = member.move_XP[:, index_P]
        self.head_weight = torch.cat([member.head.weight[index_P], self.move_XP.T @ torch.cat(moved, 1)], 1)
        self.head_bias = member.head.bias[index_P]

    def _track_half(self, track_G: Tensor | None) -> Tensor:
        """Per track: what it adds to the hidden layer and the parameters, its affinity, its embedding."""
        half = self.member.candidates(track_G)
        moved = torch.addmm(self.head_bias, half.linear_KX, self.move_XP)
        return torch.cat([half.joined_KH, half.affinity_KD, half.embedding_KE, moved], -1)

    def answer(self, h_GD: Tensor, track_G: Tensor) -> Tensor:
        """Parameters (G, P) of all signals, in the order of `signals`."""
        member, sizes = self.member, self.member.encoder.sizes
        width, hidden, size = sizes[0], len(self.joined_weight), sizes[1] // len(TASTES)
        half = self._track_half(track_G) if self.table is None else self.table.index_select(0, track_G)
        joined, affinity, embedding, moved = half.split([hidden, width, size, len(self.head_bias)], 1)
        query, joined_own = linear(h_GD[:, :width], self.own_weight, self.own_bias).split([width, hidden], 1)
        products = (query * affinity).unflatten(1, (member.affinities, -1)).sum(-1)
        taste_GTE = h_GD[:, width : width + sizes[1]].unflatten(1, (len(TASTES), size))
        near_GT1 = torch.bmm(taste_GTE, embedding[:, :, None])
        own = torch.addmm(
            joined + joined_own, torch.cat([products, near_GT1[..., 0]], 1), self.joined_weight.T
        )
        if member.situation:
            situated_GX = (member.situated(h_GD[:, width + sizes[1] :]) * embedding[:, None, :]).sum(-1)
            moved = torch.addmm(moved, situated_GX, self.move_XP)
        # The session's taste is the last, so that it and what else is known lie side by side.
        told = h_GD[:, width + SESSION * size :]
        crossed = near_GT1 * told[:, None, size : size + RATIOS]
        read = torch.cat([F.gelu(own), told, near_GT1[..., 0], crossed.flatten(1)], 1)
        return torch.addmm(moved, read, self.head_weight.T)

    def respond(self, h_GD: Tensor, track_G: Tensor, u_GU: Tensor) -> Tensor:
        """What the listeners show, drawn by `u_GU`, and what they were expected to: (G, V), columns `drawn`
        and then `expected`."""
        params, start, shown, expected = self.answer(h_GD, track_G), 0, [], []
        params_of: dict[str, Tensor] = {}
        for kind, names, at_U in self.groups:
            stop = start + len(names) * kind.size
            params_GNP = params[:, start:stop].unflatten(1, (len(names), kind.size))
            expected.append(kind.mean(params_GNP))
            if len(at_U):
                shown.append(kind.sample(params_GNP[:, : len(at_U)], u_GU.index_select(1, at_U)))
            if self.targets:
                params_of |= zip(names, params_GNP.unbind(1), strict=True)
            start = stop
        away = (self.member.kinds[x].distance(params_of[x], target)[:, None] for x, target in self.targets)
        return torch.cat([*shown, *expected, *away], 1)
