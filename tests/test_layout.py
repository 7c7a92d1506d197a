"""The shape of the project itself: imports go one way, rooms keep their private things, files stay small."""

import ast
import subprocess
import sys
from collections import defaultdict
from graphlib import TopologicalSorter
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import NamedTuple

import pytest

ROOT = Path(__file__).parent.parent
ORDER = """
    errors < batch files ledger streams < options < sampling settings < config < codec tales < data models
    < scores prepare < inference jobs < evaluation < training < plan < codec_lab < trials < doctor < cli
"""
"""Each room may import what stands before the last `<` to its left. A package is a room, and so is a single file."""

LEVEL = {room: level for level, rooms in enumerate(ORDER.split("<")) for room in rooms.split()}
SOURCES = sorted((ROOT / "lcm").rglob("*.py"))
CALLERS = [*SOURCES, *sorted((ROOT / "data_prep").glob("*.py")), ROOT / "train.py"]


class Import(NamedTuple):
    """`from module import name`; of `import module` the name is empty."""

    module: str
    name: str

    @property
    def room(self) -> str:
        """The first part after `lcm`, also of `from lcm import room`."""
        parts = self.module.split(".")
        return parts[1] if len(parts) > 1 else self.name


def imports_of(path: Path) -> list[Import]:
    """Everything that a file imports from lcm, wherever in the file."""
    found = []
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: a relative import"
            found += [Import(node.module or "", alias.name) for alias in node.names]
        if isinstance(node, ast.Import):
            found += [Import(alias.name, "") for alias in node.names]
    return [i for i in found if i.module.split(".")[0] == "lcm" and i.name not in ("__version__", "")]


def room_of(path: Path) -> str:
    """The room of a file; empty for lcm/__init__.py and for files outside lcm/."""
    parts = path.relative_to(ROOT).with_suffix("").parts
    return parts[1] if parts[0] == "lcm" and parts[1] != "__init__" else ""


def test_every_room_has_its_place_in_the_order():
    assert {room_of(path) for path in SOURCES} - {""} == set(LEVEL)


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_imports_between_rooms_go_one_way(path):
    own = room_of(path)
    if not own:
        return
    against = {i.room for i in imports_of(path) if i.room != own and LEVEL[i.room] >= LEVEL[own]}
    assert not against, f"{path.relative_to(ROOT)} imports {against}, which do not stand before {own} in ORDER"


@pytest.mark.parametrize("room", [room for room in LEVEL if (ROOT / "lcm" / room).is_dir()])
def test_imports_inside_a_room_form_no_circle(room):
    graph = defaultdict(set)
    for path in sorted((ROOT / "lcm" / room).rglob("*.py")):
        own = ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")
        for module, name in imports_of(path):
            inside = module == f"lcm.{room}" or module.startswith(f"lcm.{room}.")
            place = Path(ROOT, *module.split("."))
            is_module = place.is_dir() and (place / f"{name}.py").is_file()
            if inside:
                graph[own].add(f"{module}.{name}" if is_module else module)
    TopologicalSorter(graph).prepare()  # raises CycleError, which names the circle


@pytest.mark.parametrize("path", CALLERS, ids=lambda path: str(path.relative_to(ROOT)))
def test_a_room_is_entered_through_what_it_exports(path):
    """`from lcm.room import name` of its `__all__`; a module that is exported may be entered, too."""
    for module, name in imports_of(path):
        parts = module.split(".")
        room = parts[1] if len(parts) > 1 else ""
        if not room or room == room_of(path) or not (ROOT / "lcm" / room).is_dir():
            continue
        entered = parts[2] if len(parts) > 2 else name
        exported = import_module(f"lcm.{room}").__all__
        assert entered in exported, f"{path.relative_to(ROOT)}: lcm.{room} does not export {entered} ({module}.{name})"


@pytest.mark.parametrize("room", [room for room in LEVEL if (ROOT / "lcm" / room).is_dir()])
def test_a_room_exports_what_is_there(room):
    package = import_module(f"lcm.{room}")
    for name in package.__all__:
        if find_spec(f"lcm.{room}.{name}") is None:
            assert getattr(package, name) is not None
    assert len(set(package.__all__)) == len(package.__all__)


@pytest.mark.parametrize("folder", ["lcm", "data_prep", "tests", "benchmarks"])
def test_no_file_is_much_over_300_lines(folder):
    lengths = {p: len(p.read_text().splitlines()) for p in (ROOT / folder).rglob("*.py")}
    assert not {str(p): n for p, n in lengths.items() if n > 300}


def test_one_file_alone_imports_sonar_space():
    found = set()
    for path in SOURCES:
        for node in ast.walk(ast.parse(path.read_text())):
            names = [a.name for a in node.names] if isinstance(node, ast.Import) else []
            names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            if {name.split(".")[0] for name in names} & {"sonar", "fairseq2"}:
                found.add(str(path.relative_to(ROOT)))
    assert found == {"lcm/codec/sonar_space.py"}


def test_importing_lcm_needs_none_of_the_extras():
    extras = [
        "fairseq2",
        "sonar",
        "deepspeed",
        "wtpsplit",
        "datasets",
        "sentence_transformers",
        "sacrebleu",
        "soundfile",
        "s3fs",
    ]
    modules = [".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__") for path in SOURCES]
    code = f"import sys; sys.modules.update(dict.fromkeys({extras})); import " + ", ".join(modules)
    subprocess.run([sys.executable, "-W", "ignore", "-c", code], check=True)


def test_reading_data_needs_no_lightning():
    code = "import sys, lcm.data.prefetch, lcm.prepare, lcm.inference; assert 'lightning' not in sys.modules"
    subprocess.run([sys.executable, "-W", "ignore", "-c", code], check=True)


def test_a_signal_that_comes_while_torch_is_imported_is_heard():
    code = "import sys, lcm.training.signals; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-W", "ignore", "-c", code], check=True)
