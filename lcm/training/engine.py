"""A training step under each engine: plain Lightning (one device, DDP) and torch's FSDP2; ZeRO is in deepspeed.py."""

import warnings
from collections.abc import Iterable, Mapping
from datetime import timedelta
from typing import Any

import torch
from lightning.pytorch.strategies import ModelParallelStrategy, Strategy
from torch import Tensor, nn
from torch.distributed.tensor import DTensor, distribute_tensor
from torch.nn.utils import clip_grad_norm_
from torch.optim import Optimizer
from torch.utils._pytree import tree_map_only

from lcm.models import BlockHook


class Engine:
    """A training step as Lightning runs it on one device and with DDP: every rank holds all weights."""

    skips_out_of_memory = True
    """A rank that runs out of memory can still join the others, so that all of them skip the step."""

    @property
    def shard_fn(self) -> BlockHook | None:
        """Shards the parameters of a complete block in place; None where every rank holds all weights."""
        return None

    def divisor(self, accumulate: int) -> int:
        """Divisor that the engine applies to the loss of a micro-batch."""
        return accumulate

    def clip(self, parameters: Iterable[nn.Parameter], max_norm: float) -> Tensor | None:
        """Clip the gradients by their norm over all parameters, and return the norm before clipping.

        None where the engine clips by itself; `clipped_norm` has the norm after the step.
        """
        return clip_grad_norm_(parameters, max_norm)

    def clipped_norm(self) -> float | None:
        """Gradient norm of the newest step, where the engine clips by itself."""
        return None

    def engine_skipped_steps(self) -> int | None:
        """Steps that the engine has skipped by itself since the start, because their gradient was not finite."""
        return None


def engine_of(strategy: Strategy) -> Engine:
    """The strategy itself where it overrides what Lightning does; otherwise the plain engine."""
    return strategy if isinstance(strategy, Engine) else Engine()


class ShardingEngine(Engine, Strategy):
    """An engine whose ranks hold shards, and whose checkpoints hold whole tensors as those of one rank do."""

    skips_out_of_memory = False

    @property
    def lightning_restore_optimizer(self) -> bool:
        return True

    def save_checkpoint(self, checkpoint: dict[str, Any], filepath: Any, storage_options: Any = None) -> None:
        Strategy.save_checkpoint(self, checkpoint, filepath, storage_options)

    def load_checkpoint(self, checkpoint_path: Any, weights_only: bool | None = None) -> dict[str, Any]:
        return Strategy.load_checkpoint(self, checkpoint_path, weights_only)

    def _on_rank_zero(self, whole: Tensor) -> Tensor:
        """The tensor in rank 0's host memory; empty on the other ranks, which only took part in gathering it."""
        return whole.cpu() if self.is_global_zero else whole.new_empty(0)


class FSDP(ShardingEngine, ModelParallelStrategy):
    """torch's FSDP2: every rank holds a shard of each weight, gradient and moment.

    Lightning's own checkpoints would do for the weights. It numbers AdamW's state in the order of the model's
    parameters, though, and every other strategy numbers it in the order of the optimizer's groups.
    """

    def __init__(self, world_size: int, timeout: timedelta) -> None:
        super().__init__(
            data_parallel_size=world_size, tensor_parallel_size=1, save_distributed_checkpoint=False, timeout=timeout
        )

    @property
    def shard_fn(self) -> BlockHook:
        return self._shard

    def _shard(self, module: nn.Module) -> None:
        from torch.distributed.fsdp import fully_shard

        # torch 2.13 warns of what could be done to it in place; nothing is.
        warnings.filterwarnings("ignore", message=r"FSDP2-wrapped module .* returned a view")
        fully_shard(module, mesh=self.device_mesh["data_parallel"])

    def clip(self, parameters: Iterable[nn.Parameter], max_norm: float) -> Tensor | None:
        norm = super().clip(parameters, max_norm)
        return norm.full_tensor() if isinstance(norm, DTensor) else norm

    def optimizer_state(self, optimizer: Optimizer) -> dict[str, Any]:
        gathered = Strategy.optimizer_state(self, optimizer)
        return tree_map_only(DTensor, lambda shard: self._on_rank_zero(shard.full_tensor()), gathered)

    def load_model_state_dict(self, checkpoint: Mapping[str, Any], strict: bool = True) -> None:
        assert self.lightning_module is not None
        saved, parameters = checkpoint["state_dict"], dict(self.lightning_module.named_parameters())
        assert not strict or self.lightning_module.state_dict().keys() == saved.keys()
        with torch.no_grad():
            for name, parameter in parameters.items():
                parameter.copy_(_sharded_like(parameter, saved[name]))
        # Through load_state_dict, because some modules derive more from their buffers.
        self.lightning_module.load_state_dict({n: t for n, t in saved.items() if n not in parameters}, strict=False)

    def load_optimizer_state_dict(self, checkpoint: Mapping[str, Any]) -> None:
        for optimizer, saved in zip(self.optimizers, checkpoint["optimizer_states"], strict=True):
            parameters = [p for group in optimizer.param_groups for p in group["params"]]
            sharded = {
                number: {name: _sharded_like(parameters[number], value) for name, value in state.items()}
                for number, state in saved["state"].items()
            }
            optimizer.load_state_dict({**saved, "state": sharded})


def _sharded_like(parameter: Tensor, whole: Tensor) -> Tensor:
    """`whole`, sharded as `parameter` is; as it is where it has another shape, as AdamW's count of steps has."""
    if not isinstance(parameter, DTensor) or whole.shape != parameter.shape:
        return whole
    # Every rank has the whole tensor, so nothing is sent.
    mesh, placements = parameter.device_mesh, parameter.placements
    return distribute_tensor(whole.to(parameter.device), mesh, placements, src_data_rank=None)
