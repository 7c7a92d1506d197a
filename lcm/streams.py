"""Files → plain bytes → lines and blocks. The bytes of a file, not its name, say how it is compressed.

Every reader of text in the project uses `opened` and `lines_of`.
"""

import codecs
import io
import lzma
import re
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import groupby
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import zstandard

from lcm.errors import UserError

LIMIT = 64 << 20
"""Largest document, in bytes. A corpus without blank lines is one document, and must not fill the memory."""
_PIECE = 512
"""Compressed bytes that are decoded at a time: few, because damage costs all of them, and each may become thousands."""
_END = re.compile(rb"\r*\n|\r")
"""The end of a line: LF, CR LF, CR alone (old Macs), or CR CR LF, which comes of converting CR LF twice."""


class DamagedFile(Exception):
    """A file that ends too early, or is not of the format in its name. The rows read so far are good.

    reason: "truncated file" or "corrupt file"; detail: what is wrong with it
    """

    def __init__(self, reason: str, detail: str) -> None:
        super().__init__(f"{reason} ({detail})")
        self.reason, self.detail = reason, detail


class _Decoder(Protocol):
    """Decodes one member: a gzip member, an xz stream, a zstd frame."""

    def decompress(self, data: bytes, /) -> bytes: ...
    @property
    def eof(self) -> bool: ...
    @property
    def unused_data(self) -> bytes: ...


class _Compression(NamedTuple):
    name: str
    suffix: str
    magic: "re.Pattern[bytes]"
    decoder: Callable[[], _Decoder]


_COMPRESSIONS = (
    _Compression("gzip", ".gz", re.compile(rb"\x1f\x8b"), lambda: zlib.decompressobj(zlib.MAX_WBITS | 16)),
    _Compression("xz", ".xz", re.compile(rb"\xfd7zXZ\0"), lambda: lzma.LZMADecompressor(lzma.FORMAT_XZ)),
    _Compression(
        "zstd",
        ".zst",
        re.compile(rb"\x28\xb5\x2f\xfd|[\x50-\x5f]\x2a\x4d\x18"),  # the second is a frame to be skipped
        lambda: zstandard.ZstdDecompressor(max_window_size=1 << 31).decompressobj(),
    ),
)
COMPRESSIONS = tuple(compression.suffix for compression in _COMPRESSIONS)
_OTHERS = {
    b"PAR1\x15": "Parquet",
    b"ARROW1\0": "Arrow",
    b"BZh91AY&SY": "bzip2",
    b"]\0\0": "lzma",
    b"PK\3\4": "a zip archive",
    b"7z\xbc\xaf": "a 7z archive",
    b"\x04\x22\x4d\x18": "lz4",
    b"SQLite f": "SQLite",
    b"%PDF-": "PDF",
    codecs.BOM_UTF32_LE: "UTF-32",  # before UTF-16, which begins alike
    codecs.BOM_UTF32_BE: "UTF-32",
    codecs.BOM_UTF16_LE: "UTF-16",
    codecs.BOM_UTF16_BE: "UTF-16",
}
"""The first bytes of formats that are not read as text, by which a wrong name is explained."""
_TAR, _TAR_AT = b"ustar", 257
"""The mark of a tar, and the byte at which it stands."""
_FIRST = 512
"""Bytes that tell a format."""


class _Members(io.RawIOBase):
    """The plain bytes of all members of a compressed file. Zeros between and after them are padding."""

    def __init__(self, raw: io.BufferedIOBase, compression: _Compression) -> None:
        self._raw, self._compression = raw, compression
        self._decoder: _Decoder | None = None
        self._coded = self._plain = b""
        self._members = 0

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any, /) -> int:
        while not self._plain:
            if not (self._coded or (coded := self._raw.read(_PIECE))):
                if self._decoder:
                    raise DamagedFile("truncated file", f"{self._compression.name} that ends too early")
                return 0
            self._coded = self._coded or coded
            self._decode()
        size = min(len(buffer), len(self._plain))
        buffer[:size], self._plain = self._plain[:size], self._plain[size:]
        return size

    def _decode(self) -> None:
        """Decode the bytes at hand: of one member at most, so that what comes before a damaged one is not lost."""
        if not self._decoder:
            self._coded = self._coded.lstrip(b"\0")
            if not self._coded:
                return
            self._decoder = self._compression.decoder()
        coded, self._coded = self._coded, b""
        try:
            self._plain = self._decoder.decompress(coded)
        except (zlib.error, lzma.LZMAError, zstandard.ZstdError) as error:
            after = f" after {self._members} good part{'s' * (self._members > 1)}" if self._members else ""
            raise DamagedFile("corrupt file", f"{self._compression.name}{after}: {error}") from error
        if self._decoder.eof:
            self._coded, self._decoder = self._decoder.unused_data, None
            self._members += 1


@contextmanager
def opened(path: Path, expected: bytes = b"") -> Iterator[tuple[io.BufferedIOBase, io.BufferedIOBase]]:
    """Open a file, decompressed where its bytes are compressed. Yields (the file as stored, its plain bytes).

    Where it is not compressed, both are one object, which can seek.
    expected: first bytes of a format that is not text, such as b"PAR1"
    Raises DamagedFile, also from inside the block when the reading comes to the damage.
    """
    with path.open("rb") as raw:
        named = next((c for c in _COMPRESSIONS if c.suffix == path.suffix.lower()), None)
        plain: io.BufferedIOBase = raw
        first = raw.peek(_FIRST)[:_FIRST]
        if named and not first:
            raise DamagedFile("truncated file", "empty")
        for _ in range(2):  # some servers compress what is compressed
            if compression := next((c for c in _COMPRESSIONS if c.magic.match(first)), None):
                reader = io.BufferedReader(_Members(plain, compression), 1 << 16)
                plain, first = reader, reader.peek(_FIRST)[:_FIRST]
        other = next((name for magic, name in _OTHERS.items() if first.startswith(magic)), "")
        other = "a tar archive" if first.startswith(_TAR, _TAR_AT) else other
        if other and not (expected and first.startswith(expected)):
            reason = "not UTF-8" if other.startswith("UTF") else "corrupt file"
            raise DamagedFile(reason, f"it is {other}, in spite of its name; convert it first")
        if named and plain is raw:
            raise DamagedFile(
                "corrupt file", f"it is not {named.name}, in spite of its name; is it {path.stem}, unpacked?"
            )
        yield raw, plain


def lines_of(plain: io.BufferedIOBase) -> Iterator[bytes]:
    """Lines, each cut after LIMIT + 1 bytes: enough to see that it is too long.

    A line keeps its end; one that ends with CR alone ends with LF here. Nothing else ends a line: form feeds, NEL and
    the separators of Unicode are text. Byte order marks are left out, of later lines, too: files may have been joined.
    """
    rest, too_long = b"", False
    while chunk := plain.readline(LIMIT + 1):
        if not rest and not too_long and chunk.endswith(b"\n") and chunk.find(b"\r", 0, len(chunk) - 2) < 0:
            yield chunk.removeprefix(codecs.BOM_UTF8)  # nearly all lines
            continue
        chunk, start = rest + chunk, 0
        if chunk.endswith(b"\r"):  # LF may follow
            chunk += plain.read(1) if len(chunk) > LIMIT else b""
        for end in _END.finditer(chunk):
            line, start = chunk[start : end.end()], end.end()
            if not too_long:
                yield (line if line.endswith(b"\n") else line[:-1] + b"\n").removeprefix(codecs.BOM_UTF8)
            too_long = False
        rest = chunk[start:]
        if len(rest) > LIMIT:
            if not too_long:
                yield rest
            rest, too_long = b"", True
    if rest and not too_long:
        yield rest.removeprefix(codecs.BOM_UTF8)


def read_lines(path: Path, setting: str) -> Iterator[str]:
    """The lines of a text file without their ends. Raises UserError, with the setting, where it cannot be read."""
    number = 0
    try:
        with opened(path) as (_, plain):
            for number, line in enumerate(lines_of(plain), 1):
                if len(line) > LIMIT:
                    raise UserError(
                        f"{setting}={path}:{number}: longer than {LIMIT >> 20} MB; is it one line a sentence?"
                    )
                yield line.decode("utf-8").rstrip("\r\n")
    except UnicodeDecodeError as error:
        where = f"line {number}, byte {error.start}"
        raise UserError(f"{setting}={path}: not UTF-8 ({where}); convert it first: iconv -t UTF-8") from error
    except DamagedFile as damage:
        raise UserError(f"{setting}={path}: {damage}; mend it, or copy it again") from damage


def blocks_of(plain: io.BufferedIOBase) -> Iterator[bytes]:
    """Lines joined up to the next blank one, each block cut after about LIMIT bytes."""
    for is_text, lines in groupby(lines_of(plain), lambda line: bool(line.strip())):
        if is_text:
            block, size = [], 0
            for line in lines:
                if size <= LIMIT:
                    block.append(line)
                size += len(line)
            yield b"".join(block)
