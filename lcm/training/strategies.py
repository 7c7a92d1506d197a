"""How the processes of a training run share it: as copies, or as slices of one model (Lightning strategies).

    name, reason = choose(config.trainer, parameters, memory, processes)
    trainer = L.Trainer(strategy=build_strategy(name, processes, offload), …)

Whatever the strategy, a checkpoint holds whole tensors under the model's own names, so that it opens under any other
strategy and for any number of processes.
"""

import warnings
from collections.abc import Iterable, Mapping
from datetime import timedelta
from typing import Any

import torch
from lightning.pytorch.strategies import DDPStrategy, ModelParallelStrategy, Strategy
from torch import Tensor, nn
from torch.distributed.tensor import DTensor, distribute_tensor
from torch.nn.utils import clip_grad_norm_
from torch.optim import Optimizer
from torch.utils._pytree import tree_map_only

from lcm.config import Config, InterleavedConfig, TrainerConfig
from lcm.errors import UserError
from lcm.models import BlockHook
from lcm.training.deepspeed import ZeRO

SLICED = ("fsdp", "deepspeed_3")
"""Where no process holds all weights."""

STATE = 16
"""Bytes a parameter takes in training: weight, gradient and AdamW's two moments, in fp32."""


def timeout_of(settings: TrainerConfig) -> timedelta:
    """How long a process waits for the others by itself: longer than it takes lcm.training.watchdog to say for whom."""
    return timedelta(seconds=2 * settings.patience + 60)


def check_strategy(name: str, config: Config) -> None:
    """Raises UserError for what does not go together."""
    settings = config.trainer
    if settings.offload and not name.startswith("deepspeed"):
        raise UserError(f"trainer.offload=true: {name} keeps everything on the device; take deepspeed_2 or deepspeed_3")
    if name == "deepspeed_3" and isinstance(config.model, InterleavedConfig):
        raise UserError(f"trainer.strategy=deepspeed_3: not for model.kind={config.model.kind}; take fsdp")
    if name == "deepspeed_3" and settings.compile:
        raise UserError("trainer.strategy=deepspeed_3: not with trainer.compile=true; take fsdp")


def choose(wanted: str, parameters: int, memory: int, processes: int) -> tuple[str, str]:
    """The strategy, and why. memory: bytes of one device.

    Copies are quickest, so they are taken where the state fits into half of the device: the rest is for activations.
    """
    needed = f"{STATE * parameters / 2**30:.1f} of {memory / 2**30:.1f} GiB"
    if wanted != "auto":
        return wanted, "as trainer.strategy says"
    if processes == 1:
        return "single", "there is one process"
    if STATE * parameters <= memory / 2:
        return "ddp", f"weights, gradients and AdamW take {needed} of each device"
    return "fsdp", f"weights, gradients and AdamW would take {needed} of each device, so each holds a slice"


def build_strategy(name: str, processes: int, settings: TrainerConfig) -> Strategy | str:
    """processes: of the whole run."""
    timeout = timeout_of(settings)
    match name:
        case "single":
            return "auto"
        case "ddp":
            return DDPStrategy(gradient_as_bucket_view=True, timeout=timeout)
        case "fsdp":
            return FSDP(processes, timeout)
        case _:
            return ZeRO(int(name.removeprefix("deepspeed_")), settings.offload, timeout)


class FSDP(ModelParallelStrategy):
    """torch's FSDP2: each process holds a slice of every weight, gradient and moment."""

    def __init__(self, processes: int, timeout: timedelta) -> None:
        super().__init__(
            data_parallel_size=processes,
            tensor_parallel_size=1,
            save_distributed_checkpoint=False,
            timeout=timeout,
        )

    def shard(self, module: nn.Module) -> None:
        """From now on this process holds a slice of the module's parameters, and fetches the rest for each call."""
        from torch.distributed.fsdp import fully_shard

        # torch 2.13 warns of what could be done to it in place; nothing is.
        warnings.filterwarnings("ignore", message=r"FSDP2-wrapped module .* returned a view")
        fully_shard(module, mesh=self.device_mesh["data_parallel"])

    def lightning_module_state_dict(self) -> dict[str, Any]:
        assert self.lightning_module is not None
        return tree_map_only(DTensor, self._whole, self.lightning_module.state_dict())

    def optimizer_state(self, optimizer: Optimizer) -> dict[str, Any]:
        return tree_map_only(DTensor, self._whole, Strategy.optimizer_state(self, optimizer))

    def _whole(self, slices: DTensor) -> Tensor:
        """On the first process, in the machine's memory; the others only help to make it."""
        whole = slices.full_tensor()
        return whole.cpu() if self.is_global_zero else whole.new_empty(0)

    def load_model_state_dict(self, checkpoint: Mapping[str, Any], strict: bool = True) -> None:
        assert self.lightning_module is not None
        saved, parameters = checkpoint["state_dict"], dict(self.lightning_module.named_parameters())
        assert not strict or self.lightning_module.state_dict().keys() == saved.keys()
        with torch.no_grad():
            for name, parameter in parameters.items():
                parameter.copy_(_slices(saved[name], parameter))
        # By way of the modules, some of which make more of their buffers.
        self.lightning_module.load_state_dict({n: t for n, t in saved.items() if n not in parameters}, strict=False)

    def load_optimizer_state_dict(self, checkpoint: Mapping[str, Any]) -> None:
        for optimizer, state in zip(self.optimizers, checkpoint["optimizer_states"], strict=True):
            parameters = [p for group in optimizer.param_groups for p in group["params"]]
            sliced = {
                number: {name: _slices(value, parameters[number]) for name, value in of_one.items()}
                for number, of_one in state["state"].items()
            }
            optimizer.load_state_dict({**state, "state": sliced})

    @property
    def lightning_restore_optimizer(self) -> bool:
        return True

    def save_checkpoint(self, checkpoint: dict[str, Any], filepath: Any, storage_options: Any = None) -> None:
        Strategy.save_checkpoint(self, checkpoint, filepath, storage_options)

    def load_checkpoint(self, checkpoint_path: Any, weights_only: bool | None = None) -> dict[str, Any]:
        return Strategy.load_checkpoint(self, checkpoint_path, weights_only)


def slicer(strategy: Strategy) -> BlockHook | None:
    """What slices a block that is complete; None where every process holds whole weights."""
    if isinstance(strategy, FSDP) or (isinstance(strategy, ZeRO) and strategy.stage == 3):
        return strategy.shard
    return None


def divisor(strategy: Strategy, accumulate: int) -> int:
    """What the engine divides the loss of a micro-batch by. Lightning does so once; DeepSpeed does it again."""
    return accumulate**2 if isinstance(strategy, ZeRO) else accumulate


def clip(strategy: Strategy, parameters: Iterable[nn.Parameter], largest: float) -> Tensor | None:
    """The gradient's norm over all parameters, before it is clipped. None where the engine clips by itself."""
    if isinstance(strategy, ZeRO):
        return None
    norm = clip_grad_norm_(parameters, largest)
    return norm.full_tensor() if isinstance(norm, DTensor) else norm


def clipped_norm(strategy: Strategy) -> float | None:
    """Of the newest step, where the engine clips by itself."""
    if not isinstance(strategy, ZeRO):
        return None
    norm = strategy.deepspeed_engine.get_global_grad_norm()
    return None if norm is None else float(norm)


def left_out_by_engine(strategy: Strategy) -> int | None:
    """How many steps since the start the engine has left out by itself, because their gradient was not finite."""
    return int(strategy.deepspeed_engine.skipped_steps) if isinstance(strategy, ZeRO) else None


def _slices(whole: Tensor, like: Tensor) -> Tensor:
    """`whole`, cut as `like` is, where that is cut and of its shape."""
    if not isinstance(like, DTensor) or whole.shape != like.shape:
        return whole
    # Every process has the whole, so nothing is sent.
    return distribute_tensor(whole.to(like.device), like.device_mesh, like.placements, src_data_rank=None)
