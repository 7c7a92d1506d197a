"""AdamW, its learning rate as a function of the step, and the weights that decay."""

import math

from torch import nn
from torch.optim import AdamW

from lcm.config import OptimizerConfig


def learning_rate(step: int, config: OptimizerConfig, max_steps: int) -> float:
    """Linear warm-up from `start_lr` to `lr`, then half a cosine down to `final_lr`. step: counts from 0.

    A pure function of the step, so a checkpoint holds no schedule, and a resumed run follows a changed configuration.
    """
    if step < config.warmup_steps:
        return config.start_lr + (config.lr - config.start_lr) * step / config.warmup_steps
    done = (step - config.warmup_steps) / (max_steps - config.warmup_steps + 1)
    return config.final_lr + 0.5 * (config.lr - config.final_lr) * (1 + math.cos(math.pi * min(done, 1.0)))


def build_optimizer(model: nn.Module, config: OptimizerConfig) -> AdamW:
    """Fused AdamW over two groups: matrices, which decay, and vectors (biases, norms), which do not."""
    # DeepSpeed's stage 3 leaves empty vectors in place of sharded weights, and their shape in ds_shape.
    parameters = [(p, len(getattr(p, "ds_shape", p.shape))) for p in model.parameters() if p.requires_grad]
    groups = [
        {"params": [p for p, ndim in parameters if ndim >= 2], "weight_decay": config.weight_decay},
        {"params": [p for p, ndim in parameters if ndim < 2], "weight_decay": 0.0},
    ]
    return AdamW(groups, lr=config.lr, betas=config.betas, eps=config.eps, fused=True)
