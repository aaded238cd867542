"""What the ensemble does not know: where its members disagree, and how little is known of a listener.

By the law of total variance over members, the variance of the ensemble's prediction is the mean of the
members' variances plus the variance of their means. The second part more listeners would remove
(Lakshminarayanan et al. 2017, Kendall and Gal 2017). The first is noise, but of reports not all of it: a
listener who did not report before the session is harder to predict than one who did. What a report's variance
has above the least that anybody's has, knowing that listener better would remove; it is ignorance too.
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

LEAST = 0.05
"""Share of predictions with less variance than a report's noise is taken to have."""
WORST = 0.1
"""Share of predictions whose error counts as bad."""


class Split(NamedTuple):
    """Predictive variance in two parts, in squared scale points."""

    noise: Tensor
    ignorance: Tensor


def split_variance(means: Tensor, variances: Tensor, floor: float = torch.inf) -> Split:
    """Noise and ignorance from each member's mean and variance, members first: (M, ...) to (...).

    They sum to the variance of the equal mixture of the members. Variance above `floor` (`least_noise`) is
    ignorance of the listener.
    """
    noise = variances.mean(0)
    unknown = (noise - floor).clamp(min=0)
    return Split(noise - unknown, means.var(0, unbiased=False) + unknown)


def least_noise(variances: Tensor) -> float:
    """The noise of a report as such: what hardly any prediction of those given falls below (their 5 %
    quantile). Not for behaviour, whose noise differs between listeners by nature."""
    return float(np.quantile(variances.mean(0).numpy(), LEAST))


def disagreement(means: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Standard deviation between members of each signal's mean, (M, ...) to (...), in scale points: what a
    pessimistic utility takes off. 0 for a single member, which cannot disagree."""
    return {name: mean.std(0, unbiased=False) for name, mean in means.items()}


@torch.inference_mode()
def list_moments(
    model: WorldModel, data: SessionDataModule, row_B: Tensor, track_BT: Tensor, signals: Sequence[str]
) -> dict[str, Tensor]:
    """Each member's mean and variance (2, M, B) after the last of `track_BT` in sessions `row_B`, no feedback
    known: of the report if the session ended there, and of the feedback to that track."""
    found: dict[str, list[Tensor]] = {}
    for member in model.eval().ensemble:
        mind = (reader := HistoryReader(member.encoder, data, track_BT.shape[1])).start(row_B)
        for t in range(track_BT.shape[1] - 1):
            mind = reader.append_unheard(mind, track_BT[:, t])
        params = member.answer(mind.h_BD, member.candidates(track_BT[:, -1]))
        for name in signals:
            kind = member.kinds[name]
            found.setdefault(name, []).append(
                torch.stack([kind.mean(params[name]), kind.variance(params[name])])
            )
    return {name: torch.stack(moments, 1) for name, moments in found.items()}


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
