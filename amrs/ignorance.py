"""What the ensemble does not know: where its members disagree.

By the law of total variance over members, the variance of the ensemble's prediction is noise (the mean of
the members' variances, which no data removes) plus ignorance (the variance of the members' means, which
more listeners would remove; Lakshminarayanan et al. 2017, Kendall and Gal 2017).
Shape suffixes: M members, N predictions, B sessions, C lists or candidates, T tracks of a list, E embedding.
"""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from amrs import metrics
from amrs.data import SessionDataModule
from amrs.listeners import HistoryReader
from amrs.metrics.fidelity import Floats, Ints
from amrs.models.world_model import WorldModel
from amrs.signals import Kind

WORST = 0.1
"""Share of predictions whose error counts as bad."""


class Split(NamedTuple):
    """Predictive variance in two parts, in squared scale points."""

    noise: Tensor
    ignorance: Tensor


def split_variance(means: Tensor, variances: Tensor) -> Split:
    """Noise and ignorance from each member's mean and variance, members first: (M, ...) to (...).

    They sum to the variance of the equal mixture of the members.
    """
    return Split(variances.mean(0), means.var(0, unbiased=False))


def ensemble_split(kind: Kind, params: Sequence[Tensor]) -> Split:
    """Noise and ignorance of a signal from the head parameters of every member."""
    means = torch.stack([kind.mean(p) for p in params])
    return split_variance(means, torch.stack([kind.variance(p) for p in params]))


def disagreement(means: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Standard deviation between members of each signal's mean, (M, ...) to (...), in scale points: what a
    pessimistic utility takes off. 0 for a single member, which cannot disagree."""
    return {name: mean.std(0, unbiased=False) for name, mean in means.items()}


@torch.inference_mode()
def list_means(
    model: WorldModel, data: SessionDataModule, row_B: Tensor, track_BT: Tensor, signals: Sequence[str]
) -> dict[str, Tensor]:
    """Each member's expectation (M, B) after the last of `track_BT` in sessions `row_B`, no feedback known:
    the report if the session ended there, and the feedback to that track."""
    found: dict[str, list[Tensor]] = {}
    for member in model.eval().ensemble:
        mind = (reader := HistoryReader(member.encoder, data, track_BT.shape[1])).start(row_B)
        for t in range(track_BT.shape[1] - 1):
            mind = reader.append_unheard(mind, track_BT[:, t])
        params = member.answer(mind.h_BD, member.candidates(track_BT[:, -1]))
        for name in signals:
            found.setdefault(name, []).append(member.kinds[name].mean(params[name]))
    return {name: torch.stack(means) for name, means in found.items()}


@torch.inference_mode()
def far_disagreement(
    model: WorldModel, data: SessionDataModule, row_B: Tensor, track_C: Tensor, factor: float
) -> dict[str, Tensor]:
    """Ignorance (B, C) as a standard deviation, of tracks moved `factor` times as far from the catalogue's
    centre, as the first track of sessions `row_B`."""
    found: dict[str, list[Tensor]] = {}
    for member in model.eval().ensemble:
        candidates = member.unseen(factor * member.encoder.embedding_KE[track_C])
        params = member.score(HistoryReader(member.encoder, data, 1).start(row_B).h_BD, candidates)
        for name, value in params.items():
            found.setdefault(name, []).append(member.kinds[name].mean(value))
    return disagreement({name: torch.stack(means) for name, means in found.items()})


def caught(error_N: Floats, ignorance_N: Floats, worst: float = WORST) -> float:
    """AUROC of "the error is among the worst tenth" by ignorance; .5 says that it knows nothing of it."""
    bad_N = (error_N > np.quantile(error_N, 1 - worst)).astype(float)
    return metrics.auroc(bad_N, ignorance_N)


def caught_interval(
    error_N: Floats, ignorance_N: Floats, user_N: Ints, draws: int, seed: int
) -> metrics.Estimate:
    """`caught` with its interval over users; which errors are the worst is settled once."""
    bad_N = (error_N > np.quantile(error_N, 1 - WORST)).astype(float)
    return metrics.auroc_interval(bad_N, ignorance_N, user_N, min(draws, 200), seed)
