"""How strong a hidden common cause of track choice and affect must be to explain a gain away.

Marginal sensitivity model (Tan 2006): with the hidden cause known, the odds of a track would differ from
those that the history shows by at most a factor Gamma. A single track is rarely played, so the report that
it would bring to those who did not hear it is the observed report's distribution, tilted by weights in
[1 / Gamma, Gamma] with mean 1. The sharp bound puts the weight Gamma on the lowest reports (Zhao, Small and
Bhattacharya 2019; Dorn and Guo 2022): the mass 1 / (1 + Gamma), since
Gamma m + (1 - m) / Gamma = 1. Copycat plays what was played, so its outcome needs no tilt.
Shape suffix: N reports.
"""

import numpy as np

FARTHEST = 10.0
"""Bound beyond which no hidden cause is looked for."""
_HALVINGS = 40


def tilted_mean(residual_N: np.ndarray, gamma: float) -> float:
    """Least mean of the residuals that weights in [1 / gamma, gamma] with mean 1 can give."""
    ordered_N = np.sort(np.asarray(residual_N, dtype=np.float64))
    edge_N = np.arange(len(ordered_N) + 1) / len(ordered_N)
    low_N = np.minimum(edge_N, 1 / (1 + gamma))  # mass of the lowest reports up to each edge
    weight_N = gamma * np.diff(low_N) + (np.diff(edge_N) - np.diff(low_N)) / gamma
    return float((weight_N * ordered_N).sum())


def breaking_gamma(lower_bound: float, residual_N: np.ndarray) -> float | None:
    """Gamma at which a gain's lower bound is gone; 1 where there is none, None beyond `FARTHEST`.

    Args:
        lower_bound: of the predicted gain, in scale points.
        residual_N: held-out reports less their predictions; their mean is taken out.
    """
    centred_N = residual_N - residual_N.mean()
    if lower_bound <= 0:
        return 1.0
    if lower_bound + tilted_mean(centred_N, FARTHEST) > 0:
        return None
    low, high = 1.0, FARTHEST
    for _ in range(_HALVINGS):
        middle = (low + high) / 2
        low, high = (middle, high) if lower_bound + tilted_mean(centred_N, middle) > 0 else (low, middle)
    return (low + high) / 2
