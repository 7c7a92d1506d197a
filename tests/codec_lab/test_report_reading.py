"""Reading sentences to judge: every kind of file gives the same, and what cannot be read is told in one line."""

import gzip
import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from lcm.codec_lab.sentences import read_sentences
from lcm.errors import UserError

TEXTS = ["The sea was calm.", "Über  allen\tGipfeln", "C'est fini."]
PLAIN = ["The sea was calm.", "Über allen Gipfeln", "C'est fini."]
LANGS = ["eng_Latn", "deu_Latn", "fra_Latn"]


def lines(rows):
    return "".join(f"{row}\n" for row in rows)


def test_every_kind_of_file_gives_the_same_sentences(tmp_path):
    rows = [{"text": text, "lang": lang} for text, lang in zip(TEXTS, LANGS, strict=True)]
    tabbed = [f"{lang}\t{text}" for text, lang in zip(PLAIN, LANGS, strict=True)]
    (tmp_path / "a.txt").write_text(lines(TEXTS))
    (tmp_path / "b.txt.gz").write_bytes(gzip.compress(lines(TEXTS).encode()))
    (tmp_path / "a.jsonl").write_text(lines(map(json.dumps, rows)))
    (tmp_path / "a.tsv").write_text(lines(tabbed))
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "a.parquet")
    for name in ("a.txt", "b.txt.gz", "a.jsonl", "a.tsv", "a.parquet"):
        found = read_sentences([tmp_path / name])
        assert [s.text for s in found] == PLAIN, name
        assert [s.row for s in found] == [0, 1, 2]
        told = LANGS if name.endswith((".jsonl", ".parquet")) else ["eng_Latn"] * 3
        assert [s.lang for s in found] == told, name


def test_a_column_of_tsv_is_named_by_number_or_by_the_first_line(tmp_path):
    (tmp_path / "a.tsv").write_text("one\tlang\tfirst\ntwo\tfra_Latn\tsecond\n")
    path = [tmp_path / "a.tsv"]
    assert [s.text for s in read_sentences(path)] == ["first", "second"]
    assert [s.text for s in read_sentences(path, text_column="1")] == ["one", "two"]
    assert [(s.text, s.lang) for s in read_sentences(path, text_column="first")] == [("second", "fra_Latn")]


def test_rows_count_through_all_files_and_blank_lines_have_none(tmp_path):
    (tmp_path / "a.txt").write_text("one\n\n  \ntwo\n")
    (tmp_path / "b.txt").write_text("\ufeffthree\r\n", newline="")
    found = read_sentences([tmp_path / "a.txt", tmp_path / "b.txt"], lang="fra_Latn")
    assert [(s.text, s.lang, s.row) for s in found] == [
        ("one", "fra_Latn", 0), ("two", "fra_Latn", 1), ("three", "fra_Latn", 2),
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.pdf", b"", "unknown kind of file"),
        ("a.txt", b"\n \n", "no sentences"),
        ("a.txt", b"\xff\xfe", "not UTF-8"),
        ("a.jsonl", b'{"text": "a"}\n{"text"', """a.jsonl:2: b'{"text"': invalid JSON"""),
        ("a.jsonl", b"[1]", "not a JSON object"),
        ("a.jsonl", b'{"sentence": "a"}', "no column 'text'; it has sentence"),
        ("a.jsonl", b'{"text": 5}', "text is 5"),
        ("a.jsonl", b'{"text": "a", "lang": 5}', "lang is 5"),
        ("a.txt.gz", gzip.compress(b"hello", mtime=0)[:-4], "truncated file"),
        ("a.parquet", b"PAR1", "corrupt file"),
    ],
)
def test_what_cannot_be_read_is_reported_in_one_line(tmp_path, name, content, message):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError) as error:
        read_sentences([tmp_path / name])
    assert message in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("column", "message"),
    [("3", "a.tsv:2: 2 columns, expected at least 3"), ("0", "counted from 1"), ("x", "no column 'x'")],
)
def test_a_column_that_a_tsv_lacks_is_reported(tmp_path, column, message):
    (tmp_path / "a.tsv").write_text("a\tb\tc\nd\te\n")
    with pytest.raises(UserError, match=message):
        read_sentences([tmp_path / "a.tsv"], text_column=column)


def test_a_row_without_its_language_is_reported(tmp_path):
    (tmp_path / "a.tsv").write_text("text\tlang\none\teng_Latn\ntwo\n")
    with pytest.raises(UserError, match="3: 1 columns, expected at least 2"):
        read_sentences([tmp_path / "a.tsv"], text_column="text")


def test_a_missing_file_is_reported(tmp_path):
    with pytest.raises(UserError, match=r"--input=.*nothing.txt: no such file"):
        read_sentences([tmp_path / "nothing.txt"])
