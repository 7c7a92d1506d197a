"""The closed form: an untrained codec reconstructs, and what carries positions carries nothing else."""

import pytest
import torch
from tiny_codec import MAX_PIECES, SIZES, model_with

from lcm.codec import load_codec
from lcm.codec.architecture import Sizes, SonarText
from lcm.codec_lab import analytic
from lcm.codec_lab.analytic import feed_forward
from lcm.codec_lab.start import empty_directions
from lcm.errors import UserError

END, LANG = 3, 190


@pytest.fixture(scope="module")
def model():
    model = model_with()
    analytic.initialize(model, MAX_PIECES, seed=0)
    return model.requires_grad_(False).eval()


def correct(model, length, rows=60):
    """Share of the pieces of random sentences that the decoder names, given those before."""
    pieces = torch.randint(4, 190, (rows, length), generator=torch.Generator().manual_seed(length))
    lang, end = torch.full((rows, 1), LANG), torch.full((rows, 1), END)
    vectors = model.encoder(torch.cat([lang, pieces, end], 1), torch.full((rows,), length + 2))
    states = model.decoder(torch.cat([end, lang, pieces], 1), model.decoder.memory(vectors))
    said = model.decoder.logits(states)[:, 1:].argmax(-1)
    return float((said == torch.cat([pieces, end], 1)).float().mean())


def test_an_untrained_codec_reconstructs_short_sentences(model):
    assert correct(model, 2) > 0.85
    assert correct(model, 4) > 0.75


def test_the_longer_the_sentence_the_more_its_pieces_disturb_each_other(model):
    assert correct(model, 2) > correct(model, 6) > correct(model, 12) > 40 / 200


def test_a_vector_knows_the_order_of_its_pieces(model):
    one, other = torch.tensor([[LANG, 10, 20, END]]), torch.tensor([[LANG, 20, 10, END]])
    vectors = model.encoder(torch.cat([one, other]), torch.tensor([4, 4]))
    assert torch.nn.functional.cosine_similarity(vectors[0], vectors[1], dim=0) < 0.9


def test_the_first_block_writes_the_code_of_every_position_exactly_whatever_the_pieces(model):
    basis = analytic.build_basis(SIZES, 16, torch.Generator().manual_seed(0))
    for side in (model.encoder, model.decoder):
        x = side.embed(torch.randint(0, 200, (3, 16)))
        layer = side.layers[0]
        written = layer.ffn(layer.ffn_layer_norm(x)) @ basis.code.float().T
        assert torch.allclose(written, (analytic.CODE * basis.signs).float().expand(3, -1, -1), atol=0.01)


def test_the_second_block_turns_each_channel_by_the_bit_of_its_position(model):
    basis = analytic.build_basis(SIZES, 16, torch.Generator().manual_seed(0))
    first, second = model.encoder.layers[0], model.encoder.layers[1]
    x = model.encoder.embed(torch.randint(0, 200, (3, 16)))
    x = x + first.ffn(first.ffn_layer_norm(x))
    before, after = (y @ basis.piece.float().T for y in (x, x + second.ffn(second.ffn_layer_norm(x))))
    turned = before * basis.signs[:, basis.bit].float()
    assert (after - turned).square().mean() < 0.02 * turned.square().mean()
    assert not torch.equal(basis.signs[:, basis.bit], torch.ones_like(basis.signs[:, basis.bit]))


def test_the_three_parts_are_orthonormal_and_fill_the_width():
    basis = analytic.build_basis(SIZES, 16, torch.Generator().manual_seed(0))
    together = torch.cat([basis.sinusoid, basis.code, basis.piece])
    assert together.shape == (128, 128)
    assert torch.allclose(together @ together.T, torch.eye(128).double(), atol=1e-9)


def test_signs_tell_all_positions_apart():
    for positions in (16, 64, 128):
        sizes = Sizes(200, 1024, 2, 2, 4, 4, 1, 1)
        signs = analytic.build_basis(sizes, positions, torch.Generator()).signs
        assert len(torch.unique(signs, dim=0)) == positions
        assert bool((signs[:, 0] == 1).all())


@pytest.mark.parametrize(("max_pieces", "positions"), [(3, 16), (14, 16), (15, 32), (61, 64), (62, 64), (63, 128)])
def test_every_sentence_finds_its_language_and_end_among_the_coded_positions(max_pieces, positions):
    assert analytic.coded_positions(max_pieces) == positions >= max_pieces + 2


def test_the_directions_of_the_positions_are_found_again_in_the_embedding_table(model):
    basis = analytic.build_basis(SIZES, 16, torch.Generator().manual_seed(0))
    expected = torch.cat([basis.sinusoid, basis.code])
    found = empty_directions(model)
    assert len(found) == len(expected)
    assert torch.allclose(found.T @ found, (expected.T @ expected).float(), atol=1e-3)


def test_the_embedded_codec_has_75_empty_directions_and_its_code_lies_in_them():
    model = load_codec("mini", device="cpu").model
    found = empty_directions(model)
    assert len(found) == 75
    positions = model.encoder.embed.positions[:64]
    spread = positions - positions.mean(1, keepdim=True)
    for inside in (
        spread,
        *(feed_forward(side, 0).output_proj.weight[:, :64].T for side in (model.encoder, model.decoder)),
    ):
        assert (inside - inside @ found.T @ found).norm() < 0.02 * inside.norm()


def test_a_random_start_has_no_empty_direction():
    model = model_with()
    analytic.spread(model, torch.Generator().manual_seed(0))
    assert len(empty_directions(model)) == 0


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"encoder_ffn": 200}, "model.encoder_ffn=200"),
        ({"decoder_ffn": 300}, "model.decoder_ffn=300"),
        ({"vocabulary": 128}, "model.vocabulary=128"),
        ({"decoder_layers": 1}, "model.decoder_layers=1"),
        ({"dim": 24}, "model.dim=24 is too small"),
    ],
)
def test_sizes_without_room_for_the_construction_are_named_with_what_they_need(changed, message):
    sizes = Sizes(**{**vars(SIZES), **changed})
    with pytest.raises(UserError, match=message):
        analytic.initialize(SonarText(sizes), MAX_PIECES, seed=0)
