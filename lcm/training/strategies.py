"""Strategies by which ranks share a model: copies (DDP) or shards (FSDP, ZeRO), as Lightning strategies.

    name, reason = choose(config.trainer.strategy, parameters, memory, world_size)
    trainer = L.Trainer(strategy=build_strategy(name, world_size, config.trainer), …)

Whatever the strategy, a checkpoint holds whole tensors under the model's own names: it opens under any other strategy
and any number of ranks.
"""

from datetime import timedelta

from lightning.pytorch.strategies import DDPStrategy, Strategy

from lcm.config import Config, InterleavedConfig, TrainerConfig
from lcm.errors import UserError
from lcm.training.deepspeed import ZeRO
from lcm.training.engine import FSDP

SHARDED = ("fsdp", "deepspeed_3")
"""Strategies under which no rank holds all weights."""

BYTES_PER_PARAMETER = 16
"""Training state of one parameter: weight, gradient and AdamW's two moments, in fp32."""


def collective_timeout(settings: TrainerConfig) -> timedelta:
    """Timeout of collectives: longer than lcm.training.watchdog needs to find out which rank hangs."""
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

    Copies are fastest. `auto` takes them when the training state fits into half of the device; the other half is for
    activations.
    """
    needed = f"{BYTES_PER_PARAMETER * parameters / 2**30:.1f} of {memory / 2**30:.1f} GiB"
    if setting != "auto":
        return setting, "as trainer.strategy says"
    if world_size == 1:
        return "single", "there is one process"
    if BYTES_PER_PARAMETER * parameters <= memory / 2:
        return "ddp", f"weights, gradients and AdamW take {needed} of each device"
    return "fsdp", f"weights, gradients and AdamW would take {needed} of each device, so each holds a shard"


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
