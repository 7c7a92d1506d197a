"""Ways to spoil values, texts and files, each a function of a `random.Random`."""

import bz2
import gzip
import io
import json
import lzma
from collections.abc import Callable, Mapping
from pathlib import Path
from random import Random
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import zstandard

VALUES: tuple[Any, ...] = (
    None, True, False, 0, 1, -1, 2, 3, 1.5, 1e-300, 1e308, 2**31, 2**63, float("nan"), float("inf"), "", " ", "0", "-1",
    "one", "nan", "1e9", "~", "$HOME", "null", "/dev/null", "a\nb", "a\x00b", "ü…😀", "\ud800", "x" * 5000,
    [], [1], ["a", "b"], {}, {"a": 1}, [[]], [None],
)  # fmt: skip
"""Values to put in the place of another."""
WORDS = (
    "Anna",
    "is",
    "a",
    "baker",
    "who",
    "Élodie",
    "straße",
    "東京",
    "😀",
    "\u2028",
    "x\x0by",
    "\x85",
    "...",
    "1.5",
    "Dr.",
)
UNPACK: Mapping[str, Callable[[bytes], bytes]] = {
    "": bytes,
    ".gz": gzip.decompress,
    ".bz2": bz2.decompress,
    ".xz": lzma.decompress,
    ".zst": lambda data: zstandard.ZstdDecompressor().stream_reader(data, read_across_frames=True).read(),
}
PACK: Mapping[str, Callable[[bytes], bytes]] = {
    "": bytes,
    ".gz": gzip.compress,
    ".bz2": bz2.compress,
    ".xz": lzma.compress,
    ".zst": zstandard.compress,
}


def text(random: Random, most: int = 20) -> str:
    return " ".join(random.choices(WORDS, k=random.randint(1, most))) + "."


def documents(random: Random) -> list[dict[str, Any]]:
    """Rows of a corpus, most of them good."""
    rows: list[dict[str, Any]] = []
    for number in range(random.randint(1, 12)):
        row: dict[str, Any] = {"id": f"d{number}", "text": " ".join(text(random) for _ in range(random.randint(1, 4)))}
        if random.random() < 0.15:
            row[random.choice(["id", "text", "title", "split", "extra"])] = random.choice(VALUES)
        if random.random() < 0.05:
            del row["text"]
        rows.append(row)
    return rows


def packed(random: Random, data: bytes, ending: str) -> bytes:
    """The data compressed, in one member or in several."""
    if random.random() < 0.7 or not ending:
        return PACK[ending](data)
    cut = random.randint(0, len(data))
    return PACK[ending](data[:cut]) + PACK[ending](data[cut:])


def spoiled(random: Random, data: bytes) -> bytes:
    """The data with some bytes changed, cut, doubled, put in or added."""
    data = bytearray(data)
    for _ in range(random.choice([1, 1, 1, 2, 8])):
        at = random.randint(0, len(data))
        match random.randrange(8):
            case 0:
                del data[at:]
            case 1:
                del data[at : at + random.randint(1, 64)]
            case 2 if data:
                data[min(at, len(data) - 1)] ^= 1 << random.randrange(8)
            case 3:
                data[at:at] = random.randbytes(random.randint(1, 40))
            case 4:
                data += bytes(random.randint(1, 600))
            case 5:
                data += data[: random.randint(0, len(data))]
            case 6:
                data[at : at + 64] = bytes(64)
            case _:
                data[at:at] = random.choice([b"\r\n", b"\xef\xbb\xbf", b"\xff\xfe", b"\xc3", b"{", b"\x00", b"\n\n"])
    return bytes(data)


def as_jsonl(random: Random, rows: list[dict[str, Any]]) -> bytes:
    """One row a line; now and then in another encoding or with other ends of line."""
    end = random.choice(["\n", "\n", "\n", "\r\n", "\n\n"])
    lines = "".join(json.dumps(row, ensure_ascii=random.random() < 0.5) + end for row in rows)
    encoding = random.choice(["utf-8"] * 8 + ["utf-8-sig", "utf-16", "latin-1"])
    return lines.encode(encoding, errors="surrogatepass" if encoding.startswith("utf") else "replace")


def as_parquet(random: Random, rows: list[dict[str, Any]]) -> bytes:
    """The texts as a column of some type that parquet has."""
    texts = [str(row.get("text", "")).encode("utf-8", "replace").decode() for row in rows]
    column = random.choice(
        [
            pa.array(texts),
            pa.array(texts),
            pa.array(texts, pa.large_string()),
            pa.array([value.encode() for value in texts]),
            pa.array(texts).dictionary_encode(),
            pa.array([len(value) for value in texts]),
            pa.array([len(value) for value in texts], pa.timestamp("ns")),
            pa.array([[value] for value in texts]),
            pa.array([{"a": value} for value in texts]),
            pa.array([None] * len(texts), pa.null()),
        ]
    )
    buffer = io.BytesIO()
    ids = [str(row.get("id")).encode("utf-8", "replace").decode() for row in rows]
    table = pa.table({"id": pa.array(ids, pa.string()), "text": column})
    pq.write_table(table, buffer, row_group_size=random.choice([1, 5, 1000]))
    return buffer.getvalue()


def places(tree: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """The path of every value in nested dicts and lists."""
    inner = tree.items() if isinstance(tree, dict) else enumerate(tree) if isinstance(tree, list) else ()
    return [*([path] if path else []), *(found for key, value in inner for found in places(value, (*path, key)))]


def with_spoiled_values(random: Random, tree: Any) -> Any:
    """A copy with one or two values replaced, removed, or set under a key that nobody knows."""
    tree = json.loads(json.dumps(tree))
    for _ in range(random.choice([1, 1, 2])):
        where = random.choice(places(tree))
        parent = tree
        for key in where[:-1]:
            parent = parent[key]
        match random.randrange(6):
            case 0:
                del parent[where[-1]]
            case 1 if isinstance(parent, dict):
                parent[random.choice(["unknown", "", "Rows", "path "])] = parent[where[-1]]
            case _:
                parent[where[-1]] = random.choice(VALUES)
        if not tree:
            break
    return tree


def spoil_file(random: Random, path: Path) -> None:
    """Change some bytes of a file, empty it, remove it, or put a folder, a link or a pipe-like thing in its place."""
    match random.randrange(8):
        case 0:
            path.unlink()
        case 1:
            path.unlink()
            path.mkdir()
        case 2:
            path.unlink()
            path.symlink_to("nowhere")
        case 3:
            path.write_bytes(b"")
        case _:
            path.write_bytes(spoiled(random, path.read_bytes()))
