"""DeepSpeed's ZeRO as a Lightning strategy whose checkpoints hold whole tensors; on GPUs, and on CPUs for the tests."""

import importlib.util
import logging
import os
import warnings
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from datetime import timedelta
from typing import Any

import torch
from lightning.pytorch.accelerators import CUDAAccelerator
from lightning.pytorch.plugins.precision import DeepSpeedPrecision
from lightning.pytorch.strategies import DDPStrategy, DeepSpeedStrategy, Strategy
from torch import Tensor, nn
from torch.nn.functional import pad
from torch.optim import Optimizer

from lcm.config import TrainerConfig
from lcm.errors import UserError
from lcm.models import BlockHook
from lcm.training.engine import FSDP, ShardingEngine, collective_timeout

MOMENTS = ("exp_avg", "exp_avg_sq")
"""AdamW's state of a parameter, by torch's names."""


class FP32(DeepSpeedPrecision):
    """fp32 that leaves batches alone: Lightning would convert their tensors, and refuses a frozen dataclass."""

    def convert_input(self, data: Any) -> Any:
        return data


class ZeRO(ShardingEngine, DeepSpeedStrategy):
    """Stage 1 shards AdamW's moments, stage 2 the gradients too, stage 3 the weights as well (Rajbhandari et al. 2020).

    DeepSpeed clips gradients and skips steps by itself, and reports both after the step.
    """

    PERSISTENT = 100_000
    """Stage 3 keeps smaller parameters whole on every rank: gathering them would cost more than it saves."""

    def __init__(self, stage: int, offload: bool, timeout: timedelta) -> None:
        _prepare_deepspeed()
        config: dict[str, Any] = {
            "train_micro_batch_size_per_gpu": 1,  # only for its own throughput reports, which are off
            "zero_allow_untested_optimizer": True,
            "zero_force_ds_cpu_optimizer": False,  # torch's AdamW updates the offloaded shards
            "zero_optimization": {
                "stage": stage,
                "contiguous_gradients": True,
                "stage3_param_persistence_threshold": self.PERSISTENT,
            },
        }
        if offload:
            config["zero_optimization"]["offload_optimizer"] = {"device": "cpu", "pin_memory": True}
        super().__init__(config=config, logging_level=logging.WARNING, timeout=timeout)
        self.stage = stage

    @property
    def shard_fn(self) -> BlockHook | None:
        return self._shard if self.stage == 3 else None

    @torch.no_grad()
    def fill(self, model: nn.Module, weights: Mapping[str, Tensor]) -> None:
        from deepspeed.runtime.zero import GatheredParameters

        for name, parameter in model.named_parameters():
            with GatheredParameters([parameter], modifier_rank=0):
                parameter.copy_(weights[name])

    def divisor(self, accumulate: int) -> int:
        """Lightning divides the loss by the accumulation, and DeepSpeed does it again."""
        return accumulate**2

    def clip(self, parameters: Iterable[nn.Parameter], max_norm: float) -> None:
        return None

    def own_clipping(self) -> tuple[float | None, int]:
        norm = self.deepspeed_engine.get_global_grad_norm()
        return None if norm is None else float(norm), int(self.deepspeed_engine.skipped_steps)

    def setup_environment(self) -> None:
        """Also for CPUs, whose devices DeepSpeed wants numbered."""
        self.precision_plugin = FP32("32-true")
        if isinstance(self.accelerator, CUDAAccelerator):
            super().setup_environment()
            return
        assert self.parallel_devices is not None
        self.parallel_devices = [torch.device("cpu", i) for i in range(len(self.parallel_devices))]
        super(DeepSpeedStrategy, self).setup_environment()

    def init_deepspeed(self) -> None:
        with warnings.catch_warnings():
            # LCMModule leaves clipping to it on purpose.
            warnings.filterwarnings("ignore", message=".*handles gradient clipping internally")
            super().init_deepspeed()

    @contextmanager
    def model_sharded_context(self) -> Iterator[None]:
        """Leave sharding to `shard_fn`: Lightning would shard each layer before its weights are drawn."""
        self._init_config_if_needed()
        yield

    def _shard(self, module: nn.Module) -> None:
        import deepspeed

        deepspeed.zero.Init(module=module, config_dict_or_path=self.config, remote_device=self.remote_device)

    def lightning_module_state_dict(self) -> dict[str, Any]:
        assert self.lightning_module is not None
        state = self.lightning_module.state_dict()
        if self.stage < 3:
            return state
        sharded = dict(self.lightning_module.named_parameters())
        return {name: self._on_rank_zero(_whole(sharded[name])) if name in sharded else state[name] for name in state}

    def optimizer_state(self, optimizer: Optimizer) -> dict[str, Any]:
        """The state of one rank's AdamW: whole moments under the numbers that torch gives the parameters."""
        from deepspeed.utils import safe_get_full_optimizer_state

        plain = self._plain_optimizer()
        whole = plain.state_dict()
        for group, used in zip(whole["param_groups"], self.deepspeed_engine.optimizer.param_groups, strict=True):
            group.update({name: value for name, value in used.items() if name in group and name != "params"})
        # Empty before the first step, and for an optimizer without state.
        if states := [state for state in self.deepspeed_engine.optimizer.optimizer.state.values() if state]:
            self._link_moments()
            parameters = [p for group in plain.param_groups for p in group["params"]]
            step = states[0]["step"]
            for number, parameter in enumerate(parameters):
                moments = {name: self._on_rank_zero(safe_get_full_optimizer_state(parameter, name)) for name in MOMENTS}
                whole["state"][number] = {"step": torch.as_tensor(float(step)), **moments}
        return whole

    @torch.no_grad()
    def load_model_state_dict(self, checkpoint: Mapping[str, Any], strict: bool = True) -> None:
        from deepspeed.runtime.zero import GatheredParameters
        from deepspeed.utils import safe_set_full_fp32_param, safe_set_local_fp32_param

        assert self.lightning_module is not None
        state, parameters = checkpoint["state_dict"], dict(self.lightning_module.named_parameters())
        # Through load_state_dict, because some modules derive more from their buffers.
        self.lightning_module.load_state_dict({n: t for n, t in state.items() if n not in parameters}, strict=False)
        for name, parameter in parameters.items():
            whole = state[name].to(parameter.device)
            if self.stage < 3:
                parameter.copy_(whole)
                if parameter.requires_grad:
                    safe_set_full_fp32_param(parameter, whole)
            else:
                with GatheredParameters([parameter], modifier_rank=0):
                    parameter.copy_(whole)
                if parameter.requires_grad:
                    safe_set_local_fp32_param(parameter, self._local_shard(whole))

    @torch.no_grad()
    def load_optimizer_state_dict(self, checkpoint: Mapping[str, Any]) -> None:
        from deepspeed.utils import safe_set_full_optimizer_state, safe_set_local_optimizer_state

        (saved,) = checkpoint["optimizer_states"]
        if not saved["state"]:
            return
        zero = self.deepspeed_engine.optimizer
        flat = zero.fp32_partitioned_groups_flat if self.stage == 3 else zero.single_partition_of_fp32_groups
        for numbers in flat:
            moments = {name: torch.zeros_like(numbers) for name in MOMENTS}
            zero.optimizer.state[numbers] = {"step": saved["state"][0]["step"].to(numbers.device, copy=True), **moments}
        self._link_moments()
        parameters = [p for group in self._plain_optimizer().param_groups for p in group["params"]]
        for number, parameter in enumerate(parameters):
            for name in MOMENTS:
                whole = saved["state"][number][name].to(parameter.device)
                if self.stage == 3:
                    safe_set_local_optimizer_state(parameter, self._local_shard(whole), name)
                else:
                    safe_set_full_optimizer_state(parameter, whole, name)

    def _local_shard(self, whole: Tensor) -> Tensor:
        """This rank's shard under stage 3: equal parts, the last padded with zeros. safe_set_full_* fail on padding."""
        size = -(-whole.numel() // self.world_size)
        padded = pad(whole.flatten(), (0, size * self.world_size - whole.numel()))
        return padded[self.global_rank * size :][:size]

    def _plain_optimizer(self) -> Optimizer:
        """A new optimizer over the same parameters, for the order of its groups."""
        assert self.lightning_module is not None
        optimizer = self.lightning_module.configure_optimizers()
        assert isinstance(optimizer, Optimizer)
        return optimizer

    def _link_moments(self) -> None:
        """Stages 1 and 2 find a parameter's moments by links, which DeepSpeed sets for the first group only."""
        if self.stage < 3:
            zero = self.deepspeed_engine.optimizer
            zero._hp_optimizer_states_linked = False
            zero._lazy_init_hp_params_optimizer_state()


@torch.no_grad()
def _whole(parameter: nn.Parameter) -> Tensor:
    """A parameter that ranks share, in fp32. DeepSpeed keeps a copy of it beside the model, unless it is frozen."""
    from deepspeed.runtime.zero import GatheredParameters
    from deepspeed.utils import safe_get_full_fp32_param

    if parameter.requires_grad:
        whole: Tensor = safe_get_full_fp32_param(parameter)
        return whole
    with GatheredParameters([parameter]):
        return parameter.detach().clone()


def _prepare_deepspeed() -> None:
    """Import DeepSpeed, quietly. Raises UserError where it is not installed."""
    if importlib.util.find_spec("deepspeed") is None:
        raise UserError(
            "trainer.strategy=deepspeed_*: DeepSpeed is not installed; pip install 'lcm-train[deepspeed]', "
            "or take trainer.strategy=fsdp"
        )
    if not torch.cuda.is_available():
        os.environ.setdefault("DS_ACCELERATOR", "cpu")  # read when deepspeed is imported
    import deepspeed

    # Compiled when ranks first meet, under a lock that outlives a killed process: every later run would hang.
    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    logging.getLogger("DeepSpeed").setLevel(logging.WARNING)


def build_strategy(name: str, world_size: int, settings: TrainerConfig) -> Strategy | str:
    """The Lightning strategy that `choose` named."""
    timeout = collective_timeout(settings)
    match name:
        case "single":
            return "auto"
        case "ddp":
            return DDPStrategy(gradient_as_bucket_view=True, timeout=timeout)
        case "fsdp":
            return FSDP(world_size, timeout)
        case _:
            return ZeRO(int(name.removeprefix("deepspeed_")), settings.offload, timeout)
