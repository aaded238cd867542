"""A GPU made of the CPU: tensors that say they are elsewhere, and refuse what a GPU's tensors refuse.

Under `pretended_gpu` whatever is made on or moved to `GPU` is a `_There`, which keeps its values in a tensor
on the CPU. Operators on it compute with these; operands on both devices are refused, as are numpy and the
operators' own devices. So code that runs here runs on a GPU, and must have the same results as on the CPU.
"""

import copy
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten, tree_map

GPU = torch.device("meta")
"""The one kind of device besides the CPU that every build of torch knows."""
_MOVES = {"_to_copy", "copy_", "copy"}
"""Operators between devices."""
_INDEXED = {"index", "index_put", "index_put_", "_index_put_impl_"}
"""Operators whose indices may be on the CPU."""
_JOINED = {"cat", "stack"}
"""Operators that take no single number from the CPU; the others do."""


class _There(Tensor):
    """A tensor on the pretended GPU."""

    values: Tensor

    @staticmethod
    def __new__(cls, values: Tensor) -> "_There":
        layout = {"strides": values.stride(), "storage_offset": values.storage_offset()}
        with torch.inference_mode(values.is_inference()):
            made: _There = torch.Tensor._make_wrapper_subclass(  # type: ignore[attr-defined]
                cls, values.size(), **layout, dtype=values.dtype, device=GPU
            )
        made.values = values
        return made

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _computed(func, args, kwargs or {})

    __torch_function__ = torch._C._disabled_torch_function_impl

    def tolist(self) -> Any:
        """As of a GPU's tensor."""
        return self.values.tolist()

    def numpy(self, *_: Any, **__: Any) -> Any:
        """As of a GPU's tensor."""
        raise TypeError("can't convert a tensor on a GPU to numpy: use .cpu() first")

    def __repr__(self, *_: Any) -> str:  # type: ignore[override]
        return f"there: {self.values!r}"


class _Operators(TorchDispatchMode):
    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _computed(func, args, kwargs or {})


class _Literals(TorchFunctionMode):
    """torch.tensor and torch.as_tensor fill their tensor unseen by operators."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func not in (torch.tensor, torch.as_tensor) or kwargs.get("device") is None:
            return func(*args, **kwargs)
        asked = kwargs.pop("device")
        return func(*args, **kwargs).to(asked)


@contextmanager
def pretended_gpu() -> Iterator[None]:
    """Inside, tensors can be made on `GPU` and moved there and back."""
    with _Literals(), _Operators():
        yield


def _computed(func: Any, args: Any, kwargs: dict[str, Any]) -> Any:
    if func._can_decompose():  # in inference mode operators come before they are taken apart
        with _Operators():
            return func.decompose(*args, **kwargs)
    name = func.overloadpacket.__name__
    asked = kwargs.get("device")
    tensors = [x for x in tree_flatten((args, kwargs))[0] if isinstance(x, Tensor)]
    there = any(isinstance(x, _There) for x in tensors)
    if name in _MOVES:
        there = torch.device(asked) == GPU if asked is not None else isinstance(args[0], _There)
    elif asked is not None and not tensors:
        there = torch.device(asked) == GPU
    elif there:
        _refuse_mixed(name, args, kwargs, tensors)
    if asked is not None:
        kwargs = {**kwargs, "device": "cpu"}
    found = func(*tree_map(_values, args), **tree_map(_values, kwargs))
    if not there:
        return found
    own = {id(x.values): x for x in tensors if isinstance(x, _There)}  # written in place: the tensor itself
    return tree_map(lambda x: own.get(id(x), _There(x)) if isinstance(x, Tensor) else x, found)


def _values(x: Any) -> Any:
    return x.values if isinstance(x, _There) else x


def _refuse_mixed(name: str, args: Any, kwargs: Any, tensors: list[Tensor]) -> None:
    here = [x for x in tensors if not isinstance(x, _There) and (x.ndim > 0 or name in _JOINED)]
    if name in _INDEXED:
        indices = {id(x) for x in args[1] if x is not None}
        here = [x for x in here if id(x) not in indices]
    if here:
        raise RuntimeError(
            f"{name}: expected all tensors on the same device, but {here[0].shape} is on the CPU"
        )


def there(value: Any) -> Any:
    """The same tensor, module or named tuple of tensors on the pretended GPU."""
    if isinstance(value, Tensor):
        return value.to(GPU)
    if isinstance(value, nn.Module):
        return _module(value)
    return type(value)(*(there(x) for x in value))


def _module(module: nn.Module) -> nn.Module:
    module = copy.deepcopy(module)
    for part in module.modules():
        for name, x in part._parameters.items():
            part._parameters[name] = None if x is None else nn.Parameter(x.detach().to(GPU), x.requires_grad)
        for name, x in part._buffers.items():
            part._buffers[name] = None if x is None else x.to(GPU)
        for name in getattr(part, "_defaults", ()):  # the sums of a metric
            setattr(part, name, getattr(part, name).to(GPU))
    return module


def on_both(work: Callable[[Callable[[Any], Any]], Any]) -> tuple[Any, Any]:
    """What `work` gives on the CPU and on the pretended GPU; it gets what moves its models."""
    on_cpu = work(lambda x: x)
    with pretended_gpu():
        return on_cpu, work(there)
