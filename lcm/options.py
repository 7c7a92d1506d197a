"""Command-line options from one record: a frozen dataclass whose fields are the options and whose docstrings the help.

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
"""

import argparse
import ast
import inspect
import math
import textwrap
from collections.abc import Callable, Collection
from dataclasses import MISSING, Field, dataclass, fields
from itertools import pairwise
from types import NoneType
from typing import Annotated, Any, Literal, TypeVar, get_args, get_origin, get_type_hints

from lcm.errors import UserError

OptionsT = TypeVar("OptionsT")


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


def option_name(field: str) -> str:
    """The flag of a field: "--text-column" for text_column."""
    return f"--{field.replace('_', '-')}"


def add_options(parser: argparse._ActionsContainer, record: type[Any], skip: Collection[str] = ()) -> None:
    """Add an option for each field of `record` to a parser, or to an argument group, except for those in `skip`.

    The type is the field's: str, int, float, a Literal of choices, a tuple of strings, or a bool, which becomes a flag
    (--no-NAME where the default is True). A field without a default is required. The help is the field's docstring,
    with the default added where it says something and the docstring does not name it.
    """
    hints, help_texts = get_type_hints(record, include_extras=True), docstrings(record)
    for field in fields(record):
        if field.name not in skip:
            _add(parser, field, hints[field.name], help_texts.get(field.name, ""))


def options_from(args: argparse.Namespace, record: type[OptionsT]) -> OptionsT:
    """The record with what was given on the command line; its own defaults stand for the rest."""
    given = {field.name: getattr(args, field.name) for field in fields(record) if hasattr(args, field.name)}  # type: ignore[arg-type]
    for name, hint in get_type_hints(record, include_extras=True).items():
        if name in given and (parse := option_of(hint).parse):
            given[name] = parse(given[name])
    return record(**{name: tuple(value) if isinstance(value, list) else value for name, value in given.items()})


def check_bounds(options: Any) -> None:
    """Raise UserError for a number outside the bounds of its `Option`; for the record's `__post_init__`."""
    for name, hint in get_type_hints(type(options), include_extras=True).items():
        option, value = option_of(hint), getattr(options, name)
        if isinstance(value, int | float) and not option.least <= value <= option.most:
            both = f"{option.least:g} to {option.most:g}" if option.most < math.inf else f"{option.least:g} or more"
            raise UserError(f"{option_name(name)}={value}: expected {both}")


def option_of(hint: Any) -> Option:
    """The `Option` in a field's annotation."""
    annotations = get_args(hint)[1:] if get_origin(hint) is Annotated else ()
    return next((part for part in annotations if isinstance(part, Option)), Option())


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


def _by_commas(text: str) -> tuple[str, ...]:
    return tuple(name.strip() for name in text.split(",") if name.strip())


_SEVERAL: dict[str, dict[str, Any]] = {
    "in a row": {"nargs": "+"},
    "repeated": {"action": "append"},
    "by commas": {"type": _by_commas},
}


def _add(parser: argparse._ActionsContainer, field: "Field[Any]", hint: Any, text: str) -> None:
    option, kind, default = option_of(hint), _kind(hint), field.default
    text = text.removesuffix(".").replace("%", "%%")
    if kind is not bool and default not in (MISSING, None, "", ()) and "default" not in text:
        text += f" (default: {default:{',' if kind is int else ''}})"
    settings: dict[str, Any] = {"dest": field.name, "default": argparse.SUPPRESS, "help": text}
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


def _kind(hint: Any) -> Any:
    """The type of a field without its annotations and without None."""
    while get_origin(hint) is Annotated:
        hint = get_args(hint)[0]
    if get_origin(hint) not in (tuple, Literal) and NoneType in get_args(hint):
        (hint,) = (part for part in get_args(hint) if part is not NoneType)
        return _kind(hint)
    return hint
