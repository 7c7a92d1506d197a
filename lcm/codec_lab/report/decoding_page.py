"""The page's sections about decoding: what comes back, under noise, when it breaks, and halfway between sentences."""

from collections.abc import Mapping, Sequence
from typing import Any

from lcm.codec_lab.report.shown import Systems, band, percent, shown
from lcm.evaluation import Html, card, facts, heading, line_chart, paragraph, side_by_side, table, text

Results = Mapping[str, Any]
CHARTED = 3
"""Codecs a chart has colours for: this one and the first others."""


def lengths(systems: Systems) -> list[Html]:
    ours, *others = systems.values()
    rows = []
    for group in [*ours["by_length"], {"from": None} | ours["reconstruction"]]:
        whole = group["from"] is None
        theirs = [
            found["reconstruction"]
            if whole
            else next((g for g in found["by_length"] if g["from"] == group["from"]), {})
            for found in others
        ]
        cells = ["all" if whole else band(group), f"{group['sentences']:,}", shown(group["bleu"]), shown(group["chrf"])]
        rows.append((whole, [*cells, percent(group["exact"]), *(shown(other.get("bleu")) for other in theirs)]))
    head = ["words", "sentences", "AutoBLEU", "chrF", "word for word", *(f"AutoBLEU, {n}" for n in list(systems)[1:])]
    return [
        heading("What comes back"),
        paragraph("Every sentence encoded and decoded again, and compared with what it was."),
        table(head, rows),
        side_by_side(
            [
                _by_length_chart("AutoBLEU by length", systems, "by_length", "bleu"),
                _by_length_chart("Share word for word by length", systems, "by_length", "exact"),
            ]
        ),
    ]


def noise(systems: Systems) -> list[Html]:
    ours, *theirs = systems.values()
    if not ours["noise"]:
        return []
    rows = []
    for row in _levels(ours):
        others = [{level["multiple"]: level["bleu"] for level in _levels(found)} for found in theirs]
        cells = [f"{row['multiple']:g} σ" if row["multiple"] else "none", shown(row["bleu"]), shown(row["chrf"])]
        cells += [percent(row["exact"]), *(shown(bleu.get(row["multiple"])) for bleu in others)]
        rows.append((False, cells))
    return [
        heading("Under noise"),
        paragraph(
            "Gaussian noise on every channel, as a multiple of that channel's standard deviation σ. A concept model "
            "never predicts a vector exactly: the slower these fall, the more of its aim survives the decoder."
        ),
        table(["noise", "AutoBLEU", "chrF", "word for word", *(f"AutoBLEU, {n}" for n in list(systems)[1:])], rows),
        side_by_side(
            [
                _noise_chart("AutoBLEU under noise", systems, "bleu"),
                _noise_chart("Share word for word under noise", systems, "exact"),
            ]
        ),
    ]


def fragility(results: Results, systems: Systems) -> list[Html]:
    found = results["fragility"]
    if not found:
        return []
    scores = {"BLEU": [(row["alpha"], row["bleu"]) for row in found["levels"]]}
    if found["cosine"] is not None:
        scores["cosine × 100"] = [(row["alpha"], 100 * row["cosine"]) for row in found["levels"]]
    cards = [
        card(
            title, facts((shown(row["fragility"], 2), _before_after(row["text"], row["decoded"])) for row in found[key])
        )
        for key, title in (("most", "The most fragile"), ("least", "The least fragile"))
    ]
    cosine = "" if found["cosine"] is None else f"; by the public encoder's cosine {shown(found['cosine'], 2)}"
    return [
        heading("Fragility"),
        paragraph(
            f"What a sentence loses when its vector is mixed with noise, √(1−α) of the one and √α of the other after "
            f"normalization, over α = 0.1 … 0.9 (paper §2.5.2). −1: nothing ever harms it; 0: lost at once. Mean of "
            f"{found['sentences']:,} sentences: {shown(found['bleu'], 2)} by BLEU{cosine}. Each sentence's own is a "
            "column of sentences.parquet."
        ),
        side_by_side(
            [
                line_chart("What is left", scores, "share of noise α"),
                _by_length_chart("Fragility by length", systems, "fragility", "bleu"),
            ]
        ),
        *cards,
        paragraph("Second lines: what they decode to at α = 0.3.", kind="soft"),
    ]


def halfway(results: Results) -> list[Html]:
    found = results["halfway"]
    if not found["midpoints"]:
        return []
    told = [
        ("one of the two", f"{percent(found['is_end'])} decode to one of the two sentences"),
        ("likeness", f"BLEU {shown(found['bleu'])} against the nearer of the two, on average"),
        ("invented words", f"{percent(found['invented'])} of the words are in neither of the two"),
        (
            "round trip",
            f"{percent(found['closer_than_ends'])} decode to a sentence whose own vector is closer to the midpoint "
            f"than the two are; its distance is {shown(found['round_trip'], 2)} of theirs on average",
        ),
    ]
    cards = [
        card(
            f"Halfway · round trip {shown(row['round_trip'], 2)}",
            facts(
                [
                    ("from", row["ends"][0]),
                    ("to", row["ends"][1]),
                    ("decoded", row["midpoint"] or Html("<i>nothing</i>")),
                ]
            ),
        )
        for row in results["examples"]["halfway"]
    ]
    return [
        heading("Halfway between neighbours"),
        paragraph(
            f"{found['midpoints']:,} midpoints of a sentence and its nearest neighbour, decoded. Where the space is "
            "smooth, a midpoint is a sentence of its own that says something of both."
        ),
        facts(told),
        *cards,
    ]


def _by_length_chart(name: str, systems: Systems, part: str, key: str) -> str:
    """Groups stand where they would if there were one more a step; a codec may have other groups than the next."""
    starts = sorted({(g["from"], band(g)) for found in systems.values() for g in _groups(found, part)})
    place = {start: float(i) for i, (start, _) in enumerate(starts)}
    series = {
        label: [(place[g["from"]], g[key]) for g in _groups(found, part) if g[key] is not None]
        for label, found in list(systems.items())[:CHARTED]
    }
    return line_chart(name, series, "words", {place[start]: label for start, label in starts})


def _groups(found: Results, part: str) -> Sequence[Results]:
    if part == "by_length":
        return found["by_length"]
    return found[part]["by_length"] if found[part] else []


def _before_after(before: str, after: str) -> Html:
    return Html(f"{text(before)}<br><span class=soft>{text(after) if after else '<i>nothing</i>'}</span>")


def _noise_chart(name: str, systems: Systems, key: str) -> str:
    curves = {
        label: [(row["multiple"], row[key]) for row in _levels(found)]
        for label, found in list(systems.items())[:CHARTED]
    }
    return line_chart(name, curves, "noise, σ of each channel")


def _levels(found: Results) -> list[Results]:
    """The sentences without noise, then every level that was measured."""
    return [{"multiple": 0.0} | found["reconstruction"], *found["noise"]]
