"""Slower ways to the same figures, for comparison."""

import torch
from torch import Tensor


def expected_distance(cdf: Tensor, grid_G: Tensor, target: float) -> Tensor:
    """E|y - target| on [0, 1]: integral of F below the target and of 1 - F above it.

    Each point of the increasing grid stands for the interval up to halfway to its neighbours, or to 0
    and 1. On midpoints (`midpoints`) no point lies on an end, where F jumps.
    """
    middle = (grid_G[1:] + grid_G[:-1]) / 2
    edge = torch.cat([middle.new_zeros(1), middle, middle.new_ones(1)])
    below_G = (edge[1:].clamp(max=target) - edge[:-1]).clamp(min=0)
    return cdf @ below_G + (1 - cdf) @ (edge.diff() - below_G)


def midpoints(count: int, device: torch.device | None = None) -> Tensor:
    """Middles of `count` even intervals of [0, 1]."""
    return (torch.arange(count, device=device) + 0.5) / count
