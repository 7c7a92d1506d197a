"""`lcm submit`: sbatch for training, with a copy of code and configuration that every start of the job runs.

    lcm submit --nodes=4 --ntasks-per-node=8 slurm/train.sbatch configs/two_tower_1.6b.yaml --run.dir=runs/first
    lcm submit --time=2:00:00 slurm/sweep.sbatch GRID.yaml          an array with a job a run; lcm/jobs/grid.py
    lcm submit --array=1-16 slurm/embed.sbatch --input F --output DIR      lcm prepare, with a copy in DIR.submitted/
    lcm submit --array=1-16 slurm/generate.sbatch --model M --input F --output F      lcm generate, likewise
    runs/first/submitted/20261201-093000-1f3a/
        lcm/ slurm/ config.yaml      what the job runs, whatever changes in the checkout while it waits
        commit.txt changes.diff      where the code comes from, in a git checkout
        attempts                     a line for each start and end of the job

Options before the script are sbatch's, settings behind the configuration are those of `lcm train`.
"""

import argparse
import os
import re
import secrets
import shutil
import subprocess
import time
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path

import lcm
from lcm.config import Config, load_config, save_config
from lcm.errors import UserError
from lcm.files import disk_errors, expanded
from lcm.jobs.grid import read_grid
from lcm.options import existing_file

PACKAGE = Path(lcm.__file__).parent
SUBMITTED = "submitted"


def copy_run(config: Config, root: Path, name: str, code: Path | None = None) -> Path:
    """Copy the code and a resolved configuration into run.dir/submitted/NAME. Returns this folder.

    root: the checkout, whose slurm/ is copied too
    code: an earlier copy, to which links lead instead
    """
    folder = Path(config.run.dir, SUBMITTED, name).absolute()
    partial = folder.with_name(f".{name}")
    partial.mkdir(parents=True)
    if code is None:
        _copy_code(root, partial)
    else:
        for each in ("lcm", "slurm"):
            (partial / each).symlink_to(os.path.relpath(code / each, folder))
    run = config.run.model_copy(update={"dir": str(folder.parents[1])})  # wherever sbatch --chdir leads
    save_config(config.model_copy(update={"run": run}), partial / "config.yaml")
    (partial / "root").write_text(f"{root.absolute()}\n")
    (partial / "restarts").write_text(f"{config.trainer.restarts}\n")
    return partial.rename(folder)


def _copy_code(root: Path, folder: Path) -> None:
    """Copy the package and slurm/; the package's own models and codecs are only linked."""
    shutil.copytree(PACKAGE, folder / "lcm", ignore=shutil.ignore_patterns("__pycache__", "assets"))
    for assets in PACKAGE.rglob("assets"):
        (folder / "lcm" / assets.relative_to(PACKAGE)).symlink_to(assets.resolve())
    shutil.copytree(root / "slurm", folder / "slurm")
    commands = {"commit.txt": ("rev-parse", "HEAD"), "changes.diff": ("diff", "HEAD", "--", ".")}
    for name, command in commands.items() if shutil.which("git") else ():
        done = subprocess.run(["git", "-C", str(PACKAGE.parent), *command], capture_output=True, check=False)
        if done.returncode == 0:
            (folder / name).write_bytes(done.stdout)


def submit(options: Sequence[str], script: Path, words: Sequence[str]) -> int:
    """Copy what the job will run, and queue it. Returns sbatch's exit status; a job that it refuses leaves no copy."""
    root, name = script.absolute().parent.parent, f"{time.strftime('%Y%m%d-%H%M%S')}-{secrets.token_hex(2)}"
    order: list[str | Path]
    match script.name, words:
        case "train.sbatch", [config, *settings]:
            folders = [copy_run(load_config(config, settings), root, name)]
            order = [folders[0] / "slurm" / script.name, folders[0] / "config.yaml"]
        case "sweep.sbatch", [grid, *settings]:
            folders = _copy_sweep(Path(grid), settings, root, name)
            order = [folders[0] / "slurm" / script.name, folders[0] / "runs"]
            options = [f"--array=1-{len(folders) - 1}", *options]  # a later --array=1-9%2 of the user's wins
        case "embed.sbatch" | "generate.sbatch", _:
            folders = [_copy_for_data(words, root, name)]
            order = [folders[0] / "slurm" / script.name, folders[0], *words]
        case _:
            raise UserError(
                f"{script}: expected slurm/train.sbatch CONFIG, slurm/sweep.sbatch GRID.yaml, or slurm/embed.sbatch or "
                "slurm/generate.sbatch with options of lcm prepare or lcm generate"
            )
    try:
        done = subprocess.run(["sbatch", *options, *map(str, order)], stdout=subprocess.PIPE, text=True, check=False)
    except OSError as error:
        _remove(folders)
        raise UserError(f"sbatch: {error.strerror}; expected Slurm on this machine") from error
    print(done.stdout, end="")
    number = re.search(r"\d+", done.stdout)
    if done.returncode or number is None:
        _remove(folders)
    else:
        for folder in folders:
            (folder / "job").write_text(f"{number[0]}\n")
    return done.returncode


def _copy_sweep(grid: Path, settings: Sequence[str], root: Path, name: str) -> list[Path]:
    """Copy the code once, and each run's configuration. Returns the folder of the sweep, then those of the runs."""
    base, configs = read_grid(grid, settings)
    folder = (base / SUBMITTED / name).absolute()
    folder.mkdir(parents=True)
    _copy_code(root, folder)
    shutil.copyfile(grid, folder / "grid.yaml")
    copies = [copy_run(config, root, name, code=folder) for config in configs]
    (folder / "runs").write_text("".join(f"{copy}\n" for copy in copies))
    return [folder, *copies]


def _copy_for_data(words: Sequence[str], root: Path, name: str) -> Path:
    """Copy the code beside what the job will write: in the folder of a data set nothing else may stand."""
    parser = argparse.ArgumentParser(prog="lcm submit", allow_abbrev=False)
    parser.add_argument("--output", default="")
    if not (output := parser.parse_known_args(words)[0].output):
        raise UserError("--output: expected what the job will write, among the options behind the script")
    folder = Path(f"{Path(expanded(output, setting='--output')).absolute()}.{SUBMITTED}", name)
    folder.mkdir(parents=True)
    _copy_code(root, folder)
    (folder / "root").write_text(f"{root.absolute()}\n")
    return folder


def _remove(folders: Sequence[Path]) -> None:
    """Remove copies, and the folders above that hold nothing else."""
    for folder in reversed(folders):
        shutil.rmtree(folder)
        for parent in (folder.parent, folder.parent.parent):
            if not any(parent.iterdir()):
                parent.rmdir()


def copy_in_job(words: Sequence[str]) -> Path:
    """The copy of a job that plain sbatch queued: made at its first start, found again later.

    Raises UserError where code or configuration changed after the job was submitted.
    """
    job, root = os.environ["SLURM_JOB_ID"], Path(os.environ["LCM_ROOT"])
    path = existing_file(words[0], "CONFIG")
    config = load_config(path, words[1:])
    name = f"job-{job}"
    if (earlier := Path(config.run.dir, SUBMITTED, name).absolute()).is_dir():
        return earlier
    shown = subprocess.run(["scontrol", "show", "job", job], capture_output=True, text=True, check=False).stdout
    if found := re.search(r"SubmitTime=(\S+)", shown):
        since = datetime.fromisoformat(found[1])
        for file in (path, *sorted(PACKAGE.rglob("*.py"))):
            changed = datetime.fromtimestamp(int(file.stat().st_mtime))
            if changed > since:
                raise UserError(
                    f"{file}: changed at {changed}, after job {job} was submitted at {since}; submit again, "
                    "with lcm submit in place of sbatch, which copies code and configuration"
                )
    return copy_run(config, root, name)


def main(argv: Sequence[str]) -> int:
    """`lcm submit`: prints what sbatch prints."""
    parser = argparse.ArgumentParser(
        prog="lcm submit",
        usage="%(prog)s [options of sbatch] slurm/train.sbatch CONFIG [--SECTION.SETTING=VALUE …]\n"
        "       %(prog)s [options of sbatch] slurm/sweep.sbatch GRID.yaml [--SECTION.SETTING=VALUE …]\n"
        "       %(prog)s [options of sbatch] slurm/embed.sbatch --input F --output DIR [options of lcm prepare]\n"
        "       %(prog)s [options of sbatch] slurm/generate.sbatch --input F --output F [options of lcm generate]",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--in-job", action="store_true", help="only copy, and print the folder: for slurm/train.sbatch")
    if not argv or {"-h", "--help"} & set(argv):
        parser.parse_args(["--help"])
    if argv[0] == "--in-job":
        with disk_errors(Path.cwd()):
            print(copy_in_job(argv[1:]))
        return 0
    place = next((i for i, word in enumerate(argv) if word.endswith(".sbatch")), None)
    if place is None:
        raise UserError(f"{' '.join(argv)}: no script; expected slurm/train.sbatch, or another of the folder")
    with disk_errors(Path.cwd()):
        return submit(argv[:place], existing_file(argv[place], "SCRIPT"), argv[place + 1 :])
