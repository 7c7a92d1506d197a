"""YAML and the command line → one frozen record. Every mistake is one line that names the nearest valid setting."""

import difflib
import re
import sys
from argparse import ArgumentParser, Namespace
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any, TypeVar, get_args, get_origin

import yaml
from pydantic import BaseModel, ConfigDict, ValidationError
from pydantic_core import ErrorDetails
from pydantic_settings import (
    BaseSettings,
    CliSettingsSource,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
    SettingsError,
)

from lcm.errors import UserError, existing_file


class Section(BaseModel):
    """A section of a configuration: refuses unknown keys, and never changes after loading."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)


class Settings(BaseSettings):
    """A whole configuration. Values come from a YAML file and the command line, never from the environment."""

    model_config = SettingsConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)

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


SettingsT = TypeVar("SettingsT", bound=Settings)


def load(kind: type[SettingsT], path: str | Path, overrides: Sequence[str] = ()) -> SettingsT:
    """Load the settings of a YAML file, with overrides such as "model.width=512".

    Raises UserError with a line for each mistake: the setting, its value, what was expected, the nearest valid name.
    """
    path = existing_file(path, "--config")
    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8"))
    except yaml.YAMLError as error:
        raise UserError(f"{path}: not valid YAML: {' '.join(str(error).split())}") from error
    if not isinstance(values, dict):
        raise UserError(f"{path}: expected sections such as 'model:' and 'data:', found {type(values).__name__}")
    return parse(kind, values, overrides, where=str(path))


def from_command_line(
    kind: type[SettingsT], parser: ArgumentParser, argv: Sequence[str] | None
) -> tuple[Namespace, SettingsT]:
    """Parse the parser's own options, and load `--config FILE` with overrides `--SECTION.SETTING VALUE …`.

    --help lists the settings, too. Raises UserError as `load` does.
    """
    parser.add_argument("--config", required=True, metavar="FILE", help="a YAML file, such as configs/base_toy.yaml")
    words = list(sys.argv[1:] if argv is None else argv)
    if {"-h", "--help"} & set(words):
        CliSettingsSource[Any](kind, root_parser=parser, cli_avoid_json=True)  # adds every setting to the help
    args, overrides = parser.parse_known_args(words)
    return args, load(kind, args.config, overrides)


def parse(kind: type[SettingsT], values: dict[str, Any], overrides: Sequence[str], where: str) -> SettingsT:
    """Validate values (as read from YAML) with overrides. `where` begins every error message."""
    arguments = [o if o.startswith("--") or "=" not in o else f"--{o}" for o in overrides]
    try:
        commandline = CliSettingsSource[Any](
            kind, cli_prog_name="lcm", cli_parse_args=arguments, cli_exit_on_error=False
        )()
    except SettingsError as error:
        raise UserError(_explain_arguments(str(error), kind)) from error
    try:
        return kind(**_merged(values, commandline))
    except ValidationError as error:
        raise UserError("\n".join(f"{where}: {_explain(e, kind)}" for e in error.errors())) from error


def _merged(below: dict[str, Any], above: dict[str, Any]) -> dict[str, Any]:
    """Merge nested mappings. Where both name a value, that of `above` counts."""
    both = {k: _merged(below[k], v) for k, v in above.items() if isinstance(v, dict) and isinstance(below.get(k), dict)}
    return {**below, **above, **both}


def _setting_names(section: type[BaseModel], prefix: str = "") -> list[str]:
    """Dotted names of all settings in a section."""
    names = []
    for name, field in section.model_fields.items():
        # A list of sections is one setting: nothing inside it has a name of its own.
        union = get_origin(field.annotation) not in (tuple, list)
        parts = (get_args(field.annotation) or (field.annotation,)) if union else ()
        subsections = [p for p in parts if isinstance(p, type) and issubclass(p, BaseModel)]
        names += [n for s in subsections for n in _setting_names(s, f"{prefix}{name}.")] or [prefix + name]
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
        case "extra_forbidden":
            return f"{name} is not a setting{of_kind}{_did_you_mean(name, names)}"
        case "missing":
            return f"{name} is missing: {error['msg'].lower()}"
        case "value_error":
            return error["msg"].removeprefix("Value error, ")
        case "union_tag_invalid" | "union_tag_not_found":
            return f"{name}.kind: {error['msg']}"
        case _:
            return f"{name}={error['input']!r}: {error['msg'][0].lower()}{error['msg'][1:]}"
