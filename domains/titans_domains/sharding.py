"""Weights, gradients and optimiser shared out among processes, by torch's `fully_shard` under Lightning.

The feed-forward layers, which hold most weights, are put together for their own turn alone. Everything else
is whole for the length of a step, since states begin from parameters outside of any layer's turn.
"""

from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, TypeVar

import torch
from lightning.pytorch import LightningModule
from lightning.pytorch.core.optimizer import LightningOptimizer
from lightning.pytorch.strategies import ModelParallelStrategy
from torch.distributed.fsdp import FSDPModule, fully_shard, register_fsdp_forward_method
from torch.distributed.tensor import DTensor, distribute_tensor
from torch.optim import Optimizer

from titans_core.backbone import SwiGLU
from titans_domains.ranks import WAIT, is_first, world

ValueT = TypeVar("ValueT")


def shard(module: LightningModule) -> None:
    """Shares the parameters of a module out, of which `training_step` is then a turn."""
    mesh = module.device_mesh["data_parallel"]
    for layer in module.modules():
        if isinstance(layer, SwiGLU):
            fully_shard(layer, mesh=mesh, reshard_after_forward=True)
    fully_shard(module, mesh=mesh, reshard_after_forward=False)
    register_fsdp_forward_method(module, "training_step")


@contextmanager
def whole(module: LightningModule) -> Iterator[None]:
    """Every parameter is whole, and a plain tensor, in every process; all of them must come here."""
    shared = [layer for layer in module.modules() if isinstance(layer, FSDPModule)]
    # By them a module shares itself out again as soon as it is asked for its weights.
    hooks = {layer: layer._state_dict_pre_hooks for layer in module.modules()} if shared else {}
    for layer in shared:
        layer.set_reshard_after_forward(False, recurse=False)
        layer.unshard()
    for layer in hooks:
        layer._state_dict_pre_hooks = OrderedDict()
    try:
        yield
    finally:
        for layer, own in hooks.items():
            layer._state_dict_pre_hooks = own
        for layer in shared:
            layer.set_reshard_after_forward(layer is not module, recurse=False)
            layer.reshard()


class Sharded(ModelParallelStrategy):
    """Saves and loads what one process does: whole tensors, in the same places."""

    def __init__(self) -> None:
        super().__init__(
            data_parallel_size=world(),
            tensor_parallel_size=1,
            save_distributed_checkpoint=False,
            timeout=WAIT,
        )

    @property
    def lightning_restore_optimizer(self) -> bool:
        return True

    def lightning_module_state_dict(self) -> dict[str, Any]:
        """On the first process; nothing on the others."""
        assert self.lightning_module is not None
        return _only_first(_mapped(self.lightning_module.state_dict(), _gathered))

    def optimizer_state(self, optimizer: Optimizer) -> dict[str, Any]:
        """On the first process; nothing on the others."""
        inner = optimizer._optimizer if isinstance(optimizer, LightningOptimizer) else optimizer
        return _only_first(_mapped(inner.state_dict(), _gathered))

    def load_checkpoint(self, checkpoint_path: Any, weights_only: bool | None = None) -> Any:
        return self.checkpoint_io.load_checkpoint(checkpoint_path)

    def load_optimizer_state_dict(self, checkpoint: Mapping[str, Any]) -> None:
        for optimizer, saved in zip(self.optimizers, checkpoint["optimizer_states"], strict=True):
            groups = zip(optimizer.param_groups, saved["param_groups"], strict=True)
            own = {
                number: parameter
                for ours, theirs in groups
                for number, parameter in zip(theirs["params"], ours["params"], strict=True)
            }
            state = {
                number: {name: _shared(x, own[number]) for name, x in values.items()}
                for number, values in saved["state"].items()
            }
            optimizer.load_state_dict({**saved, "state": state})


def _mapped(value: Any, function: Callable[[Any], Any]) -> Any:
    if isinstance(value, dict):
        return {key: _mapped(inner, function) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_mapped(inner, function) for inner in value]
    return function(value)


def _gathered(value: Any) -> Any:
    """A whole tensor, on the CPU of the first process alone."""
    if isinstance(value, DTensor):
        value = value.full_tensor()
    if isinstance(value, torch.Tensor):
        return value.cpu() if is_first() else None
    return value


def _only_first(table: dict[str, Any]) -> dict[str, Any]:
    return table if is_first() else {}


def _shared(value: Any, parameter: torch.nn.Parameter) -> Any:
    """This process's part of a tensor that has a parameter's shape."""
    if not isinstance(value, torch.Tensor) or value.shape != parameter.shape:
        return value
    if not isinstance(parameter, DTensor):
        return value
    mesh, placements = parameter.device_mesh, parameter.placements
    return distribute_tensor(value.to(parameter.device), mesh, placements)
