"""The input files as they were hashed: nothing is made of bytes that the hash does not cover."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path

from lcm.data.manifest import InputFile
from lcm.errors import UserError
from lcm.files import sha256
from lcm.ledger import printable
from lcm.prepare.discovery import AUDIO, format_of

_Facts = tuple[int, int, int]


class InputChanged(UserError):
    """An input file changed while it was read. number: its place among the input files, from 0"""

    def __init__(self, path: Path, number: int) -> None:
        super().__init__(
            f"{path}: changed while it was read; run the same command again when nothing writes to it: "
            "the shards made of what stands before it stay"
        )
        self.number = number


class Inputs:
    """Hashes of the input files, and a check that they still hold.

    files:  path, size and sha256 of each, as they were before anything was read
    ctimes: times of the last change of each, in nanoseconds: unlike the modification time, no program can set it back
    """

    def __init__(
        self, paths: Sequence[Path], known: Mapping[tuple[str, int, int], InputFile], in_order: bool = True
    ) -> None:
        """known: files by (path, size, ctime) that need not be hashed again. in_order: each is read once, in turn"""
        self._in_order = in_order
        self._paths, self._facts = paths, [_facts(path) for path in paths]
        self.ctimes = tuple(ctime for _, _, ctime in self._facts)
        self.files = tuple(
            known.get((printable(str(path)), size, ctime))
            or InputFile(path=printable(str(path)), bytes=size, sha256=sha256(path))
            for path, (size, _, ctime) in zip(paths, self._facts, strict=True)
        )
        self._checked = 0

    def check(self, last: int) -> None:
        """Raise InputChanged where a file has changed that was read since the last call, up to number `last`."""
        for number in range(self._checked, min(last + 1, len(self._paths))):
            path = self._paths[number]
            if (facts := _facts(path)) != self._facts[number]:
                if sha256(path) != self.files[number].sha256 or _facts(path) != facts:
                    raise InputChanged(path, number)
                self._facts[number] = facts  # touched, or renamed: the bytes are the same
        self._checked = max(0, last) if self._in_order else 0

    def check_recordings(self) -> None:
        """`check`, for all files where recordings are among them: workers read these some time after their turn."""
        if any(format_of(path) in AUDIO for path in self._paths):
            self._checked = 0
            self.check(len(self._paths) - 1)


def _facts(path: Path) -> _Facts:
    facts = path.stat()
    return facts.st_size, facts.st_mtime_ns, facts.st_ctime_ns


def origins(options: Mapping[str, object], files: Sequence[InputFile]) -> list[str]:
    """Digests of all that decides a shard, by the number of files that it was made of: the options, and those files."""
    digest = hashlib.sha256(json.dumps(options, sort_keys=True).encode("utf-8"))
    found = [digest.hexdigest()[:32]]
    for file in files:
        digest.update(file.sha256.encode("ascii"))
        found.append(digest.hexdigest()[:32])
    return found
