"""What docs/data.md and docs/codec.md show runs: webdataset's recipe on our shards, the codec from Python."""

import re
import subprocess
import sys
from pathlib import Path

from lcm.cli import main

ROOT = Path(__file__).parent.parent


def test_the_documented_webdataset_recipe_reads_our_shards(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "my.jsonl").write_text('{"id": "a", "split": "train", "text": "The sea was calm. It was night."}\n')
    assert main(["prepare", "--input", "my.jsonl", "--output", "data/mine", "--workers", "1"]) == 0
    (recipe,) = re.findall(r"```python\n(.*?)```", (ROOT / "docs/data.md").read_text(encoding="utf-8"), flags=re.DOTALL)
    recipe += "    print(vectors.shape, vectors.dtype, document['sentences'])\n"
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", recipe], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout == "(3, 512) float16 ['The sea was calm.', 'It was night.', 'End of text.']\n"


def test_the_documented_codec_gives_the_documented_sentence():
    example = re.findall(r"```python\n(.*?)```", (ROOT / "docs/codec.md").read_text(encoding="utf-8"), flags=re.DOTALL)[
        0
    ]
    *lines, last = example.strip().splitlines()
    call, _, promised = last.partition("#")
    program = "\n".join([*lines, f"print({call.strip()})"])
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip().replace("'", '"') == promised.strip()
