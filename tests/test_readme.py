"""Every command and every line of Python that README.md shows runs as printed (fewer steps, fewer scores)."""

import json
import lzma
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import forked
import pytest

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")
SENTENCES = ["The cat sat on the mat.", "He was born in London."]
SHORTER = {
    "train": ["--trainer.max_steps", "4", "--data.workers", "0"],
    "evaluate": ["--limit", "20", "--roundtrip", "40"],
}


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", README, flags=re.DOTALL)


def commands() -> list[list[str]]:
    lines = [line for block in blocks("bash") for line in block.splitlines() if line.strip()]
    return [shlex.split(line, comments=True) for line in lines]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A newcomer's working folder: the repository's configs, and a text file of their own."""
    folder = tmp_path_factory.mktemp("readme")
    (folder / "configs").symlink_to(ROOT / "configs")
    with lzma.open(ROOT / "examples/corpus/moby-dick.jsonl.xz", "rt", encoding="utf-8") as chapters:
        paragraphs = [p for _ in range(6) for p in json.loads(next(chapters))["text"].split("\n\n")]
    (folder / "my.txt").write_text("\n\n".join(paragraphs), encoding="utf-8")
    (folder / "sentences.txt").write_text("\n".join(SENTENCES), encoding="utf-8")
    return folder


def test_the_readme_runs_as_printed(folder):
    ours = [words[1:] for words in commands() if words[0] == "lcm"]
    assert [words[0] for words in ours] == [
        "prepare",
        "train",
        "generate",
        "evaluate",
        "encode",
        "decode",
        "train",
        "generate",
        "generate",
        "evaluate",
        "prepare",
        "prepare",
        "train",
        "evaluate",
    ]
    (tales,) = [words for words in commands() if words[0] == "python"]
    shown = [sys.executable, ROOT / tales[1], *tales[2:], "--documents", "60"]
    subprocess.run(shown, cwd=folder, check=True, env={**os.environ, "PYTHONPATH": str(ROOT)})
    for number, words in enumerate(ours):
        given = [*words, *SHORTER.get(words[0], []), *(["--limit", "4", "--steps", "2"] if "--truth" in words else [])]
        out = forked.printed_by(forked.lcm(given, folder / f"{number}", folder), shlex.join(words))
        if words[0] == "generate":
            assert out.strip()
        if words[0] == "decode":
            assert out.splitlines() == SENTENCES
    assert (folder / "runs/mine/model.safetensors").is_file()
    assert (folder / "runs/mine/report/report.html").is_file()
    assert "truth" in json.loads((folder / "runs/tales/report/results.json").read_text())
    (python,) = blocks("python")
    assert forked.printed_by(forked.python(python, folder / "python", folder), python).strip()


def test_every_make_target_exists():
    targets = {words[1] for words in commands() if words[0] == "make"}
    assert {"demo", "test"} <= targets
    makefile = (ROOT / "Makefile").read_text()
    for target in targets:
        assert re.search(rf"^{target}:", makefile, flags=re.MULTILINE), target


def test_every_link_leads_somewhere():
    for target in re.findall(r"\]\((?!http)([^)#]+)\)", README):
        assert (ROOT / target).exists(), target


def test_every_config_that_is_named_exists():
    for name in re.findall(r"`((?:base|two_tower|one_tower|quant_[cd])_\w[\w.]*)`", README):
        assert (ROOT / "configs" / f"{name}.yaml").is_file(), name
