"""Corpora of stories: the same for a seed, parallel in every language, cut where sentences end, read by the codec."""

import json
import subprocess
import sys
from pathlib import Path
from random import Random

import pytest

from lcm.codec import Splitter, load_codec
from lcm.codec.text import SplitterSettings
from lcm.tales import LANGUAGES, LEVELS, Errand, parse, sentences_of, tales

sys.path.append(str(Path(__file__).parents[2] / "data_prep"))

from make_tales import main


def written(folder: Path, *options: str) -> dict[str, list[dict[str, str]]]:
    assert main(["--output", str(folder), "--documents", "120", *options]) == 0
    return {
        name: [json.loads(line) for line in (folder / f"{name}.jsonl").read_text(encoding="utf-8").splitlines()]
        for name in ("documents", "pairs")
    }


def test_the_command_writes_documents_and_pairs(tmp_path, capsys):
    rows = written(tmp_path / "new" / "tales", "--level", "errand", "--language", "eng_Latn", "--seed", "1")
    assert {tuple(row) for row in rows["documents"]} == {("id", "text", "split")}
    assert {tuple(row) for row in rows["pairs"]} == {("id", "document", "summary", "split")}
    assert len({row["id"] for row in rows["documents"]}) == 120
    assert [row["document"] for row in rows["pairs"]] == [row["text"] for row in rows["documents"]]
    assert rows["documents"][17]["id"] == "errand-eng_Latn-1-000017"
    counts = json.loads(capsys.readouterr().out)
    splits = [row["split"] for row in rows["documents"]]
    assert {split: counts[split] for split in set(splits)} == {split: splits.count(split) for split in set(splits)}


def test_a_seed_gives_the_same_bytes_and_another_seed_other_stories(tmp_path):
    for name, seed in (("a", "1"), ("b", "1"), ("c", "2")):
        written(tmp_path / name, "--seed", seed)
    for file in ("documents.jsonl", "pairs.jsonl"):
        a, b, c = ((tmp_path / name / file).read_bytes() for name in "abc")
        assert a == b != c


def test_more_documents_begin_with_the_same_ones():
    assert list(tales(Errand, 30))[:10] == list(tales(Errand, 10))


@pytest.mark.parametrize("level", LEVELS, ids=lambda level: level.name)
def test_a_seed_tells_the_same_stories_in_every_language(level):
    versions = [list(tales(level, 8, language, seed=4)) for language in LANGUAGES]
    for english, *others in zip(*versions, strict=True):
        for other in others:
            assert other.split == english.split
            for ours, theirs in zip(english, other, strict=True):
                if isinstance(ours, list):
                    assert [parse(sentence) for sentence in theirs] == [parse(sentence) for sentence in ours]
                    assert theirs != ours


@pytest.mark.parametrize("gist", ["one", "three", "expand"])
def test_pairs_ask_for_a_gist_of_one_or_three_sentences_or_for_its_story(gist, tmp_path):
    rows = written(tmp_path, "--gist", gist)
    for document, pair in zip(rows["documents"], rows["pairs"], strict=True):
        story, other = (pair["summary"], pair["document"])[:: 1 if gist == "expand" else -1]
        assert story == document["text"]
        assert len(sentences_of(other)) == (1 if gist == "one" else 3)


@pytest.mark.parametrize("language", LANGUAGES)
def test_the_default_splitter_cuts_stories_where_their_sentences_end(language):
    splitter = Splitter(SplitterSettings())
    for level in LEVELS:
        for tale in tales(level, 40 if level.name != "promise" else 8, language, seed=2):
            for sentences in (tale.story, tale.gist, tale.long_gist):
                assert splitter.split(" ".join(sentences)) == sentences == sentences_of(" ".join(sentences))


def test_the_embedded_codec_reads_english_sentences_back_unchanged():
    random = Random(7)
    sentences = sorted(
        {
            kind.event(*(random.choice(list(words.values())) for words in kind.slots.values())).sentence(
                "eng_Latn", random
            )
            for level in LEVELS
            for kind in level.kinds
            for _ in range(8)
        }
    )
    codec = load_codec("mini")
    decoded = codec.decode(codec.encode(sentences))
    wrong = [pair for pair in zip(sentences, decoded, strict=True) if pair[0] != pair[1]]
    assert len(wrong) <= len(sentences) // 200, wrong


@pytest.mark.parametrize(
    ("options", "line"),
    [
        (["--documents", "0"], "--documents=0: expected 1 or more"),
        (["--seed", "-1"], "--seed=-1: expected 0 or more"),
        (["--output", "s3://bucket/tales"], "--output=s3://bucket/tales: expected a local folder"),
        (["--output", "/dev/null/tales"], "--output=/dev/null/tales: Not a directory"),
    ],
)
def test_a_mistake_is_one_line(options, line, tmp_path, capsys):
    assert main(["--output", str(tmp_path), *options]) == 1
    (told,) = capsys.readouterr().err.splitlines()
    assert line in told


def test_every_level_and_language_can_be_asked_for(capsys):
    with pytest.raises(SystemExit):
        main(["--help"])
    told = capsys.readouterr().out
    for name in (*LANGUAGES, *(level.name for level in LEVELS)):
        assert name in told


def test_a_disk_error_is_one_line(tmp_path, capsys):
    (tmp_path / "documents.jsonl").mkdir()
    assert main(["--output", str(tmp_path), "--documents", "3"]) == 1
    (told,) = capsys.readouterr().err.splitlines()
    assert "Is a directory" in told


def test_stories_need_no_torch():
    code = "import sys, lcm.tales; lcm.tales.truth('Anna'); print('torch' in sys.modules)"
    told = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert told == "False\n"
