"""results.json as a page to read: one file, no script, nothing loaded from elsewhere; light or dark, wide or narrow."""

import csv
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from lcm.evaluation.charts import Points, line_chart
from lcm.evaluation.html import Html, card, facts, heading, page, paragraph, side_by_side, table, text
from lcm.evaluation.metrics import ROUGE

Results = Mapping[str, Any]
Row = Mapping[str, Any]
SUMMARIES, CONTINUATIONS = 5, 4
"""Examples that are shown: the first of examples.jsonl, so that nobody has chosen them."""

NAMES = {"model": "the model", "mean": "always the mean", "previous": "the sentence before"}
METRICS = {"l2": "L2", "l2_roundtrip": "L2 round trip", "contrastive_accuracy": "Contrastive accuracy", "par": "PAR"}
EXPLAINED = {
    "L2": "Distance of the predicted vector from that of the true sentence. Lower is better.",
    "L2 round trip": "The same after the prediction was decoded to text and encoded again. Lower is better; far above "
    "L2 means that the prediction lies where no sentence is.",
    "Contrastive accuracy": "Of the other sentences of this evaluation, the share that is farther from the prediction "
    "than the true one. 50% is chance, higher is better.",
    "PAR": "How close the prediction comes to a sentence before it, over how close the true sentence does. 1 is as "
    "in real text; above 1 it repeats the past.",
}
SYSTEMS = {
    "model": "the model, decoded",
    "nearest": "the model, as nearest real sentences",
    "lead": "the document's beginning",
    "roundtrip": "the reference through the codec",
}


def write_report(path: Path, results: Results, rows: Sequence[Row], model: Path) -> None:
    """The page for these results and the lines of examples.jsonl, with loss curves if `model` has a metrics.csv."""
    name = model.resolve().name
    parts = [
        *_opening(results, name),
        *_sentences(results),
        *_summaries(results),
        *_curves(model),
        *_groups(results),
        *_examples(rows),
        *_settings(results),
    ]
    path.write_text(page(f"Evaluation of {name}", parts), encoding="utf-8")


def headline(results: Results) -> str:
    """The two tables for a terminal."""
    lines = [f"{'':20}" + "".join(f"{column:>22}" for column in METRICS.values())]
    for system, scores in _systems(results).items():
        lines.append(f"{NAMES[system]:20}" + "".join(f"{_shown(m, scores[m]):>22}" for m in METRICS))
    if results["summaries"]:
        lines += ["", f"{'':40}" + "".join(f"{name:>12}" for name in ROUGE)]
        for system, scores in results["summaries"].items():
            cells = "".join(f"{_percent(scores[name]['value']):>12}" for name in ROUGE)
            lines.append(f"{SYSTEMS[system]:40}" + cells)
    counts = results["counts"]
    return "\n".join([*lines, "", f"scored {counts['scored']:,}, failed {counts['failed']:,}"])


def _opening(results: Results, name: str) -> list[Html]:
    settings, model, codec, counts = (results[key] for key in ("settings", "model", "codec", "counts"))
    split = f"the {settings['split']} split of " if settings["split"] else ""
    what = (
        f"{model['kind']} model of {model['parameters']:,} parameters, on codec {codec['name']} "
        f"({codec['dim']} channels). Documents scored: {counts['documents']:,}; pairs: {counts['pairs']:,}; from "
        f"{split}{', '.join(settings['data'])}."
    )
    parts = [
        Html(f"<h1>Evaluation of {text(name)}</h1>"),
        paragraph(what, kind="soft"),
        paragraph(_verdict(results), kind="note"),
    ]
    if codec["name"] == "mini":
        parts.append(
            paragraph(
                "The embedded codec is for trying things out. Its vectors know which words stand where, not what they "
                "mean. These numbers show that the machinery works and compare models with each other on this codec; "
                "they say nothing about concept models on SONAR."
            )
        )
    return parts


def _verdict(results: Results) -> str:
    """Whether the model beats the better control, from the numbers alone."""
    systems = _systems(results)
    parts = []
    for metric, sign in (("l2", -1), ("contrastive_accuracy", 1)):
        best = max(results["controls"], key=lambda name: sign * (systems[name][metric] or 0))
        ours, theirs = systems["model"][metric], systems[best][metric]
        word = "beats" if sign * (ours or 0) > sign * (theirs or 0) else "does not beat"
        numbers = f"{_shown(metric, ours)} against {_shown(metric, theirs)}"
        parts.append(f"in {METRICS[metric]} the model {word} '{NAMES[best]}' ({numbers})")
    return f"Against the better of two controls that have learned nothing: {'; '.join(parts)}."


def _sentences(results: Results) -> list[Html]:
    targets, ends = results["targets"], results["end_of_text"]
    rows = [
        (system == "model", [NAMES[system], *(_with_interval(m, results["intervals"][system][m]) for m in METRICS)])
        for system in _systems(results)
    ]
    stops = (
        f"Of {ends['ends']:,} documents the model sees the end of {_percent(ends['found'])}%; it would have stopped "
        f"wrongly before {_percent(ends['stopped_early'])}% of {ends['sentences']:,} sentences."
    )
    return [
        heading("Predicting the next sentence"),
        paragraph(
            f"{targets['sentences']:,} sentences, each predicted from the true ones before it; "
            f"{targets['roundtrip']:,} of them for the round trip. In small type: 95% intervals over documents."
        ),
        table(["", *METRICS.values()], rows),
        facts(EXPLAINED.items()),
        paragraph(stops),
    ]


def _summaries(results: Results) -> list[Html]:
    if not results["summaries"]:
        return []
    rows = []
    for system, scores in results["summaries"].items():
        cells = [_with_interval("rouge", scores[name]) for name in ROUGE]
        rows.append((system == "model", [SYSTEMS[system], *cells, _shown("ratio", scores["length_ratio"])]))
    lead = results["settings"]["lead"]
    copied = "its first sentence" if lead == 1 else f"its first {lead} sentences"
    return [
        heading("Summaries"),
        paragraph(
            f"ROUGE F × 100 on {results['counts']['pairs']:,} pairs. 'The document's beginning' copies {copied}; "
            "'the reference through the codec' is as good as anything can be that must pass through it. "
            "Length: words written over words of the reference. Small type: 95% intervals."
        ),
        table(["", "ROUGE-1", "ROUGE-2", "ROUGE-L", "ROUGE-Lsum", "length"], rows),
    ]


def _curves(model: Path) -> list[Html]:
    """The losses that training logged, if it left a metrics.csv."""
    path = model / "metrics.csv"
    if not path.is_file():
        return []
    with path.open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))

    def points(column: str) -> Points:
        return [(float(row["step"]), float(row[column])) for row in rows if row.get(column)]

    losses = {"training": points("train/loss"), "validation": points("val/loss")}
    charts = [
        line_chart("Loss", losses, "optimizer step"),
        line_chart("L2", {"validation": points("val/l2")}, "optimizer step"),
    ]
    return [heading("Training"), side_by_side(charts)] if any(charts) else []


def _groups(results: Results) -> list[Html]:
    charts = []
    for group, x_label, metrics in (
        ("by_position", "sentences read before", ("l2", "contrastive_accuracy")),
        ("by_length", "words of the sentence", ("l2", "l2_roundtrip")),
    ):
        rows = results[group]
        marks = {float(i): _range(row) for i, row in enumerate(rows)}
        for metric in metrics:
            series = {
                label: [
                    (float(i), row[system][metric]) for i, row in enumerate(rows) if row[system][metric] is not None
                ]
                for system, label in NAMES.items()
            }
            charts.append(line_chart(f"{METRICS[metric]}, by {x_label}", series, x_label, marks))
    return [heading("Where it is good and where it is not"), side_by_side(charts)]


def _examples(rows: Sequence[Row]) -> list[Html]:
    continued = [row for row in rows if row["kind"] == "continuation"][:CONTINUATIONS]
    summarized = [row for row in rows if row["kind"] == "summary"][:SUMMARIES]
    if not continued and not summarized:
        return []
    return [
        heading("Examples"),
        paragraph(
            "The first that were drawn. 'Nearest' is the closest sentence of the training text, with its cosine."
        ),
        *(card(f"Continuation · {row['id']}", _example(["…", *row["prompt"][-3:]], row)) for row in continued),
        *(card(f"Summary · {row['id']}", _example([*row["prompt"][:4], "…"], row)) for row in summarized),
    ]


def _example(prompt: Sequence[str], row: Row) -> Html:
    lines: list[tuple[object, object]] = [("read", " ".join(prompt)), ("a person wrote", " ".join(row["reference"]))]
    nearest = row["nearest"] or [None] * len(row["model"])
    similarity = row["similarity"] or [0.0] * len(row["model"])
    for sentence, near, cosine in zip(row["model"], nearest, similarity, strict=True):
        lines.append(("decoded", sentence or Html("<i>nothing</i>")))
        if near is not None:
            lines.append(("nearest", Html(f"{text(near)} <small>{cosine:.2f}</small>")))
    why = {
        "end": "said that the text is over",
        "repetition": "repeated itself",
        "length": "reached the longest allowed",
    }
    lines.append(("stopped", why[row["stop"]]))
    return facts(lines)


def _settings(results: Results) -> list[Html]:
    counts = results["counts"]
    shown = {**{key: value for key, value in results["settings"].items()}, "codec": results["codec"]["fingerprint"]}
    shown |= {"mean of": results["mean_of"], "bank": f"{results['bank']['sentences']:,} sentences"}
    shown |= {f"{stage}, seconds": value for stage, value in results["seconds"].items()}
    parts = [heading("Settings"), facts((name, _plain(value)) for name, value in shown.items())]
    told = f"{counts['scored']:,} scored, {counts['failed']:,} failed, {counts['not_drawn']:,} not drawn."
    refused = [f"{reason}: {r['count']:,}, first at {r['first']}" for reason, r in counts["reasons"].items()]
    return [*parts, paragraph("Rows: ", told, " ", "; ".join(refused))]


def _systems(results: Results) -> dict[str, Mapping[str, float | None]]:
    return {"model": results["teacher_forced"], **results["controls"]}


def _with_interval(metric: str, interval: Mapping[str, float | None]) -> Html:
    value, low, high = (_shown(metric, interval[key]) for key in ("value", "low", "high"))
    return Html(f"{text(value)}<small>{text(low)} – {text(high)}</small>")


def _shown(metric: str, value: float | None) -> str:
    if value is None:
        return "–"
    match metric:
        case "contrastive_accuracy":
            return f"{100 * value:.1f}%"
        case "rouge":
            return f"{100 * value:.1f}"
        case "par" | "ratio":
            return f"{value:.2f}"
    return f"{value:.2f}" if value >= 1 else f"{value:.3f}"


def _percent(value: float | None) -> str:
    return _shown("rouge", value)


def _range(row: Row) -> str:
    return str(row["from"]) if row["from"] == row["to"] else f"{row['from']}–{row['to']}"


def _plain(value: object) -> str:
    return ", ".join(map(str, value)) if isinstance(value, list | tuple) else str(value)
