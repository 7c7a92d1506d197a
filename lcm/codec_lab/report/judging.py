"""Codec and sentences → every measure: what results.json, report.html and sentences.parquet say.

Shapes.  n sentences · k neighbours · D concept width · E width of the public encoder
"""

import hashlib
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from lcm.codec import Codec
from lcm.codec_lab.report import binding, disturbed, space
from lcm.codec_lab.report import fragility as fragile
from lcm.codec_lab.report.agreement import agreement
from lcm.codec_lab.report.reading import Sentence
from lcm.codec_lab.report.sample import Coder, Sample, by_language, drawn
from lcm.codec_lab.report.text_scores import by_length, scores, sentence_bleu, words
from lcm.codec_lab.similarity import PublicEncoder
from lcm.errors import UserError
from lcm.evaluation import Stages

NEIGHBOURS = 3
SHOWN = 5
"""Examples of each kind."""


@dataclass(frozen=True, kw_only=True)
class ReportOptions:
    """What is measured. Each field is an option of the same name.

    limit:           sentences, drawn at random
    fragility_limit: of these, how many have their fragility measured: nine decodings each; 0 for none
    noise:           multiples of each channel's standard deviation
    bootstrap:       samples of each interval
    """

    limit: int = 2000
    fragility_limit: int = 500
    beam: int = 1
    noise: tuple[float, ...] = (0.1, 0.2, 0.3, 0.5, 1.0)
    bootstrap: int = 200
    seed: int = 0

    def __post_init__(self) -> None:
        for name, least in (("limit", 1), ("fragility_limit", 0), ("beam", 1), ("bootstrap", 1), ("seed", 0)):
            if getattr(self, name) < least:
                raise UserError(f"--{name.replace('_', '-')}={getattr(self, name)}: expected {least} or more")
        if wrong := [level for level in self.noise if not (level > 0 and math.isfinite(level))]:
            raise UserError(f"--noise={wrong[0]}: expected multiples of the standard deviation above 0")


@dataclass(frozen=True)
class Judged:
    """results: the content of results.json. rows: those of sentences.parquet, in the order of the input."""

    results: dict[str, Any]
    rows: list[dict[str, Any]]


@dataclass(frozen=True)
class Measured:
    """What is told of the sample as a whole and of each language.

    decoded:    what each sentence comes back as
    noised:     what each comes back as at each multiple of noise
    neighbours: the nearest sentences of each
    fragile:    of the first sentences of the sample, as many as were asked for
    public:     the public encoder's directions, where there is one
    """

    sample: Sample
    decoded: list[str]
    noised: Mapping[float, list[str]]
    neighbours: Int[Tensor, "n k"]
    midpoints: list[disturbed.Midpoint]
    fragile: fragile.Fragility | None
    public: Float[Tensor, "n E"] | None


def judge(
    codec: Codec, sentences: Sequence[Sentence], options: ReportOptions, public: PublicEncoder | None = None
) -> Judged:
    """Every measure of `codec` on these sentences; what is being done is told on stderr.

    Nothing depends on the order of the sentences. Raises UserError for a language that the codec does not know.
    """
    if not sentences:
        raise UserError("codec report: no sentences to judge")
    coder, stages, seed = Coder(codec, options.beam), Stages(), options.seed
    chosen = drawn(sentences, options.limit, seed)
    if unknown := [s for s in chosen if s.lang not in codec.languages]:
        raise UserError(
            f"sentence {unknown[0].row} is in {unknown[0].lang!r}, which codec {codec.name!r} does not know; name the "
            "column of FLORES codes by --lang-column (one that is not there: all are in --lang)"
        )
    texts, langs = [s.text for s in chosen], [s.lang for s in chosen]
    with stages.of("encoding", f"{len(chosen):,} of {len(sentences):,} sentences"):
        sample = Sample(chosen, coder.encode(texts, langs))
    if not bool(sample.vectors.isfinite().all()):
        raise UserError(f"codec {codec.name!r} makes vectors that are not finite: there is nothing to measure")
    with stages.of("decoding", f"{len(chosen):,} vectors"):
        decoded = coder.decode(sample.vectors, langs)
    noised = {}
    for level in options.noise:
        with stages.of(f"noise {level:g}", "times each channel's standard deviation"):
            noised[level] = disturbed.under_noise(coder, sample, level, seed)
    neighbours, closeness = space.nearest(sample, NEIGHBOURS)
    with stages.of("halfway", "between neighbours"):
        midpoints = disturbed.halfway(coder, sample, decoded, neighbours)
    with stages.of("agreement", "with the public encoder" if public else "left out: no public encoder"):
        directions = public.encode(texts) if public else None
    some = sample.part(range(min(options.fragility_limit, len(sample))))
    broken = None
    if len(some):
        with stages.of("fragility", f"of {len(some):,} sentences at {len(fragile.LEVELS)} levels of noise"):
            broken = fragile.fragility(coder, some, sample.vectors, seed, public.encode if public else None)
    measured = Measured(sample, decoded, noised, neighbours, midpoints, broken, directions)
    with stages.of("gathering", "the results"):
        results = {
            "codec": _codec(codec),
            "counts": _counts(codec, sample, len(sentences)),
            "settings": asdict(options),
            **_whole(measured, options),
            "binding": _binding(coder, sample, public),
            "end_of_text": space.end_of_text(coder, sample),
            "languages": _languages(measured, options),
            "examples": _examples(measured, closeness),
        }
    speed = {name: len(sample) / max(stages.seconds[name], 0.01) for name in ("encoding", "decoding")}
    results |= {"speed": speed | {"threads": torch.get_num_threads()}, "seconds": stages.seconds}
    return Judged(results, _rows(codec, measured, closeness))


def _codec(codec: Codec) -> dict[str, Any]:
    facts = {"name": codec.name, "fingerprint": codec.fingerprint, "dim": codec.dim}
    return facts | {"max_pieces": codec.max_pieces, "stop_threshold": codec.stop_threshold}


def _counts(codec: Codec, sample: Sample, read: int) -> dict[str, Any]:
    """fingerprint: of the judged sentences, so that a comparison knows whether they are the same."""
    over = [s.text for s in sample.sentences if not codec.fits(s.text, s.lang)]
    longest = min(over, key=lambda text: (-len(text), text)) if over else None
    digest = hashlib.sha256("\n".join(sorted(sample.texts)).encode()).hexdigest()[:16]
    return {
        "read": read,
        "judged": len(sample),
        "over_limit": len(over),
        "longest_over_limit": longest,
        "fingerprint": digest,
    }


def _whole(measured: Measured, options: ReportOptions) -> dict[str, Any]:
    """The measures that are told of a sample and, of each language's part of it, once more."""
    sample, decoded, langs = measured.sample, measured.decoded, measured.sample.langs
    agreed = None
    if measured.public is not None:
        agreed = agreement(sample, measured.public, measured.neighbours, options.bootstrap, options.seed)
    broken = None
    if measured.fragile is not None:
        some = sample.part(range(len(measured.fragile.texts)))
        broken = fragile.summary(measured.fragile, some) | fragile.examples(measured.fragile, some, SHOWN)
    return {
        "reconstruction": scores(decoded, sample.texts, langs),
        "by_length": [
            {"from": start, "to": end}
            | scores([decoded[i] for i in at], [sample.texts[i] for i in at], [langs[i] for i in at])
            for start, end, at in by_length(sample.texts)
        ],
        "noise": [{"multiple": level} | scores(texts, sample.texts, langs) for level, texts in measured.noised.items()],
        "halfway": disturbed.summary(measured.midpoints),
        "agreement": agreed,
        "fragility": broken,
        "space": space.statistics(sample.vectors),
    }


def _languages(measured: Measured, options: ReportOptions) -> dict[str, Any]:
    """The same for each language alone; empty where there is only one."""
    places = by_language(measured.sample.langs)
    if len(places) == 1:
        return {}
    return {lang: _whole(_part(measured, at), options) for lang, at in places.items()}


def _part(measured: Measured, at: list[int]) -> Measured:
    """Some sentences of the sample, with the neighbours they have among themselves and the midpoints they begin."""
    sample, kept, broken = measured.sample.part(at), set(at), measured.fragile
    if broken is not None:
        some = [i for i in at if i < len(broken.texts)]
        cosine = None if broken.cosine is None else broken.cosine[some]
        broken = fragile.Fragility(broken.bleu[some], cosine, [broken.texts[i] for i in some]) if some else None
    return Measured(
        sample,
        [measured.decoded[i] for i in at],
        {level: [texts[i] for i in at] for level, texts in measured.noised.items()},
        space.nearest(sample, NEIGHBOURS)[0],
        [point for point in measured.midpoints if point.places[0] in kept],
        broken,
        None if measured.public is None else measured.public[at],
    )


def _binding(coder: Coder, sample: Sample, public: PublicEncoder | None) -> dict[str, Any] | None:
    """None for a codec that does not know English, in which the cases are."""
    if binding.LANG not in coder.codec.languages:
        return None
    return binding.binding(coder, sample.vectors.mean(dim=0), public.encode if public else None)


def _examples(measured: Measured, closeness: Float[Tensor, "n k"]) -> dict[str, Any]:
    sample = measured.sample
    near = [
        {
            "text": sample.texts[i],
            "nearest": [sample.texts[j] for j in measured.neighbours[i].tolist()],
            "cosines": closeness[i].tolist(),
        }
        for i in range(min(SHOWN, len(sample)))
    ]
    return {"neighbours": near, "halfway": disturbed.examples(measured.midpoints, sample.texts, SHOWN)}


def _rows(codec: Codec, measured: Measured, closeness: Float[Tensor, "n k"]) -> list[dict[str, Any]]:
    """A row a sentence. fragility is null where it was not measured, nearest where there is no other sentence."""
    sample, broken = measured.sample, measured.fragile
    bleu = sentence_bleu(measured.decoded, sample.texts, sample.langs)
    missing = np.full(len(sample), np.nan)
    fragility, by_cosine = missing.copy(), missing.copy()
    if broken is not None:
        fragility[: len(broken.texts)] = broken.by_bleu
        if broken.by_cosine is not None:
            by_cosine[: len(broken.texts)] = broken.by_cosine
    rows = []
    for i, sentence in enumerate(sample.sentences):
        near = measured.neighbours[i].tolist()
        rows.append(
            {
                "row": sentence.row,
                "text": sentence.text,
                "lang": sentence.lang,
                "words": words(sentence.text),
                "pieces": codec.pieces(sentence.text),
                "fits": codec.fits(sentence.text, sentence.lang),
                "decoded": measured.decoded[i],
                "bleu": float(bleu[i]),
                "exact": measured.decoded[i] == sentence.text,
                "fragility": None if math.isnan(fragility[i]) else float(fragility[i]),
                "fragility_cosine": None if math.isnan(by_cosine[i]) else float(by_cosine[i]),
                "nearest": sample.texts[near[0]] if near else None,
                "nearest_cosine": float(closeness[i, 0]) if near else None,
            }
        )
    return sorted(rows, key=lambda row: row["row"])
