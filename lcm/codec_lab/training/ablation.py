"""One table, a row a term: what each term of the loss does in equally many steps from the same start."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from lcm.codec_lab.training.corpus import read_corpus
from lcm.codec_lab.training.settings import CodecTraining
from lcm.codec_lab.training.teacher import LoadTeacher, SentenceEncoder, load_teacher
from lcm.codec_lab.training.terms import participation_ratio, similarities
from lcm.codec_lab.training.training import Assembled, assemble, build_trainer, encode_all, shortened
from lcm.errors import UserError
from lcm.training import say

USUAL = {"denoise": 0.3, "unknown": 0.04, "noise": 0.3, "similarity": 1.0, "translation": 1.0, "translation_mse": 0.1}
"""What a term is switched on with, where the configuration leaves it off."""
ENCODER_TERMS = ("similarity", "translation_mse")
COLUMNS = ("validation CE", "piece accuracy", "Spearman", "participation ratio")


@dataclass(frozen=True)
class Row:
    name: str
    terms: dict[str, float]


def rows_of(settings: CodecTraining) -> list[Row]:
    """The configuration as it is, none of the terms, and each of them switched."""
    chosen = {name: float(getattr(settings.terms, name)) for name in USUAL if _is_possible(settings, name)}
    rows = [Row("as configured", {}), Row("autoencoding alone", dict.fromkeys(chosen, 0.0))]
    for name, value in chosen.items():
        switched = (
            Row(f"without {name}", {name: 0.0}) if value else Row(f"with {name} {USUAL[name]:g}", {name: USUAL[name]})
        )
        rows.append(switched)
    return rows


def _is_possible(settings: CodecTraining, name: str) -> bool:
    if name == "similarity" and settings.data.spans:  # it compares whole sentences
        return False
    frozen = settings.freeze == "encoder" and name in ENCODER_TERMS
    return not frozen and (bool(settings.data.pairs) or not name.startswith("translation"))


def ablate(settings: CodecTraining, steps: int, load: LoadTeacher = load_teacher) -> str:
    """Train every row, write ablation.md and ablation.json into the run's folder, return the table.

    A row that an earlier call with the same settings has finished is not trained again. Raises UserError where the
    folder holds rows of other settings.
    """
    folder = Path(settings.run.dir)
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "ablation.json"
    asked = settings.model_dump(mode="json", exclude={"run": {"dir"}, "trainer": {"threads"}})
    before = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {"settings": asked, "rows": {}}
    if before["settings"] != asked:
        raise UserError(f"run.dir={folder}: holds an ablation of other settings; name another folder")
    done: dict[str, Any] = before["rows"]
    corpus = read_corpus(settings.data)
    for row in rows_of(settings):
        key = f"{row.name}, {steps} steps"
        if key in done:
            continue
        say(f"ablation: {key}")
        terms = settings.terms.model_copy(update=row.terms)
        run = assemble(shortened(settings, steps).model_copy(update={"terms": terms}), load, folder, corpus)
        run.fit(build_trainer(run.module.settings, folder=None))
        run.module.protect(embedding=True)
        done[key] = measured(run, load(settings.terms.similarity_folder))
        path.write_text(json.dumps({"settings": asked, "rows": done}, indent=1), encoding="utf-8")
    text = table({name: values for name, values in done.items() if name.endswith(f", {steps} steps")})
    (folder / "ablation.md").write_text(text, encoding="utf-8")
    return text


def measured(run: Assembled, teacher: SentenceEncoder) -> dict[str, float]:
    """The scores of one row, on the validation sentences."""
    vectors = encode_all(run.module, run.examples.validation)
    others = torch.triu_indices(len(vectors), len(vectors), offset=1).unbind()
    ours, theirs = (similarities(x)[others] for x in (vectors, teacher.encode(run.examples.validation_texts)))
    values = (
        run.module.reported["val/loss"],
        run.module.reported["val/accuracy"],
        spearman(ours, theirs),
        participation_ratio(vectors),
    )
    return dict(zip(COLUMNS, values, strict=True))


def spearman(a: torch.Tensor, b: torch.Tensor) -> float:
    """The correlation of the ranks."""
    ranks = torch.stack([x.argsort().argsort().double() for x in (a, b)])
    return float(torch.corrcoef(ranks)[0, 1])


def table(rows: dict[str, dict[str, float]]) -> str:
    """Markdown."""
    lines = [f"| | {' | '.join(COLUMNS)} |", f"|---|{'--:|' * len(COLUMNS)}"]
    lines += [f"| {name} | {' | '.join(f'{row[column]:.4g}' for column in COLUMNS)} |" for name, row in rows.items()]
    return "\n".join([*lines, ""])
