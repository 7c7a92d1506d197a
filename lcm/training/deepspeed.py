"""DeepSpeed's ZeRO as a Lightning strategy whose checkpoints are like any other's; on GPUs, and on CPUs to test it.

Shapes.  n numbers of a parameter · W processes
"""

import importlib.util
import logging
import os
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import timedelta
from typing import Any

import torch
from lightning.pytorch.accelerators import CUDAAccelerator
from lightning.pytorch.plugins.precision import DeepSpeedPrecision
from lightning.pytorch.strategies import DeepSpeedStrategy, Strategy
from torch import Tensor, nn
from torch.nn.functional import pad
from torch.optim import Optimizer

from lcm.errors import UserError

MOMENTS = ("exp_avg", "exp_avg_sq")


class FP32(DeepSpeedPrecision):
    """Leaves batches as they are."""

    def convert_input(self, data: Any) -> Any:
        return data


class ZeRO(DeepSpeedStrategy):
    """Stage 1 slices AdamW's moments, 2 the gradients too, 3 the weights as well (Rajbhandari et al. 2020)."""

    PERSISTENT = 100_000
    """Stage 3: parameters of fewer numbers stay whole, because to fetch them would take longer than it saves."""

    def __init__(self, stage: int, offload: bool, timeout: timedelta) -> None:
        _prepare_deepspeed()
        config: dict[str, Any] = {
            "train_micro_batch_size_per_gpu": 1,  # for its own reports of speed, which nobody reads
            "zero_allow_untested_optimizer": True,
            "zero_force_ds_cpu_optimizer": False,  # torch's AdamW updates what is offloaded, too
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

    # ---- what Lightning and DeepSpeed ask of a device ----

    def setup_environment(self) -> None:
        """On CPUs as well: DeepSpeed wants their devices numbered, and torch does not mind."""
        self.precision_plugin = FP32("32-true")
        if isinstance(self.accelerator, CUDAAccelerator):
            super().setup_environment()
            return
        assert self.parallel_devices is not None
        self.parallel_devices = [torch.device("cpu", i) for i in range(len(self.parallel_devices))]
        super(DeepSpeedStrategy, self).setup_environment()

    def init_deepspeed(self) -> None:
        with warnings.catch_warnings():
            # It clips by itself, which is why LCMModule does not.
            warnings.filterwarnings("ignore", message=".*handles gradient clipping internally")
            super().init_deepspeed()

    # ---- building ----

    @contextmanager
    def model_sharded_context(self) -> Iterator[None]:
        """Lightning would cut each layer up before its weights are drawn: `shard` does it when a block is complete."""
        self._init_config_if_needed()
        yield

    def shard(self, module: nn.Module) -> None:
        """From now on this process holds a slice of the module's parameters."""
        import deepspeed

        deepspeed.zero.Init(module=module, config_dict_or_path=self.config, remote_device=self.remote_device)

    # ---- checkpoints ----

    def lightning_module_state_dict(self) -> dict[str, Any]:
        from deepspeed.utils import safe_get_full_fp32_param

        assert self.lightning_module is not None
        state = self.lightning_module.state_dict()
        if self.stage < 3:
            return state
        sliced = dict(self.lightning_module.named_parameters())
        return {
            name: self._kept(safe_get_full_fp32_param(sliced[name])) if name in sliced else state[name]
            for name in state
        }

    def optimizer_state(self, optimizer: Optimizer) -> dict[str, Any]:
        """As torch's AdamW gives it where nothing is sliced."""
        from deepspeed.utils import safe_get_full_optimizer_state

        plain = self._plain_optimizer()
        packed = plain.state_dict()
        for mine, used in zip(packed["param_groups"], self.deepspeed_engine.optimizer.param_groups, strict=True):
            mine.update({name: value for name, value in used.items() if name in mine and name != "params"})
        # Empty before the first step; and for an optimizer that keeps nothing.
        if states := [state for state in self.deepspeed_engine.optimizer.optimizer.state.values() if state]:
            self._link_moments()
            parameters = [p for group in plain.param_groups for p in group["params"]]
            step = states[0]["step"]
            for number, parameter in enumerate(parameters):
                moments = {name: self._kept(safe_get_full_optimizer_state(parameter, name)) for name in MOMENTS}
                packed["state"][number] = {"step": torch.as_tensor(float(step)), **moments}
        return packed

    def _kept(self, whole: Tensor) -> Tensor:
        """On the first process, in the machine's memory; the others only help to make it."""
        return whole.cpu() if self.is_global_zero else whole.new_empty(0)

    @torch.no_grad()
    def load_model_state_dict(self, checkpoint: Mapping[str, Any], strict: bool = True) -> None:
        from deepspeed.runtime.zero import GatheredParameters
        from deepspeed.utils import safe_set_full_fp32_param, safe_set_local_fp32_param

        assert self.lightning_module is not None
        state, parameters = checkpoint["state_dict"], dict(self.lightning_module.named_parameters())
        # By way of the modules, some of which make more of their buffers.
        self.lightning_module.load_state_dict({n: t for n, t in state.items() if n not in parameters}, strict=False)
        for name, parameter in parameters.items():
            whole = state[name].to(parameter.device)
            if self.stage < 3:
                parameter.copy_(whole)
                safe_set_full_fp32_param(parameter, whole)
            else:
                with GatheredParameters([parameter], modifier_rank=0):
                    parameter.copy_(whole)
                safe_set_local_fp32_param(parameter, self._slice(whole))

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
                    safe_set_local_optimizer_state(parameter, self._slice(whole), name)
                else:
                    safe_set_full_optimizer_state(parameter, whole, name)

    def _slice(self, whole: Tensor) -> Tensor:
        """What this process holds of it under stage 3: equal parts, the last filled up with zeros."""
        size = -(-whole.numel() // self.world_size)
        filled = pad(whole.flatten(), (0, size * self.world_size - whole.numel()))
        return filled[self.global_rank * size :][:size]

    def _plain_optimizer(self) -> Optimizer:
        """One that was never used, over the same parameters: its groups say their order."""
        assert self.lightning_module is not None
        optimizer = self.lightning_module.configure_optimizers()
        assert isinstance(optimizer, Optimizer)
        return optimizer

    def _link_moments(self) -> None:
        """Stages 1 and 2 find a parameter's moments by links, which DeepSpeed makes for the first group only."""
        if self.stage < 3:
            zero = self.deepspeed_engine.optimizer
            zero._hp_optimizer_states_linked = False
            zero._lazy_init_hp_params_optimizer_state()

    @property
    def lightning_restore_optimizer(self) -> bool:
        return True

    def save_checkpoint(self, checkpoint: dict[str, Any], filepath: Any, storage_options: Any = None) -> None:
        Strategy.save_checkpoint(self, checkpoint, filepath, storage_options)

    def load_checkpoint(self, checkpoint_path: Any, weights_only: bool | None = None) -> dict[str, Any]:
        return Strategy.load_checkpoint(self, checkpoint_path, weights_only)


def _prepare_deepspeed() -> None:
    """Raises UserError where it is not installed."""
    if importlib.util.find_spec("deepspeed") is None:
        raise UserError(
            "trainer.strategy=deepspeed_*: DeepSpeed is not installed; pip install 'lcm-train[deepspeed]', "
            "or take trainer.strategy=fsdp"
        )
    if not torch.cuda.is_available():
        os.environ.setdefault("DS_ACCELERATOR", "cpu")  # read when deepspeed is imported
    import deepspeed

    # Built when processes first meet, under a lock that outlives a killed process and makes all later ones wait.
    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    logging.getLogger("DeepSpeed").setLevel(logging.WARNING)
