"""The start of a run: one decision about its folder, from everything that is in it.

The run's own checkpoints come first: last.ckpt, or the newest that is whole. Without any, the run starts from
`trainer.resume`, or at step 0, but never over the traces of an earlier run.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from lcm.config import Config
from lcm.errors import UserError, without_secrets
from lcm.models import MODEL
from lcm.options import existing_file
from lcm.training.checkpoint import LAST, open_checkpoint
from lcm.training.environment import whereabouts
from lcm.training.ownership import read_owner

PARTS = ("global_step", "optimizer_states", "loops", "ConceptData")
"""Parts of a checkpoint that training needs, beside those that `open_checkpoint` asks for."""
SAME_RESULT = {
    "data": ("workers", "cache", "cache_gb", "retries", "rows"),
    "trainer": (
        "compile", "checkpoint_activations", "devices", "nodes", "patience", "strategy", "offload", "validate_every",
        "validation_rows", "checkpoint_every", "skips", "keep", "log_every", "loggers", "resume", "restarts",
        "accumulate", "start", "write_every", "write_rows", "watch", "early_stop",
    ),
    "run": ("dir",),
}  # fmt: skip
"""Settings that may change without a change of what is trained. Rows, accumulation and ranks count by their product."""


class Start(NamedTuple):
    """The checkpoint from which a run starts, if any; its step; and what a person should know about it, in lines.

    scores_without_best: scores of `trainer.watch` in a row by then that were no new best
    """

    checkpoint: Path | None
    step: int
    notes: tuple[str, ...]
    scores_without_best: int = 0

    def stopped_early(self, config: Config) -> bool:
        """True for a run that has ended by `trainer.early_stop`, as it is now."""
        return 0 < config.trainer.early_stop <= self.scores_without_best

    def finished(self, config: Config) -> bool:
        return self.step >= config.trainer.max_steps or self.stopped_early(config)


def decide(config: Config, world_size: int) -> Start:
    """Choose the checkpoint. Every rank does so by itself, from the same files.

    Raises UserError rather than start over an earlier run, and where the checkpoint is damaged or of another model.
    """
    folder, resume = Path(config.run.dir), config.trainer.resume
    requeued = whereabouts()[2] > 0  # a job that Slurm has started again, whatever it first resumed from
    if resume not in ("auto", "none") and not requeued:
        existing_file(resume, "trainer.resume")
    if (found := _own(folder)) is not None:
        path, checkpoint, notes = found
        if resume == "none" and not requeued:
            raise UserError(
                f"trainer.resume=none, but {path} holds an earlier run; choose another run.dir, delete {folder}, "
                "or leave trainer.resume out to resume from there"
            )
        if resume not in ("auto", "none") and Path(resume).absolute() != path.absolute():
            notes.append(
                f"trainer.resume={resume} is where this run began; it is at step {checkpoint['global_step']:,} by now "
                "and resumes there; to begin there again, choose another run.dir"
            )
    else:
        _refuse_traces(folder)
        if resume in ("auto", "none"):
            return Start(None, 0, ())
        path, notes = existing_file(resume, "trainer.resume"), []
        checkpoint = opened(path)
    check_identity(path, checkpoint, config)
    began = checkpoint["config"]["trainer"].get("start", "")
    if config.trainer.start and config.trainer.start != began:
        notes.append(
            f"trainer.start={config.trainer.start}: this run began with {began or 'drawn weights'} and is at step "
            f"{checkpoint['global_step']:,}; to begin with another model, choose another run.dir"
        )
    notes += differences(checkpoint, config, world_size)
    return Start(path, checkpoint["global_step"], tuple(notes), checkpoint.get("scores_without_best", 0))


def _own(folder: Path) -> tuple[Path, dict[str, Any], list[str]] | None:
    """The run's last.ckpt, or else its newest checkpoint that is whole; None where it has none.

    Raises UserError where there are checkpoints, and none of them is whole.
    """
    last = folder / "checkpoints" / LAST
    others = [path for path in sorted(last.parent.glob("*.ckpt")) if path.name != LAST]
    if not others and not last.is_symlink() and not last.exists():
        return None
    damaged, whole = [], []
    for path in (last, *others):
        try:
            whole.append((path, opened(path, whole=path == last)))
        except UserError as error:
            damaged.append(str(error))
        if whole and path == last:
            return *whole[0], []
    for path, checkpoint in sorted(whole, key=lambda found: found[1]["global_step"], reverse=True):
        try:
            opened(path)
        except UserError as error:
            damaged.append(str(error))
            continue
        return path, checkpoint, [f"{damaged[0]}: resuming from the newest that is whole"]
    raise UserError(
        f"run.dir={folder} holds an earlier run, but none of its checkpoints can be used ({damaged[0]}); "
        "copy one there again, or choose another run.dir"
    )


def opened(path: Path, whole: bool = True) -> dict[str, Any]:
    """The checkpoint, as `open_checkpoint` opens it. Raises UserError where it is none that a run can resume from."""
    if path.is_symlink() and not path.exists():
        raise UserError(f"{path}: a link to {path.readlink()}, which is not there")
    if not path.exists():
        raise UserError(f"{path} is missing")
    checkpoint = open_checkpoint(path, whole=whole)
    if lacks := [name for name in PARTS if name not in checkpoint]:
        raise UserError(f"{path}: not a checkpoint that lcm train can resume from: it has no {lacks[0]}")
    return checkpoint


def _refuse_traces(folder: Path) -> None:
    """Raises UserError where a run has been that had more than its first steps, and has lost its checkpoints."""
    saved = read_owner(folder).get("saved", 0)
    traces = [f"{MODEL} of an earlier run"] if (folder / MODEL).exists() else []
    if saved:
        traces.append(f"the notes of a run that had saved step {saved:,}")
    if traces:
        raise UserError(
            f"run.dir={folder} holds {traces[0]}, but no checkpoint to resume from; put one back into "
            f"{folder / 'checkpoints'}, choose another run.dir, or delete this one to start again"
        )


def check_identity(path: Path, checkpoint: dict[str, Any], config: Config) -> None:
    """Raises UserError where the checkpoint is of another model or, if `config` has one by now, of another codec."""
    old, new = _identity(checkpoint["config"]), _identity(config.model_dump(mode="json"))
    for name in sorted(new):
        if old.get(name) != new[name]:
            raise UserError(
                f"{name}={new[name]}, but {path} was trained with {old.get(name)}; "
                "set it back, or start another run with another run.dir"
            )


def _identity(config: dict[str, Any]) -> dict[str, Any]:
    """The settings that may not change in the middle of a run, by name."""
    model = {f"model.{name}": value for name, value in config["model"].items()}
    optimizer = {f"optimizer.{name}": config["optimizer"].get(name) or [] for name in ("frozen", "lr_factors")}
    codec = {"codec.fingerprint": config["codec"].get("fingerprint")} if config["codec"] else {}
    return {**model, **optimizer, **codec}


def differences(checkpoint: dict[str, Any], config: Config, world_size: int) -> Iterator[str]:
    """A line for each setting that the checkpoint was trained with and that now changes what is trained."""
    old, new, step = checkpoint["config"], config.model_dump(mode="json"), checkpoint["global_step"]
    for section in ("data", "optimizer", "trainer", "run"):
        for name, value in new[section].items():
            before = old.get(section, {}).get(name, value)
            if before != value and name not in SAME_RESULT.get(section, ()):
                yield f"{section}.{name}={_short(value)} from step {step:,} on; until then it was {_short(before)}"
    ranks = checkpoint.get("world_size")
    if ranks is None:  # an older version's
        devices = old["trainer"].get("devices")
        ranks = old["trainer"].get("nodes", 1) * devices if isinstance(devices, int) else world_size
    shared = world_size * config.trainer.accumulate
    before, now = ranks * old["trainer"]["accumulate"] * old["data"]["rows"], shared * config.data.rows
    if before != now:
        keeps = f"data.rows={before // shared} keeps it" if before % shared == 0 else f"{shared} do not divide it"
        parts = f"{world_size} ranks x trainer.accumulate={config.trainer.accumulate} x data.rows={config.data.rows}"
        yield f"a step has {now} rows from step {step:,} on ({parts}); until then it had {before}: {keeps}"


def _short(value: Any) -> str:
    return without_secrets(",".join(map(str, value)) if isinstance(value, list) else str(value))
