"""Matrix products by oneDNN, on CPUs where torch's own go elsewhere.

torch.mm calls MKL, which uses half of an AMD core's vector width (95 of 210 GFLOP/s here); oneDNN, which
torch ships as well, uses all of it. The operator is the one that torch.compile puts in for nn.Linear.
Shape suffixes: N rows, I inputs, O outputs.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

_ONEDNN = torch.backends.mkldnn.is_available() and hasattr(torch.ops.mkldnn, "_linear_pointwise")

_NARROW, _FEW = 32, 1024
"""Inputs or outputs, and rows in training, below which MKL does: oneDNN makes a kernel for each new shape."""
_SMALL = 1 << 20
"""Multiplications below which MKL is the faster."""


def _product(x_NI: Tensor, weight_OI: Tensor, bias_O: Tensor | None = None) -> Tensor:
    """x W^T + b."""
    # The operator takes any strides for x and W, but reads a bias as if it were contiguous.
    bias_O = None if bias_O is None else bias_O.contiguous()
    out: Tensor = torch.ops.mkldnn._linear_pointwise(x_NI, weight_OI, bias_O, "none", [], "")
    return out


class _Linear(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight_OI: Tensor, bias_O: Tensor | None) -> Tensor:
        x = x.contiguous()
        ctx.save_for_backward(x, weight_OI)
        return _product(x, weight_OI, bias_O)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        x, weight_OI = ctx.saved_tensors
        grad = grads[0].contiguous()  # a strided or expanded operand goes to a reference kernel
        needs_x, needs_weight, needs_bias = ctx.needs_input_grad
        grad_NO, x_NI = grad.reshape(-1, weight_OI.shape[0]), x.reshape(-1, weight_OI.shape[1])
        grad_x = _product(grad_NO, weight_OI.T).view_as(x) if needs_x else None
        grad_weight = None
        if needs_weight:  # the narrow side first is the faster
            wide = weight_OI.shape[0] > weight_OI.shape[1]
            grad_weight = _product(x_NI.T, grad_NO.T).T if wide else _product(grad_NO.T, x_NI.T)
        return grad_x, grad_weight, grad_NO.sum(0) if needs_bias else None


def linear(x: Tensor, weight_OI: Tensor, bias_O: Tensor | None = None) -> Tensor:
    """As F.linear, for x of shape (..., I)."""
    if not torch.is_grad_enabled() and x.numel() * len(weight_OI) < _SMALL:
        return F.linear(x, weight_OI, bias_O)
    if not _ONEDNN or x.device.type != "cpu" or x.dtype != torch.float32 or torch.is_autocast_enabled("cpu"):
        return F.linear(x, weight_OI, bias_O)
    if not x.numel() or x.ndim < 2 or min(weight_OI.shape) < _NARROW:
        return F.linear(x, weight_OI, bias_O)
    if torch.is_grad_enabled() and x.numel() < _FEW * x.shape[-1]:
        return F.linear(x, weight_OI, bias_O)
    if not torch.is_grad_enabled():
        return _product(x, weight_OI, bias_O)
    out: Tensor = _Linear.apply(x, weight_OI, bias_O)  # type: ignore[no-untyped-call]
    return out


class Linear(nn.Linear):
    """As nn.Linear."""

    def forward(self, input: Tensor) -> Tensor:
        """(..., I) to (..., O)."""
        return linear(input, self.weight, self.bias)
