"""Starts and ends of a job: lines that slurm/train.sbatch writes beside its code, with tabs between the fields.

start  time  job  hosts  ranks  log
end    time  done | stopped (a signal came first) | failed (refused, or no restart left) | lost (by the machine)
"""

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Attempts:
    """A job's starts in all, where the last one ran, and how it ended (empty: it did not)."""

    job: str | None = None
    starts: int = 0
    hosts: str | None = None
    ranks: int | None = None
    log: Path | None = None
    end: str = ""

    @classmethod
    def read(cls, folder: Path) -> "Attempts":
        """folder: the newest copy in run.dir/submitted"""
        found = cls(job=text_of(folder / "job"))
        for line in (text_of(folder / "attempts") or "").splitlines():
            match line.split("\t"):
                case ["start", _, job, hosts, ranks, log] if ranks.isdecimal():
                    found = cls(job, found.starts + 1, hosts, int(ranks), Path(log))
                case ["end", _, end]:
                    found = cls(found.job, found.starts, found.hosts, found.ranks, found.log, end)
        return found

    def last_line(self) -> str | None:
        """The last line of the log that says something; None where there is none."""
        if self.log is None or not self.log.is_file():
            return None
        try:
            with self.log.open("rb") as file:
                file.seek(max(self.log.stat().st_size - 4096, 0))
                lines = file.read().decode(errors="replace").splitlines()
        except OSError:  # not for us to read
            return None
        return next((line for line in reversed(lines) if line.strip()), None)


def text_of(path: Path) -> str | None:
    """The text of a file; None where there is none, or none that we may read."""
    try:
        return path.read_bytes().decode(errors="replace").strip()
    except OSError:
        return None
