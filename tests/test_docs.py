"""The docs keep their promises: examples run, pictures are up to date, the README fits on a screen."""

import re
import subprocess
import sys
from pathlib import Path
from xml.etree import ElementTree

import forked

from lcm.cli import main

ROOT = Path(__file__).parent.parent


def test_the_documented_webdataset_recipe_reads_our_shards(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "my.jsonl").write_text('{"id": "a", "split": "train", "text": "The sea was calm. It was night."}\n')
    assert main(["prepare", "--input", "my.jsonl", "--output", "data/mine", "--workers", "1"]) == 0
    (recipe,) = re.findall(r"```python\n(.*?)```", (ROOT / "docs/data.md").read_text(encoding="utf-8"), flags=re.DOTALL)
    recipe += "    print(vectors.shape, vectors.dtype, document['sentences'])\n"
    printed = forked.printed_by(forked.python(recipe, tmp_path / "recipe", tmp_path), recipe)
    assert printed == "(3, 512) float16 ['The sea was calm.', 'It was night.', 'End of text.']\n"


def test_the_documented_codec_gives_the_documented_sentence(tmp_path):
    example = re.findall(r"```python\n(.*?)```", (ROOT / "docs/codec.md").read_text(encoding="utf-8"), flags=re.DOTALL)[
        0
    ]
    *lines, last = example.strip().splitlines()
    call, _, promised = last.partition("#")
    program = "\n".join([*lines, f"print({call.strip()})"])
    printed = forked.printed_by(forked.python(program, tmp_path / "example"), program)
    assert printed.strip().replace("'", '"') == promised.strip()


def test_the_documented_stories_are_told_as_documented(tmp_path):
    beginning, level = re.findall(r"```python\n(.*?)```", (ROOT / "docs/tales.md").read_text("utf-8"), flags=re.DOTALL)
    told = forked.printed_by(forked.python(beginning, tmp_path / "beginning"), beginning)
    assert "unsure ('The fox has not seen the red hat.', 'The fox does not know where the red hat is.')" in told
    assert len(level.splitlines()) <= 52
    *_, last = level.strip().splitlines()
    told = forked.printed_by(forked.python(level, tmp_path / "level"), level)
    assert told == last.partition("# ")[2] + "\n"


def test_every_box_of_a_picture_lies_inside_it():
    for path in sorted((ROOT / "docs/pictures").glob("*.svg")):
        root = ElementTree.parse(path).getroot()
        width, height = map(float, root.get("viewBox", "").split()[2:])
        for box in root.iter("{http://www.w3.org/2000/svg}rect"):
            x, y, across, down = (float(box.get(name, "0").rstrip("%")) for name in ("x", "y", "width", "height"))
            assert min(x, y) >= 0, (path.name, box.attrib)
            assert x + across <= width, (path.name, box.attrib)
            assert y + down <= height, (path.name, box.attrib)


def test_the_pictures_of_the_architecture_are_up_to_date():
    command = [sys.executable, str(ROOT / "docs/pictures/draw.py"), "--check"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_the_readme_has_at_most_150_lines_of_120_characters():
    lines = (ROOT / "README.md").read_text(encoding="utf-8").splitlines()
    assert len(lines) <= 150
    assert not [line for line in lines if len(line) > 120]


def test_every_file_that_the_docs_name_exists():
    for path in [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *(ROOT / "docs").glob("*.md")]:
        named = set(
            re.findall(r"`((?:lcm|tests|docs|benchmarks|data_prep|slurm|configs)/[\w./-]+\w)`", path.read_text("utf-8"))
        )
        assert not {name for name in named if "KIND" not in name and not (ROOT / name).exists()}, path
