"""Where training starts: the world model's linear part, fitted by itself.

A few hundred steps of stochastic gradients leave a linear model far from its optimum, and a few thousand
reports leave its optimum far from the truth. So the linear part is fitted first, to all labels of training
users at once (L-BFGS; Liu and Nocedal 1989), held back as much as users that it was not fitted to ask for;
training starts there and adds what a linear model misses.
Shape suffixes: N labels, F features, P parameters of a head, X moves of a signal.
"""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from amrs.bags import Bags
from amrs.batches import Batch
from amrs.data import SessionDataModule
from amrs.fidelity.estimators import tuning_rows
from amrs.fidelity.targets import AFFECT
from amrs.logs.histories import LABELS, TARGETS
from amrs.logs.splits import TRAIN, VALIDATION
from amrs.models.world_model import WorldModel, WorldModelMember
from amrs.signals import Kind

MOST = 80_000
"""Labels that a fit takes (about); of more, some are left out at random."""
_STEPS, _ENOUGH, _BATCH = 30, 1e-5, 128
_PIECES = 256
"""Batches whose labels are put together at a time: small pieces would stay in memory beside the whole."""


class Examples(NamedTuple):
    """Labels of one signal, with what the linear part sees when they are asked for."""

    feature_NF: Tensor
    value_N: Tensor
    weight_N: Tensor
    user_N: Tensor
    part_N: Tensor

    def to(self, device: torch.device) -> "Examples":
        """The same on another device."""
        return Examples(*(x.to(device) for x in self))

    def kept(self, keep_N: Tensor) -> "Examples":
        """Those where `keep_N` is True, or whose numbers it holds."""
        return Examples(*(x[keep_N] for x in self))


class Fit(NamedTuple):
    """A signal's parameters where every feature is 0, and its moves by each feature."""

    bias_P: Tensor
    weight_XF: Tensor


def start_linear(
    model: WorldModel, data: SessionDataModule, weights: dict[str, float], bags: Bags, seed: int,
    penalties: Sequence[float], device: torch.device,
) -> list[str]:  # fmt: skip
    """Put each member's linear part and head where a linear model of its own would be.

    Returns the signals that have labels, and so a start.

    Args:
        model: untrained, its statistics fitted.
        data: the users to train on and to tune on.
        weights: of each of `LABELS` in the loss; signals without any keep their untrained start.
        bags: which users each member is fitted to.
        seed: of what is left out, and of the folds of tuning.
        penalties: tried, from the strongest: weights of half the squared norm against the sum of negative
            log-likelihoods, for features of spread 1.
        device: where the fits are computed.
    """
    first = model.ensemble[0]
    for member in model.ensemble:
        torch.nn.init.zeros_(member.head.weight)  # what is untrained would be noise beside the fit
    labels = examples(first, data, weights, seed)
    names = list(labels)
    for name in names:
        kind, found = first.kinds[name], labels.pop(name).to(device)  # what was fitted to is let go of
        penalty = tuned_penalty(kind, found, seed, penalties)
        # A fit from nothing has not arrived after so few steps: weaker penalties go on from the stronger.
        path = [one for one in penalties if one >= penalty]
        found = found.kept(found.part_N == TRAIN)
        for number, member in enumerate(model.ensemble):
            weight_N = found.weight_N * bags.times(number, found.user_N)
            member.start_linear(name, *fitted(kind, found._replace(weight_N=weight_N), path)[-1])
    return names


@torch.inference_mode()
def examples(
    member: WorldModelMember, data: SessionDataModule, weights: dict[str, float], seed: int
) -> dict[str, Examples]:
    """Labels by signal of training and validation users; some sessions' feedback is hidden, as in
    training."""
    random, rows = torch.Generator().manual_seed(seed), dict[str, list[Examples]]()
    count_Z = sum(data.label_counts(data.windows(part)).sum(0) for part in (TRAIN, VALIDATION))
    share = dict(zip(LABELS, (MOST / torch.as_tensor(count_Z)).tolist(), strict=True))
    for part in (TRAIN, VALIDATION):
        for window_B3 in data.windows(part).split(_BATCH):
            batch = data.gather(window_B3, hidden_seed=seed)
            for moment, asked_BL, value_NY, names in _asked(batch):
                feature_NF = member.linear_features(batch, asked_BL, of_track=not moment)
                of_report_NF = member.of_report(feature_NF)
                draw_N = torch.rand(len(feature_NF), generator=random)
                for value_N, name in zip(value_NY.unbind(1), names, strict=True):
                    label = moment + name
                    if weights[label] and name in member.kinds:
                        one_N = torch.ones_like(value_N)
                        user_N = batch.user_B[:, None].expand(asked_BL.shape)[asked_BL]
                        seen_NF = of_report_NF if name in AFFECT else feature_NF
                        found = Examples(seen_NF, value_N, weights[label] * one_N, user_N, part * one_N)
                        kept = found.kept(~value_N.isnan() & (draw_N < share[label]))
                        pieces = rows.setdefault(name, [])
                        pieces.append(kept)
                        if len(pieces) == _PIECES:
                            pieces[:] = [_joined(pieces)]
    joined = {name: _joined(rows.pop(name)) for name in list(rows)}
    return {name: found for name, found in joined.items() if (found.part_N == TRAIN).any()}


def _joined(pieces: list[Examples]) -> Examples:
    return Examples(*map(torch.cat, zip(*pieces, strict=True)))


def _asked(batch: Batch) -> Iterator[tuple[str, Tensor, Tensor, tuple[str, ...]]]:
    """What is asked: the moment in the labels' names, where (B, L), the answers (N, Y), the signals."""
    told_BL = batch.counts_BL & ~batch.report_BL2.isnan().all(-1)
    next_BL = batch.counts_BL & (batch.next_track_BL >= 0)
    yield "", next_BL, batch.target_BLY[next_BL], TARGETS
    for moment, asked_BL in (
        ("start_", told_BL & (batch.step_BL == 0)),
        ("end_", told_BL & (batch.step_BL > 0)),
    ):
        yield moment, asked_BL, batch.report_BL2[asked_BL], AFFECT


def tuned_penalty(kind: Kind, found: Examples, seed: int, penalties: Sequence[float]) -> float:
    """The penalty under which users that were not fitted are likeliest (see `estimators.tuning_rows`)."""
    loss_G = np.zeros(len(penalties))
    user_N, part_N = found.user_N.cpu().numpy(), found.part_N.cpu().numpy().astype(np.int8)
    for fit, score in tuning_rows(user_N, part_N, seed):
        scored = found.kept(torch.from_numpy(score))
        fits = fitted(kind, found.kept(torch.from_numpy(fit)), penalties)
        loss_G += [float(loss(kind, one, scored).sum()) for one in fits]
    return penalties[int(loss_G.argmin())]


def loss(kind: Kind, fit: Fit, found: Examples) -> Tensor:
    """Weighted negative log-likelihood of each label, (N,)."""
    params = kind.moved(fit.bias_P.expand(len(found.value_N), -1), found.feature_NF @ fit.weight_XF.T)
    return kind.nll(params, found.value_N) * found.weight_N


def fitted(kind: Kind, found: Examples, penalties: Sequence[float]) -> list[Fit]:
    """The fit of least loss and penalty for each penalty, each started at the one before."""
    mean_F, spread_F = found.feature_NF.mean(0), found.feature_NF.std(0)
    scale_F = torch.where(spread_F > 1e-4, 1 / spread_F, 0.0)
    found = found._replace(feature_NF=(found.feature_NF - mean_F).mul_(scale_F))
    count = max(float(found.weight_N.sum()), 1.0)
    initial_P = kind.initial().to(mean_F.device)
    bias_P = initial_P.clone().requires_grad_()
    weight_XF = torch.zeros(kind.moves, len(mean_F), device=mean_F.device, requires_grad=True)
    fits = []
    for penalty in penalties:
        optimiser = torch.optim.LBFGS(
            [bias_P, weight_XF], max_iter=_STEPS, tolerance_change=_ENOUGH, line_search_fn="strong_wolfe"
        )

        def closure(penalty: float = penalty, optimiser: torch.optim.LBFGS = optimiser) -> Tensor:
            optimiser.zero_grad()
            total = loss(kind, Fit(bias_P, weight_XF), found).sum()
            # Labels that are all the same would drive the bias away without end.
            held = penalty * weight_XF.square().sum() + (bias_P - initial_P).square().sum()
            total = (total + 0.5 * held) / count
            total.backward()
            return total

        optimiser.step(closure)
        unscaled_XF = weight_XF.detach() * scale_F
        fits.append(Fit(kind.moved(bias_P.detach(), -(unscaled_XF @ mean_F)), unscaled_XF))
    return fits
