"""A sweep: a YAML file of settings whose lists are crossed, a run for each combination.

    config: configs/two_tower_toy.yaml
    run.dir: runs/sweep                  # the folder of the runs: runs/sweep/lr=1e-4,width=256, …
    data.path: data/mine                 # one value: in all runs
    optimizer.lr: [1e-4, 4e-4]
    model.width: [256, 512]

A setting that is itself a list stands in a second pair of brackets: `data.path: [[data/a, data/b]]`.
"""

import json
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from itertools import product
from pathlib import Path
from typing import Any

import yaml

from lcm.config import Config, load_config
from lcm.errors import UserError
from lcm.files import expanded
from lcm.options import existing_file

MOST = 1000
"""The most runs of a sweep: what Slurm takes in one array, unless a cluster allows more."""


def read_grid(path: str | Path, overrides: Sequence[str] = ()) -> tuple[Path, list[Config]]:
    """The folder of a sweep's runs, and the configuration of each. Raises UserError.

    overrides: settings of the command line, "--model.width=512", in all runs
    """
    path = existing_file(path, "GRID")
    settings = dict(_settings(path))
    for name in ("config", "run.dir"):
        if not isinstance(settings.get(name), str):
            raise UserError(f"{path}: expected one '{name}:', beside the settings to cross")
    given = {word.removeprefix("--").partition("=")[0] for word in overrides}
    crossed = {name: value for name, value in settings.items() if isinstance(value, list)}
    if twice := sorted(given & {*crossed, "run.dir"}):
        raise UserError(f"--{twice[0]}: {path} says it for each run, and the folders are named by it; change it there")
    config, folder = settings.pop("config"), Path(expanded(settings.pop("run.dir"), setting=f"{path}: run.dir"))
    if empty := [name for name, values in crossed.items() if not values]:
        raise UserError(f"{path}: {empty[0]}=[]: expected a value at least")
    fixed = [f"--{name}={value}" for name, value in settings.items() if name not in {*crossed, *given}]
    combinations = [dict(zip(crossed, values, strict=True)) for values in product(*crossed.values())]
    if len(combinations) > MOST:
        raise UserError(f"{path}: {len(combinations):,} runs, {MOST:,} at most; split it")
    names = [_name(each) for each in combinations]
    if doubled := [name for name, count in Counter(names).items() if count > 1]:
        raise UserError(f"{path}: two runs would be {folder / doubled[0]}; remove the value that stands there twice")
    return folder, [
        load_config(config, [*fixed, *(f"--{k}={_text(v)}" for k, v in each.items()), *overrides, f"--run.dir={run}"])
        for each, run in zip(combinations, (folder / name for name in names), strict=True)
    ]


def _settings(path: Path) -> Iterator[tuple[str, Any]]:
    """Names with dots and values as they are written: text, and lists. Raises UserError for a name twice."""
    try:
        root = yaml.compose(path.read_text(encoding="utf-8"), yaml.BaseLoader)
        if not isinstance(root, yaml.MappingNode):
            raise UserError(f"{path}: expected settings, such as 'optimizer.lr: [1e-4, 4e-4]'")
        found: dict[str, Any] = {}
        for name, value in _flat(root):
            if name in found:
                raise UserError(f"{path}: {name} stands there twice; remove one")
            found[name] = value
    except (yaml.YAMLError, UnicodeDecodeError, RecursionError) as error:
        raise UserError(f"{path}: not valid YAML: {' '.join(str(error).split())}") from error
    yield from found.items()


def _flat(mapping: yaml.MappingNode, prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in mapping.value:
        name = f"{prefix}{key.value}"
        if isinstance(value, yaml.MappingNode):
            yield from _flat(value, f"{name}.")
        else:
            yield name, yaml.BaseLoader("").construct_object(value, deep=True)


def _text(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)


def _name(combination: dict[str, Any]) -> str:
    """A run's folder: its crossed settings, by the last part of their names where that is clear."""
    last = Counter(name.rpartition(".")[2] for name in combination)
    short = {name: name.rpartition(".")[2] if last[name.rpartition(".")[2]] == 1 else name for name in combination}
    words = (f"{short[name]}={_text(value)}" for name, value in combination.items())
    return re.sub(r"[^\w.+=,-]+", "_", ",".join(words)) or "run"
