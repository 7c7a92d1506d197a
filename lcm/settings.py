"""The settings of a run as frozen pydantic records, that a YAML file fills, with overrides such as "--model.width 512".

A file is read strictly: a section that stands there twice, a number that is none, a path that only a shell understands
are mistakes, each of one line.
"""

import json
import re
import sys
from argparse import ArgumentParser, Namespace
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import fields, is_dataclass
from itertools import pairwise
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, TypeVar, get_args, get_origin

import yaml
from pydantic import AfterValidator, BaseModel, BeforeValidator, Field, ValidationError, model_validator
from pydantic_core import ErrorDetails, PydanticCustomError
from pydantic_settings import BaseSettings, CliSettingsSource, PydanticBaseSettingsSource, SettingsError

from lcm.errors import UserError, in_one_line
from lcm.files import expanded, read_text
from lcm.options import Once, did_you_mean, docstrings, existing_file

SettingsT = TypeVar("SettingsT", bound="Settings")

Place = Annotated[str, AfterValidator(expanded)]
"""A file or folder; `~` becomes the home folder, `$NAME` is refused."""
Places = Annotated[tuple[Place, ...], BeforeValidator(lambda value: (value,) if isinstance(value, str) else value)]
"""One place or several."""
Names = Annotated[tuple[str, ...], BeforeValidator(lambda value: (value,) if isinstance(value, str) else value)]
"""One name or several."""

Beta = Annotated[float, Field(ge=0, lt=1)]
"""A decay rate of AdamW."""
Factor = Annotated[float, Field(gt=0)]
"""A number to multiply by."""


def _devices(value: Any) -> Any:
    if value != "auto" and (isinstance(value, bool) or not str(value).isdecimal() or int(value) < 1):
        raise ValueError("expected auto, or a number from 1")
    return value


Devices = Annotated[int | Literal["auto"], BeforeValidator(_devices)]


Needs = Mapping[tuple[str, str], tuple[str, ...]]
"""Settings that mean something only beside a value of another one: by that setting and its value."""


class Section(BaseModel, extra="forbid", frozen=True, use_attribute_docstrings=True, allow_inf_nan=False):
    """A section of a configuration: refuses unknown keys and idle settings, and never changes after loading."""

    needs: ClassVar[Needs] = {}

    @model_validator(mode="before")
    @classmethod
    def _true_is_no_number(cls, values: Any) -> Any:
        """Refuse true where a number is wanted: pydantic would take it for 1, and YAML reads yes and on as true."""
        for name, value in values.items() if isinstance(values, dict) else ():
            inner = list(value.values()) if isinstance(value, dict) else value
            of_one = inner if isinstance(inner, list | tuple) else [inner]
            kind = cls.model_fields[name].annotation if name in cls.model_fields else None
            kind = get_args(kind)[get_origin(kind) is dict] if get_origin(kind) in (tuple, dict) else kind
            if kind in _NUMBERS and any(isinstance(each, bool) for each in of_one):
                raise ValueError(f"--{name}={value}: expected a number; YAML reads yes, no, on, off as true and false")
        return values

    @model_validator(mode="after")
    def _nothing_idle(self) -> "Section":
        """Refuse a setting that differs from its default where nothing would come of it."""
        for (setting, needed), names in self.needs.items():
            for name in names if getattr(self, setting) != needed else ():
                if (value := getattr(self, name)) != type(self).model_fields[name].default:
                    about = {"name": name, "value": str(value), "needed": f"{setting}={needed}"}
                    raise PydanticCustomError("idle", "{name}={value}: goes with {needed}", about)
        return self

    @classmethod
    def forget_idle(cls, values: dict[str, Any]) -> None:
        """Reset in `values` what `_nothing_idle` would refuse."""
        for (setting, needed), names in cls.needs.items():
            if values.get(setting, needed) != needed:
                values |= {name: cls.model_fields[name].default for name in names if name in values}


_NUMBERS = (int, float, int | None, float | None, Beta, Factor)


def add_descriptions(section: Any) -> None:
    """Describe the fields of a section that is a pydantic dataclass by their docstrings, inherited ones too."""
    for name, text in docstrings(section).items():
        section.__pydantic_fields__[name].description = text


class StrictLoader(yaml.SafeLoader):
    """Reads YAML, and refuses a key that stands twice in one section, and numbers that YAML 1.1 reads otherwise."""

    def construct_mapping(self, node: Any, deep: bool = False) -> dict[Hashable, Any]:
        seen: dict[str, int] = {}
        for key, _ in node.value:
            line = key.start_mark.line + 1
            if key.value in seen and key.tag != "tag:yaml.org,2002:merge":
                raise yaml.MarkedYAMLError(f"'{key.value}' stands twice, in line {seen[key.value]} and in line {line}")
            if isinstance(key.value, str):
                seen[key.value] = line
        return super().construct_mapping(node, deep)

    def construct_yaml_int(self, node: Any) -> int:
        """Refuse 010, which is 8 in YAML 1.1, and 1:30, which is 90."""
        text = self.construct_scalar(node)
        if re.fullmatch(r"[-+]?0[0-7_]+|.*:.*", str(text)):
            raise yaml.MarkedYAMLError(f"line {node.start_mark.line + 1}: {text} is another number in YAML; quote it")
        return super().construct_yaml_int(node)


StrictLoader.add_constructor("tag:yaml.org,2002:int", StrictLoader.construct_yaml_int)


def read_yaml(path: Path) -> dict[str, Any]:
    """The sections of a YAML file. Raises UserError with the line of what is not YAML, or stands there twice."""
    try:
        values = yaml.load(read_text(path), StrictLoader)
    except yaml.YAMLError as error:
        raise UserError(f"{path}: not valid YAML: {' '.join(str(error).split())}") from error
    except RecursionError as error:
        raise UserError(f"{path}: too many brackets inside each other") from error
    if not isinstance(values, dict):
        raise UserError(f"{path}: expected sections such as 'model:' and 'data:', found {type(values).__name__}")
    if strange := [name for name in values if not isinstance(name, str)]:
        raise UserError(f"{path}: {strange[0]!r} is not a section; expected names such as 'model:' and 'data:'")
    return values


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
    @in_one_line()
    def load(cls: type[SettingsT], path: str | Path, overrides: Sequence[str] = ()) -> SettingsT:
        """Load a YAML file, with overrides such as "model.width=512".

        Raises UserError with a line for each mistake: the setting, its value, what was expected, the nearest name.
        """
        path = existing_file(path, "--config")
        return cls.parse(read_yaml(path), overrides, where=str(path))

    @classmethod
    def parse(cls: type[SettingsT], values: dict[str, Any], overrides: Sequence[str], where: str) -> SettingsT:
        """Validate values (as read from YAML) with overrides. `where` begins every error message."""
        if isinstance(overrides, str):
            raise UserError(f"overrides={overrides!r}: expected a list; for one, [{overrides!r}]")
        arguments = _separated(overrides, cls)
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
            "--config", required=True, metavar="FILE", action=Once, help="a YAML file, such as configs/base_toy.yaml"
        )
        words = list(sys.argv[1:] if argv is None else argv)
        if {"-h", "--help"} & set(words):
            CliSettingsSource[Any](cls, root_parser=parser, cli_avoid_json=True)  # adds every setting to the help
        args, overrides = parser.parse_known_args(words)
        return args, cls.load(args.config, overrides)


def _leaves(section: type[BaseModel], prefix: str = "") -> dict[str, Any]:
    """The settings by name, with their types; inside a section that may be of several kinds, those of all."""
    found: dict[str, Any] = {}
    for name, field in section.model_fields.items():
        # A list of sections is one setting: nothing inside it has a name of its own.
        union = get_origin(field.annotation) not in (tuple, list)
        parts = (get_args(field.annotation) or (field.annotation,)) if union else ()
        subsections = [p for p in parts if isinstance(p, type) and issubclass(p, BaseModel)]
        own = {f"{prefix}{name}.{f.name}": f.type for p in parts if is_dataclass(p) for f in fields(p)}
        for part in subsections:
            own |= _leaves(part, f"{prefix}{name}.")
        found |= own or {prefix + name: field.annotation}
    return found


def _separated(overrides: Sequence[str], settings: type[BaseModel]) -> list[str]:
    """Overrides as options with two dashes. Raises UserError for one without a value."""
    words = [o if o.startswith("--") or "=" not in o else f"--{o}" for o in overrides]
    names = _leaves(settings)
    for word, after in zip(words, [*words[1:], "--"], strict=False):
        name = word.removeprefix("--")
        if name in names and word.startswith("--") and after.startswith("--"):
            example = _example(names[name])
            way = f"{word} '{example}'" if example else f"{word} true or {word}=3"
            raise UserError(f"{word}: expected a value, as in {way}")
    of_yaml = {f"--{name}": _example(annotation) for name, annotation in names.items() if _example(annotation)}
    for i, word in enumerate(words):
        name, equals, value = word.partition("=")
        if name in of_yaml and equals:
            words[i] = f"{name}={_as_json(name, value, of_yaml[name])}"
        elif name in of_yaml:
            words[i + 1 : i + 2] = [_as_json(name, value, of_yaml[name]) for value in words[i + 1 : i + 2]]
    return words


def _example(annotation: Any) -> str:
    """An example of a setting that is a list of sections, or a mapping; empty for any other."""
    if get_origin(annotation) is dict:
        return "{NAME: 0.5}"
    parts = get_args(annotation) if get_origin(annotation) in (tuple, list) else ()
    return "[{path: DIR}]" if any(isinstance(part, type) and issubclass(part, BaseModel) for part in parts) else ""


def _as_json(name: str, value: str, example: str) -> str:
    """A value in YAML's short form, such as [{path: DIR, weight: 3}], as the JSON that pydantic reads.

    A list may also be a plain word: a codec's data.text is one file, or several.
    """
    reason = ""
    try:
        read = yaml.load(value, StrictLoader)
        if isinstance(read, list | dict):
            return json.dumps(read)
        if isinstance(read, str) and example.startswith("["):
            return value
    except yaml.YAMLError as error:
        reason = f"; {' '.join(str(error).split())}"
    raise UserError(f"{name}={value}: expected YAML or JSON, as in {name} '{example}'{reason}")


def _explain_arguments(message: str, settings: type[BaseModel]) -> str:
    unknown = re.findall(r"--([\w.]+)", message)
    if not unknown:
        return message.replace("error parsing CLI: ", "")
    return "\n".join(f"--{u} is not a setting{did_you_mean(u, list(_leaves(settings)))}" for u in unknown)


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
    kinds, names, of_kind = _kinds(settings), list(_leaves(settings)), ""
    name = ".".join(str(part) for part in error["loc"] if part not in kinds)
    for before, part in pairwise(error["loc"]):
        if part in kinds:
            elsewhere, names = names, list(_leaves(kinds[str(part)], f"{before}."))
            of_kind = f" of kind {part}" if name in elsewhere else ""
    match error["type"]:
        case "extra_forbidden" | "unexpected_keyword_argument":
            return f"{name} is not a setting{of_kind}{did_you_mean(name, names)}"
        case "idle":
            about = error["ctx"]
            return f"{name}.{about['name']}={about['value']}: goes with {name}.{about['needed']}"
        case "missing":
            return f"{name} is missing: {error['msg'].lower()}"
        case "value_error":
            text = error["msg"].removeprefix("Value error, ")
            setting = re.sub(r"(\.\d+)+$", "", name)
            if setting in names and not text.startswith(("--", name)):  # a single field does not know its name
                return f"{name}={error['input']!r}: {text}"
            # An option's bound, in a record that is a section here, too.
            return re.sub(r"^--(\S+)=", lambda option: f"{name}.{option[1].replace('-', '_')}=", text)
        case "union_tag_invalid" | "union_tag_not_found":
            return f"{name}.kind: {error['msg']}"
        case _:
            return f"{name}={error['input']!r}: {error['msg'][0].lower()}{error['msg'][1:]}"
