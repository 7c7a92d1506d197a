"""The page's sections about the space: what near means, what is bound to what, its sizes, and where a text ends."""

from collections.abc import Mapping
from typing import Any

from lcm.codec_lab.report import glance
from lcm.codec_lab.report.shown import Systems, percent, shown
from lcm.evaluation import Html, card, facts, heading, paragraph, table

Results = Mapping[str, Any]


def meaning(results: Results, systems: Systems) -> list[Html]:
    near = [
        card(
            row["text"],
            facts((shown(cosine, 2), other) for other, cosine in zip(row["nearest"], row["cosines"], strict=True)),
        )
        for row in results["examples"]["neighbours"]
        if row["nearest"]
    ]
    parts = [heading("What “near” means")]
    if any(found["agreement"] for found in systems.values()):
        parts += [
            paragraph(
                "Spearman's rank correlation of the codec's cosines with those of a public encoder of meaning, "
                "all-MiniLM-L6-v2: 1 where both rank all pairs alike, 0 where they have nothing in common. Centred is "
                "the cosine as seen from the mean of the sentences. Pairs of neighbours are all near, which leaves "
                "less to rank. In small type: 95% intervals over sentences."
            ),
            glance.agreement_table(systems),
        ]
    if near:
        parts.append(paragraph("Sentences and those nearest to them, with the centred cosine:"))
    return [*parts, *near]


def binding(results: Results) -> list[Html]:
    found = results["binding"]
    if not found:
        return []
    names = {"raw": "cosine", "centred": "centred cosine", "public": "public encoder"}
    rows = [
        (
            name != "public",
            [names[name], shown(row["swap"], 3), shown(row["unrelated"], 3), percent(row["swap_farther"])],
        )
        for name, row in found["cosines"].items()
    ]
    first = found["examples"][0]
    return [
        heading("Which attribute belongs to which thing"),
        paragraph(
            f"{found['cases']} sentences such as “{first['original']}”, with the attributes exchanged "
            f"(“{first['swap']}”), and with two other attributes in their places. A space that only counts words puts "
            "the exchanged one where the original is."
        ),
        table(["cosine of the original to", "exchanged", "other attributes", "exchanged is farther"], rows),
        paragraph(
            f"Decoded again, {percent(found['decoded']['right'])} of the exchanged sentences bind rightly, "
            f"{percent(found['decoded']['confused'])} come back as the original binding, "
            f"{percent(found['decoded']['other'])} as neither."
        ),
    ]


def space(results: Results) -> list[Html]:
    found, dim = results["space"], results["codec"]["dim"]
    marks = {
        "0": "smallest",
        "0.01": "1%",
        "0.25": "25%",
        "0.5": "median",
        "0.75": "75%",
        "0.99": "99%",
        "1": "largest",
    }
    rows = [
        (False, [label, *(shown(found[key].get(q), 4) for q in marks)])
        for key, label in (("norm", "length of a vector"), ("channel_std", "σ of a channel"))
    ]
    return [
        heading("The space"),
        table(["", *marks.values()], rows),
        facts(
            [
                (
                    "directions",
                    f"the vectors use about {shown(found['participation_ratio'], 1)} of {dim:,} (participation ratio): "
                    "as many equal ones would spread as much",
                ),
                (
                    "the mean",
                    f"two sentences have a cosine of {shown(found['mean_cosine'], 3)} on average; the mean vector is "
                    f"{shown(found['norm_of_mean'], 4)} long",
                ),
            ]
        ),
    ]


def end_of_text(results: Results) -> list[Html]:
    found = results["end_of_text"]
    quantiles = found["cosine_quantiles"]
    marks = [f"{100 * float(q):g}%" if float(q) < 1 else "highest" for q in quantiles]
    misses = sorted(found["near_misses"].items(), key=lambda item: -item[1])
    parts = [
        heading("Where a text ends"),
        paragraph(f"Cosine of “End of text.” to the {found['sentences']:,} sentences, none of which it is."),
    ]
    if quantiles:
        parts.append(table(["", *marks], [(False, ["cosine", *(shown(v, 2) for v in quantiles.values())])]))
    if misses:
        nearest = ", ".join(f"“{name}” {shown(cosine, 2)}" for name, cosine in misses[:4])
        parts.append(paragraph(f"Made up to be mistaken for it: {nearest}."))
    rule = "halfway between 1 and the highest cosine of any sentence or near miss, rounded down"
    card_says = shown(results["codec"]["stop_threshold"], 2)
    parts.append(
        paragraph(f"Suggested stop threshold: {shown(found['suggested_threshold'], 2)} ({rule}). In use: {card_says}.")
    )
    return parts
