"""The kinds of cases that fuzz.py makes: each spoils one thing that a command reads, and knows what must follow."""

import gzip
import io
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import torch
import yaml
from commands import LONGER, TRAIN, Case, Fault, Result, Run, Steps, copied
from disk import full_disk
from made_up_data import some_documents, write_data
from safetensors.numpy import load_file
from spoil import UNPACK, VALUES, WORDS, as_jsonl, as_parquet, documents, packed, spoil_file, spoiled, text
from spoil import with_spoiled_values as with_spoiled

from lcm.models import PACKAGED

CONFIG: dict[str, Any] = {
    "model": {"kind": "base", "dim": 4, "width": 8, "heads": 2, "layers": 1, "dropout": 0.0},
    "data": {"path": ["data"], "slots": 16, "rows": 4, "group": 2, "workers": 0},
    "optimizer": {"lr": 0.01, "warmup_steps": 2, "final_lr": 0.01, "betas": [0.9, 0.95], "clip": 1.0},
    "trainer": {
        "max_steps": 4, "validation_rows": 4, "validate_every": 2, "checkpoint_every": 2, "keep": 3,
        "log_every": 1, "precision": "fp32", "devices": 1,
    },
    "run": {"dir": "run", "seed": 1},
}  # fmt: skip
JUNK = (*map(str, VALUES[1:24]), "ü…😀", "x" * 300, "a=b", "--", "-x")
ENVIRONMENT = (
    "RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "NODE_RANK", "GROUP_RANK", "MASTER_ADDR", "MASTER_PORT",
    "SLURM_JOB_ID", "SLURM_NTASKS", "SLURM_PROCID", "SLURM_LOCALID", "SLURM_NODEID", "SLURM_JOB_NAME",
    "SLURM_NTASKS_PER_NODE", "SLURM_JOB_NUM_NODES", "SLURM_STEP_ID", "SLURM_RESTART_COUNT", "SLURM_ARRAY_TASK_ID",
    "PL_TRAINER_MAX_STEPS", "PL_TRAINER_PRECISION", "PL_TRAINER_DEVICES", "PL_GLOBAL_SEED", "PL_TRAINER_STRATEGY",
    "CUDA_VISIBLE_DEVICES", "OMP_NUM_THREADS", "TMPDIR", "XDG_CACHE_HOME", "LCM_CACHE", "LANG", "LC_ALL",
    "PYTHONIOENCODING", "COLUMNS", "TORCHELASTIC_RUN_ID", "TORCHELASTIC_RESTART_COUNT", "OMPI_COMM_WORLD_RANK",
    "KUBERNETES_PORT", "GROUP_WORLD_SIZE", "LT_CLI_USED", "HTTP_PROXY", "SOURCE_DATE_EPOCH",
)  # fmt: skip


def make_bench(bench: Path, run: Callable[[Run], Result]) -> None:
    """Make the files that cases copy: data, a configuration, a run of four steps, and a packaged model."""
    write_data(bench / "data", some_documents(40), some_documents(8, seed=1), some_documents(8, seed=2))
    (bench / "config.yaml").write_text(yaml.safe_dump(CONFIG), encoding="utf-8")
    shutil.copytree(PACKAGED / "tales", bench / "model")
    made = run(Run(TRAIN))
    assert made.succeeded, made.err
    shutil.copytree(bench / "run", bench / "whole")
    made = run(Run([*LONGER, "--run.dir", "whole"]))
    assert made.succeeded, made.err


def prepare(random: Random, folder: Path, bench: Path) -> Steps:
    """A corpus that is cut, changed, in another encoding, of several members, or under a name that lies."""
    rows = documents(random)
    good, ending = _corpus(random, rows)
    pack = random.choice(list(UNPACK)) if ending == ".jsonl" else ""
    stored = packed(random, good, pack)
    name = f"corpus{ending}{pack if random.random() < 0.9 else random.choice(list(UNPACK))}"
    path = folder / name
    path.write_bytes(stored if random.random() < 0.4 else spoiled(random, stored))
    command = Run(["prepare", "--input", name, "--output", "out"])
    first = yield command
    given = _rows_given(path)
    if first.succeeded:
        if given is not None and (counted := _counted(folder / "out", given)) != given:
            raise Fault(f"exit 0 with {counted} of {given} rows: {first.err[-300:]}")
        if (yield Run(["verify", "out"])).status:
            raise Fault("exit 0, and the data set does not verify")
        return
    path.write_bytes(good if not pack else packed(Random(0), good, pack))
    if path.suffix != (pack or ending):
        path.rename(folder / f"corpus{ending}{pack}")
        command = Run(["prepare", "--input", f"corpus{ending}{pack}", "--output", "out"])
    second = yield command
    given = _rows_given(folder / command.words[2])
    if second.succeeded and given is not None and (counted := _counted(folder / "out", given)) != given:
        raise Fault(f"mended, exit 0 with {counted} of {given} rows")


def _corpus(random: Random, rows: list[dict[str, Any]]) -> tuple[bytes, str]:
    return (as_parquet(random, rows), ".parquet") if random.random() < 0.25 else (as_jsonl(random, rows), ".jsonl")


def _rows_given(path: Path) -> int | None:
    """Rows of a file as other programs read it; None where they do not."""
    try:
        if ".parquet" in path.name:
            return int(pq.ParquetFile(io.BytesIO(path.read_bytes())).metadata.num_rows)
        data = UNPACK[path.suffix if path.suffix in UNPACK else ""](path.read_bytes())
        return sum(bool(line.strip()) for line in data.decode("utf-8-sig").split("\n"))
    except Exception:  # whatever a decoder raises: no other program reads it either
        return None


def _counted(folder: Path, given: int) -> int:
    """Documents and refused rows of a data set; `given` where the end of its file is refused as damaged."""
    manifest = json.loads((folder / "manifest.json").read_text())
    if {"truncated file", "corrupt file"} & manifest["refused"].keys():
        return given  # other programs may take what comes before the damage for the whole
    documents = sum(shard["documents"] for shards in manifest["splits"].values() for shard in shards)
    return int(documents + sum(found["count"] for found in manifest["refused"].values()))


def encode(random: Random, folder: Path, bench: Path) -> Steps:
    """Sentences with what some programs take for the end of a line."""
    lines = [text(random, 5) for _ in range(random.randint(1, 4))]
    data = "\n".join(lines).encode() + random.choice([b"", b"\n"])
    if spoilt := random.random() < 0.4:
        data = spoiled(random, data)
    (folder / "in.txt").write_bytes(data)
    made = yield Run(["encode", "--input", "in.txt", "--output", "out.npy"])
    if made.succeeded and len(np.load(folder / "out.npy")) != (count := len(data.removesuffix(b"\n").split(b"\n"))):
        raise Fault(f"{len(np.load(folder / 'out.npy'))} vectors for {count} lines")
    if not made.succeeded and not spoilt:
        raise Fault(f"refuses good lines: {made.last_line}")


def configuration(random: Random, folder: Path, bench: Path) -> Steps:
    """Values of another type, out of bounds, twice, unknown; --check refuses whatever training would."""
    shutil.copytree(bench / "data", folder / "data")
    written = yaml.dump(with_spoiled(random, CONFIG), allow_unicode=random.random() < 0.5, sort_keys=False)
    if random.random() < 0.2:
        section = random.choice(list(CONFIG))
        written += yaml.safe_dump({section: CONFIG[section]})
    data = written.encode("utf-8", "surrogatepass")
    (folder / "config.yaml").write_bytes(spoiled(random, data) if random.random() < 0.2 else data)
    checked = yield Run([*TRAIN, "--check"])
    steps = [] if "max_steps: 4" in written and written.count("max_steps") == 1 else ["--trainer.max_steps", "2"]
    trained = yield Run([*TRAIN, *steps])
    if checked.succeeded and not trained.succeeded:
        raise Fault(f"--check passes, training does not: {trained.last_line}")
    if trained.succeeded and not list(folder.rglob("model.safetensors")):
        raise Fault("exit 0 without a model")


def checkpoint(random: Random, folder: Path, bench: Path) -> Steps:
    """A run with a spoiled file resumes from a good checkpoint, to the undisturbed run's weights, or is refused."""
    copied(bench, folder, "data", "config.yaml", "run")
    files = [path for path in sorted((folder / "run").rglob("*")) if path.is_file() or path.is_symlink()]
    spoil_file(random, random.choice([path for path in files if path.suffix == ".ckpt"] * 3 + files))
    if (yield Run(["runs", "."])).status:
        raise Fault("lcm runs shows no run")
    again = yield Run(LONGER)
    if again.succeeded:
        expected, found = (_last_weights(place) for place in (bench / "whole", folder / "run"))
        if any(not torch.equal(weight, found[name]) for name, weight in expected.items()):
            raise Fault("exit 0 with other weights than those of the undisturbed run")
        model = load_file(folder / "run" / "model.safetensors")
        if not all(np.isfinite(weight).all() for weight in model.values()):
            raise Fault("exit 0 with a model that is not finite")
    yield Run(["export", "--checkpoint", "run", "--output", "exported"])


def _last_weights(run: Path) -> dict[str, torch.Tensor]:
    weights: dict[str, torch.Tensor] = torch.load(run / "checkpoints" / "last.ckpt", weights_only=True)["state_dict"]
    return weights


def data_set(random: Random, folder: Path, bench: Path) -> Steps:
    """A spoiled manifest or shard."""
    copied(bench, folder, "data", "config.yaml")
    manifest = folder / "data" / "manifest.json"
    changed = ""
    if random.random() < 0.5:
        values = with_spoiled(random, json.loads(manifest.read_text()))
        manifest.write_text(json.dumps(values), encoding="utf-8")
    else:
        path = random.choice(sorted(folder.glob("data/*")))
        before = path.read_bytes()
        spoil_file(random, path)
        if path.suffix == ".tar" and not (path.is_file() and path.read_bytes() == before):
            changed = path.name
    verified = yield Run(["verify", "data"])
    if changed and verified.succeeded:
        raise Fault(f"{changed} has other bytes, and verify says it is good")
    yield Run([*TRAIN, "--trainer.max_steps", "2"])


def model(random: Random, folder: Path, bench: Path) -> Steps:
    """A model whose weights or configuration are spoiled."""
    copied(bench, folder, "model")
    path = folder / "model" / random.choice(["model.safetensors", "config.yaml"])
    if path.suffix == ".yaml" and random.random() < 0.7:
        values = with_spoiled(random, yaml.safe_load(path.read_text()))
        path.write_bytes(yaml.dump(values, allow_unicode=True).encode("utf-8", "surrogatepass"))
    else:
        spoil_file(random, path)
    words = [
        "generate",
        "--model",
        "model",
        "--text",
        "Anna is a baker who lives near the mill.",
        "--max-sentences",
        "1",
    ]
    made = yield Run([*words, "--steps", "2"])
    if made.succeeded and not made.out.strip():
        raise Fault("exit 0 without a text")


def environment(random: Random, folder: Path, bench: Path) -> Steps:
    """Variables that schedulers, containers and other programs leave behind."""
    copied(bench, folder, "data", "config.yaml")
    names = random.sample(ENVIRONMENT, random.choice([1, 1, 2, 4]))
    found = {
        name: random.choice(["0", "1", "2", "4", "-1", "", "none", "node01", "29500", "16-mixed"]) for name in names
    }
    trained = yield Run(TRAIN, found)
    if trained.succeeded and not _steps_logged(folder / "run") == CONFIG["trainer"]["max_steps"]:
        raise Fault(f"exit 0 after {_steps_logged(folder / 'run')} steps of {CONFIG['trainer']['max_steps']}")


def _steps_logged(run: Path) -> int:
    lines = (run / "metrics.csv").read_text().splitlines()
    step = lines[0].split(",").index("step")
    return max(int(line.split(",")[step]) for line in lines[1:])


def arguments(random: Random, folder: Path, bench: Path) -> Steps:
    """Options with values that they do not take."""
    copied(bench, folder, "data", "config.yaml", "run")
    (folder / "good.jsonl").write_text(json.dumps({"id": "a", "text": "One. Two."}) + "\n")
    with gzip.open(folder / "good.jsonl.gz", "wt") as file:
        file.write(json.dumps({"id": "b", "text": " ".join(WORDS)}) + "\n")
    np.save(folder / "v.npy", np.zeros((1, 512), np.float32))
    words = list(random.choice(COMMANDS))
    for _ in range(random.choice([1, 1, 2])):
        at = random.randrange(1, len(words) + 1)
        match random.randrange(4):
            case 0 if at < len(words) and words[at] not in ("out", "run"):
                words[at] = random.choice(JUNK)
            case 1:
                words.insert(at, random.choice(JUNK))
            case 2 if at < len(words):
                del words[at]
            case _:
                words += [random.choice(OPTIONS), random.choice(JUNK)]
    yield Run([word.replace("\x00", "0") for word in words])


COMMANDS = (
    ["prepare", "--input", "good.jsonl", "--output", "out"],
    ["verify", "data"],
    ["encode", "--input", "good.jsonl", "--output", "out.npy"],
    ["decode", "--input", "v.npy"],
    ["plan", "--config", "config.yaml"],
    ["train", "--config", "config.yaml", "--check"],
    ["export", "--checkpoint", "run", "--output", "out"],
    ["doctor"],
)
OPTIONS = (
    "--input", "--codec", "--lang", "--beam", "--workers", "--part", "--splitter", "--max-characters", "--pairs",
    "--shard-documents", "--drop-above", "--text-column", "--nodes", "--gpus-per-node", "--gpu", "--mfu", "--memory",
    "--model.width", "--data.rows", "--data.path", "--optimizer.betas", "--trainer.precision", "--trainer.strategy",
    "--run.seed", "--half", "--json", "--unknown", "--checkpoint", "--config",
)  # fmt: skip


CASES: dict[str, Case] = {
    case.__name__: case
    for case in (prepare, encode, configuration, checkpoint, data_set, model, environment, arguments, full_disk)
}
