"""Many texts: unit after unit through the model, to a stream or to a file that survives a kill; rate and time left."""

import json
import sys
import time
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from lcm.errors import in_one_line
from lcm.files import disk_errors
from lcm.inference.options import GenerateOptions
from lcm.inference.pipeline import LCM
from lcm.inference.resume import Made, Request, Unfinished, fingerprint, long_kind
from lcm.inference.rows import UNIT, Input, Row, units_of
from lcm.inference.texts import Generation, Text
from lcm.ledger import Entries, Ledger, described

EVERY = 10.0
"""Seconds between two lines of progress."""
Line = Mapping[str, Any]
"""{"row": line of the result} or {"refused": [kind, example]}"""


@dataclass(frozen=True)
class Many:
    """The texts of a file, to be continued by a model."""

    lcm: LCM
    given: Input
    options: GenerateOptions

    @in_one_line()
    def stream(self, output: str | None) -> int:
        """Write the results to a pipe or device, or to stdout, in the order of the input. Returns the exit status."""
        rows, refused, long = self.given.rows, Ledger(self.given.refused.entries), Ledger()
        progress = Progress(len(rows))
        with open(output, "w", encoding="utf-8") if output else nullcontext(sys.stdout) as out:
            for start in range(0, len(rows), UNIT[1]):
                unit = rows[start : start + UNIT[1]]
                for line in self.lines(unit).values():
                    if "refused" in line:
                        refused.add(*line["refused"])
                        continue
                    print(json.dumps(line["row"], ensure_ascii=False), file=out)
                    if kind := long_kind(line["row"]):
                        long.add(kind, f"{line['row']['id']}")
                out.flush()
                progress.add(len(unit))
        _tell(refused.entries, long.entries)
        return 0

    @in_one_line()
    def write(self, output: Path, share: tuple[int, int], banks: Sequence[str]) -> int:
        """Write the results of this part of the units, and the file if it is the last. Returns the exit status."""
        units = units_of(self.given.rows)
        unfinished = Unfinished(output, self.request(banks), units)
        with disk_errors(output):
            if made := unfinished.made():
                print(f"lcm generate: {output} is finished already; nothing to do", file=sys.stderr)
                return _finish(made)
            with unfinished.part(*share) as numbers:
                mine = sum(map(len, units[share[0] :: share[1]]))
                todo = list(numbers)
                progress = Progress(mine, done=mine - sum(len(units[number]) for number in todo))
                for number in todo:
                    unfinished.write(number, self.lines(units[number]))
                    progress.add(len(units[number]))
            made = unfinished.merge(self.given.refused) or unfinished.made()
        if made is None:
            print(f"lcm generate: part {share[0] + 1}/{share[1]} is done, others are not", file=sys.stderr)
            return 0
        return _finish(made)

    def request(self, banks: Sequence[str]) -> Request:
        """All that decides the texts: the memory of a batch does not."""
        lcm, options = self.lcm, asdict(self.options)
        del options["sampling"], options["batch_concepts"]
        sampling = asdict(lcm.sampling(self.options.sampling))
        return Request(
            input=self.given.digest,
            model=fingerprint(lcm.model),
            codec=f"{lcm.codec.name} ({lcm.codec.fingerprint})",
            device=lcm.model.end_of_text.device.type,
            options={**options, **sampling, "bank": " ".join(banks) or None},
        )

    def lines(self, rows: Sequence[Row]) -> dict[int, Line]:
        """The line of each row, by its number."""
        options = self.options
        found: dict[int, Line] = {}
        texts: dict[int, Text] = {}
        for row in rows:
            text = self.lcm.read(row.text, row.lang or options.lang, row.output_lang or options.output_lang)
            if text.sentences:
                texts[row.number] = text
            else:
                found[row.number] = {"refused": ["no sentences", f"{self.given.path}:{row.number}"]}
        names = {row.number: row.id for row in rows}
        for number, generation in zip(texts, self.lcm.continue_read(list(texts.values()), options), strict=True):
            found[number] = {"row": as_row(names[number], generation)}
        return {row.number: found[row.number] for row in rows}


class Progress:
    """Texts done, rate and time left, in a line on stderr every EVERY seconds. done: by an earlier run"""

    def __init__(self, total: int, done: int = 0) -> None:
        self.total, self.done, self.resumed = total, done, done
        self._started = self._shown = time.monotonic()
        if done:
            print(f"lcm generate: resuming, {done:,} of {total:,} texts are done", file=sys.stderr)

    def add(self, count: int) -> None:
        self.done += count
        now = time.monotonic()
        if now - self._shown > EVERY or self.done == self.total:
            self._shown = now
            print(f"lcm generate: {self}", file=sys.stderr, flush=True)

    def __str__(self) -> str:
        rate = (self.done - self.resumed) / max(1e-9, time.monotonic() - self._started)
        left = (self.total - self.done) / rate
        shown = f"{left:.0f} s" if left < 100 else f"{left / 60:.0f} min" if left < 6000 else f"{left / 3600:.1f} h"
        line = f"{self.done:,} of {self.total:,} texts · {rate:.1f}/s"
        return f"{line} · {shown} left" if left else line


def as_row(name: str | int, generation: Generation) -> dict[str, Any]:
    """A line of the result. dropped, chunks: for a text longer than the model's slots"""
    return {
        "id": name,
        "text": generation.text,
        "sentences": generation.sentences,
        "nearest": generation.nearest,
        "similarity": None if generation.similarity is None else [round(s, 4) for s in generation.similarity],
        "stop": generation.stop_reason,
        **({} if generation.roundtrip is None else {"roundtrip": round(generation.roundtrip, 4)}),
        **({"dropped": generation.dropped} if generation.dropped else {}),
        **({"chunks": generation.chunks} if generation.chunks > 1 else {}),
    }


def _finish(made: Made) -> int:
    print(f"lcm generate: {made.texts:,} texts", file=sys.stderr)
    _tell(made.refused, made.long)
    return 0


def _tell(refused: Entries, long: Entries) -> None:
    """Say what was passed over, and which texts were too long for the model."""
    if line := described(refused):
        print(f"lcm generate: {line}", file=sys.stderr)
    for kind, entry in long.items():
        print(
            f"lcm generate: {entry.count:,} texts longer than the model's slots were {kind} (first: id {entry.first})",
            file=sys.stderr,
        )
