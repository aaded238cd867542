"""FSDP2: weights, gradients and optimiser state shared out over processes.

Every transformer block is a shard of its own, gathered while it runs; what is left (heads, towers) is
gathered for a whole step. Checkpoints hold the whole model, the same as every other strategy's.
"""

from typing import Any

import lightning
from lightning.pytorch.strategies import ModelParallelStrategy, Strategy
from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_model_state_dict,
    set_model_state_dict,
)
from torch.distributed.fsdp import FSDPModule, fully_shard, register_fsdp_forward_method

from amrs.models.transformer import Block


def strategy(name: str, processes: int) -> str | Strategy:
    """What Lightning's Trainer takes for `trainer.strategy`; `fsdp2` over all processes."""
    if name != "fsdp2":
        return name
    return ModelParallelStrategy(
        data_parallel_size=processes, tensor_parallel_size=1, save_distributed_checkpoint=False
    )


class ShardedModule(lightning.LightningModule):
    """A LightningModule whose `model` is shared out where the strategy is FSDP2."""

    def configure_model(self) -> None:
        """Called by Lightning on every process before optimisers are made."""
        if not isinstance(self.trainer.strategy, ModelParallelStrategy):
            return
        assert self.device_mesh is not None
        mesh = self.device_mesh["data_parallel"]
        for block in self.modules():
            if isinstance(block, Block):
                fully_shard(block, mesh=mesh)
        fully_shard(self, mesh=mesh, reshard_after_forward=False)
        # Lightning calls the steps, not forward: they must gather the weights as forward would.
        for name in ("training_step", "validation_step"):
            register_fsdp_forward_method(self, name)


def is_sharded(model: nn.Module) -> bool:
    """Whether any part of the model is shared out."""
    return any(isinstance(part, FSDPModule) for part in model.modules())


def whole_state(model: nn.Module) -> dict[str, Tensor]:
    """A copy of all weights and buffers, on every process; all processes must call it."""
    if not is_sharded(model):
        return {key: value.clone() for key, value in model.state_dict().items()}
    state: dict[str, Any] = get_model_state_dict(model, options=StateDictOptions(full_state_dict=True))
    return {key: value.clone() for key, value in state.items()}


def set_whole_state(model: nn.Module, state: dict[str, Any]) -> None:
    """The counterpart: fill a model, shared out or not, on every process."""
    if is_sharded(model):
        set_model_state_dict(model, state, options=StateDictOptions(full_state_dict=True))
    else:
        model.load_state_dict(state)
