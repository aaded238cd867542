"""Smooth functions of a track's embedding, for linear models of what no line through the channels can say.

Shape suffixes: E embedding, C curves.
"""

import math

import torch
from torch import Tensor, nn

WIDTH = 0.5
"""Width of the kernel in root mean squares of an embedding's norm: so near must tracks lie to be told of each
other."""
_SEED = 0


class Curves(nn.Module):
    """Random Fourier features of a Gaussian kernel (Rahimi and Recht 2007, algorithm 1).

    A linear model of them with a squared penalty is nearly a Gaussian process: a track that others have heard
    has a height of its own, a new one that of the tracks around it. All members of an ensemble have the same,
    as they are fitted to one set of features.

    Args:
        size: channels of an embedding, of mean square 1 over the catalogue.
        count: how many, 1 or more.
    """

    frequency_CE: Tensor
    phase_C: Tensor

    def __init__(self, size: int, count: int) -> None:
        super().__init__()
        random = torch.Generator().manual_seed(_SEED)
        frequency_CE = torch.randn(count, size, generator=random) / (WIDTH * size**0.5)
        self.register_buffer("frequency_CE", frequency_CE)
        self.register_buffer("phase_C", 2 * math.pi * torch.rand(count, generator=random))

    def forward(self, embedding: Tensor) -> Tensor:
        """(..., E) to (..., C), each of mean square about 1."""
        return math.sqrt(2) * torch.cos(embedding @ self.frequency_CE.T + self.phase_C)
