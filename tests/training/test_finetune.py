"""A run that begins with a trained model: its weights, codec record, normalizer and quantizer, by any strategy."""

import json
import shutil

import pytest
import torch
from family_runs import config_of, train_and_break, write_quantizer
from ranks import ENGINES, EVERY_STRATEGY, Run, train_together
from synthetic import tiny_config, write_data

from lcm.config import save_config
from lcm.errors import UserError
from lcm.jobs import runs as jobs_runs
from lcm.models import load_model, save_model
from lcm.training.checkpoint import CARD
from lcm.training.run import assemble, check, train

FAMILIES = ("base", "two_tower", "one_tower", "quant_c", "quant_d")
STANDS_STILL = ("optimizer.start_lr=0", "optimizer.warmup_steps=9", "trainer.max_steps=1")
"""One step, with a learning rate of 0."""


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return write_data(tmp_path_factory.mktemp("data"))


@pytest.fixture(scope="module")
def trained(data, tmp_path_factory):
    """Folders of trained models by family, with a normalizer that no data has."""
    folder = tmp_path_factory.mktemp("trained")

    def run(family):
        if not (place := folder / family).exists():
            quantizer = write_quantizer(data, folder / "quantizer.safetensors")
            module, _ = assemble(config_of(family, data, place, quantizer, "run.seed=99"))
            module.model.normalizer.scale.mul_(3)
            save_model(place, module.model.state_dict(), module.config)
        return place

    return run


def tuned(family, data, run, start, *settings, **changes):
    return config_of(family, data, run, "", f"trainer.start={start}", *settings, **changes)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_run_begins_with_all_tensors_of_the_trained_model(family, data, trained, tmp_path):
    """Also a Quant-LCM, without the file of its quantizer."""
    module, _ = assemble(tuned(family, data, tmp_path / "run", trained(family), dropout=0.0))
    wanted = load_model(trained(family))[0].state_dict()
    found = module.model.state_dict()
    assert found.keys() == wanted.keys()
    assert all(torch.equal(found[name], wanted[name]) for name in wanted)


@pytest.mark.parametrize(("engine", "strategy"), EVERY_STRATEGY)
def test_every_strategy_begins_with_the_same_weights(engine, strategy, data, trained, together):
    wanted, found = load_model(trained("two_tower"))[0].state_dict(), load_model(together(engine) / strategy)[0]
    for name, tensor in found.state_dict().items():
        assert torch.equal(tensor, wanted[name]), name


@pytest.fixture(scope="module")
def together(data, trained, tmp_path_factory):
    launched = {}

    def run(engine):
        if engine not in launched:
            folder = launched[engine] = tmp_path_factory.mktemp(engine)
            settings = ("trainer.devices=2", *STANDS_STILL)
            configs = {
                each: tuned("two_tower", data, folder / each, trained("two_tower"), f"trainer.strategy={each}",
                            *settings)
                for each in ENGINES[engine]
            }  # fmt: skip
            train_together({name: Run(config) for name, config in configs.items()}, folder / "logs", 2)
        return launched[engine]

    return run


def test_a_killed_run_goes_on_from_its_own_checkpoint_even_when_the_model_is_gone(data, trained, tmp_path):
    start = shutil.copytree(trained("base"), tmp_path / "start")
    train(tuned("base", data, tmp_path / "whole", start))
    config = tuned("base", data, tmp_path / "killed", start)
    train_and_break(config, 7)
    shutil.rmtree(start)
    train(config)
    (one, its), (other, others) = load_model(tmp_path / "whole"), load_model(tmp_path / "killed")
    assert all(torch.equal(a, b) for a, b in zip(one.state_dict().values(), other.state_dict().values(), strict=True))
    assert its.codec == others.codec
    assert one.normalizer.scale.tolist() == [6.0] * 8


def test_the_record_of_the_codec_is_the_models_with_the_datas_language_and_task(data, trained, tmp_path):
    start = shutil.copytree(trained("base"), tmp_path / "start")
    model, config = load_model(start)
    record = config.codec.model_copy(update={"stop_threshold": 0.5, "lang": "deu_Latn", "default_task": "answer"})
    save_model(start, model.state_dict(), config.model_copy(update={"codec": record}))
    module, _ = assemble(tuned("base", data, tmp_path / "run", start))
    assert (module.config.codec.stop_threshold, module.config.codec.lang) == (0.5, "eng_Latn")
    assert module.config.codec.default_task == "continue"


def test_card_runs_and_notes_name_the_model(data, trained, tmp_path, capsys):
    config = tuned("base", data, tmp_path / "runs/one", trained("base"), *STANDS_STILL)
    train(config)
    assert f"fine-tuning {trained('base')}" in capsys.readouterr().err
    assert f"| fine-tuned from | {trained('base')} |" in (tmp_path / "runs/one" / CARD).read_text()
    (row,) = json.loads(_runs(tmp_path / "runs", capsys))
    assert row["start"] == str(trained("base"))
    other = config.model_copy(update={"trainer": config.trainer.model_copy(update={"start": "tales"})})
    check(other)
    heard = capsys.readouterr()
    assert f"trainer.start=tales: this run began with {trained('base')} and is at step 1" in heard.err


def _runs(folder, capsys):
    capsys.readouterr()
    assert jobs_runs.run(jobs_runs.argparse.Namespace(folder=str(folder), json=True)) == 0
    return capsys.readouterr().out


def test_a_packaged_model_is_found_by_its_name(data, tmp_path):
    with pytest.raises(UserError, match=r"trainer.start=tales was trained with two_tower; set model.kind=two_tower"):
        assemble(tiny_config(data, tmp_path / "run", "trainer.start=tales"), on_meta=True)


@pytest.mark.parametrize(
    ("settings", "line"),
    [
        (["model.width=32"], r"model.width=32, but trainer.start=\S+ was trained with 16; set model.width=16"),
        (["model.layers=3"], r"model.layers=3, but trainer.start=\S+ was trained with 2; set model.layers=2"),
        (["trainer.resume=there.ckpt"], r"trainer.start=\S+: trainer.resume=there.ckpt says where to begin, too"),
    ],
)
def test_another_shape_is_refused_in_a_line(settings, line, data, trained, tmp_path):
    config = tiny_config(data, tmp_path / "run", f"trainer.start={trained('base')}", *settings)
    with pytest.raises(UserError, match=line):
        assemble(config, on_meta=True)


def test_a_folder_without_a_model_is_refused(data, tmp_path):
    with pytest.raises(UserError, match=r"trainer.start=nowhere: nowhere: no model.safetensors there"):
        train(tiny_config(data, tmp_path / "run", "trainer.start=nowhere"))


def test_another_objective_is_refused_and_another_loss_weight_is_not(data, trained, tmp_path):
    config = tuned("two_tower", data, tmp_path / "run", trained("two_tower"))
    diffusion = config.model.diffusion

    def with_diffusion(**changes):
        model = config.model.model_copy(update={"diffusion": diffusion.model_copy(update=changes)})
        return assemble(config.model_copy(update={"model": model}), on_meta=True)

    with pytest.raises(UserError, match=r"model.diffusion.prediction=eps, but trainer.start=\S+ was trained with x0"):
        with_diffusion(prediction="eps")
    with_diffusion(weight="snr", context_drop=0.5)


def test_another_quantizer_is_refused(data, trained, tmp_path):
    config = config_of("quant_c", data, tmp_path / "run", "other.safetensors", f"trainer.start={trained('quant_c')}")
    with pytest.raises(UserError, match=r"model.quantizer=other.safetensors, but .*; leave it out"):
        assemble(config, on_meta=True)


def test_another_codec_is_refused_in_a_line(data, trained, tmp_path):
    start = shutil.copytree(trained("base"), tmp_path / "start")
    _, config = load_model(start)
    codec = config.codec.model_copy(update={"name": "other", "fingerprint": "1"})
    save_config(config.model_copy(update={"codec": codec}), start / "config.yaml")
    line = r"was trained with codec 'other' \(fingerprint 1\), but the data was encoded with 'synthetic' \(0\)"
    with pytest.raises(UserError, match=line):
        assemble(tuned("base", data, tmp_path / "run", start), on_meta=True)


def test_a_run_does_not_begin_with_itself(data, trained, tmp_path):
    start = shutil.copytree(trained("base"), tmp_path / "start")
    with pytest.raises(UserError, match=r"is run.dir itself"):
        assemble(tuned("base", data, start, start), on_meta=True)


def test_another_shape_is_refused_in_a_line_after_the_first_checkpoint(data, trained, tmp_path):
    train_and_break(tuned("base", data, tmp_path / "run", trained("base")), 7)
    with pytest.raises(UserError, match=r"model.width=32, but \S+ was trained with 16; set it back, or start another"):
        train(tuned("base", data, tmp_path / "run", trained("base"), width=32))


def test_a_fine_tuned_run_resumes_as_one_without_its_start_too(data, trained, tmp_path):
    """From its own folder or by trainer.resume: with the model's codec record, and its name on the card."""
    start = shutil.copytree(trained("base"), tmp_path / "start")
    model, config = load_model(start)
    record = config.codec.model_copy(update={"stop_threshold": 0.5})
    save_model(start, model.state_dict(), config.model_copy(update={"codec": record}))
    first = tmp_path / "first"
    train_and_break(tuned("base", data, first, start), 7)
    train(config_of("base", data, tmp_path / "second", "", f"trainer.resume={first / 'checkpoints/last.ckpt'}"))
    train(config_of("base", data, first, ""))
    for run in ("first", "second"):
        assert load_model(tmp_path / run)[1].codec.stop_threshold == 0.5
        assert f"| fine-tuned from | {start} |" in (tmp_path / run / CARD).read_text()
