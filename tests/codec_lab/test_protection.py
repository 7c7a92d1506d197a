"""Nothing that is learned reaches the directions of the positions, and the units that write the code stand still."""

import torch
from tiny_codec import MAX_PIECES, model_with

from lcm.codec_lab import analytic
from lcm.codec_lab.analytic import feed_forward
from lcm.codec_lab.start import empty_directions, hold_code_units, protect

CODE_UNITS = 16


def stirred():
    """An analytic start whose every weight has moved, its code units too."""
    model = model_with()
    analytic.initialize(model, MAX_PIECES, seed=0)
    directions = empty_directions(model)
    torch.manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.1 * torch.randn_like(parameter)
    return model, directions


def test_after_protection_only_the_code_units_write_into_the_directions():
    model, directions = stirred()
    before = [
        feed_forward(side, 0).output_proj.weight[:, :CODE_UNITS].clone() for side in (model.encoder, model.decoder)
    ]
    protect(model, directions, MAX_PIECES, embedding=True)
    for side, code in zip((model.encoder, model.decoder), before, strict=True):
        for layer in side.layers:
            writers = [layer.self_attn.output_proj]
            writers += [layer.encoder_decoder_attn.output_proj] if side is model.decoder else []
            for writer in writers:
                assert (directions @ writer.weight).abs().max() < 1e-4
                assert (directions @ writer.bias).abs().max() < 1e-4
        output = feed_forward(side, 0).output_proj
        assert (directions @ output.weight[:, CODE_UNITS:]).abs().max() < 1e-4
        assert (directions @ output.bias).abs().max() < 1e-4
        assert torch.equal(output.weight[:, :CODE_UNITS], code)
    assert (model.encoder.embed.weight @ directions.T).abs().max() < 1e-4


def test_the_embedding_table_is_left_alone_between_its_projections():
    model, directions = stirred()
    before = model.encoder.embed.weight.clone()
    protect(model, directions, MAX_PIECES, embedding=False)
    assert torch.equal(model.encoder.embed.weight, before)


def test_protecting_twice_is_protecting_once():
    model, directions = stirred()
    protect(model, directions, MAX_PIECES, embedding=True)
    once = {name: value.clone() for name, value in model.state_dict().items()}
    protect(model, directions, MAX_PIECES, embedding=True)
    assert all(torch.allclose(once[name], value, atol=1e-5) for name, value in model.state_dict().items())


def test_code_units_get_no_gradient_and_all_others_keep_theirs():
    model, _ = stirred()
    for parameter in model.parameters():
        parameter.grad = torch.ones_like(parameter)
    hold_code_units(model, MAX_PIECES)
    held = 0
    for side in (model.encoder, model.decoder):
        block = feed_forward(side, 0)
        assert bool((block.inner_proj.weight.grad[:CODE_UNITS] == 0).all())
        assert bool((block.inner_proj.bias.grad[:CODE_UNITS] == 0).all())
        assert bool((block.output_proj.weight.grad[:, :CODE_UNITS] == 0).all())
        held += CODE_UNITS * (2 * 128 + 1)
    assert sum(int((p.grad == 0).sum()) for p in model.parameters()) == held
