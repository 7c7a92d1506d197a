"""The ledger: whatever reads counts here what it passes over, by kind, with the first example of each."""

import re
from collections.abc import Mapping

from pydantic import BaseModel


class Entry(BaseModel, extra="forbid", frozen=True):
    """Things passed over for one reason: the number, and the first in the order of reading."""

    count: int
    first: str


LONGEST = 300
"""Characters of an example that are kept."""
_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029]")
Entries = dict[str, Entry]
"""A ledger as it is stored, in manifest.json and results.json: entries by kind."""


def printable(text: str) -> str:
    """Text that UTF-8 can hold: names of files may be any bytes."""
    return text.encode("utf-8", "backslashreplace").decode("utf-8")


class Ledger:
    """Counts what is passed over.

    ledger = Ledger()
    ledger.add("empty", "a.jsonl:7")
    ledger.line      # "1 refused: 1 empty (first: a.jsonl:7)"
    """

    def __init__(self, entries: Mapping[str, Entry] | None = None) -> None:
        self._entries = dict(entries or {})

    def add(self, kind: str, example: str, times: int = 1) -> None:
        """Count `times` more of a kind; its first example stays."""
        before = self._entries.get(kind, Entry(count=0, first=_in_one_line(example)))
        self._entries[kind] = Entry(count=before.count + times, first=before.first)

    def extend(self, *others: Mapping[str, Entry]) -> "Ledger":
        """Add the entries of other ledgers, and return this one."""
        for kind, entry in (item for other in others for item in other.items()):
            self.add(kind, entry.first, entry.count)
        return self

    @property
    def entries(self) -> Entries:
        """The entries as they are stored, the most frequent first."""
        return dict(sorted(self._entries.items(), key=lambda item: (-item[1].count, item[0])))

    @property
    def stored(self) -> dict[str, dict[str, int | str]]:
        """The entries as plain values, for JSON."""
        return {kind: entry.model_dump() for kind, entry in self.entries.items()}

    @property
    def total(self) -> int:
        """The number of everything that was passed over."""
        return sum(entry.count for entry in self._entries.values())

    @property
    def line(self) -> str:
        """'3 refused: 2 empty (first: a.jsonl:7), 1 not text (first: …)'; empty where nothing was passed over."""
        return described(self.entries)

    def __bool__(self) -> bool:
        return bool(self._entries)


def _in_one_line(example: str) -> str:
    """An example as it may stand in a line: without control characters and the ends of lines, and not too long."""
    shown = _CONTROL.sub(lambda found: repr(found[0])[1:-1], printable(example))
    return shown if len(shown) <= LONGEST else f"{shown[:LONGEST]}…"


def described(entries: Mapping[str, Entry]) -> str:
    """The one line with which a command ends: the number of each kind, and the first example."""
    if not entries:
        return ""
    reasons = (f"{entry.count:,} {kind} (first: {entry.first})" for kind, entry in entries.items())
    return f"{sum(entry.count for entry in entries.values()):,} refused: {', '.join(reasons)}"
