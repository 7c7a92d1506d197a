"""The engine of a training step: the strategy by which ranks share a model, its part of a step, and AdamW.

    name, reason = choose(config.trainer.strategy, parameters, memory, world_size)
    trainer = L.Trainer(strategy=build_strategy(name, world_size, config.trainer), …)

Here are plain Lightning (one device, DDP), torch's FSDP2, and what all share; ZeRO and `build_strategy` are in
deepspeed.py. Whatever the strategy, a checkpoint holds whole tensors under the model's own names: it opens under any
other strategy and any number of ranks.
"""

import math
import warnings
from collections.abc import Iterable, Mapping
from datetime import timedelta
from typing import Any

import torch
from lightning.pytorch.strategies import ModelParallelStrategy, Strategy
from torch import Tensor, nn
from torch.distributed.tensor import DTensor, distribute_tensor
from torch.nn.utils import clip_grad_norm_
from torch.optim import AdamW, Optimizer
from torch.utils._pytree import tree_map_only

from lcm.config import Config, InterleavedConfig, OptimizerConfig, TrainerConfig
from lcm.errors import UserError
from lcm.models import BlockHook
from lcm.training.parts import rate_of

SHARDED = ("fsdp", "deepspeed_3")
"""Strategies under which no rank holds all weights."""
BYTES_PER_PARAMETER = 16
"""Training state of one parameter: weight, gradient and AdamW's two moments, in fp32."""


def collective_timeout(settings: TrainerConfig) -> timedelta:
    """Timeout of collectives: longer than lcm.training.signals.Watchdog needs to find out which rank hangs."""
    return timedelta(seconds=2 * settings.patience + 60)


def check_strategy(name: str, config: Config) -> None:
    """Raises UserError for settings that the strategy does not support."""
    settings = config.trainer
    if settings.offload and not name.startswith("deepspeed"):
        raise UserError(f"trainer.offload=true: {name} keeps everything on the device; take deepspeed_2 or deepspeed_3")
    if name == "deepspeed_3" and isinstance(config.model, InterleavedConfig):
        raise UserError(f"trainer.strategy=deepspeed_3: not for model.kind={config.model.kind}; take fsdp")
    if name == "deepspeed_3" and settings.compile:
        raise UserError("trainer.strategy=deepspeed_3: not with trainer.compile=true; take fsdp")


def choose(setting: str, parameters: int, memory: int, world_size: int) -> tuple[str, str]:
    """The strategy for `trainer.strategy`, and the reason for it. memory: bytes of one device.

    Copies are fastest. `auto` takes them if the training state fits into half of the device; activations take the rest.
    """
    needed = f"{BYTES_PER_PARAMETER * parameters / 2**30:.1f} of {memory / 2**30:.1f} GiB"
    if setting != "auto":
        return setting, "as trainer.strategy says"
    if world_size == 1:
        return "single", "there is one process"
    if BYTES_PER_PARAMETER * parameters <= memory / 2:
        return "ddp", f"weights, gradients and AdamW take {needed} of each device"
    return "fsdp", f"weights, gradients and AdamW would take {needed} of each device, so each holds a shard"


def computes_in_bf16(precision: str, device: torch.device) -> bool:
    """True where matrix products run in bf16; `auto` takes it where the device has instructions for it."""
    if precision != "auto":
        return precision == "bf16"
    if device.type == "cpu":
        return bool(getattr(torch.cpu, "_is_avx512_bf16_supported", lambda: False)())
    return torch.cuda.is_bf16_supported(including_emulation=False)


def learning_rate(step: int, config: OptimizerConfig, max_steps: int) -> float:
    """Linear warm-up from `start_lr` to `lr`, then half a cosine down to `final_lr`. step: counts from 0.

    A pure function of the step, so a checkpoint holds no schedule, and a resumed run follows a changed configuration.
    """
    if step < config.warmup_steps:
        return config.start_lr + (config.lr - config.start_lr) * step / config.warmup_steps
    done = (step - config.warmup_steps) / (max_steps - config.warmup_steps + 1)
    return config.final_lr + 0.5 * (config.lr - config.final_lr) * (1 + math.cos(math.pi * min(done, 1.0)))


def build_optimizer(model: nn.Module, config: OptimizerConfig) -> AdamW:
    """Fused AdamW over groups: matrices, which decay, and vectors (biases, norms), which do not, of each rate."""
    groups: dict[tuple[float, bool], list[nn.Parameter]] = {}
    # The usual two come first, so that checkpoints of older versions fit.
    for decays in (True, False):
        for name, parameter in model.named_parameters():
            # DeepSpeed's stage 3 leaves empty vectors in place of sharded weights, and their shape in ds_shape.
            matrix = len(getattr(parameter, "ds_shape", parameter.shape)) >= 2
            if parameter.requires_grad and matrix == decays:
                groups.setdefault((rate_of(name, config.lr_factors), decays), []).append(parameter)
    described = [
        {"params": parameters, "weight_decay": config.weight_decay if decays else 0.0, "factor": factor}
        for (factor, decays), parameters in groups.items()
    ]
    return AdamW(described, lr=config.lr, betas=config.betas, eps=config.eps, fused=True)


class Engine:
    """A training step as Lightning runs it on one device and with DDP: every rank holds all weights."""

    skips_out_of_memory = True
    """A rank that runs out of memory can still join the others, so that all of them skip the step."""

    @property
    def shard_fn(self) -> BlockHook | None:
        """Shards the parameters of a complete block in place; None where every rank holds all weights."""
        return None

    def fill(self, model: nn.Module, weights: Mapping[str, Tensor]) -> None:
        """Copy whole tensors into the parameters of a model that `shard_fn` has sharded, one after the other."""
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                parameter.copy_(_sharded_like(parameter, weights[name]))

    def divisor(self, accumulate: int) -> int:
        """Divisor that the engine applies to the loss of a micro-batch."""
        return accumulate

    def clip(self, parameters: Iterable[nn.Parameter], max_norm: float) -> Tensor | None:
        """Clip the gradients by their norm over all parameters, and return the norm before clipping.

        None where the engine clips by itself; `own_clipping` has the norm after the step.
        """
        return clip_grad_norm_(parameters, max_norm)

    def own_clipping(self) -> tuple[float | None, int] | None:
        """The newest gradient norm and the steps skipped so far, where the engine clips by itself."""
        return None


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
        self.fill(self.lightning_module, saved)
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
