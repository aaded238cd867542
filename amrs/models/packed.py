"""Tokens of a padded batch, one after another.

Shape suffixes: B batch, L tokens, N tokens that are read, M rows asked for, D width.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

_ROUND = 256
"""Numbers of rows are multiples of it."""


class _Take(torch.autograd.Function):
    """Rows of a matrix, each at most once, so that the gradient is copied back instead of added up."""

    @staticmethod
    def forward(ctx: Any, x_ND: Tensor, row_M: Tensor) -> Tensor:
        ctx.save_for_backward(row_M)
        ctx.rows = len(x_ND)
        return x_ND.index_select(0, row_M)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        (row_M,), (grad_MD,) = ctx.saved_tensors, grads
        return grad_MD.new_zeros(ctx.rows, grad_MD.shape[1]).index_copy_(0, row_M, grad_MD), None


def take_rows(x_ND: Tensor, row_M: Tensor) -> Tensor:
    """Rows `row_M` of a matrix, each at most once."""
    taken: Tensor = _Take.apply(x_ND, row_M)  # type: ignore[no-untyped-call]
    return taken


def rounded(wanted_BL: Tensor) -> Tensor:
    """The mask with some more cells, so that their number is a multiple of `_ROUND` (or all).

    oneDNN makes a kernel for each new shape, which takes as long as the product itself.
    """
    flat = wanted_BL.flatten().clone()
    flat[torch.nonzero(~flat)[: -int(flat.sum()) % _ROUND, 0]] = True
    return flat.view(wanted_BL.shape)


@dataclass
class Packed:
    """The valid tokens of a padded batch, one after another: next to nothing is computed on padding."""

    shape: tuple[int, int]
    """B, L."""
    cell_N: Tensor | None
    """Where each token lies in the flattened (B, L); None where there is no padding."""

    @staticmethod
    def of(valid_BL: Tensor) -> "Packed":
        """The tokens where `valid_BL` is True."""
        batch, length = valid_BL.shape
        cell_N = torch.nonzero(valid_BL.flatten())[:, 0]
        return Packed((batch, length), cell_N if len(cell_N) < batch * length else None)

    def take(self, x_BLD: Tensor) -> Tensor:
        """(B, L, ...) to (N, ...)."""
        x = x_BLD.flatten(0, 1)
        taken: Tensor = x if self.cell_N is None else x.index_select(0, self.cell_N)
        return taken

    def pad(self, x_ND: Tensor) -> Tensor:
        """(N, D) to (B, L, D), zeros at padding."""
        if self.cell_N is not None:
            size = self.shape[0] * self.shape[1], x_ND.shape[1]
            x_ND = x_ND.new_zeros(size).index_copy(0, self.cell_N, x_ND)
        padded: Tensor = x_ND.unflatten(0, self.shape)
        return padded

    def rows(self, cell_M: Tensor) -> Tensor:
        """Which of the N tokens lie in these cells of the flattened (B, L)."""
        return cell_M if self.cell_N is None else torch.searchsorted(self.cell_N, cell_M)
