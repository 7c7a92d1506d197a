"""results.json of a codec as a page to read, other codecs beside it: one file, no script, nothing from elsewhere."""

from collections.abc import Mapping, Sequence
from typing import Any

from lcm.codec_lab.report import decoding_page, glance, space_page
from lcm.codec_lab.report.shown import percent, shown, systems_of
from lcm.evaluation import Html, facts, heading, page, paragraph, table

Results = Mapping[str, Any]


def report_page(results: Results, others: Sequence[Results] = ()) -> str:
    """The whole page."""
    systems = systems_of(results, others)
    parts = [
        *_opening(results),
        *glance.glance(systems),
        *decoding_page.lengths(systems),
        *decoding_page.noise(systems),
        *decoding_page.fragility(results, systems),
        *decoding_page.halfway(results),
        *space_page.meaning(results, systems),
        *space_page.binding(results),
        *_languages(results),
        *space_page.space(results),
        *space_page.end_of_text(results),
        *_settings(results),
    ]
    return page(f"Codec {results['codec']['name']}", parts)


def _opening(results: Results) -> list[Html]:
    codec, counts = results["codec"], results["counts"]
    of = f" of {counts['read']:,}" if counts["read"] > counts["judged"] else ""
    over = f"; {counts['over_limit']:,} of them are over its limit and were cut" if counts["over_limit"] else ""
    return [
        paragraph(
            f"{codec['dim']:,} numbers a sentence, at most {codec['max_pieces']} pieces. "
            f"Judged on {counts['judged']:,}{of} sentences{over}.",
            kind="soft",
        ),
        paragraph(glance.verdict(results), kind="note"),
    ]


def _languages(results: Results) -> list[Html]:
    if not results["languages"]:
        return []
    rows = []
    for lang, found in results["languages"].items():
        whole, agreed = found["reconstruction"], found["agreement"]
        noisy = glance.middle_noise(found["noise"]) if found["noise"] else None
        rows.append(
            (
                False,
                [
                    lang,
                    f"{whole['sentences']:,}",
                    shown(whole["bleu"]),
                    shown(whole["chrf"]),
                    percent(whole["exact"]),
                    shown(noisy["bleu"] if noisy else None),
                    shown(found["fragility"] and found["fragility"]["bleu"], 2),
                    percent(found["halfway"]["closer_than_ends"]),
                    shown(agreed and agreed["random"]["centred"]["value"], 2),
                ],
            )
        )
    middle = glance.middle_noise(results["noise"])["multiple"] if results["noise"] else 0
    head = ["", "sentences", "AutoBLEU", "chrF", "word for word", f"AutoBLEU at {middle:g} σ", "fragility"]
    return [
        heading("Languages"),
        table([*head, "midpoints that stand", "agreement with the public encoder"], rows),
        paragraph("The public encoder was trained on English: agreement in other languages says little.", kind="soft"),
    ]


def _settings(results: Results) -> list[Html]:
    speed, settings = results["speed"], results["settings"]
    told: list[tuple[object, object]] = [
        ("encoding", f"{speed['encoding']:,.0f} sentences a second, on {speed['threads']} threads"),
        ("decoding", f"{speed['decoding']:,.0f} sentences a second, beam {settings['beam']}"),
        ("fingerprint", results["codec"]["fingerprint"]),
    ]
    told += [(name, ", ".join(map(str, v)) if isinstance(v, list) else v) for name, v in settings.items()]
    told.append(("seconds", ", ".join(f"{name} {seconds:g}" for name, seconds in results["seconds"].items())))
    return [heading("Time and settings"), facts(told)]
