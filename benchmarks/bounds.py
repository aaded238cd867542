"""The same matrix products alone: recorded while the work runs, replayed on operands that are ready.

Attention counts as its two products forward and four backward, without the softmax between them. Products
are replayed by torch.mm, whatever did them in the work; where oneDNN did (amrs/models/linear.py), the work
may come nearer to this bound than torch.mm alone would let it.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from benchmarks.timing import CPU, wait

Operand = tuple[tuple[int, ...], tuple[int, ...]]
"""Shape and strides."""
_ATTENTION = "_scaled_dot_product_"
"""How the names of fused attention begin, on every device."""


class Products(TorchDispatchMode):
    """Notes the operands of every matrix product that runs inside."""

    def __init__(self) -> None:
        super().__init__()
        self.pairs: list[tuple[Operand, Operand]] = []

    def _note(self, a: Tensor, b: Tensor) -> None:
        self.pairs.append(((tuple(a.shape), a.stride()), (tuple(b.shape), b.stride())))

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func.overloadpacket.__name__
        if name in ("mm", "bmm"):
            self._note(*args[:2])
        elif name in ("addmm", "addmm_", "baddbmm"):
            self._note(*args[1:3])
        elif name in ("linear", "_linear_pointwise"):
            self._note(args[0].flatten(0, -2), args[1].T)
        elif name == "matmul":
            a, b = args[:2]
            self._note(*((a.flatten(0, -2), b) if b.ndim == 2 else (a.flatten(0, -3), b.flatten(0, -3))))
        elif name.startswith(_ATTENTION) and "backward" in name:
            self._attention(*args[1:4], backward=True)
        elif name.startswith(_ATTENTION) or name == "scaled_dot_product_attention":
            self._attention(*args[:3], backward=False)
        return func(*args, **(kwargs or {}))

    def _attention(self, q: Tensor, k: Tensor, v: Tensor, backward: bool) -> None:
        q, k, v = (x.flatten(0, 1) for x in (q, k, v))
        weight = q.new_empty(q.shape[0], q.shape[1], k.shape[1])
        for _ in range(2 if backward else 1):
            self._note(q, k.transpose(1, 2))
            self._note(weight, v)


def products(work: Callable[[], Any]) -> list[tuple[Operand, Operand]]:
    """Operands of every matrix product in `work`."""
    with Products() as found:
        work()
    return found.pairs


def replay(pairs: list[tuple[Operand, Operand]], device: torch.device = CPU) -> Callable[[], None]:
    """A function that does these products and nothing else."""
    if device.type != "cpu":
        return partial(_replay_there, pairs, device)
    made: dict[tuple[Operand, Operand], Any] = {}
    for pair in pairs:
        if pair not in made:
            left, right = (torch.empty_strided(*x).uniform_(-1, 1) for x in pair)
            multiply = torch.bmm if left.ndim == 3 else torch.mm
            made[pair] = (multiply, left, right, multiply(left, right))
    ready = [made[pair] for pair in pairs]

    @torch.inference_mode()
    def run() -> None:
        for multiply, left, right, out in ready:
            multiply(left, right, out=out)

    return run


@torch.inference_mode()
def _replay_there(pairs: list[tuple[Operand, Operand]], device: torch.device) -> None:
    """On a GPU, whose memory would not hold all operands at once: new ones for every product."""
    for pair in pairs:
        left, right = (torch.empty_strided(*x, device=device) for x in pair)
        (torch.bmm if left.ndim == 3 else torch.mm)(left, right)
    wait(device)


def flops(pairs: list[tuple[Operand, Operand]]) -> float:
    """Floating-point operations of the products."""
    return sum(2.0 * torch.Size(a[0]).numel() * b[0][-1] for a, b in pairs)
