"""The options of a command as a frozen record: the fields are the names, their types the checks, their docstrings help.

@dataclass(frozen=True, kw_only=True)
class Options:
    output: Annotated[str, Option("DIR", place=True)]
    \"\"\"Folder of the data set.\"\"\"                        # no default: required
    workers: Annotated[int | None, Option("N", least=1)] = None
    \"\"\"Processes (default: one per core).\"\"\"

    def __post_init__(self) -> None:
        check_fields(self)

add_options(parser, Options)
options = options_from(parser.parse_args(), Options)
"""

import ast
import difflib
import inspect
import math
import os
import textwrap
from argparse import SUPPRESS, Action, ArgumentParser, Namespace, _ActionsContainer
from collections.abc import Callable, Collection, Sequence
from dataclasses import MISSING, Field, dataclass, fields
from itertools import pairwise
from pathlib import Path
from types import NoneType
from typing import Any, Literal, TypeVar, get_args, get_origin, get_type_hints

from lcm.errors import UserError
from lcm.files import expanded

OptionsT = TypeVar("OptionsT")


@dataclass(frozen=True)
class Option:
    """The part of an option that a field's type does not say.

    metavar:     stands for the value in --help (numbers have one: N for int, X for float)
    least, most: bounds of a number, included; `check_fields` checks them
    several:     for a tuple: values follow one flag ("--input A B"), the flag is repeated, or commas separate them;
                 whatever it is, a flag that is given again adds its values
    place:       the text names a file or folder: `~` becomes the home folder, `$NAME` is refused
    read:        it is read: given again, the first would be passed over in silence, so it is refused; of other
                 options the last one counts
    positional:  the value stands without its name
    parse:       turns the text into the value, in place of the field's type; may raise UserError
    """

    metavar: str | None = None
    least: int | float = -math.inf
    most: int | float = math.inf
    several: Literal["in a row", "repeated", "by commas"] = "in a row"
    place: bool = False
    read: bool = False
    positional: bool = False
    parse: Callable[[str], Any] | None = None


def existing_file(path: str | Path, setting: str) -> Path:
    """Return `path` as a Path. Raises UserError with the setting's name where there is no such file."""
    path = Path(expanded(path, setting=setting))
    if not path.is_file():
        what = "is a folder; expected a file" if path.is_dir() else "no such file"
        raise UserError(f"{setting}={path}: {what}")
    return path


def writable_file(path: str | Path, setting: str = "--output") -> Path:
    """Return `path` as a Path. Raises UserError where no file can be written there: to be known before the work."""
    path = Path(path)
    if path.is_dir():
        raise UserError(f"{setting}={path}: is a folder; expected the name of a file")
    if not path.absolute().parent.is_dir():
        raise UserError(f"{setting}={path}: its folder does not exist")
    return path


def writable_folder(path: str | Path, setting: str = "--output") -> Path:
    """Return `path` as a Path. Raises UserError where it is no folder that can be written, and none can be made."""
    path = Path(path)
    there = next(place for place in (path, *path.absolute().parents) if place.exists())
    if not there.is_dir():
        raise UserError(f"{setting}={path}: {there} is a file; expected a folder, new or old")
    if not os.access(there, os.W_OK | os.X_OK):
        raise UserError(f"{setting}={path}: {there} cannot be written; choose another, or see ls -ld {there}")
    return path


def several(values: str | Path | Sequence[str | Path]) -> tuple[str | Path, ...]:
    """The values as a tuple; a single one is no sequence of letters."""
    return (values,) if isinstance(values, str | Path) else tuple(values)


def option_name(field: str) -> str:
    """The flag of a field: "--text-column" for text_column."""
    return f"--{field.replace('_', '-')}"


def _called(field: str, option: Option) -> str:
    """The name of a field in a line: its flag, or what stands for a value without one."""
    return option.metavar or field if option.positional else option_name(field)


def did_you_mean(name: str, candidates: Sequence[str]) -> str:
    """'; did you mean 'width'?' where a candidate is close, else nothing."""
    close = difflib.get_close_matches(name, candidates, n=1)
    return f"; did you mean '{close[0]}'?" if close else ""


def add_options(parser: _ActionsContainer, record: type[Any], skip: Collection[str] = ()) -> None:
    """Add an option for each field of `record` to a parser, or to an argument group, except for those in `skip`.

    The type is the field's: str, int, float, a Literal of choices, a tuple of strings, or a bool, which becomes a flag
    (--no-NAME where the default is True). A field without a default is required. The help is the field's docstring,
    with the default added where it says something and the docstring does not name it.
    """
    types, options, help_texts = get_type_hints(record), _options(record), docstrings(record)
    for field in fields(record):
        if field.name not in skip:
            _add(parser, field, types[field.name], options[field.name], help_texts.get(field.name, ""))


def options_from(args: Namespace, record: type[OptionsT]) -> OptionsT:
    """The record with what was given on the command line; its own defaults stand for the rest."""
    given = {}
    for name, option in _options(record).items():
        if hasattr(args, name):
            value = getattr(args, name)
            if option.place and "" in (value, *(value if isinstance(value, list) else ())):
                raise UserError(f"{_called(name, option)} is empty; expected a file or a folder")
            value = option.parse(value) if option.parse else value
            given[name] = tuple(value) if isinstance(value, list) else value
    return record(**given)


def check_fields(record: Any) -> None:
    """Check each field by its type and its `Option`, for the record's `__post_init__`; expand `~`, make lists tuples.

    Raises UserError for a value of another type, no choice, a number out of bounds or not finite, a single string where
    several are wanted, and a path that only a shell understands.
    """
    types, options = get_type_hints(type(record)), _options(type(record))
    for name, option in options.items():
        value = _checked(getattr(record, name), types[name], option, _called(name, option))
        object.__setattr__(record, name, value)


def refuse_idle(record: Any, names: Collection[str], way_out: str) -> None:
    """Raise UserError for a field among `names` that differs from its default: nothing would come of it."""
    for field in fields(record):
        value = getattr(record, field.name)
        if field.name in names and value != field.default:
            value = " ".join(value) if isinstance(value, tuple) else value
            shown = "" if isinstance(value, bool) else f"={value}"
            name = f"no_{field.name}" if field.default is True else field.name
            raise UserError(f"{option_name(name)}{shown}: {way_out}")


def _checked(value: Any, kind: Any, option: Option, name: str) -> Any:
    if NoneType in get_args(kind):
        if value is None:
            return None
        (kind,) = (part for part in get_args(kind) if part is not NoneType)
    if get_origin(kind) is tuple:
        if isinstance(value, str) or not isinstance(value, Sequence):
            raise UserError(f"{name}={value!r}: expected several, in a list; for one, [{value!r}]")
        return tuple(_checked(each, get_args(kind)[0], option, name) for each in value)
    if get_origin(kind) is Literal:
        if value not in get_args(kind):
            known = [each for each in get_args(kind) if isinstance(each, str)]
            raise UserError(f"{name}={value}: expected {', '.join(known)}{did_you_mean(str(value), known)}")
        return value
    if option.place and isinstance(value, os.PathLike):
        value = str(value)
    accepted = {float: (int, float)}.get(kind, kind)
    if not isinstance(value, accepted) or (isinstance(value, bool) and kind is not bool):
        raise UserError(f"{name}={value!r}: expected {_KINDS.get(kind, kind.__name__)}, found {type(value).__name__}")
    if isinstance(value, int | float) and not option.least <= value <= option.most:
        both = f"{option.least:g} to {option.most:g}" if option.most < math.inf else f"{option.least:g} or more"
        raise UserError(f"{name}={value}: expected {both}")
    if isinstance(value, int) and option.most == math.inf and abs(value) >= 2**63:
        raise UserError(f"{name}={value}: expected less than 2**63")
    if isinstance(value, float) and math.isinf(value):
        raise UserError(f"{name}={value}: expected a finite number")
    return expanded(value, setting=name) if option.place else value


_KINDS = {str: "text", int: "a whole number", float: "a number", bool: "True or False"}


def _options(record: Any) -> dict[str, Option]:
    """The `Option` in the annotation of each field."""
    hints = get_type_hints(record, include_extras=True)
    return {n: next((part for part in get_args(h) if isinstance(part, Option)), Option()) for n, h in hints.items()}


def docstrings(record: type[Any]) -> dict[str, str]:
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


class Once(Action):
    """Stores the value of an option. Raises UserError where it is given again with another value."""

    def __call__(
        self, parser: ArgumentParser, namespace: Namespace, values: Any, option_string: str | None = None
    ) -> None:
        before = getattr(namespace, self.dest, values)
        if before not in (values, self.default):
            raise UserError(f"{option_string}: given twice, as {before} and as {values}; give it once")
        setattr(namespace, self.dest, values)


def _by_commas(text: str) -> tuple[str, ...]:
    return tuple(name.strip() for name in text.split(",") if name.strip())


_SEVERAL: dict[str, dict[str, Any]] = {
    "in a row": {"nargs": "+", "action": "extend"},
    "repeated": {"action": "append"},
    "by commas": {"type": _by_commas, "action": "extend"},
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
    settings["metavar"] = option.metavar or {int: "N", float: "X"}.get(kind)
    if option.positional:
        del settings["dest"], settings["default"]
        parser.add_argument(field.name, **settings)
        return
    settings["required"] = default is MISSING
    if get_origin(kind) is Literal:
        settings["choices"] = get_args(kind)
    elif get_origin(kind) is tuple:
        settings |= _SEVERAL[option.several]
        if get_args(kind)[0] is not str:
            settings["type"] = get_args(kind)[0]
    else:
        settings |= {"type": str if option.parse else kind, **({"action": Once} if option.read else {})}
    parser.add_argument(option_name(field.name), **settings)
