"""Parts of gpu.py and gpu_codec.py: the device, the time that is left, and cases that may fail without the next."""

import gc
import json
import time
import traceback
from collections.abc import Callable
from typing import Any

import torch

Case = dict[str, Any]


class Bench:
    """Runs cases one after the other, and keeps what they found."""

    def __init__(self, tiny: bool, minutes: float) -> None:
        self.tiny, self.until = tiny, time.perf_counter() + 60 * minutes
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self.done: list[Case] = []

    def case(self, section: str, name: Case, run: Callable[[], Case]) -> None:
        """Prints what came of it as soon as it is done, also where it failed."""
        found: Case = {"section": section, **name}
        started = time.perf_counter()
        if started > self.until:
            found["skipped"] = "no time left"
        else:
            try:
                found |= run()
            except Exception as error:  # the next case may work
                traceback.print_exc()
                found["error"] = f"{type(error).__name__}: {str(error)[:200]}"
        self.free()
        found["whole_s"] = round(time.perf_counter() - started, 1)
        self.done.append(found)
        print(json.dumps(found), flush=True)

    def seconds(self, run: Callable[[], object]) -> float:
        self.wait()
        started = time.perf_counter()
        run()
        self.wait()
        return time.perf_counter() - started

    def wait(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize()

    def free(self) -> None:
        gc.collect()
        if self.device.type == "cuda":
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats()

    def peak_gb(self) -> float | None:
        """Since the last `free`."""
        return round(torch.cuda.max_memory_allocated() / 1e9, 1) if self.device.type == "cuda" else None

    def tables(self) -> str:
        """Markdown, one table a section."""
        lines: list[str] = []
        for section in dict.fromkeys(case["section"] for case in self.done):
            rows = [case for case in self.done if case["section"] == section]
            columns = [c for c in dict.fromkeys(key for row in rows for key in row) if c != "section"]
            lines += ["", f"**{section}**", "", "| " + " | ".join(columns) + " |", "|---" * len(columns) + "|"]
            lines += ["| " + " | ".join(str(row.get(column, "")) for column in columns) + " |" for row in rows]
        return "\n".join(lines)
