"""Mistakes in settings end in one line each; shipped configurations load; rates are what they say."""

from pathlib import Path

import pytest
from tiny_codec import model_with

from lcm.codec_lab.module import rate, share_done
from lcm.codec_lab.settings import CodecTraining, LimitSettings, OptimizerSettings
from lcm.codec_lab.start import parameter_groups
from lcm.errors import UserError

FOLDER = Path(__file__).parents[2] / "configs" / "codec"
LIMIT = {"limit": {"steps": 2}}
FROZEN = {**LIMIT, "freeze": "encoder", "start": "mini"}


@pytest.mark.parametrize(
    ("values", "overrides", "message"),
    [
        (LIMIT, ["terms.noyse=1"], "--terms.noyse is not a setting; did you mean 'terms.noise'?"),
        ({**LIMIT, "terms": {"nose": 1}}, [], "test: terms.nose is not a setting; did you mean 'terms.noise'?"),
        ({**LIMIT, "data": {"textt": ["a"]}}, [], "data.textt is not a setting; did you mean 'data.text'?"),
        ({}, [], "limit is missing"),
        ({"limit": {}}, [], "give one of them"),
        ({"limit": {"steps": 2, "minutes": 3}}, [], "give one of them"),
        ({**LIMIT, "terms": {"robust": 0.5}}, [], "set freeze: encoder"),
        ({**LIMIT, "freeze": "encoder"}, [], "keeps the encoder of a codec, but start=analytic; name a codec"),
        ({**FROZEN, "terms": {"similarity": 1}}, [], "drop either"),
        ({**FROZEN, "terms": {"translation_mse": 1}, "data": {"pairs": ["a"]}}, [], "terms.translation_mse=1.0 moves"),
        ({**FROZEN, "terms": {"robust": 0.5, "codebooks": 2}}, [], "keep one of them"),
        ({**LIMIT, "terms": {"similarity": 1}, "data": {"spans": 0.2}}, [], "trains on parts of sentences"),
        ({**LIMIT, "terms": {"translation": 1}}, [], "name their files in data.pairs"),
        ({**LIMIT, "terms": {"noise": -1}}, [], "test: terms.noise=-1"),
        ({**LIMIT, "model": {"dim": 100, "heads": 8}}, [], "model.dim=100 cannot be split over model.heads=8"),
    ],
)
def test_a_mistake_is_one_line_with_its_setting(values, overrides, message):
    with pytest.raises(UserError) as caught:
        CodecTraining.parse(values, overrides, where="test")
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_the_environment_changes_nothing(monkeypatch):
    monkeypatch.setenv("START", "random")
    assert CodecTraining.parse(LIMIT, [], where="test").start == "analytic"


def test_a_missing_file_is_named():
    with pytest.raises(UserError, match=r"--config=nowhere\.yaml: no such file"):
        CodecTraining.load("nowhere.yaml")


@pytest.mark.parametrize("path", sorted(FOLDER.glob("*.yaml")), ids=lambda path: path.stem)
def test_every_shipped_codec_config_loads_and_opens_with_command_machines_hours_and_expectation(path):
    CodecTraining.load(path)
    header = [line for line in path.read_text().splitlines() if line.startswith("#")]
    for promised in ("command", "machines", "hours", "expect"):
        assert any(line.removeprefix("#").strip().startswith(promised) for line in header), promised
    assert f"data_prep/train_codec.py --config configs/codec/{path.name}" in "".join(header)


def test_the_rate_warms_up_stays_and_falls_straight():
    optimizer = OptimizerSettings(warmup_steps=4, decay=0.5, final_factor=0.1)
    assert [rate(step, 0.0, optimizer) for step in range(5)] == [0.25, 0.5, 0.75, 1.0, 1.0]
    assert rate(9, 0.5, optimizer) == 1
    assert rate(9, 0.75, optimizer) == pytest.approx(0.55)
    assert rate(9, 1.0, optimizer) == pytest.approx(0.1)
    assert rate(9, 1.0, OptimizerSettings(warmup_steps=0, decay=0)) == 1


def test_the_limit_counts_steps_or_minutes():
    assert share_done(LimitSettings(steps=4), steps=1, seconds=1e9) == 0.25
    assert share_done(LimitSettings(minutes=2), steps=10**9, seconds=30.0) == 0.25
    assert share_done(LimitSettings(minutes=2), steps=0, seconds=1e9) == 1


def test_every_weight_is_in_one_group_and_the_analytic_parts_learn_slowly():
    model = model_with()
    groups = parameter_groups(model, OptimizerSettings(lr=1.0, free_factor=3.0, embedding_factor=0.5))
    assert sum(p.numel() for g in groups for p in g["params"]) == sum(p.numel() for p in model.parameters())
    rate_of = {id(p): g["base"] for g in groups for p in g["params"]}
    rates = {name: rate_of[id(p)] for name, p in model.named_parameters()}
    assert rates["encoder.embed.weight"] == 0.5
    assert rates["encoder.layers.1.ffn.inner_proj.weight"] == 1
    assert rates["decoder.layers.1.encoder_decoder_attn.v_proj.weight"] == 1
    assert rates["decoder.layer_norm.weight"] == rates["encoder.layers.0.ffn_layer_norm.weight"] == 1
    assert rates["encoder.layers.0.ffn.inner_proj.weight"] == 3
    assert rates["decoder.layers.0.encoder_decoder_attn.v_proj.weight"] == 3
    assert rates["decoder.layers.1.self_attn.q_proj.weight"] == 3
