"""Options from one record: flags, help and defaults come from its fields, mistakes end in one line."""

import argparse
from dataclasses import dataclass
from typing import Annotated, Literal

import pytest

from lcm.errors import UserError
from lcm.options import Option, add_options, check_fields, options_from


@dataclass(frozen=True, kw_only=True)
class Base:
    output: Annotated[str, Option("DIR")]
    """Folder for 100% of it,
    made new."""


@dataclass(frozen=True, kw_only=True)
class Example(Base):
    """Every kind of field."""

    files: Annotated[tuple[str, ...], Option("F")] = ()
    """Read in this order."""
    drop_above: Annotated[tuple[str, ...], Option("C=X", several="repeated")] = ()
    devices: Annotated[tuple[str, ...], Option("D,…", several="by commas")] = ()
    size: Annotated[int, Option(least=1)] = 10_000
    """Documents in a shard."""
    seed: int = 0
    """Seed of the draw."""
    share: Annotated[float | None, Option("P", least=0, most=1)] = None
    """Share (default: all)."""
    kind: Literal["a", "b"] = "a"
    """Kind of the rows."""
    pairs: bool = False
    """Rows are pairs."""
    streaming: bool = True
    """Download everything first."""
    compile: bool | None = None

    def __post_init__(self) -> None:
        check_fields(self)


def parsed(*words, record=Example):
    parser = argparse.ArgumentParser(prog="example", allow_abbrev=False)
    add_options(parser, record)
    return options_from(parser.parse_args(words), record)


def test_what_is_not_given_has_the_records_default():
    assert parsed("--output", "o") == Example(output="o")


def test_every_kind_of_field_is_parsed_by_its_type():
    words = "--output o --files a b --drop-above x=1 --drop-above y=2 --size 3 --share 0.5 --kind b"
    given = parsed(*words.split(), "--devices", "cuda:0, cuda:1", "--pairs", "--no-streaming", "--compile")
    assert given == Example(
        output="o",
        files=("a", "b"),
        drop_above=("x=1", "y=2"),
        devices=("cuda:0", "cuda:1"),
        size=3,
        share=0.5,
        kind="b",
        pairs=True,
        streaming=False,
        compile=True,
    )


@pytest.mark.parametrize("wrong", [[], ["--output", "o", "--kind", "c"], ["--output", "o", "--size", "x"]])
def test_wrong_usage_is_argparses_own_line_and_status_2(wrong, capsys):
    with pytest.raises(SystemExit) as exit:
        parsed(*wrong)
    assert exit.value.code == 2
    assert "example: error: " in capsys.readouterr().err


def test_help_is_the_docstring_with_the_default(capsys):
    with pytest.raises(SystemExit):
        parsed("--help")
    lines = " ".join(capsys.readouterr().out.split())
    assert "--output DIR Folder for 100% of it, made new --files F [F ...]" in lines
    assert "--size N Documents in a shard (default: 10,000)" in lines
    assert "--seed N Seed of the draw (default: 0)" in lines
    assert "--share P Share (default: all) --kind {a,b} Kind of the rows (default: a)" in lines
    assert "--pairs Rows are pairs --no-streaming Download everything first" in lines


@pytest.mark.parametrize(
    ("given", "line"),
    [
        ({"size": 0}, "--size=0: expected 1 or more"),
        ({"share": 1.5}, "--share=1.5: expected 0 to 1"),
        ({"share": float("nan")}, "--share=nan: expected 0 to 1"),
    ],
)
def test_a_number_out_of_bounds_is_one_line(given, line):
    with pytest.raises(UserError) as error:
        Example(output="o", **given)
    assert str(error.value) == line
    assert Example(output="o", size=1, share=1.0).share == 1


def test_a_field_may_be_left_to_the_command():
    parser = argparse.ArgumentParser()
    add_options(parser, Example, skip=("output", "files"))
    assert {action.dest for action in parser._actions} & {"output", "files"} == set()
