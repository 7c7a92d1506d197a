"""The words of the code: docstrings stand alone, in American English, without the words that nobody else uses."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
ROOMS = ("lcm", "data_prep", "benchmarks", "tests")
SOURCES = sorted(path for room in ROOMS for path in (ROOT / room).rglob("*.py"))
FRAGMENT = re.compile(r"(Of|What|Than|Those|The same|As|Whether|Where|How|Which|Who|So|By|Until|Because)\b")
"""Beginnings that only make sense after the name of what they describe."""

BRITISH = re.compile(
    r"\w*(?:normal|quant|initial|summar|contextual|optim|recogn|organ|random)is(?:e|ed|er|ing|ation)\b"
)
STORED = {"normalised", "left_normalised", "contextualiser", "quantised_decoder", "optimiser"}
"""Names in files that people have, which keep their spelling, and a misspelt setting of tests/test_config.py."""


def docstrings(path: Path) -> Iterator[tuple[int, str]]:
    """Every docstring of a file with its line: of modules, classes, functions, and under attributes."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        body = getattr(node, "body", None)
        if not isinstance(body, list):
            continue
        for child in body:
            if (
                isinstance(child, ast.Expr)
                and isinstance(child.value, ast.Constant)
                and isinstance(child.value.value, str)
            ):
                yield child.lineno, child.value.value


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_a_docstring_stands_alone(path):
    assert not [f"line {line}: {text}" for line, text in docstrings(path) if FRAGMENT.match(text)]


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_spelling_is_american(path):
    assert not set(BRITISH.findall(path.read_text(encoding="utf-8"))) - STORED
