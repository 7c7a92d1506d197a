"""`lcm generate --output F` of many texts: killed at any moment and run again, by one process or several.

F.unfinished/ holds the request (all that decides the texts) and a file for each finished unit, complete or absent. The
process that ends last checks that no text is missing, and writes F in the order of the input; F.made.json says of what.
"""

import hashlib
import json
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from pydantic import BaseModel, ValidationError
from torch import nn

from lcm.errors import UserError
from lcm.files import atomic, lock, write_result
from lcm.inference.rows import Row
from lcm.ledger import Entries, Ledger

PATIENCE = 60.0
"""Seconds to wait for another part, which looks whether all are done."""
_REQUEST = "asked.json"


class Request(BaseModel, extra="forbid", frozen=True):
    """All that decides the texts. options: those of the command, resolved, and the names of its codec and banks"""

    input: str
    model: str
    codec: str
    device: str
    options: dict[str, str | int | float | bool | None]

    def difference(self, now: "Request") -> str | None:
        """The first difference of `now` from this earlier request, in words."""
        if self.input != now.input:
            return f"begun with another input (sha256 {self.input[:12]}, now {now.input[:12]})"
        if self.model != now.model:
            return f"begun with another model (weights {self.model[:12]}, now {now.model[:12]})"
        if self.codec != now.codec:
            return f"begun with codec {self.codec}, now {now.codec}"
        if self.device != now.device:
            return f"begun on {self.device}, now {now.device}"
        for name in self.options | now.options:
            old, new = self.options.get(name), now.options.get(name)
            if old != new:
                shown = ["not given" if value is None else value for value in (old, new)]
                return f"begun with --{name.replace('_', '-')} {shown[0]}, now {shown[1]}"
        return None


class Made(BaseModel, extra="forbid", frozen=True):
    """The record of a finished file.

    texts:   its lines
    refused: rows of the input that are not among them, by kind
    long:    texts longer than the model's slots: read in part, or in chunks
    """

    request: Request
    texts: int
    refused: Entries
    long: Entries


def fingerprint(model: nn.Module) -> str:
    """sha256 of a model's tensors."""
    digest = hashlib.sha256()
    for name, tensor in model.state_dict().items():
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest()


class Unfinished:
    """The file `output` in the making."""

    def __init__(self, output: Path, request: Request, units: Sequence[Sequence[Row]]) -> None:
        self.output, self.request, self.units = output, request, units
        self.folder = output.with_name(f"{output.name}.unfinished")
        self.record = output.with_name(f"{output.name}.made.json")

    def made(self) -> Made | None:
        """The record, where the file is finished. Raises UserError where something else has made it."""
        if not self.output.is_file():
            return None
        try:
            made = Made.model_validate_json(self.record.read_bytes())
        except FileNotFoundError:
            if (self.folder / _REQUEST).is_file():  # killed between the file and its record
                return None
            way_out = "delete it, or give another --output"
            what = f"exists, and no {self.record.name} says what made it"
            raise UserError(f"--output={self.output}: {what}; {way_out}") from None
        except ValidationError as error:
            raise UserError(f"{self.record}: damaged, or of another version; delete it and {self.output}") from error
        if difference := made.request.difference(self.request):
            raise UserError(f"--output={self.output}: is finished, and was {difference}; give another --output")
        shutil.rmtree(self.folder, ignore_errors=True)  # left by a kill in the last moment
        return made

    @contextmanager
    def part(self, part: int, parts: int) -> Iterator[Iterator[int]]:
        """Lock one part, beside the processes of others. Yields the numbers of its units that are still to be written.

        Raises UserError where this part is under way elsewhere, or the file was begun with another request.
        """
        with self._locked("lock", shared=True), self._locked(f"lock-{part + 1}-{parts}"):
            if self.made():  # by another part, while this one waited for the lock
                yield iter(())
                return
            begun = self.folder / _REQUEST
            if not begun.is_file():
                with atomic(begun, many_writers=True) as file:
                    file.write(self.request.model_dump_json().encode("utf-8"))
            try:
                before = Request.model_validate_json(begun.read_bytes())
            except ValidationError as error:
                raise UserError(f"{begun}: damaged, or of another version of lcm; delete {self.folder}") from error
            if difference := before.difference(self.request):
                way_out = f"give the same and it continues; or another --output, or delete {self.folder}"
                raise UserError(f"--output={self.output}: {difference}; {way_out}")
            mine = range(part, len(self.units), parts)
            yield (number for number in mine if not self._unit(number).is_file())

    @contextmanager
    def _locked(self, name: str, *, shared: bool = False) -> Iterator[None]:
        with lock(self.folder / name, shared=shared, patience=PATIENCE if shared else 0.0) as acquired:
            if not acquired:
                raise UserError(f"--output={self.output}: another lcm generate is writing it; wait, or give --part I/N")
            yield

    def _unit(self, number: int) -> Path:
        return self.folder / f"unit-{number:06}.jsonl"

    def write(self, number: int, lines: Mapping[int, Mapping[str, Any]]) -> None:
        """Write a finished unit. lines: by the number of the row, as in `Line` of many.py"""
        with atomic(self._unit(number), many_writers=True) as file:
            for row, line in lines.items():
                file.write((json.dumps({"number": row, **line}, ensure_ascii=False) + "\n").encode("utf-8"))

    def done(self) -> int:
        """Texts of the units that are finished."""
        return sum(len(unit) for number, unit in enumerate(self.units) if self._unit(number).is_file())

    def merge(self, refused: Ledger) -> Made | None:
        """Write the file, where no unit is missing. None where another process is at work, or a unit is missing.

        refused: rows of the input that are in no unit
        Raises UserError where a unit is damaged.
        """
        with lock(self.folder / "lock", patience=0.0) as acquired:
            if not acquired or self.done() < sum(map(len, self.units)):
                return None
            found: dict[int, dict[str, Any]] = {}
            for number, unit in enumerate(self.units):
                found |= self._read(number, unit)
            ledger, long, rows = Ledger(refused.entries), Ledger(), []
            for number in sorted(found):
                if "refused" in found[number]:
                    ledger.add(*found[number]["refused"])
                    continue
                rows.append(row := found[number]["row"])
                if kind := long_kind(row):
                    long.add(kind, f"{row['id']}")
            write_result(self.output, "".join(f"{json.dumps(row, ensure_ascii=False)}\n" for row in rows))
            made = Made(request=self.request, texts=len(rows), refused=ledger.entries, long=long.entries)
            write_result(self.record, made.model_dump_json(indent=1) + "\n")
            shutil.rmtree(self.folder, ignore_errors=True)
            return made

    def _read(self, number: int, unit: Sequence[Row]) -> dict[int, dict[str, Any]]:
        """The lines of a finished unit, by the number of their row. Raises UserError where they are not just these."""
        path = self._unit(number)
        try:
            lines = [json.loads(line) for line in path.read_bytes().split(b"\n")[:-1]]
            numbers = [line["number"] for line in lines]
        except (ValueError, TypeError, KeyError):
            numbers = []
        if numbers != [row.number for row in unit]:
            raise UserError(f"{path}: damaged; delete it and run the same command again")
        return dict(zip(numbers, lines, strict=True))


def long_kind(row: Mapping[str, Any]) -> str | None:
    """The kind under which a text is counted that the model could not read at once."""
    if "dropped" in row:
        return "read in part"
    return "read in chunks" if "chunks" in row else None
