"""Dropout whose mask is four 16-bit draws of one 64-bit number: on a CPU, drawing is most of its cost."""

import torch
from torch import Tensor, nn

_LANES, _LEVELS = 4, 1 << 16


def keep_noise(shape: torch.Size, p: float) -> Tensor:
    """0 with probability `p`, else 1 / (1 - p), as float32 of `shape`; `p` to 1 / 65,536, of which the
    scale is exact."""
    dropped = min(round(p * _LEVELS), _LEVELS - 1)
    count = shape.numel()
    draws = torch.empty(-(-count // _LANES), dtype=torch.int64).random_(-(1 << 63), None)
    lane = draws.view(torch.int16)[:count].view(shape)
    noise = torch.empty(shape)
    torch.ge(lane, dropped - _LEVELS // 2, out=noise)
    return noise.mul_(_LEVELS / (_LEVELS - dropped))


class Dropout(nn.Dropout):
    """As nn.Dropout, which it is on other devices."""

    def forward(self, input: Tensor) -> Tensor:
        """Zero some values in training, and scale the others so that the mean stays."""
        if not self.training or self.p == 0:
            return input
        if input.device.type != "cpu" or input.dtype != torch.float32:
            return super().forward(input)
        return input * keep_noise(input.shape, self.p)
