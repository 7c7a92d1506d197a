"""The shape of the project itself: imports go one way, files stay small, heavy libraries stay optional."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
ORDER = [
    "errors", "settings", "config", "remote", "sat", "text", "inputs", "manifest", "columns", "sources", "codec",
    "shards", "cache", "verify", "normalizer", "progress", "pool", "speech", "hub", "embedder", "dealer", "workspace",
    "fitting", "prepare_options", "prepare",
    "batch", "documents", "packing", "steps", "plan", "reader", "prepared", "fetching", "groups",
    "data",
    "fragility", "diffusion", "samplers", "quantizer", "quantizer_fitting", "transformer", "few_rows", "denoiser",
    "denoising_step", "interleaved",
    "models", "schedule", "flops", "zero", "strategies", "module", "checkpoint", "export", "leaving", "watch",
    "callbacks", "loggers", "train", "simulation", "memory", "alternatives", "budget",
    "similarity", "codec_training",
    "sampling_options", "continuation", "bank", "inference", "generate",
    "metrics", "examples", "scoring", "summaries", "charts", "page", "report", "evaluate", "codec_report",
    "doctor", "cli",
]  # fmt: skip


def imports_of(path: Path) -> set[str]:
    """The lcm modules that a file imports, by their first name: 'codec' for lcm.codec.tokenizer."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("lcm."):
            found.add(node.module.split(".")[1])
        if isinstance(node, ast.Import):
            found |= {a.name.split(".")[1] for a in node.names if a.name.startswith("lcm.")}
    return found


def test_imports_go_one_way():
    place = {name: i for i, name in enumerate(ORDER)}
    for path in sorted((ROOT / "lcm").rglob("*.py")):
        own = path.relative_to(ROOT / "lcm").parts[0].removesuffix(".py")
        if own == "__init__":
            continue
        assert own in place, f"{path} is not in the order of docs/architecture.md"
        upward = {name for name in imports_of(path) if place[name] > place[own]}
        assert not upward, f"lcm/{own} imports {upward}, which come after it"


@pytest.mark.parametrize("folder", ["lcm", "data_prep", "tests", "benchmarks"])
def test_no_file_is_much_over_300_lines(folder):
    lengths = {p: len(p.read_text().splitlines()) for p in (ROOT / folder).rglob("*.py")}
    assert not {str(p): n for p, n in lengths.items() if n > 300}


def test_one_file_alone_imports_sonar_space():
    found = set()
    for path in sorted((ROOT / "lcm").rglob("*.py")):
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
    modules = sorted(name for name in ORDER if name != "errors")
    code = f"import sys; sys.modules.update(dict.fromkeys({extras})); import " + ", ".join(f"lcm.{m}" for m in modules)
    subprocess.run([sys.executable, "-W", "ignore", "-c", code], check=True)
