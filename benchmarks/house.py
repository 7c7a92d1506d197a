"""Measure the code itself: files, lines, arrows, long functions, and the files on the way of the data.

python benchmarks/house.py [--checkout DIR] [--ways]

One JSON line for each number. DIR is a checkout of this repository, of today or of long ago (default: this one).
--ways runs `lcm prepare` on one document, one training step and `lcm generate` on one prompt in DIR, and counts the
files of lcm/ in which a function was called:

document   everything `lcm prepare` calls, in the command and in its worker
row        everything between the first batch being asked of the training loader and the model's loss being called
concept    everything `lcm generate` calls to answer one prompt
loss       everything a Two-Tower calls for the loss of one batch
"""

import argparse
import ast
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

LAB = ("codec_lab", "codec_training", "codec_report", "similarity.py")
HOOK = """
import os, sys, threading
root, log, seen, on = os.environ["HOUSE_ROOT"], os.environ["HOUSE_LOG"], set(), [os.environ["HOUSE_ON"] == "1"]
def profile(frame, event, arg):
    code = frame.f_code
    if event == "call" and on[0] and code.co_filename.startswith(root) and code.co_filename not in seen:
        if not code.co_name.startswith("<") and "__qualname__" not in code.co_names:  # the body of a module, of a class
            seen.add(code.co_filename)
            with open(f"{log}.{os.getpid()}", "a") as file:  # at once: a worker process may be killed at its end
                file.write(code.co_filename[len(root):] + chr(10))
sys.modules["house_hook"] = sys.modules[__name__]
threading.setprofile(profile)
sys.setprofile(profile)
"""
"""Becomes sitecustomize.py, which every Python process runs first."""

TRAIN = """
import sys, house_hook
import lightning as L
from lcm.config import load_config
from lcm.models import build_model
try:
    from lcm.data.datamodule import ConceptData
    from lcm.training.module import LCMModule
except ImportError:
    from lcm.data import ConceptData
    from lcm.module import LCMModule
path, data, way = sys.argv[1:]
overrides = [f"data.path={data}", "data.workers=0", "data.slots=16", "data.rows=2", "trainer.max_steps=1"]
config = load_config(path, overrides)
data = ConceptData(config, predicts_first=True)
model = build_model(config.model)
loss = model.loss

def recorded_loss(batch):
    house_hook.on[0] = way == "loss"
    result = loss(batch)
    house_hook.on[0] = False
    return result

class Begin(L.Callback):
    def on_train_epoch_start(self, *_):  # the last hook before the first batch
        house_hook.on[0] = way == "row"

model.loss = recorded_loss
settings = dict.fromkeys(("logger", "enable_checkpointing", "enable_progress_bar", "enable_model_summary"), False)
settings |= {"limit_val_batches": 0, "num_sanity_val_steps": 0, "callbacks": [Begin()]}
trainer = L.Trainer(accelerator="cpu", max_steps=1, **settings)
trainer.fit(LCMModule(config, model), datamodule=data)
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--checkout", default=str(Path(__file__).parent.parent), metavar="DIR")
    parser.add_argument("--ways", action="store_true", help="also run prepare, train and generate there")
    args = parser.parse_args()
    root = Path(args.checkout).resolve()
    files = {path: path.read_text(encoding="utf-8") for path in sorted((root / "lcm").rglob("*.py"))}
    core = {path: text for path, text in files.items() if path.relative_to(root / "lcm").parts[0] not in LAB}
    for name, some in (("core", core), ("lab", {path: text for path, text in files.items() if path not in core})):
        show(f"{name} files", len(some))
        show(f"{name} lines", sum(len(text.splitlines()) for text in some.values()))
        show(f"{name} lines of code", sum(map(lines_of_code, some.values())))
    functions = [(path, node) for path, text in files.items() for node in functions_of(text)]
    show("functions over 50 lines", sum(length(node) > 50 for _, node in functions))
    show("parameters over 7", sum(parameters(node) > 7 for _, node in functions))
    show("arrows between rooms", len(arrows(root, files)))
    if args.ways:
        for name, passed in ways(root).items():
            show(f"files on the way of a {name}", len(passed), sorted(passed))


def show(name: str, number: int, files: list[str] | None = None) -> None:
    print(json.dumps({"name": name, "number": number, **({"files": files} if files else {})}))


def lines_of_code(text: str) -> int:
    """Lines that are neither blank, a comment, a docstring nor an import."""
    lines = text.splitlines()
    out = {i for i, line in enumerate(lines, 1) if not line.strip() or line.strip().startswith("#")}
    for node in ast.walk(ast.parse(text)):
        is_text = (
            isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str)
        )
        if is_text or isinstance(node, ast.Import | ast.ImportFrom):
            out |= set(range(node.lineno, (node.end_lineno or node.lineno) + 1))
    return len(lines) - len(out)


def functions_of(text: str) -> Iterator[ast.FunctionDef | ast.AsyncFunctionDef]:
    yield from (n for n in ast.walk(ast.parse(text)) if isinstance(n, ast.FunctionDef | ast.AsyncFunctionDef))


def length(node: ast.FunctionDef | ast.AsyncFunctionDef) -> int:
    return (node.end_lineno or node.lineno) - node.lineno + 1


def parameters(node: ast.FunctionDef | ast.AsyncFunctionDef) -> int:
    names = [a.arg for a in (*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs)]
    return len([name for name in names if name not in ("self", "cls")])


def arrows(root: Path, files: dict[Path, str]) -> set[tuple[str, str]]:
    """Pairs of rooms of which the first imports from the second. A package is a room, and so is a single file."""

    def room(parts: list[str]) -> str:
        return parts[1] if len(parts) > 1 else ""

    found = set()
    for path, text in files.items():
        own = room(list(path.relative_to(root).with_suffix("").parts))
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "lcm":
                parts = (node.module or "").split(".")
                names = [room(parts)] if len(parts) > 1 else [alias.name for alias in node.names]
                found |= {(own, name) for name in names if name not in (own, "__version__") and own != "__init__"}
    return found


def ways(root: Path) -> dict[str, set[str]]:
    """The files of lcm/ that were called on the way of a document, a row, a concept and a loss."""
    with tempfile.TemporaryDirectory() as name:
        work = Path(name)
        (work / "hook").mkdir()
        (work / "hook" / "sitecustomize.py").write_text(HOOK)
        text = "The sea was calm. A boat came in. The men were tired. They went home."
        (work / "text.jsonl").write_text(json.dumps({"id": "a", "split": "train", "text": text}) + "\n")
        (work / "train.py").write_text(TRAIN)
        cli = ["-m", "lcm.cli"]
        config = str(root / "configs" / "two_tower_toy.yaml")
        sizes = ["--model.width=32", "--model.heads=2", "--model.context_layers=1", "--model.denoiser_layers=1"]
        limits = ["--trainer.max_steps=1", "--data.workers=0", "--run.dir=run", "--trainer.precision=fp32"]

        def run(words: list[str], way: str = "") -> set[str]:
            log = work / f"log-{way}"
            environment = {**os.environ, "PYTHONPATH": f"{root}:{work / 'hook'}" if way else str(root)}
            environment |= {"HOUSE_ROOT": f"{root / 'lcm'}/", "HOUSE_LOG": str(log), "OMP_NUM_THREADS": "1"}
            environment["HOUSE_ON"] = str(int(way in ("document", "concept")))
            subprocess.run([sys.executable, "-W", "ignore", *words], cwd=work, env=environment, check=True,
                           stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)  # fmt: skip
            return {line for path in work.glob(f"{log.name}.*") for line in path.read_text().splitlines()}

        prepare = [*cli, "prepare", "--input", "text.jsonl", "--output", "data", "--workers", "1"]
        found = {"document": run(prepare, "document")}
        found["row"] = run(["train.py", config, "data", "row"], "row")
        found["loss"] = run(["train.py", config, "data", "loss"], "loss")
        run([*cli, "train", "--config", config, "--data.path=data", *sizes, *limits])
        prompt = [*cli, "generate", "--model", "run", "--text", text, "--max-sentences", "1", "--steps", "2"]
        found["concept"] = run(prompt, "concept")
        return found


if __name__ == "__main__":
    main()
