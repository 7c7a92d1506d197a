"""Boundaries are strict: what a file, an option or a call says is understood as it was meant, or refused."""

import argparse
from dataclasses import dataclass
from typing import Annotated, Literal

import pytest
from pydantic import ValidationError

from lcm.config import Config, DiffusionConfig, load_config
from lcm.errors import UserError
from lcm.files import expanded
from lcm.options import Option, add_options, check_fields, options_from, refuse_idle
from lcm.sampling import Sampling, SamplingOptions

MODEL = "model: {kind: base, dim: 8, width: 16, heads: 2, layers: 2}\n"


def refused(tmp_path, text):
    path = tmp_path / "run.yaml"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(UserError) as caught:
        load_config(path)
    assert "\n" not in str(caught.value)
    return str(caught.value).removeprefix(f"{path}: ")


@pytest.mark.parametrize(
    ("text", "line"),
    [
        (MODEL + "trainer: {max_steps: 3}\ntrainer: {log_every: 2}", "'trainer' stands twice, in line 2 and in line 3"),
        ("model: {kind: base, width: 16, width: 32}", "'width' stands twice"),
        (MODEL + "data:\n  path: [a]\n  slots: 8\n  path: [b]\n", "'path' stands twice, in line 3 and in line 5"),
        (MODEL + "run: {seed: 9223372036854775808}", "run.seed=9223372036854775808: input should be less than"),
        (MODEL + "trainer: {patience: 1.0e+300}", "trainer.patience=1e+300: input should be less than or equal"),
        (MODEL + "run: {seed: 010}", "line 2: 010 is another number in YAML"),
        (MODEL + "trainer: {max_steps: 1:30}", "line 2: 1:30 is another number in YAML"),
        (MODEL + "trainer: {max_steps: yes}", "trainer.max_steps=True: expected a number; YAML reads yes, no, on"),
        (MODEL + "optimizer: {betas: [0.9, on]}", "optimizer.betas=[0.9, True]: expected a number"),
        (MODEL + "optimizer: {lr: .inf}", "optimizer.lr=inf: input should be a finite number"),
        (MODEL + "optimizer: {betas: [0.9, 1.0]}", "optimizer.betas.1=1.0: input should be less than 1"),
        (MODEL + "trainer: {devices: 0}", "trainer.devices=0: expected auto, or a number from 1"),
        (MODEL + "trainer: {devices: -1}", "trainer.devices=-1: expected auto, or a number from 1"),
        (MODEL + "trainer: {devices: all}", "trainer.devices='all': expected auto, or a number from 1"),
        (MODEL + "sampling: {guidance: .nan}", "sampling.guidance=nan: input should be a finite number"),
        (MODEL + "sampling: {sampler: dpm, eta: 0.5}", "sampling.eta=0.5: means nothing to --sampler dpm"),
        (MODEL + "run: {dir: $HOME/x}", "run.dir='$HOME/x': $HOME is not replaced here"),
        (MODEL + "data: {path: [a, '${DATA}/b']}", "data.path.1='${DATA}/b': ${DATA} is not replaced here"),
        (MODEL + "run: {dir: ~nobody_of_that_name/x}", "no such user's home"),
        (MODEL + 'run: {dir: "a\\0b"}', "holds a zero byte"),
        (MODEL + "run: {dir: ''}", "run.dir='': string should have at least 1 character"),
        ("1: 2", "1 is not a section"),
        (b"\xff\xfem", "not UTF-8 at byte 0"),
    ],
)  # fmt: skip
def test_a_file_is_read_strictly(text, line, tmp_path):
    assert line in refused(tmp_path, text)


IDLE = [
    ("b0=0.1", "schedule=quadratic"),
    ("b1=0.1", "schedule=quadratic"),
    ("gamma=1.0", "schedule=sigmoid"),
    ("delta=0.0", "schedule=sigmoid"),
    ("min_snr=0.3", "weight=snr"),
    ("max_snr=5.0", "weight=snr"),
    ("fragility=f.safetensors", "weight=fragility"),
    ("beta_a=0.5", "timesteps=beta"),
    ("beta_b=2.0", "timesteps=beta"),
]


@pytest.mark.parametrize(("setting", "needs"), IDLE)
def test_a_setting_of_the_diffusion_that_nothing_would_come_of_is_refused_from_a_file_a_command_and_python(
    setting, needs, tmp_path
):
    name, _, value = setting.partition("=")
    towers = f"model: {{kind: two_tower, dim: 8, width: 16, heads: 2, diffusion: {{{name}: {value}}}}}\n"
    line = f"model.diffusion.{setting}: goes with model.diffusion.{needs}"
    assert refused(tmp_path, towers) == line
    path = tmp_path / "run.yaml"
    path.write_text("model: {kind: one_tower, dim: 8, width: 64}\n")
    with pytest.raises(UserError, match=rf"run.yaml: {line}$"):
        load_config(path, [f"model.diffusion.{setting}"])
    with pytest.raises(ValidationError, match=f"{setting}: goes with {needs}"):
        DiffusionConfig.model_validate({name: value})
    both = load_config(path, [f"model.diffusion.{needs}", f"model.diffusion.{setting}"])
    assert str(getattr(both.model.diffusion, name)) == value


def test_a_home_folder_is_understood_in_every_path(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", "/home/me")
    path = tmp_path / "run.yaml"
    path.write_text(MODEL + "run: {dir: ~/runs/x}\ndata: {path: ~/data, cache: ~/c}\ntrainer: {resume: ~/a.ckpt}\n")
    config = load_config(path)
    assert (config.run.dir, config.data.path) == ("/home/me/runs/x", ("/home/me/data",))
    assert (config.data.cache, config.trainer.resume) == ("/home/me/c", "/home/me/a.ckpt")
    assert expanded("s3://bucket/$x/~") == "s3://bucket/$x/~", "a URL has no home"
    assert expanded("a~b/cost$") == "a~b/cost$"


def test_anchors_and_merged_sections_are_no_duplicates(tmp_path):
    path = tmp_path / "run.yaml"
    path.write_text("model: &m {kind: base, dim: 8, width: 16, heads: 2}\nrun: {dir: a}\n")
    assert load_config(path).model.width == 16
    path.write_text("model: {<<: {kind: base, dim: 8}, <<: {width: 16, heads: 2}}\n")
    assert load_config(path).model.width == 16


@pytest.mark.parametrize(
    ("overrides", "line"),
    [
        ("model.width=32", "overrides='model.width=32': expected a list"),
        (["--trainer.compile"], "--trainer.compile: expected a value"),
        (["--trainer.max_steps", "--run.seed", "1"], "--trainer.max_steps: expected a value"),
    ],
)
def test_overrides_without_a_value_or_a_list_are_refused(overrides, line):
    with pytest.raises(UserError, match=line):
        Config.parse({"model": {"kind": "base"}}, overrides, where="t")


@dataclass(frozen=True, kw_only=True)
class Record:
    input: Annotated[str, Option("F", place=True, read=True)]
    """Read."""
    output: Annotated[str, Option("F", place=True)] = "out"
    """Written."""
    data: Annotated[tuple[str, ...], Option("D", place=True)] = ()
    """Several."""
    names: Annotated[tuple[str, ...], Option("A,…", several="by commas")] = ()
    """Several, by commas."""
    levels: tuple[float, ...] = ()
    """Numbers."""
    kind: Literal["one", "two"] = "one"
    """A choice."""
    count: Annotated[int | None, Option(least=1)] = None
    """A number."""
    share: Annotated[float, Option(least=0)] = 0.5
    """Another."""
    flag: bool = False
    """A flag."""

    def __post_init__(self) -> None:
        check_fields(self)
        if self.kind == "one":
            refuse_idle(self, ("flag", "names"), "goes with --kind two")


def parsed(*words):
    parser = argparse.ArgumentParser()
    add_options(parser, Record)
    return options_from(parser.parse_args(["--input", "i", *words]), Record)


def test_an_option_of_several_values_takes_all_that_are_given_in_any_way():
    given = parsed("--data", "a", "b", "--data", "c", "--names", "x,y", "--names", "z", "--kind", "two")
    assert given.data == ("a", "b", "c")
    assert given.names == ("x", "y", "z")
    assert parsed("--levels", "1", "2.5", "--levels", "3").levels == (1.0, 2.5, 3.0)


def test_what_is_read_is_never_passed_over_for_a_second_one():
    with pytest.raises(UserError, match="--input: given twice, as i and as j; give it once"):
        parsed("--input", "j")
    assert parsed("--input", "i").input == "i"
    assert parsed("--output", "a", "--output", "b").output == "b", "of settings the last one counts"


@pytest.mark.parametrize(
    ("given", "line"),
    [
        ({"data": "corpus"}, "--data='corpus': expected several, in a list; for one, ['corpus']"),
        ({"kind": "tow"}, "--kind=tow: expected one, two; did you mean 'two'?"),
        ({"count": 2.0}, "--count=2.0: expected a whole number, found float"),
        ({"count": True}, "--count=True: expected a whole number, found bool"),
        ({"count": 2**63}, "--count=9223372036854775808: expected less than 2**63"),
        ({"share": "1"}, "--share='1': expected a number, found str"),
        ({"share": float("inf")}, "--share=inf: expected a finite number"),
        ({"flag": 1}, "--flag=1: expected True or False, found int"),
        ({"input": 3}, "--input=3: expected text, found int"),
        ({"output": "$OUT/x"}, "--output=$OUT/x: $OUT is not replaced here"),
        ({"data": ["a", "~nobody_of_that_name"]}, "no such user's home"),
        ({"levels": (1.0, "2")}, "--levels='2': expected a number"),
        ({"flag": True}, "--flag: goes with --kind two"),
        ({"names": ["x", "y"]}, "--names=x y: goes with --kind two"),
    ],
)
def test_a_record_from_python_is_as_strict_as_the_command_line(given, line):
    with pytest.raises(UserError) as caught:
        Record(**{"input": "i", **given})
    assert line in str(caught.value)


def test_lists_and_paths_are_understood(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", "/home/me")
    record = Record(input=tmp_path, data=["~/a", tmp_path], count=None, share=1)
    assert (record.input, record.data, record.share) == (str(tmp_path), ("/home/me/a", str(tmp_path)), 1)
    with pytest.raises(UserError, match="--output is empty; expected a file or a folder"):
        parsed("--output", "")


def test_settings_of_ddim_are_refused_beside_dpm_and_not_inherited_by_it():
    for name in ("eta", "epsilon_scaling"):
        with pytest.raises(UserError, match=f"--{name.replace('_', '-')}=1.0: means nothing to --sampler dpm"):
            Sampling(sampler="dpm", **{name: 1.0})
    own = SamplingOptions(eta=0.5, guidance=2.0)
    assert Sampling(sampler="dpm").completed(own) == Sampling(sampler="dpm", guidance=2.0)
    with pytest.raises(UserError, match=r"--eta=1\.0: means nothing to --sampler dpm"):
        Sampling(eta=1.0).completed(SamplingOptions(sampler="dpm"))
