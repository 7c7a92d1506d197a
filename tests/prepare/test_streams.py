"""Compressed files and lines: every part of a file is read, and what cannot be read is named as what it is."""

import gzip
import io
import json
import lzma
import random
import struct
import tarfile
import zlib

import pytest
import zstandard

from lcm import streams
from lcm.prepare.rows import Columns, Document, Refused
from lcm.prepare.sources import Sources
from lcm.streams import lines_of, opened, read_lines


def zstd(data, **settings):
    return zstandard.ZstdCompressor(write_checksum=True, **settings).compress(data)


def skippable(size):
    return struct.pack("<II", 0x184D2A53, size) + b"\xff" * size


PACK = {".gz": gzip.compress, ".xz": lzma.compress, ".zst": zstd}


def rows(first, count=5):
    return "".join(json.dumps({"text": f"Document {i}."}) + "\n" for i in range(first, first + count)).encode()


def read(path, data):
    path.write_bytes(data)
    items = list(Sources([path], Columns()))
    return [i.text for i in items if isinstance(i, Document)], [i for i in items if isinstance(i, Refused)]


def texts(count):
    return [f"Document {i}." for i in range(count)]


@pytest.mark.parametrize("suffix", PACK)
def test_all_members_of_a_file_are_read_whatever_lies_between_them(suffix, tmp_path):
    first, second = PACK[suffix](rows(0)), PACK[suffix](rows(5))
    empty = PACK[suffix](b"")
    for data in (
        first + second,
        first + bytes(4) + second,
        first + bytes(512) + second + bytes(10240),
        empty + first + empty + second + empty,
        first + second + bytes(streams._PIECE + 1),
    ):
        assert read(tmp_path / f"a.jsonl{suffix}", data) == (texts(10), [])


def test_skippable_frames_and_long_windows_of_zstd_are_read(tmp_path):
    path = tmp_path / "a.jsonl.zst"
    skipped = skippable(5000)
    assert read(path, skipped + zstd(rows(0)) + skipped + zstd(rows(5)) + skipped) == (texts(10), [])
    long = zstandard.ZstdCompressionParameters.from_level(3, window_log=28, enable_ldm=True)
    packer = zstandard.ZstdCompressor(compression_params=long).compressobj()  # writes no size, so the window stays
    assert read(path, packer.compress(rows(0)) + packer.flush()) == (texts(5), [])


@pytest.mark.parametrize("suffix", PACK)
def test_a_damaged_later_member_is_counted_and_all_before_it_is_kept(suffix, tmp_path):
    path, good, later = tmp_path / f"a.jsonl{suffix}", PACK[suffix](rows(0)), bytearray(PACK[suffix](rows(5)))
    later[len(later) // 2] ^= 0xFF
    for data, reason in (
        (good + bytes(later), "corrupt file"),
        (good + b"garbage after the end", "corrupt file"),
        (good + PACK[suffix](rows(5))[:-3], "truncated file"),
        (good + good[:3], "truncated file"),
    ):
        found, refused = read(path, data)
        assert found[:5] == texts(5)
        assert [r.reason for r in refused] == [reason]
        assert refused[0].example.startswith(f"{path}: {streams._COMPRESSIONS[list(PACK).index(suffix)].name}")


@pytest.mark.parametrize("suffix", PACK)
@pytest.mark.parametrize("really", PACK)
def test_the_bytes_of_a_file_say_how_it_is_compressed_not_its_name(suffix, really, tmp_path):
    assert read(tmp_path / f"a.jsonl{suffix}", PACK[really](rows(0))) == (texts(5), [])
    assert read(tmp_path / "b.jsonl", PACK[really](rows(0))) == (texts(5), [])


def archive():
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w") as tar:
        member = tarfile.TarInfo("a.jsonl")
        member.size = len(rows(0))
        tar.addfile(member, io.BytesIO(rows(0)))
    return packed.getvalue()


@pytest.mark.parametrize(
    ("name", "data", "reason", "words"),
    [
        ("a.jsonl.gz", b"", "truncated file", "empty"),
        ("a.jsonl.zst", rows(0), "corrupt file", "it is not zstd, in spite of its name; is it a.jsonl, unpacked?"),
        ("a.jsonl.gz", b"BZh91AY&SY....", "corrupt file", "bzip2"),
        ("a.jsonl.xz", lzma.compress(rows(0), lzma.FORMAT_ALONE), "corrupt file", "it is lzma"),
        ("a.jsonl", b"PK\3\4....", "corrupt file", "a zip archive"),
        ("a.jsonl", b"PAR1\x15....", "corrupt file", "Parquet"),
        ("a.txt", "Text.".encode("utf-16"), "not UTF-8", "UTF-16"),
        ("a.jsonl.gz", gzip.compress(rows(0).decode().encode("utf-16")), "not UTF-8", "UTF-16"),
        ("a.jsonl", rows(0).decode().encode("utf-32"), "not UTF-8", "UTF-32"),
        ("a.jsonl.gz", gzip.compress(archive()), "corrupt file", "it is a tar archive, in spite of its name"),
        ("a.txt", archive(), "corrupt file", "a tar archive"),
        ("a.txt", b"%PDF-1.7 ....", "corrupt file", "PDF"),
        ("a.jsonl.gz", b"\x1f\x8b\x07" + bytes(20), "corrupt file", "unknown compression method"),
        ("a.parquet", b"PAR1 and nothing else", "corrupt file", "Parquet: "),
        ("a.parquet", b"PK\3\4....", "corrupt file", "a zip archive"),
    ],
)
def test_what_cannot_be_read_is_named_as_what_it_is(name, data, reason, words, tmp_path):
    found, (refused,) = read(tmp_path / name, data)
    assert (found, refused.reason) == ([], reason)
    assert refused.example.startswith(f"{tmp_path / name}: ")
    assert words in refused.example


def test_a_wrong_checksum_of_gzip_is_damage(tmp_path):
    data = bytearray(gzip.compress(rows(0)))
    data[-8:-4] = struct.pack("<I", zlib.crc32(b"others"))
    assert read(tmp_path / "a.jsonl.gz", bytes(data))[1][0].reason == "corrupt file"


@pytest.mark.parametrize("end", [b"\n", b"\r\n", b"\r", b"\r\r\n"])
@pytest.mark.parametrize("last", [b"", b"end"])
def test_lines_end_with_any_convention_and_with_nothing_else(end, last, tmp_path):
    lines = ["\x0b one \x0c", "", "\x1c\x1d\x1e two", "\x85\u2028\u2029 é"]
    path = tmp_path / "a.txt"
    mark = b"\xef\xbb\xbf"  # every line may be the first of a file that was appended
    path.write_bytes(b"".join(mark + line.encode() + end for line in lines) + mark[: 3 * len(last)] + last)
    assert list(read_lines(path, "--input")) == lines + ["end"] * bool(last)


def test_lines_are_cut_where_they_are_too_long_in_every_convention(tmp_path, monkeypatch):
    monkeypatch.setattr(streams, "LIMIT", 10)
    for end in (b"\n", b"\r", b"\r\n"):
        for length in range(30):
            (tmp_path / "a.txt").write_bytes(b"x" * length + end + b"short" + end + b"y" * length)
            with opened(tmp_path / "a.txt") as (_, plain):
                first, second, *third = lines_of(plain)
            long = length + len(end) > 11
            assert first.rstrip() == b"x" * length or (long and first.startswith(b"x" * 11))
            assert second.rstrip() == b"short"
            assert [line[:11] for line in third] == [b"y" * min(length, 11)] * bool(length)


def test_a_blank_line_of_old_macs_separates_documents(tmp_path):
    (tmp_path / "a.txt").write_bytes(b"One is here.\rIt goes on.\r\rTwo is here.\r")
    assert [d.text for d in Sources([tmp_path / "a.txt"], Columns())] == [
        "One is here.\nIt goes on.\n",
        "Two is here.\n",
    ]


def test_what_was_compressed_twice_is_read(tmp_path):
    assert read(tmp_path / "a.jsonl.gz", gzip.compress(zstd(rows(0)))) == (texts(5), [])


@pytest.mark.parametrize("suffix", PACK)
def test_damage_costs_little_of_what_stands_before_it(suffix, tmp_path):
    lines = b"".join(json.dumps({"text": random.Random(i).randbytes(40).hex()}).encode() + b"\n" for i in range(2000))
    parts = [lines[start : start + 20_000] for start in range(0, len(lines), 20_000)]
    data = bytearray(b"".join(map(PACK[suffix], parts)))
    data[len(data) // 2] ^= 0xFF
    found, refused = read(tmp_path / f"a.jsonl{suffix}", bytes(data))
    assert refused[-1].reason == "corrupt file"
    assert len(found) > 700
