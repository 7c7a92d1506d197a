"""Parts of a model that stand still, or learn at a rate of their own."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from family_runs import config_of, train_and_break, write_quantizer
from ranks import ENGINES, EVERY_STRATEGY, Run, train_together
from same_run import assert_same_run
from synthetic import tiny_config, write_data

from lcm.config import OptimizerConfig
from lcm.errors import UserError
from lcm.models import load_model
from lcm.training.engine import build_optimizer
from lcm.training.module import LCMModule
from lcm.training.parts import is_of, rate_of
from lcm.training.run import assemble, check, train

FAMILIES = ("base", "two_tower", "one_tower", "quant_c", "quant_d")
DETERMINISTIC = ("optimizer.lr_factors={denoiser: 0.5}", "trainer.precision=fp32", "trainer.max_steps=4")
FROZEN = ("contextualiser", "denoiser.blocks.0")


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return write_data(tmp_path_factory.mktemp("data"))


def two_tower(data, run, *settings, **changes):
    return config_of("two_tower", data, run, "", *settings, **changes)


def initial(config):
    """The weights at the first step, by name."""
    module, _ = assemble(config)
    return {name: parameter.detach().clone() for name, parameter in module.model.named_parameters()}


def changed(config):
    """The parameters that training has changed, by name."""
    before = initial(config)
    after = load_model(config.run.dir)[0].state_dict()
    return {name for name, weight in before.items() if not torch.equal(after[name], weight)}


def test_a_part_is_a_module_at_any_depth():
    name = "denoiser.blocks.1.feed_forward.out.weight"
    assert all(
        is_of(name, part) for part in ("denoiser", "denoiser.blocks.1", "feed_forward", "feed_forward.out", "out")
    )
    assert not any(is_of(name, part) for part in ("denoise", "blocks.0", "forward", "feed", "blocks.11", "1.feed"))


def test_the_innermost_part_decides_and_of_two_names_for_it_the_longer():
    rates = {"denoiser": 0.5, "feed_forward": 0.1, "denoiser.blocks.1.feed_forward": 3.0, "out": 7.0}
    assert [rate_of(f"denoiser.blocks.{i}.feed_forward.inner.bias", rates) for i in (0, 1)] == [0.1, 3.0]
    assert rate_of("denoiser.blocks.1.feed_forward.out.bias", rates) == 7.0
    assert (rate_of("denoiser.post.bias", rates), rate_of("pre.bias", rates)) == (0.5, 1.0)


@pytest.mark.parametrize("settings", [(), ("trainer.checkpoint_activations=true",)])
def test_frozen_parts_do_not_change_by_one_bit_and_all_others_do(settings, data, tmp_path):
    config = two_tower(data, tmp_path / "run", f"optimizer.frozen={list(FROZEN)}".replace("'", '"'), *settings)
    names = set(initial(config))
    train(config)
    frozen = {name for name in names if any(is_of(name, part) for part in FROZEN)}
    assert changed(config) == names - frozen
    assert 0 < len(frozen) < len(names)


@pytest.mark.slow
def test_frozen_parts_do_not_change_in_a_compiled_model(tmp_path):
    """In another process, because the shape checks of the tests cannot be compiled."""
    script = f"""
import torch
from pathlib import Path
from family_runs import config_of
from lcm.models import load_model
from lcm.training.run import assemble, train
from synthetic import write_data
original = torch.compile
torch.compile = lambda *args, **settings: original(*args, **{{**settings, "backend": "aot_eager"}})
folder = Path({str(tmp_path)!r})
settings = ("optimizer.frozen=contextualiser", "trainer.compile=true")
config = config_of("two_tower", write_data(folder / "data"), folder / "run", "", *settings)
before = {{name: weight.detach().clone() for name, weight in assemble(config)[0].model.named_parameters()}}
train(config)
for name, weight in load_model(folder / "run")[0].named_parameters():
    assert torch.equal(weight, before[name]) == ("contextualiser" in name), name
"""
    tests = Path(__file__).parents[1]
    environment = {**os.environ, "PYTHONPATH": f"{tests}:{tests.parent}"}
    subprocess.run([sys.executable, "-c", script], env=environment, check=True)


@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_says_its_parts(family, data, tmp_path):
    quantizer = write_quantizer(data, tmp_path / "quantizer.safetensors")
    with pytest.raises(UserError, match=r"optimizer.frozen: nonesuch is not a part of this model; expected some of "):
        assemble(config_of(family, data, tmp_path / "run", quantizer, 'optimizer.frozen=["nonesuch"]'))


def test_a_misspelt_part_has_its_name_said(data, tmp_path):
    with pytest.raises(UserError, match=r"optimizer.frozen: denoisr is not a part .*did you mean 'denoiser'"):
        assemble(two_tower(data, tmp_path / "run", 'optimizer.frozen=["denoisr"]'))
    with pytest.raises(UserError, match=r"optimizer.lr_factors: denoisr is not a part .*did you mean 'denoiser'"):
        assemble(two_tower(data, tmp_path / "run", 'optimizer.lr_factors={"denoisr": 2}'))
    with pytest.raises(UserError, match="is the whole model; leave a part to train"):
        assemble(two_tower(data, tmp_path / "run", 'optimizer.frozen=["pre", "contextualiser", "denoiser"]'))


def test_a_frozen_part_has_no_rate(data, tmp_path):
    settings = ('optimizer.frozen=["denoiser"]', "optimizer.lr_factors={denoiser.blocks.0: 2}")
    with pytest.raises(UserError, match=r"lr_factors: denoiser.blocks.0 is in optimizer.frozen; leave it out of one"):
        assemble(two_tower(data, tmp_path / "run", *settings))


@pytest.mark.parametrize(
    ("words", "frozen", "factors"),
    [
        (["--optimizer.frozen", "pre"], ("pre",), {}),
        (["optimizer.frozen=[pre, denoiser]"], ("pre", "denoiser"), {}),
        (["--optimizer.lr_factors", "{denoiser: 1e-1, pre: 2}"], (), {"denoiser": 0.1, "pre": 2.0}),
        (['optimizer.lr_factors={"denoiser": 0.5}'], (), {"denoiser": 0.5}),
    ],
)
def test_parts_may_be_said_on_the_command_line(words, frozen, factors):
    optimizer = tiny_config("data", "run", *words).optimizer
    assert (optimizer.frozen, optimizer.lr_factors) == (frozen, factors)


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (["--optimizer.lr_factors", "{denoiser: yes}"], "expected a number; YAML reads yes"),
        (["--optimizer.lr_factors", "{denoiser: 0}"], r"lr_factors.denoiser=0: input should be greater than 0"),
        (["--optimizer.lr_factors", "0.5"], r"lr_factors=0.5: expected YAML or JSON, as in .* '\{NAME: 0.5\}'"),
        (["--optimizer.lr_factors", "denoiser=0.5"], r"expected a value, as in --optimizer.lr_factors '\{NAME: 0.5\}'"),
    ],
)
def test_wrong_rates_are_refused_in_a_line(words, line):
    with pytest.raises(UserError, match=line):
        tiny_config("data", "run", *words)


def test_the_check_says_what_stands_still_and_how_fast_the_others_learn(data, tmp_path, capsys):
    config = two_tower(
        data, tmp_path / "run", "optimizer.frozen=contextualiser", "optimizer.lr_factors={denoiser: 0.5, pre: 2}",
        "optimizer.lr=2e-3",
    )  # fmt: skip
    sizes = {name: weight.numel() for name, weight in initial(config).items()}
    check(config)
    said = capsys.readouterr().out
    context, denoiser = (sum(n for name, n in sizes.items() if is_of(name, p)) for p in ("contextualiser", "denoiser"))
    assert f"frozen     contextualiser: {context:,} parameters\n" in said
    assert f"rate       denoiser: at most 0.001, 0.5 times optimizer.lr; {denoiser:,} parameters\n" in said


def test_each_part_learns_at_its_rate_with_and_without_decay(data, tmp_path):
    module, _ = assemble(two_tower(data, tmp_path / "run"))
    rates = {"denoiser": 0.5, "feed_forward": 0.1}
    groups = build_optimizer(module.model, OptimizerConfig(weight_decay=0.3, lr_factors=rates)).param_groups
    names = {id(p): name for name, p in module.model.named_parameters()}
    found = {names[id(p)]: (group["factor"], group["weight_decay"]) for group in groups for p in group["params"]}
    assert found == {
        name: (rate_of(name, rates), 0.3 if parameter.ndim >= 2 else 0.0)
        for name, parameter in module.model.named_parameters()
    }
    optimizer = build_optimizer(module.model, module.config.optimizer.model_copy(update={"lr_factors": rates}))
    plain = build_optimizer(module.model, module.config.optimizer)
    stand_in = _AtStep(module, 3)
    LCMModule.on_before_optimizer_step(stand_in, optimizer)
    LCMModule.on_before_optimizer_step(stand_in, plain)
    assert [group["lr"] for group in optimizer.param_groups] == [
        group["factor"] * plain.param_groups[0]["lr"] for group in optimizer.param_groups
    ]


class _AtStep:
    def __init__(self, module, step):
        self.config, self.global_step = module.config, step


def test_a_step_is_as_large_as_its_rate(data, tmp_path):
    """AdamW's first step is lr, whatever the gradient: a tenth of the rate is a tenth of the step."""
    one_step = ("trainer.max_steps=1", "optimizer.start_lr=1e-3", "optimizer.weight_decay=0", "optimizer.eps=1e-12")
    for name, settings in {"whole": (), "tenth": ('optimizer.lr_factors={"contextualiser": 0.1}',)}.items():
        train(two_tower(data, tmp_path / name, *one_step, *settings))
    before = initial(two_tower(data, tmp_path / "whole"))
    whole, tenth = (load_model(tmp_path / name)[0].state_dict() for name in ("whole", "tenth"))
    for name, weight in before.items():
        factor = 0.1 if "contextualiser" in name else 1.0
        torch.testing.assert_close(tenth[name] - weight, factor * (whole[name] - weight), rtol=1e-2, atol=2e-7)


def test_a_killed_run_resumes_with_its_parts(data, tmp_path):
    parts = ('optimizer.frozen=["contextualiser"]', 'optimizer.lr_factors={"denoiser": 0.5, "pre": 2}')
    straight, killed = (two_tower(data, tmp_path / name, *parts) for name in ("straight", "killed"))
    train(straight)
    train_and_break(killed, 7)
    train(killed)
    assert_same_run(tmp_path / "straight", tmp_path / "killed")


@pytest.mark.parametrize("setting", ['optimizer.frozen=["contextualiser"]', 'optimizer.lr_factors={"denoiser": 2}'])
def test_parts_may_not_change_in_the_middle_of_a_run(setting, data, tmp_path):
    train_and_break(two_tower(data, tmp_path / "run"), 7)
    with pytest.raises(UserError, match=r"optimizer.(frozen|lr_factors)=.* was trained with .*; set it back, or start"):
        train(two_tower(data, tmp_path / "run", setting))


@pytest.fixture(scope="module")
def together(data, tmp_path_factory):
    """Runs of two ranks that begin with the weights of a model, and keep a part of them."""
    folder = tmp_path_factory.mktemp("parts")
    train(two_tower(data, folder / "start", "run.seed=99"))
    parts = (f"trainer.start={folder / 'start'}", "optimizer.frozen=contextualiser", *DETERMINISTIC)
    train(two_tower(data, folder / "alone", *parts, "data.rows=4", dropout=0.0))
    launched = {}

    def run(engine):
        if engine not in launched:
            place = launched[engine] = folder / engine
            two = ("trainer.devices=2", "data.rows=2")
            configs = {
                each: two_tower(data, place / each, f"trainer.strategy={each}", *parts, *two, dropout=0.0)
                for each in ENGINES[engine]
            }
            train_together({name: Run(config) for name, config in configs.items()}, place / "logs", 2)
        return folder / "start", launched[engine]

    return run


@pytest.mark.parametrize(("engine", "strategy"), EVERY_STRATEGY)
def test_every_strategy_keeps_frozen_parts_and_trains_the_others(engine, strategy, together):
    """Several ranks train as far as one process does: the rates of parts are theirs, too."""
    start, runs = together(engine)
    before, after, alone = (load_model(folder)[0] for folder in (start, runs / strategy, runs.parent / "alone"))
    weights, expected = dict(after.named_parameters()), dict(alone.named_parameters())
    for name, weight in before.named_parameters():
        assert torch.equal(weights[name], weight) == ("contextualiser" in name), name
        torch.testing.assert_close(weights[name], expected[name], rtol=1e-3, atol=2e-5)
