"""The analytic start: weights that are set, not learned, with which a codec already reconstructs short sentences.

The width is split into three orthogonal parts. S holds the sinusoids of the positions, R a code of signs for each
position, T the pieces. The encoder's first feed-forward block reads the position in S and writes its code into R; the
second flips the sign of every channel of T by one bit of that code, so that the mean over the pieces is a superposition
of pieces bound to their positions. The decoder writes the same code and flips the same signs back: the piece at its own
position is restored, and all others remain as noise of √(pieces / T).

Shapes.  P positions with a code · D width · S, R, T directions of each part · N channels of T with a bit
"""

import math
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from lcm.codec.architecture import Decoder, DecoderLayer, Encoder, FeedForward, Sizes, SonarText, position_table
from lcm.errors import UserError

CODE = 2.0
"""Amplitude of the code in the residual stream."""
PIECE = 0.4
"""Amplitude of a piece in each channel of T, after LayerNorm."""
MEMORY, UNBIND = 6.0, 12.0
"""Gains with which the decoder adds the vector, and writes the unbound pieces."""
ENCODER_GATE, DECODER_GATE = 2.0, 4.0
"""Strength with which a gate closes: above the largest channel of T over CODE."""
OUTPUT = 3.0
"""Gain of the decoder's last norm, over PIECE: the confidence of the untrained codec."""
BAG, COARSE = 0.2, 0.2
"""Shares of the channels of T that no bit flips (a bag of words), and that a bit of the block flips; a bit of the
single position flips the rest."""
BLOCK = 4
"""Positions that share their coarse code."""
RIDGE = 1e-3
"""Ridge of the inverse covariance of the sinusoids, relative to its mean diagonal."""


@dataclass(frozen=True)
class Basis:
    """Three orthonormal sets of directions, and the signs that encode the positions."""

    sinusoid: Float[Tensor, "S D"]
    """Centred sinusoids, and the all-ones vector, which LayerNorm removes."""
    code: Float[Tensor, "R D"]
    piece: Float[Tensor, "T D"]
    signs: Float[Tensor, "P R"]
    bit: Int[Tensor, " T"]
    """The column of `signs` that flips each channel of T: column 0 is constant and flips none."""

    @property
    def flipped(self) -> Int[Tensor, " N"]:
        return self.bit.nonzero()[:, 0]


def coded_positions(max_pieces: int) -> int:
    """Positions that get a code: a power of two with room for a sentence, its language and its end."""
    return max(16, 1 << (max_pieces + 1).bit_length())


def initialize(model: SonarText, max_pieces: int, seed: int) -> None:
    """Set all weights of `model`. Raises UserError where its sizes leave no room for the construction.

    In fp64, so that differences in rounding between linear algebra libraries vanish when the result becomes fp32.
    """
    sizes, generator = model.sizes, torch.Generator().manual_seed(seed)
    basis = build_basis(sizes, coded_positions(max_pieces), generator)
    _refuse_small(sizes, basis)
    spread(model, generator)
    with torch.no_grad():
        embedding = torch.randn(sizes.vocabulary, len(basis.piece), generator=generator, dtype=torch.float64)
        embedding *= PIECE * math.sqrt(len(basis.piece)) / embedding.norm(dim=1, keepdim=True)
        model.encoder.embed.weight.copy_(embedding @ basis.piece / math.sqrt(sizes.dim))
        for name, weight in model.named_parameters():
            if name.endswith("output_proj.weight"):  # blocks outside the construction start by writing nothing
                nn.init.zeros_(weight)
        positions = model.encoder.embed.positions[: len(basis.signs)].double()
        for side in (model.encoder, model.decoder):
            _write_code(feed_forward(side, 0), positions, basis)
        _bind(feed_forward(model.encoder, 1), positions, basis)
        _unbind(model.decoder, basis)


def spread(model: SonarText, generator: torch.Generator) -> None:
    """The random start: Xavier's uniform matrices, zero biases, embeddings of unit norm."""
    for module in model.modules():
        if isinstance(module, nn.Linear):
            nn.init.xavier_uniform_(module.weight, generator=generator)
            nn.init.zeros_(module.bias)
    for side in (model.encoder, model.decoder):
        nn.init.normal_(side.embed.weight, std=model.sizes.dim**-0.5, generator=generator)


def hadamard(size: int) -> Float[Tensor, "{size} {size}"]:
    """Sylvester's matrix of orthogonal rows of signs, for a power of two. Its first column is constant."""
    matrix = torch.ones(1, 1, dtype=torch.float64)
    while len(matrix) < size:
        matrix = torch.kron(torch.tensor([[1.0, 1.0], [1.0, -1.0]], dtype=torch.float64), matrix)
    return matrix


def build_basis(sizes: Sizes, positions: int, generator: torch.Generator) -> Basis:
    """S spans the sinusoids; R and T share the other directions, in a random rotation."""
    if sizes.positions <= positions:
        raise UserError(f"model.max_pieces needs {positions} positions with a code, but there are {sizes.positions}")
    coarse, fine = positions // BLOCK, positions // 2
    place = torch.arange(positions)
    signs = torch.cat([hadamard(coarse)[place // BLOCK], hadamard(fine)[place % fine][:, 1:]], dim=1)
    table = _centred(position_table(sizes)[: positions + 1].double())
    ones = torch.full((1, sizes.dim), 100 / math.sqrt(sizes.dim), dtype=torch.float64)
    values, directions = torch.linalg.svd(torch.cat([ones, table]), full_matrices=False)[1:]
    sinusoid = directions[values > 0.05]  # those below do not help to tell positions apart
    free = sizes.dim - len(sinusoid) - signs.shape[1]
    if free < signs.shape[1]:
        raise UserError(
            f"model.dim={sizes.dim} is too small for sentences of {positions - 2} pieces: {len(sinusoid)} directions "
            f"hold positions and {signs.shape[1]} their code, and pieces need as many; "
            "raise model.dim, lower model.max_pieces, or take start: random"
        )
    random = torch.randn(sizes.dim, sizes.dim - len(sinusoid), generator=generator, dtype=torch.float64)
    rest = torch.linalg.qr(torch.cat([sinusoid.T, random], dim=1))[0].T[len(sinusoid) :]
    bag, blocks = int(BAG * free), int(COARSE * free)
    bit = torch.zeros(free, dtype=torch.long)
    bit[bag : bag + blocks] = 1 + torch.arange(blocks) % (coarse - 1)
    bit[bag + blocks :] = coarse + torch.arange(free - bag - blocks) % (fine - 1)
    return Basis(sinusoid, rest[: signs.shape[1]], rest[signs.shape[1] :], signs, bit)


def _centred(x: Float[Tensor, "*n D"]) -> Float[Tensor, "*n D"]:
    return x - x.mean(-1, keepdim=True)


def _deviation(power: Float[Tensor, "*n"], basis: Basis) -> Float[Tensor, "*n"]:
    """The divisor of LayerNorm for a piece beside other parts, whose mean square over all channels is `power`."""
    return (power + PIECE**2 * len(basis.piece) / basis.piece.shape[1] + 1e-5).sqrt()


def feed_forward(side: Encoder | Decoder, layer: int) -> FeedForward:
    block = side.layers[layer].ffn
    assert isinstance(block, FeedForward)
    return block


def _refuse_small(sizes: Sizes, basis: Basis) -> None:
    channels, bag = len(basis.flipped), len(basis.piece) - len(basis.flipped)
    cancelled = len(basis.code) + len(basis.sinusoid)
    needed = {
        # Fewer pieces than channels would leave directions empty that carry no position.
        "vocabulary": (sizes.vocabulary, sizes.dim + 1),
        "encoder_layers": (sizes.encoder_layers, 2),
        "decoder_layers": (sizes.decoder_layers, 2),
        "encoder_ffn": (sizes.encoder_ffn, max(len(basis.signs), 2 * channels + 2 * cancelled)),
        "decoder_ffn": (sizes.decoder_ffn, max(len(basis.signs), 4 * channels + 2 * bag)),
    }
    for name, (size, least) in needed.items():
        if size < least:
            raise UserError(
                f"model.{name}={size}: the analytic start of model.dim={sizes.dim} needs {least}; "
                "raise it, or take start: random"
            )


def _write_code(block: FeedForward, positions: Float[Tensor, "P D"], basis: Basis) -> None:
    """Make unit k open at position k alone, and all units together write CODE · signs into R, exactly.

    A unit matches its own sinusoid through the inverse covariance of all; its threshold is the response to its
    strongest neighbour. The outputs are a least-squares solution, with the true deviation of every position.
    """
    count = len(basis.signs)
    centred = _centred(positions)
    within = centred @ basis.sinusoid.T
    covariance = within.T @ within / count
    ridge = RIDGE * covariance.diagonal().mean() * torch.eye(len(covariance), dtype=torch.float64)
    match = within @ torch.linalg.inv(covariance + ridge)
    response = match @ within.T
    own = response.diagonal()[:, None]
    neighbour = (response / own).fill_diagonal_(-1).max(dim=1).values.clamp(min=0)
    deviation = _deviation(centred.square().mean(1), basis)
    slope = 4 / (1 - neighbour)
    read, threshold = (match / own) @ basis.sinusoid * (deviation * slope)[:, None], neighbour * slope
    opened = torch.relu(centred / deviation[:, None] @ read.T - threshold)
    written = torch.linalg.lstsq(opened, CODE * basis.signs).solution
    block.inner_proj.weight[:count], block.inner_proj.bias[:count] = read, -threshold
    block.output_proj.weight[:, :count] = (written @ basis.code).T


def _gate(basis: Basis, strength: float, sign: int = 1) -> Float[Tensor, "N D"]:
    """Input weights that close a channel's units where its bit is `sign`, and leave them open elsewhere.

    The constant bit takes the place of a bias, so the gate scales with LayerNorm's deviation.
    """
    return strength * (sign * basis.code[basis.bit[basis.flipped]] + basis.code[0])


def _set_units(block: FeedForward, read: list[Tensor], write: list[Tensor]) -> None:
    """Set the first units of a block, without biases. read, write: matrices of (units, D), concatenated."""
    inner, outer = torch.cat(read), torch.cat(write)
    block.inner_proj.weight[: len(inner)] = inner
    block.output_proj.weight[:, : len(outer)] = outer.T


def _bind(block: FeedForward, positions: Float[Tensor, "P D"], basis: Basis) -> None:
    """Flip the channels whose bit is -1 (x - 2x) and cancel positions and codes: only pieces reach the mean."""
    channel, gate = basis.piece[basis.flipped], _gate(basis, ENCODER_GATE)
    cancelled = torch.cat([basis.code, basis.sinusoid])
    code_power = CODE**2 * len(basis.code) / positions.shape[1]
    deviation = _deviation(_centred(positions).square().mean() + code_power, basis)
    _set_units(
        block,
        read=[channel - gate, -channel - gate, cancelled, -cancelled],
        write=[-2 * deviation * channel, 2 * deviation * channel, -deviation * cancelled, deviation * cancelled],
    )


def _unbind(decoder: Decoder, basis: Basis) -> None:
    """Add the vector to every position, flip its channels by that position's bits, and write the result with gain."""
    layer = decoder.layers[1]
    assert isinstance(layer, DecoderLayer)
    memory, dim = layer.encoder_decoder_attn, basis.piece.shape[1]
    memory.v_proj.weight.copy_(math.sqrt(MEMORY) * basis.piece.T @ basis.piece)
    memory.output_proj.weight.copy_(math.sqrt(MEMORY) * torch.eye(dim))
    channel, bag = basis.piece[basis.flipped], basis.piece[basis.bit == 0]
    closed, opened = _gate(basis, DECODER_GATE), _gate(basis, DECODER_GATE, sign=-1)
    _set_units(
        layer.ffn,
        read=[channel - opened, -channel - opened, channel - closed, -channel - closed, bag, -bag],
        write=[UNBIND * x for x in (channel, -channel, -channel, channel, bag, -bag)],
    )
    decoder.layer_norm.weight.fill_(OUTPUT / PIECE)
