"""How fast and on what the optimizer works: the learning rate as a function of the step, and which weights decay."""

import math

from torch import nn
from torch.optim import AdamW

from lcm.config import OptimizerConfig


def learning_rate(step: int, config: OptimizerConfig, max_steps: int) -> float:
    """Linear from `start_lr` to `lr` over the warm-up, then half a cosine down to `final_lr`.

    A pure function of the step (0-based), so a resumed run needs no schedule in its checkpoint, and follows the
    configuration if that has changed.
    """
    if step < config.warmup_steps:
        return config.start_lr + (config.lr - config.start_lr) * step / config.warmup_steps
    done = (step - config.warmup_steps) / (max_steps - config.warmup_steps + 1)
    return config.final_lr + 0.5 * (config.lr - config.final_lr) * (1 + math.cos(math.pi * min(done, 1.0)))


def build_optimizer(model: nn.Module, config: OptimizerConfig) -> AdamW:
    """AdamW over two groups: matrices, which decay, and vectors (biases, norms), which do not."""
    # DeepSpeed's stage 3 leaves empty vectors in place of weights, and keeps the shape that they had.
    parameters = [(p, len(getattr(p, "ds_shape", p.shape))) for p in model.parameters() if p.requires_grad]
    groups = [
        {"params": [p for p, ndim in parameters if ndim >= 2], "weight_decay": config.weight_decay},
        {"params": [p for p, ndim in parameters if ndim < 2], "weight_decay": 0.0},
    ]
    return AdamW(groups, lr=config.lr, betas=config.betas, eps=config.eps, fused=True)
