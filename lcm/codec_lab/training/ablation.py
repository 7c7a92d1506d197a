"""The ablation: a table of what each term of the loss does, in equally many steps from the same start."""

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import torch

from lcm.codec_lab.report.space import participation_ratio
from lcm.codec_lab.similarity import dense_ranks, load_public_encoder, similarities, spearman
from lcm.codec_lab.training.corpus import read_corpus
from lcm.codec_lab.training.settings import CodecTraining
from lcm.codec_lab.training.training import CodecRun, encode_all, prepare_run, shortened
from lcm.errors import UserError
from lcm.training.loggers import say

USUAL = {"denoise": 0.3, "unknown": 0.04, "noise": 0.3, "similarity": 1.0, "translation": 1.0, "translation_mse": 0.1}
"""Values that switch on a term which the configuration leaves off."""
COLUMNS = ("validation CE", "piece accuracy", "Spearman", "participation ratio")


def variants(settings: CodecTraining) -> dict[str, dict[str, float]]:
    """Row name → changed terms: the configuration as it is, no term at all, and each term switched."""
    impossible = {"similarity"} if settings.data.spans else set()  # it compares whole sentences
    impossible |= {"similarity", "translation_mse"} if settings.freeze == "encoder" else set()
    impossible |= set() if settings.data.pairs else {"translation", "translation_mse"}
    chosen = {name: float(getattr(settings.terms, name)) for name in USUAL if name not in impossible}
    switched = {
        f"without {name}" if value else f"with {name} {USUAL[name]:g}": {name: 0.0 if value else USUAL[name]}
        for name, value in chosen.items()
    }
    return {"as configured": {}, "autoencoding alone": dict.fromkeys(chosen, 0.0), **switched}


def ablate(settings: CodecTraining, steps: int) -> str:
    """Train every variant, write ablation.md and ablation.json into the run's folder, return the table.

    A row that an earlier call with the same settings has finished is not trained again. Raises UserError where the
    folder holds rows of other settings.
    """
    folder = Path(settings.run.dir)
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "ablation.json"
    ours = settings.model_dump(mode="json", exclude={"run": {"dir"}, "trainer": {"threads"}})
    before = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {"settings": ours, "rows": {}}
    if before["settings"] != ours:
        raise UserError(f"run.dir={folder}: holds an ablation of other settings; name another folder")
    done: dict[str, Any] = before["rows"]
    corpus = read_corpus(settings.data)
    for name, changed in variants(settings).items():
        key = f"{name}, {steps} steps"
        if key in done:
            continue
        say(f"ablation: {key}")
        run = prepare_run(shortened(settings, steps, changed), folder, corpus)
        run.fit(folder=None)
        run.module.protect(embedding=True)
        done[key] = _scores(run)
        path.write_text(json.dumps({"settings": ours, "rows": done}, indent=1), encoding="utf-8")
    text = _markdown({name: values for name, values in done.items() if name.endswith(f", {steps} steps")})
    (folder / "ablation.md").write_text(text, encoding="utf-8")
    return text


def _scores(run: CodecRun) -> dict[str, float]:
    vectors = encode_all(run.module, run.rows.validation)
    public = load_public_encoder(run.module.settings.terms.similarity_folder).encode(run.rows.validation_texts)
    pairs = torch.triu_indices(len(vectors), len(vectors), offset=1).unbind()
    ours, theirs = (dense_ranks(similarities(x)[pairs].double().numpy()) for x in (vectors, public))
    reported, agreed = run.module.reported, spearman(ours, theirs, np.ones(len(ours)))
    values = (reported["val/loss"], reported["val/accuracy"], agreed, participation_ratio(vectors) or math.nan)
    return dict(zip(COLUMNS, values, strict=True))


def _markdown(rows: dict[str, dict[str, float]]) -> str:
    lines = [f"| | {' | '.join(COLUMNS)} |", f"|---|{'--:|' * len(COLUMNS)}"]
    lines += [f"| {name} | {' | '.join(f'{row[column]:.4g}' for column in COLUMNS)} |" for name, row in rows.items()]
    return "\n".join([*lines, ""])
