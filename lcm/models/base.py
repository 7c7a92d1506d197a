"""Base-LCM: a causal transformer that regresses the next concept (paper §2.3.1).

Shapes.  B rows · S slots · D concept width · M model width · N targets in the batch
"""

from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor, nn

from lcm.batch import Batch, random_rows
from lcm.config import BaseLCMConfig
from lcm.errors import UserError
from lcm.models.interface import ConceptModel, Context, Losses, Prompts, read_prompts, resolve_sampling
from lcm.models.transformer import BlockHook, Transformer, no_hook, with_packed_weights
from lcm.sampling import Sampling


@dataclass(frozen=True)
class BaseSampling:
    """temperature: standard deviation of the noise added in normalized space; 0 is the prediction itself."""

    temperature: float = 0.0


class BaseLCM(ConceptModel):
    """Normalize, linear D → M, causal transformer, linear M → D, denormalize. Predicts the mean of what may follow."""

    predicts_first: ClassVar[bool] = False
    defaults: ClassVar[BaseSampling] = BaseSampling()

    def __init__(self, config: BaseLCMConfig, on_block: BlockHook = no_hook) -> None:
        super().__init__(config.dim)
        self.pre = nn.Linear(config.dim, config.width)
        self.transformer = Transformer(config.width, config.heads, config.layers, config.dropout, on_block)
        self.post = nn.Linear(config.width, config.dim)

    def loss(self, batch: Batch) -> Losses:
        """Squared error in normalized space, summed over channels (paper eq. 3). Meter l2: distance as raw vectors."""
        z = self.normalizer(batch.emb)
        targets = batch.targets(self.predicts_first)
        predicted, target = self.post(batch.before(self._states(z, batch))[targets]).float(), z[targets]
        l2 = self.normalizer.distance(predicted, target)
        return Losses((predicted - target).square().sum(-1), {"l2": l2})

    @torch.no_grad()
    def predict(self, batch: Batch, sampling: Sampling) -> Float[Tensor, "B S D"]:
        z = self.post(batch.before(self._states(self.normalizer(batch.emb), batch)))
        if temperature := resolve_sampling(sampling, self.defaults).temperature:
            z = z + temperature * random_rows(torch.randn, sampling.seed, batch.row[:, None], z.shape[1:])
        return self.normalizer.inverse(z).masked_fill((batch.pos == 0).unsqueeze(-1), 0)

    @torch.no_grad()
    def prefill(self, prompts: Prompts) -> "BaseContext":
        """Raises UserError for an empty prompt."""
        if not all(map(len, prompts)) or not prompts:
            raise UserError("an empty prompt: a Base-LCM needs at least one sentence to go on from")
        z, lengths, number = read_prompts(prompts, self.normalizer)
        model = with_packed_weights(self)
        states, cache = model.transformer.extend(model.pre(z), model.transformer.empty_cache(*z.shape[:2]), lengths)
        return BaseContext(cache, number, model, states[torch.arange(len(prompts), device=z.device), lengths - 1])

    @torch.no_grad()
    def next(self, context: Context, sampling: Sampling) -> Float[Tensor, "B D"]:
        assert isinstance(context, BaseContext)
        z = context.model.post(context.state)
        if temperature := resolve_sampling(sampling, self.defaults).temperature:
            z = z + temperature * random_rows(torch.randn, sampling.seed, context.keys, z.shape[1:])
        return self.normalizer.inverse(z)

    @torch.no_grad()
    def extend(self, context: Context, concepts: Float[Tensor, "B D"]) -> "BaseContext":
        assert isinstance(context, BaseContext)
        context.consume()
        model = context.model
        z = self.normalizer(concepts.to(self.end_of_text.device))
        states, cache = model.transformer.extend(model.pre(z).unsqueeze(1), context.cache)
        return BaseContext(cache, context.prompt, model, states[:, 0])

    def _states(self, z: Float[Tensor, "B S D"], batch: Batch) -> Float[Tensor, "B S M"]:
        return self.transformer(self.pre(z), batch.doc, batch.pos)


@dataclass
class BaseContext(Context):
    """model: with weights packed for few rows. state: after the last concept of each row."""

    model: BaseLCM
    state: Float[Tensor, "B M"]
