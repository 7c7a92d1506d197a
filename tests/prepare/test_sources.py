"""Files → documents: every format and compression gives the same, and refused rows are reported."""

import gzip
import io
import json
import lzma
import random

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zstandard

from lcm import streams
from lcm.errors import UserError
from lcm.prepare import sources
from lcm.prepare.discovery import find_inputs
from lcm.prepare.rows import Columns, Document, Refused
from lcm.prepare.sources import Sources, read_rows

PACK = {"": bytes, ".gz": gzip.compress, ".xz": lzma.compress, ".zst": zstandard.compress}
ROWS = [
    {"id": "one", "text": "First text. Déjà vu.", "title": "T", "split": "test", "source": "book"},
    {"id": 2, "text": "Second\ntext.", "title": None, "split": None, "source": None},
]
PAIRS = Columns(text="document", summary="summary")


def read(path, columns=None, **options):
    files = find_inputs([str(path)])
    return list(Sources(files, columns or Columns(), **options))


def jsonl(*rows):
    return "".join(json.dumps(row) + "\n" for row in rows).encode()


def parquet(path, rows, **options):
    pq.write_table(pa.Table.from_pylist(rows), path, **options)
    return path.read_bytes()


def reasons(items):
    return [item.reason for item in items if isinstance(item, Refused)]


@pytest.mark.parametrize("packed", PACK)
@pytest.mark.parametrize("kind", [".jsonl", ".parquet"])
def test_rows_become_documents_in_every_format_and_compression(kind, packed, tmp_path):
    rows = [{**row, "id": str(row["id"])} for row in ROWS]
    data = jsonl(*ROWS) if kind == ".jsonl" else parquet(tmp_path / "p", rows)
    path = tmp_path / f"corpus{kind}{packed}"
    path.write_bytes(PACK[packed](data))
    assert read(path) == [
        Document("one", "First text. Déjà vu.", "T", "book", "eng_Latn", "test"),
        Document("2", "Second\ntext.", "", path.name, "eng_Latn", None),
    ]


@pytest.mark.parametrize("packed", PACK)
def test_blank_lines_separate_the_documents_of_a_text_file(packed, tmp_path):
    path = tmp_path / f"a.txt{packed}"
    path.write_bytes(PACK[packed]("\ufeff\n\nOne.\nStill one.\r\n \t\r\nTwo é.\n\n\n\nThree".encode()))
    documents = read(path)
    assert [d.text.split() for d in documents] == [["One.", "Still", "one."], ["Two", "é."], ["Three"]]
    assert [d.id for d in documents] == [f"{path.name}:{i}" for i in (1, 2, 3)]
    assert "\r" not in read(path)[1].text.strip()


def test_a_file_is_a_document_by_flag(tmp_path):
    (tmp_path / "b.txt").write_bytes(b"\xef\xbb\xbfOne.\n\nStill one.")
    (tmp_path / "a.txt").write_text("Two")
    assert [(d.id, d.text) for d in read(tmp_path, file_documents=True)] == [
        ("a.txt", "Two"),
        ("b.txt", "One.\n\nStill one."),
    ]


def test_pairs_have_a_document_and_a_summary(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_bytes(jsonl({"document": "D", "summary": "S"}, {"document": "D"}, {"document": "D", "summary": " "}))
    first, *others = read(path, PAIRS)
    assert (first.text, first.summary) == ("D", "S")
    assert reasons(others) == ["no column 'summary'", "empty"]


def test_other_columns_by_name(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_bytes(jsonl({"body": "B", "key": "k", "name": "n", "part": "train", "text": "wrong"}))
    columns = Columns(text="body", id="key", title="name", split="part")
    assert read(path, columns) == [Document("k", "B", "n", "a.jsonl", "eng_Latn", "train")]


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        (b'{"text": 5}', "not text"),
        (b'{"text": null}', "not text"),
        (b'{"text": ["a", "b"]}', "not text"),
        (b'{"text": "a\\u0000b"}', "not text"),
        (b'{"text": ""}', "empty"),
        (b'{"text": " \\n\\t"}', "empty"),
        (b'{"text": "a\\ud800b"}', "not UTF-8"),
        (b'{"text": "caf\xe9"}', "not UTF-8"),
        (b"\x80\x81\x82garbage", "not UTF-8"),
        (b'{"text": "a"', "invalid JSON"),
        (b"not json", "invalid JSON"),
        (b"[" * 100_000, "invalid JSON"),
        (b'["a"]', "not a JSON object"),
        (b"null", "not a JSON object"),
        (b'{"body": "a"}', "no column 'text'"),
        (b'{"text": "a", "text": "b"}', "column twice"),
        (b'{"id": 1, "text": "a", "id": 2}', "column twice"),
        (b'{"text": "a", "split": "dev"}', "unknown split"),
        (b'{"text": "a", "split": 3}', "unknown split"),
    ],
)
def test_a_bad_row_is_refused_with_its_place_and_the_others_stay(line, reason, tmp_path):
    (tmp_path / "a.jsonl").write_bytes(jsonl({"text": "before"}) + line + b"\n\n" + jsonl({"text": "after"}))
    before, refused, after = read(tmp_path / "a.jsonl")
    assert refused.reason == reason
    assert refused.example.startswith("a.jsonl:2")
    assert len(refused.example) < 250
    assert (before.id, after.id) == ("a.jsonl:1", "a.jsonl:4")


def test_a_key_twice_deep_in_a_row_concerns_no_column(tmp_path):
    (tmp_path / "a.jsonl").write_bytes(b'{"meta": {"a": 1, "a": 2}, "text": "b"}')
    assert [document.text for document in read(tmp_path / "a.jsonl")] == ["b"]


def test_a_parquet_file_with_a_column_twice_is_refused_row_by_row_and_only_where_it_is_read(tmp_path):
    table = pa.Table.from_arrays([pa.array([c, c]) for c in "abcd"], names=["text", "text", "other", "other"])
    pq.write_table(table, tmp_path / "a.parquet")
    first, second = read(tmp_path / "a.parquet")
    assert (first, second.reason) == (Refused("column twice", "a.parquet:1: 'text'"), "column twice")
    pq.write_table(table.select([0, 2, 3]), tmp_path / "a.parquet")
    assert [document.text for document in read(tmp_path / "a.parquet")] == ["a", "a"]


def test_crlf_and_a_byte_order_mark_change_nothing(tmp_path):
    (tmp_path / "a.jsonl").write_bytes(b"\xef\xbb\xbf" + jsonl({"text": "a"}, {"text": "b"}).replace(b"\n", b"\r\n"))
    assert [d.text for d in read(tmp_path / "a.jsonl")] == ["a", "b"]


@pytest.mark.parametrize("packed", [".gz", ".xz", ".zst"])
@pytest.mark.parametrize("kind", [".txt", ".jsonl"])
def test_a_truncated_file_is_reported_and_its_beginning_is_used(kind, packed, tmp_path):
    many = range(6000)
    plain = jsonl(*({"text": f"Number {i * 7919}"} for i in many))
    plain = plain if kind == ".jsonl" else b"\n\n".join(b"Number %d" % (i * 7919) for i in many)
    data = PACK[packed](plain)
    (tmp_path / f"a{kind}{packed}").write_bytes(data[: len(data) // 2])
    (tmp_path / f"b{kind}{packed}").write_bytes(PACK[packed](jsonl({"text": "b"}) if kind == ".jsonl" else b"b"))
    *documents, refused, last = read(tmp_path)
    assert (refused.reason, refused.example.partition(": ")[0]) == (
        "truncated file",
        str(tmp_path / f"a{kind}{packed}"),
    )
    assert all(isinstance(d, Document) for d in documents)
    assert packed != ".gz" or len(documents) > 1000  # the others may give nothing of an unfinished block
    assert last.text == "b"


@pytest.mark.parametrize("name", ["a.jsonl.gz", "a.jsonl.xz", "a.jsonl.zst", "a.parquet", "a.parquet.gz"])
def test_a_file_that_is_not_what_its_name_says_is_reported(name, tmp_path):
    (tmp_path / name).write_bytes(b"this is not compressed, nor parquet at all")
    (refused,) = read(tmp_path / name)
    assert (refused.reason, refused.example.partition(": ")[0]) == ("corrupt file", str(tmp_path / name))


def test_a_truncated_parquet_file_is_reported(tmp_path):
    data = parquet(tmp_path / "a.parquet", ROWS[:1])
    (tmp_path / "a.parquet").write_bytes(data[: len(data) // 2])
    assert reasons(read(tmp_path / "a.parquet")) == ["corrupt file"]


def test_parquet_columns_of_other_types_are_refused_row_by_row(tmp_path):
    parquet(tmp_path / "a.parquet", [{"text": 1}, {"text": None}])
    parquet(tmp_path / "b.parquet", [{"other": "x"}])
    assert reasons(read(tmp_path)) == ["not text", "not text", "no column 'text'"]


def test_parquet_rows_are_numbered_through_all_row_groups(tmp_path):
    parquet(tmp_path / "a.parquet", [{"text": str(i)} for i in range(50)], row_group_size=7)
    assert [(d.id, d.text) for d in read(tmp_path)] == [(f"a.parquet:{i + 1}", str(i)) for i in range(50)]


def test_a_row_group_is_never_held_whole(tmp_path):
    generator = random.Random(1)
    texts = [generator.randbytes(1000).hex() for _ in range(8000)]  # 8 MB after compression
    parquet(tmp_path / "a.parquet", [{"text": text} for text in texts], row_group_size=10**6)
    reads = []

    class Spy(io.BufferedReader):
        def read(self, size=-1):
            reads.append(size)
            return super().read(size)

    with Spy(io.FileIO(tmp_path / "a.parquet")) as file:
        rows = sources.rows_of(tmp_path / "a.parquet", file, "a.parquet", None, {})
        assert all(row["text"] == text for (_, row), text in zip(rows, texts, strict=True))
    assert 0 < max(reads) < 3 << 20


def test_the_columns_of_the_rows_are_known_after_reading(tmp_path):
    (tmp_path / "a.jsonl").write_bytes(jsonl({"body": "a"}, {"key": 1}))
    parquet(tmp_path / "b.parquet", [{"other": "x"}])
    found = Sources(find_inputs([str(tmp_path)]), Columns())
    list(found)
    assert list(found.columns_seen) == ["body", "key", "other"]


def test_a_document_that_would_fill_the_memory_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(streams, "LIMIT", 100)
    (tmp_path / "a.jsonl").write_bytes(jsonl({"text": "x" * 1000}, {"text": "short"}))
    (tmp_path / "b.txt").write_bytes(b"x" * 1000 + b"\n\nshort\n\n" + b"line\n" * 200 + b"\nshort")
    items = read(tmp_path)
    assert [i.text.strip() for i in items if isinstance(i, Document)] == ["short"] * 3
    assert reasons(items) == [sources.TOO_LONG] * 3


def test_progress_counts_the_bytes_on_the_disk(tmp_path):
    for name in ("a.jsonl.gz", "b.jsonl.gz"):
        (tmp_path / name).write_bytes(gzip.compress(jsonl(*({"text": str(i)} for i in range(1000)))))
    found = Sources(find_inputs([str(tmp_path)]), Columns())
    seen = [found.bytes_read for _ in found]
    assert seen == sorted(seen)
    assert found.bytes_read == sum(path.stat().st_size for path in tmp_path.iterdir())


def test_inputs_are_files_folders_and_globs_sorted_and_each_once(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("b.txt", "a.txt", "sub/c.jsonl.zst", "sub/deep/d.parquet", "notes.md", ".hidden.txt", "x.tar.gz"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    (tmp_path / "link.txt").symlink_to("a.txt")
    everything = ["a.txt", "b.txt", "sub/c.jsonl.zst", "sub/deep/d.parquet"]
    assert [str(p) for p in find_inputs(["."])] == everything
    assert [str(p) for p in find_inputs(["b.txt", "*.txt", "./b.txt", "sub"])] == ["b.txt", "a.txt", *everything[2:]]
    assert [str(p) for p in find_inputs(["**/*.parquet"])] == ["sub/deep/d.parquet"]


@pytest.mark.parametrize("name", ["no.txt", "*.nothing", "notes.md", "empty", "[ab].txt"])
def test_an_input_that_matches_no_file_is_named(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "notes.md").touch()
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match=r"--input=") as error:
        find_inputs([name])
    assert name in str(error.value)


@pytest.mark.parametrize(("given", "expected"), [(7, "7"), ("", "a.jsonl:1"), (None, "a.jsonl:1"), ([1], "a.jsonl:1")])
def test_ids_are_text_and_those_missing_are_made_from_the_place(given, expected, tmp_path):
    (tmp_path / "a.jsonl").write_bytes(jsonl({"text": "a", "id": given}))
    assert read(tmp_path)[0].id == expected


def test_rows_come_with_their_numbers_and_the_damage_of_a_file_comes_last(tmp_path):
    path = tmp_path / "rows.json.gz"  # JSON lines by any name
    lines = b'{"a": 1}\n\nno json\n{"a": 2}\n' + b'{"a": 3}\n' * 20_000
    path.write_bytes(gzip.compress(lines)[:-40])
    first, refused, second, *_, last = read_rows(path)
    assert (first, second) == ((1, {"a": 1}), (4, {"a": 2}))
    assert refused == (3, Refused("invalid JSON", f"{path}:3: b'no json\\n'"))
    assert last == (0, Refused("truncated file", f"{path}: gzip that ends too early"))
    parquet(tmp_path / "a.parquet", [{"a": 1, "b": None}])
    assert list(read_rows(tmp_path / "a.parquet")) == [(1, {"a": 1, "b": None})]
