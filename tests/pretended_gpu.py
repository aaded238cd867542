"""A GPU that only knows shapes and devices: what mixes devices fails on it as on a real one."""

import copy
import dataclasses
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode

GPU = torch.device("meta")
"""The one kind of device besides the CPU that every build of torch can compute shapes on."""


class Pretence:
    """Tensors and whatever holds them, as they would be on another device; compute with them under `mode`."""

    def __init__(self) -> None:
        self.mode = FakeTensorMode()

    def on(self, device: torch.device | str, value: Any) -> Any:
        """The same value with all its tensors on `device`: modules, dataclasses, tuples, lists, dicts."""
        if isinstance(value, Tensor):
            pretended = self.mode.from_tensor(value.detach())
            with self.mode:
                return pretended.to(device)
        if isinstance(value, nn.Module):
            return self._module(device, value)
        if isinstance(value, tuple) and hasattr(value, "_fields"):
            return type(value)(*(self.on(device, x) for x in value))
        if isinstance(value, list | tuple):
            return type(value)(self.on(device, x) for x in value)
        if isinstance(value, dict):
            return {key: self.on(device, x) for key, x in value.items()}
        if dataclasses.is_dataclass(value) or type(value).__module__.startswith("amrs."):
            made = copy.copy(value)
            for name, x in vars(value).items():
                object.__setattr__(made, name, self.on(device, x))
            return made
        return value

    def _module(self, device: torch.device | str, module: nn.Module) -> nn.Module:
        module = copy.deepcopy(module)
        for part in module.modules():
            for held in (part._parameters, part._buffers):
                for name, x in held.items():
                    held[name] = None if x is None else self.on(device, x)
        return module
