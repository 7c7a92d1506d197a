"""SONAR's text encoder and decoder in plain torch (Duquenne et al. 2023, arXiv 2308.11466), in any size.

Matrix products run in the precision of their weights; the residual stream, norms and pooling are always fp32.

Shapes.  B rows (sentences or hypotheses) · P pieces · D width of model and concept · L layers · V vocabulary
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

Attend = Callable[..., Tensor]
"""Maps the queries, keys and values of a layer's pieces, each (B, H, P, K), to the attention's output."""
causal = partial(F.scaled_dot_product_attention, is_causal=True)


@dataclass(frozen=True)
class Sizes:
    """Sizes of the network. The defaults are SONAR's."""

    vocabulary: int
    dim: int
    encoder_layers: int
    decoder_layers: int
    encoder_heads: int
    decoder_heads: int
    encoder_ffn: int
    decoder_ffn: int
    positions: int = 512
    """The longest sequence, language token and end included."""
    position_offset: int = 2
    """Row of the position table for the first piece: fairseq counts from pad + 1."""
    shared_embedding: bool = True
    """Encoder and decoder share one embedding table."""


class Embedding(nn.Module):
    """Pieces → vectors with sinusoidal positions; the table is tied to the output projection."""

    positions: Float[Tensor, "P D"]

    def __init__(self, sizes: Sizes) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(sizes.vocabulary, sizes.dim))
        nn.init.normal_(self.weight, std=sizes.dim**-0.5)
        self.register_buffer("positions", position_table(sizes), persistent=False)

    def forward(self, pieces: Int[Tensor, "B P"], start: int = 0) -> Float[Tensor, "B P D"]:
        """start: position of the first piece."""
        x = F.embedding(pieces, self.weight).float() * math.sqrt(self.weight.shape[1])
        return x + self.positions[start : start + pieces.shape[1]]


def position_table(sizes: Sizes) -> Float[Tensor, "P D"]:
    """fairseq's table of sinusoidal positions: all sines, then all cosines."""
    half = sizes.dim // 2
    # On the CPU even where the model is built on meta: no file holds these numbers.
    frequency = torch.exp(torch.arange(half, device="cpu") * -(math.log(10000.0) / (half - 1)))
    angle = torch.outer(torch.arange(sizes.positions, device="cpu") + float(sizes.position_offset), frequency)
    return torch.cat([angle.sin(), angle.cos()], dim=1)


class SelfAttention(nn.Module):
    def __init__(self, dim: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.q_proj, self.k_proj, self.v_proj = nn.Linear(dim, dim), nn.Linear(dim, dim), nn.Linear(dim, dim)
        self.output_proj = nn.Linear(dim, dim)

    def forward(self, x: Float[Tensor, "B P D"], attend: Attend) -> Float[Tensor, "B P D"]:
        x = x.to(self.q_proj.weight.dtype)
        projections = (self.q_proj, self.k_proj, self.v_proj)
        q, k, v = (proj(x).unflatten(-1, (self.heads, -1)).transpose(1, 2) for proj in projections)
        return self.output_proj(attend(q, k, v).transpose(1, 2).flatten(2))


class MemoryAttention(nn.Module):
    """Cross-attention to a memory of one vector.

    The softmax over a single slot is 1 for any query: queries, keys and their norm have no effect, and are not built.
    """

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.v_proj, self.output_proj = nn.Linear(dim, dim), nn.Linear(dim, dim)

    def forward(self, vectors: Float[Tensor, "B D"]) -> Float[Tensor, "B D"]:
        return self.output_proj(self.v_proj(vectors.to(self.v_proj.weight.dtype)))


class FeedForward(nn.Module):
    def __init__(self, dim: int, inner: int) -> None:
        super().__init__()
        self.inner_proj, self.output_proj = nn.Linear(dim, inner), nn.Linear(inner, dim)

    def forward(self, x: Float[Tensor, "B P D"]) -> Float[Tensor, "B P D"]:
        return self.output_proj(F.relu(self.inner_proj(x.to(self.inner_proj.weight.dtype))))


class EncoderLayer(nn.Module):
    """Pre-norm transformer layer."""

    def __init__(self, sizes: Sizes) -> None:
        super().__init__()
        self.self_attn_layer_norm = nn.LayerNorm(sizes.dim)
        self.self_attn = SelfAttention(sizes.dim, sizes.encoder_heads)
        self.ffn_layer_norm = nn.LayerNorm(sizes.dim)
        self.ffn = FeedForward(sizes.dim, sizes.encoder_ffn)

    def forward(self, x: Float[Tensor, "B P D"], mask: Bool[Tensor, "B 1 1 P"] | None) -> Float[Tensor, "B P D"]:
        attend = partial(F.scaled_dot_product_attention, attn_mask=mask)
        x = x + self.self_attn(self.self_attn_layer_norm(x), attend)
        return x + self.ffn(self.ffn_layer_norm(x))


class DecoderLayer(nn.Module):
    """Pre-norm transformer layer. Its cross-attention does not depend on x: `Decoder.memory` computes it once."""

    def __init__(self, sizes: Sizes) -> None:
        super().__init__()
        self.self_attn_layer_norm = nn.LayerNorm(sizes.dim)
        self.self_attn = SelfAttention(sizes.dim, sizes.decoder_heads)
        self.encoder_decoder_attn = MemoryAttention(sizes.dim)
        self.ffn_layer_norm = nn.LayerNorm(sizes.dim)
        self.ffn = FeedForward(sizes.dim, sizes.decoder_ffn)

    def forward(
        self, x: Float[Tensor, "B P D"], memory: Float[Tensor, "B D"], attend: Attend
    ) -> Float[Tensor, "B P D"]:
        x = x + self.self_attn(self.self_attn_layer_norm(x), attend)
        x = x + memory[:, None]
        return x + self.ffn(self.ffn_layer_norm(x))


class Encoder(nn.Module):
    """Pieces → one vector: the mean over the pieces after the final norm."""

    def __init__(self, sizes: Sizes, embed: Embedding) -> None:
        super().__init__()
        self.embed = embed
        self.layers = nn.ModuleList(EncoderLayer(sizes) for _ in range(sizes.encoder_layers))
        self.layer_norm = nn.LayerNorm(sizes.dim)

    def forward(self, pieces: Int[Tensor, "B P"], lengths: Int[Tensor, " B"]) -> Float[Tensor, "B D"]:
        """lengths: number of pieces in each row; the padding beyond them has no effect."""
        real = torch.arange(pieces.shape[1], device=pieces.device) < lengths[:, None]
        mask = None if bool(real.all()) else real[:, None, None]
        x = self.embed(pieces)
        for layer in self.layers:
            x = layer(x, mask)
        return (self.layer_norm(x) * real[..., None]).sum(1) / lengths[:, None]


class Decoder(nn.Module):
    """One vector → the pieces of its sentence, autoregressively."""

    def __init__(self, sizes: Sizes, embed: Embedding) -> None:
        super().__init__()
        self.sizes, self.embed = sizes, embed
        self.layers = nn.ModuleList(DecoderLayer(sizes) for _ in range(sizes.decoder_layers))
        self.layer_norm = nn.LayerNorm(sizes.dim)

    def memory(self, vectors: Float[Tensor, "B D"]) -> Float[Tensor, "L B D"]:
        """Output of each layer's cross-attention, equal for all pieces of a sentence, so computed once."""
        layers = [layer for layer in self.layers if isinstance(layer, DecoderLayer)]
        return torch.stack([layer.encoder_decoder_attn(vectors) for layer in layers])

    def forward(
        self, pieces: Int[Tensor, "B P"], memory: Float[Tensor, "L B D"], cached: Attend | None = None, start: int = 0
    ) -> Float[Tensor, "B P D"]:
        """States, for `logits`.

        cached: attention to earlier pieces, too, with the number of the layer before queries, keys and values
        start:  position of the first piece
        """
        x = self.embed(pieces, start)
        for number, layer in enumerate(self.layers):
            x = layer(x, memory[number], partial(cached, number) if cached else causal)
        return self.layer_norm(x)

    def logits(self, state: Float[Tensor, "*B D"]) -> Float[Tensor, "*B V"]:
        """fp32 scores of every next piece."""
        weight = self.embed.weight
        return F.linear(state.to(weight.dtype), weight).float()


class SonarText(nn.Module):
    def __init__(self, sizes: Sizes) -> None:
        super().__init__()
        self.sizes = sizes
        embed = Embedding(sizes)
        self.encoder = Encoder(sizes, embed)
        self.decoder = Decoder(sizes, embed if sizes.shared_embedding else Embedding(sizes))
