"""Configuration: one line per mistake, nothing from the environment, exact round trips to disk."""

import pytest
import yaml
from pydantic import ValidationError

from lcm import config as configuration
from lcm.config import Config, load_config, save_config
from lcm.errors import UserError
from lcm.settings import Section

TINY = {"model": {"kind": "base", "dim": 8, "width": 16, "heads": 2, "layers": 2}}


def parse(values=None, *overrides):
    return Config.parse({**TINY, **(values or {})}, overrides, where="tiny.yaml")


@pytest.fixture
def yaml_file(tmp_path):
    def write(text):
        path = tmp_path / "run.yaml"
        path.write_text(text)
        return path

    return write


def test_a_yaml_file_is_read_with_its_types(yaml_file):
    """YAML 1.1 reads 1e-4 as a string: the field's type counts."""
    config = load_config(
        yaml_file(
            "model: {kind: base, width: 64, heads: 4}\n"
            "data: {path: [a, b], slots: 32}\n"
            "optimizer: {lr: 1e-4, betas: [0.9, 0.98]}\n"
            "trainer: {devices: auto}\n"
        )
    )
    assert config.optimizer.lr == 1e-4
    assert config.optimizer.betas == (0.9, 0.98)
    assert config.data.path == ("a", "b")
    assert config.model.width == 64
    assert config.model.dim == 1024, "what the file leaves out has its default"


def test_a_single_folder_needs_no_list():
    assert parse({"data": {"path": "data/mine"}}).data.path == ("data/mine",)


@pytest.mark.parametrize(
    "overrides",
    [
        ["model.width=32", "data.path=x", "trainer.max_steps=5"],
        ["--model.width", "32", "--data.path", "x", "--trainer.max_steps", "5"],
        ["--model.width=32", "--data.path=x", "--trainer.max_steps=5"],
    ],
    ids=["KEY=VALUE", "--KEY VALUE", "--KEY=VALUE"],
)
def test_overrides_win_in_every_spelling(overrides):
    config = parse({"data": {"path": ["a", "b"], "slots": 32}}, *overrides)
    assert (config.model.width, config.data.path, config.trainer.max_steps) == (32, ("x",), 5)
    assert (config.model.layers, config.data.slots) == (2, 32), "neighbours of what is overridden stay"


def test_repeated_overrides_make_a_list():
    assert parse({}, "--data.path", "a", "--data.path", "b").data.path == ("a", "b")
    assert parse({}, "data.path=a", "data.path=b").data.path == ("a", "b")
    assert parse({}, "--trainer.loggers", "csv").trainer.loggers == ("csv",)
    assert parse({}, "optimizer.lr=1e-4", "trainer.compile=true").optimizer.lr == 1e-4


def test_environment_variables_never_change_a_run(monkeypatch):
    before = parse()
    variables = {
        "MODEL": '{"kind": "base", "width": 32}',
        "DATA": "/scratch",
        "RUN": "x",
        "SEED": "99",
        "CODEC": "sonar",
    }
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
        monkeypatch.setenv(name.lower(), value)
    monkeypatch.setenv("MODEL__WIDTH", "32")
    assert parse() == before


@pytest.mark.parametrize(
    ("values", "overrides", "message"),
    [
        (
            {"model": {**TINY["model"], "widht": 1}}, [],
            "tiny.yaml: model.widht is not a setting; did you mean 'model.width'?",
        ),
        ({"optimiser": {}}, [], "tiny.yaml: optimiser is not a setting"),
        ({}, ["--model.widht", "1"], "--model.widht is not a setting; did you mean 'model.width'?"),
        ({}, ["trainer.max_step=3"], "--trainer.max_step is not a setting; did you mean 'trainer.max_steps'?"),
        ({}, ["trainer.max_steps=2.5"], "tiny.yaml: trainer.max_steps='2.5': input should be a valid integer"),
        ({}, ["model.width=100", "model.heads=16"], "model.width=100 cannot be split over model.heads=16"),
        ({}, ["model.dropout=1"], "tiny.yaml: model.dropout='1': input should be less than 1"),
        ({"model": {"kind": "bse"}}, [], "tiny.yaml: model.kind"),
        ({"model": {"width": 16}}, [], "tiny.yaml: model.kind"),
        ({}, ["trainer.precision=fp8"], "tiny.yaml: trainer.precision='fp8': input should be 'fp32', 'bf16' or 'auto'"),
    ],
)  # fmt: skip
def test_every_mistake_is_one_line_with_the_way_out(values, overrides, message):
    with pytest.raises(UserError) as caught:
        parse(values, *overrides)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


TOWERS = {"kind": "two_tower", "dim": 16, "width": 16, "heads": 2, "context_layers": 1, "denoiser_layers": 1}


@pytest.mark.parametrize(
    ("model", "overrides", "message"),
    [
        ({**TOWERS, "layers": 2}, [], "model.layers is not a setting of kind two_tower; did you mean 'model."),
        (TOWERS, ["model.layers=2"], "model.layers is not a setting of kind two_tower; did you mean 'model."),
        ({**TOWERS, "widht": 2}, [], "model.widht is not a setting; did you mean 'model.width'?"),
        ({**TOWERS, "diffusion": {"shedule": "x"}}, [], "did you mean 'model.diffusion.schedule'?"),
        (TOWERS, ["model.diffusion.schedule=cosin"], "tiny.yaml: model.diffusion.schedule='cosin': input should be"),
        (TOWERS, ["model.diffusion.weight=snr", "model.diffusion.min_snr=20"], "min_snr=20.0 is above max_snr=10.0"),
        ({"kind": "two_towers"}, [], "tiny.yaml: model.kind"),
    ],
)
def test_mistakes_in_a_model_section_use_the_names_that_a_person_writes(model, overrides, message):
    with pytest.raises(UserError) as caught:
        Config.parse({"model": model}, overrides, where="tiny.yaml")
    assert message in str(caught.value)
    assert "model.layers'" not in str(caught.value), "no setting of another family is suggested"
    assert "two_tower." not in str(caught.value)


def test_two_mistakes_are_two_lines():
    with pytest.raises(UserError) as caught:
        parse({"data": {"slotts": 3}, "run": {"sed": 1}})
    assert [line.split(";")[0] for line in str(caught.value).splitlines()] == [
        "tiny.yaml: data.slotts is not a setting",
        "tiny.yaml: run.sed is not a setting",
    ]


@pytest.mark.parametrize(
    ("text", "message"),
    [("model: [", "not valid YAML"), ("- 1\n- 2\n", "expected sections"), ("", "expected sections")],
)
def test_a_broken_file_is_one_line(text, message, yaml_file):
    path = yaml_file(text)
    with pytest.raises(UserError) as caught:
        load_config(path)
    assert str(caught.value).startswith(f"{path}: {message}")
    assert "\n" not in str(caught.value)


def test_a_missing_file_is_one_line(tmp_path):
    with pytest.raises(UserError, match=r"--config=.*none.yaml: no such file"):
        load_config(tmp_path / "none.yaml")


def test_what_is_saved_is_what_is_loaded(tmp_path):
    codec = {"name": "mini", "fingerprint": "f", "dim": 8, "lang": "eng_Latn", "splitter": {"name": "nupunkt"}}
    config = parse(
        {"codec": {**codec, "stop_threshold": 0.9}}, "optimizer.lr=3e-7", "data.path=a b/ç", "trainer.resume=none"
    )
    save_config(config, tmp_path / "config.yaml")
    assert load_config(tmp_path / "config.yaml") == config
    sections = yaml.safe_load((tmp_path / "config.yaml").read_text())
    assert list(sections) == ["model", "data", "optimizer", "trainer", "run", "codec"]


def test_a_configuration_never_changes():
    config = parse()
    for section, name in [(config, "run"), (config.model, "width"), (config.trainer, "max_steps")]:
        with pytest.raises(ValidationError, match="frozen"):
            setattr(section, name, 1)


def test_every_setting_can_be_left_out_but_the_kind_of_model():
    config = Config(model={"kind": "base"})
    assert config.model.layers == 32
    assert config.codec is None


def test_every_setting_is_explained_by_a_sentence():
    """`--help` shows it. What a section is, its class says."""
    sections = [kind for kind in vars(configuration).values() if isinstance(kind, type) and issubclass(kind, Section)]
    settings = {f"{s.__name__}.{name}": field for s in sections for name, field in s.model_fields.items()}
    unexplained = {
        name
        for name, field in settings.items()
        if not (field.description or "").endswith((".", "…"))
        and not name.endswith(".kind")
        and not (isinstance(field.annotation, type) and issubclass(field.annotation, Section))
    }
    assert len(settings) > 90
    assert not unexplained
