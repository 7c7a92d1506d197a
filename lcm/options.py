"""Options and settings as frozen records: the fields are the names, their types the checks, their docstrings the help.

Options, of a command, are a dataclass that argparse fills:

@dataclass(frozen=True, kw_only=True)
class Options:
    output: Annotated[str, Option("DIR")]
    \"\"\"Folder of the data set.\"\"\"                        # no default: required
    workers: Annotated[int | None, Option("N", least=1)] = None
    \"\"\"Processes (default: one per core).\"\"\"

    def __post_init__(self) -> None:
        check_bounds(self)

add_options(parser, Options)
options = options_from(parser.parse_args(), Options)

Settings, of a run, are pydantic models that a YAML file fills, with overrides such as "--model.width 512".
"""

import ast
import difflib
import inspect
import math
import re
import sys
import textwrap
from argparse import SUPPRESS, ArgumentParser, Namespace, _ActionsContainer
from collections.abc import Callable, Collection, Sequence
from dataclasses import MISSING, Field, dataclass, fields, is_dataclass
from itertools import pairwise
from pathlib import Path
from types import NoneType
from typing import Annotated, Any, Literal, TypeVar, get_args, get_origin, get_type_hints

import yaml
from pydantic import BaseModel, BeforeValidator, ValidationError
from pydantic_core import ErrorDetails
from pydantic_settings import BaseSettings, CliSettingsSource, PydanticBaseSettingsSource, SettingsError

from lcm.errors import UserError

OptionsT = TypeVar("OptionsT")
SettingsT = TypeVar("SettingsT", bound="Settings")


@dataclass(frozen=True)
class Option:
    """The part of an option that a field's type does not say.

    metavar:     stands for the value in --help (numbers have one: N for int, X for float)
    least, most: bounds of a number, included; `check_bounds` checks them
    several:     for a tuple: values follow one flag ("--input A B"), the flag is repeated, or commas separate them
    parse:       turns the text into the value, in place of the field's type; may raise UserError
    """

    metavar: str | None = None
    least: int | float = -math.inf
    most: int | float = math.inf
    several: Literal["in a row", "repeated", "by commas"] = "in a row"
    parse: Callable[[str], Any] | None = None


def existing_file(path: str | Path, setting: str) -> Path:
    """Return `path` as a Path. Raises UserError with the setting's name where there is no such file."""
    path = Path(path)
    if not path.is_file():
        raise UserError(f"{setting}={path}: no such file")
    return path


def option_name(field: str) -> str:
    """The flag of a field: "--text-column" for text_column."""
    return f"--{field.replace('_', '-')}"


def add_options(parser: _ActionsContainer, record: type[Any], skip: Collection[str] = ()) -> None:
    """Add an option for each field of `record` to a parser, or to an argument group, except for those in `skip`.

    The type is the field's: str, int, float, a Literal of choices, a tuple of strings, or a bool, which becomes a flag
    (--no-NAME where the default is True). A field without a default is required. The help is the field's docstring,
    with the default added where it says something and the docstring does not name it.
    """
    types, options, help_texts = get_type_hints(record), _options(record), _docstrings(record)
    for field in fields(record):
        if field.name not in skip:
            _add(parser, field, types[field.name], options[field.name], help_texts.get(field.name, ""))


def options_from(args: Namespace, record: type[OptionsT]) -> OptionsT:
    """The record with what was given on the command line; its own defaults stand for the rest."""
    given = {}
    for name, option in _options(record).items():
        if hasattr(args, name):
            value = getattr(args, name)
            value = option.parse(value) if option.parse else value
            given[name] = tuple(value) if isinstance(value, list) else value
    return record(**given)


def check_bounds(options: Any) -> None:
    """Raise UserError for a number outside the bounds of its `Option`; for the record's `__post_init__`."""
    for name, option in _options(type(options)).items():
        value = getattr(options, name)
        if isinstance(value, int | float) and not option.least <= value <= option.most:
            both = f"{option.least:g} to {option.most:g}" if option.most < math.inf else f"{option.least:g} or more"
            raise UserError(f"{option_name(name)}={value}: expected {both}")


def _options(record: type[Any]) -> dict[str, Option]:
    """The `Option` in the annotation of each field."""
    hints = get_type_hints(record, include_extras=True)
    return {n: next((part for part in get_args(h) if isinstance(part, Option)), Option()) for n, h in hints.items()}


def _docstrings(record: type[Any]) -> dict[str, str]:
    """The docstrings under the fields of a class and of its bases, each as one line."""
    found: dict[str, str] = {}
    for kind in reversed(record.__mro__[:-1]):
        (body,) = ast.parse(textwrap.dedent(inspect.getsource(kind))).body
        assert isinstance(body, ast.ClassDef)
        for node, after in pairwise(body.body):
            match node, after:
                case ast.AnnAssign(target=ast.Name(id=name)), ast.Expr(value=ast.Constant(value=str(text))):
                    found[name] = " ".join(text.split())
    return found


def _by_commas(text: str) -> tuple[str, ...]:
    return tuple(name.strip() for name in text.split(",") if name.strip())


_SEVERAL: dict[str, dict[str, Any]] = {
    "in a row": {"nargs": "+"},
    "repeated": {"action": "append"},
    "by commas": {"type": _by_commas},
}


def _add(parser: _ActionsContainer, field: "Field[Any]", kind: Any, option: Option, text: str) -> None:
    if NoneType in get_args(kind):
        (kind,) = (part for part in get_args(kind) if part is not NoneType)
    text, default = text.removesuffix(".").replace("%", "%%"), field.default
    if kind is not bool and default not in (MISSING, None, "", ()) and "default" not in text:
        text += f" (default: {default:{',' if kind is int else ''}})"
    settings: dict[str, Any] = {"dest": field.name, "default": SUPPRESS, "help": text}
    if kind is bool:
        flag = option_name(f"no_{field.name}" if default is True else field.name)
        parser.add_argument(flag, action="store_false" if default is True else "store_true", **settings)
        return
    settings |= {"required": default is MISSING, "metavar": option.metavar or {int: "N", float: "X"}.get(kind)}
    if get_origin(kind) is Literal:
        settings["choices"] = get_args(kind)
    elif get_origin(kind) is tuple:
        settings |= _SEVERAL[option.several]
    else:
        settings["type"] = str if option.parse else kind
    parser.add_argument(option_name(field.name), **settings)


Names = Annotated[tuple[str, ...], BeforeValidator(lambda value: (value,) if isinstance(value, str) else value)]
"""One string or several."""


class Section(BaseModel, extra="forbid", frozen=True, use_attribute_docstrings=True):
    """A section of a configuration: refuses unknown keys, and never changes after loading."""


def add_descriptions(section: Any) -> None:
    """Describe the fields of a section that is a pydantic dataclass by their docstrings, inherited ones too."""
    for name, text in _docstrings(section).items():
        section.__pydantic_fields__[name].description = text


class Settings(BaseSettings, extra="forbid", frozen=True, use_attribute_docstrings=True):
    """A whole configuration. Values come from a YAML file and the command line, never from the environment."""

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """Ignore the environment: a cluster's DATA=/scratch would crash a run, and SEED=99 would silently change it."""
        return (init_settings,)

    @classmethod
    def load(cls: type[SettingsT], path: str | Path, overrides: Sequence[str] = ()) -> SettingsT:
        """Load a YAML file, with overrides such as "model.width=512".

        Raises UserError with a line for each mistake: the setting, its value, what was expected, the nearest name.
        """
        path = existing_file(path, "--config")
        try:
            values = yaml.safe_load(path.read_text(encoding="utf-8"))
        except yaml.YAMLError as error:
            raise UserError(f"{path}: not valid YAML: {' '.join(str(error).split())}") from error
        if not isinstance(values, dict):
            raise UserError(f"{path}: expected sections such as 'model:' and 'data:', found {type(values).__name__}")
        return cls.parse(values, overrides, where=str(path))

    @classmethod
    def parse(cls: type[SettingsT], values: dict[str, Any], overrides: Sequence[str], where: str) -> SettingsT:
        """Validate values (as read from YAML) with overrides. `where` begins every error message."""
        arguments = [o if o.startswith("--") or "=" not in o else f"--{o}" for o in overrides]
        try:
            return cls(_cli_prog_name="lcm", _cli_parse_args=arguments, _cli_exit_on_error=False, **values)
        except SettingsError as error:
            raise UserError(_explain_arguments(str(error), cls)) from error
        except ValidationError as error:
            raise UserError("\n".join(f"{where}: {_explain(e, cls)}" for e in error.errors())) from error

    @classmethod
    def from_command_line(
        cls: type[SettingsT], parser: ArgumentParser, argv: Sequence[str] | None
    ) -> tuple[Namespace, SettingsT]:
        """Parse the parser's own options, and load `--config FILE` with overrides `--SECTION.SETTING VALUE …`.

        --help lists the settings, too. Raises UserError as `load` does.
        """
        parser.add_argument(
            "--config", required=True, metavar="FILE", help="a YAML file, such as configs/base_toy.yaml"
        )
        words = list(sys.argv[1:] if argv is None else argv)
        if {"-h", "--help"} & set(words):
            CliSettingsSource[Any](cls, root_parser=parser, cli_avoid_json=True)  # adds every setting to the help
        args, overrides = parser.parse_known_args(words)
        return args, cls.load(args.config, overrides)


def _setting_names(section: type[BaseModel], prefix: str = "") -> list[str]:
    names = []
    for name, field in section.model_fields.items():
        # A list of sections is one setting: nothing inside it has a name of its own.
        union = get_origin(field.annotation) not in (tuple, list)
        parts = (get_args(field.annotation) or (field.annotation,)) if union else ()
        subsections = [p for p in parts if isinstance(p, type) and issubclass(p, BaseModel)]
        own = [f"{prefix}{name}.{f.name}" for p in parts if isinstance(p, type) and is_dataclass(p) for f in fields(p)]
        names += [n for s in subsections for n in _setting_names(s, f"{prefix}{name}.")] or own or [prefix + name]
    return names


def _did_you_mean(name: str, candidates: Sequence[str]) -> str:
    close = difflib.get_close_matches(name, candidates, n=1)
    return f"; did you mean '{close[0]}'?" if close else ""


def _explain_arguments(message: str, settings: type[BaseModel]) -> str:
    unknown = re.findall(r"--([\w.]+)", message)
    if not unknown:
        return message.replace("error parsing CLI: ", "")
    return "\n".join(f"--{u} is not a setting{_did_you_mean(u, _setting_names(settings))}" for u in unknown)


def _kinds(settings: type[BaseModel]) -> dict[str, type[BaseModel]]:
    """Sections of the discriminated unions by kind: "two_tower" → TwoTowerConfig."""
    found: dict[str, type[BaseModel]] = {}
    for field in settings.model_fields.values():
        if isinstance(field.discriminator, str):
            for section in get_args(field.annotation) or (field.annotation,):
                found |= dict.fromkeys(get_args(section.model_fields[field.discriminator].annotation), section)
    return found


def _explain(error: ErrorDetails, settings: type[BaseModel]) -> str:
    """One line for one mistake, without the union's tag, which pydantic adds to the location."""
    kinds, names, of_kind = _kinds(settings), _setting_names(settings), ""
    name = ".".join(str(part) for part in error["loc"] if part not in kinds)
    for before, part in pairwise(error["loc"]):
        if part in kinds:
            elsewhere, names = names, _setting_names(kinds[str(part)], f"{before}.")
            of_kind = f" of kind {part}" if name in elsewhere else ""
    match error["type"]:
        case "extra_forbidden" | "unexpected_keyword_argument":
            return f"{name} is not a setting{of_kind}{_did_you_mean(name, names)}"
        case "missing":
            return f"{name} is missing: {error['msg'].lower()}"
        case "value_error":
            # An option's bound, in a record that is a section here, too.
            text = error["msg"].removeprefix("Value error, ")
            return re.sub(r"^--(\S+)=", lambda option: f"{name}.{option[1].replace('-', '_')}=", text)
        case "union_tag_invalid" | "union_tag_not_found":
            return f"{name}.kind: {error['msg']}"
        case _:
            return f"{name}={error['input']!r}: {error['msg'][0].lower()}{error['msg'][1:]}"
