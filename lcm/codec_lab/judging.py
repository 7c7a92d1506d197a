"""Codec and sentences → every measure: the contents of results.json, report.html and sentences.parquet.

Shapes.  n sentences · k neighbours · D concept width · E width of the public encoder
"""

import hashlib
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Annotated, Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from lcm.codec import Codec
from lcm.codec_lab import decoding, space
from lcm.codec_lab.decoding import Coder, by_length, scores
from lcm.codec_lab.sentences import PublicEncoder, Sample, Sentence, drawn
from lcm.errors import UserError
from lcm.evaluation import Stages
from lcm.options import Option, check_fields

CODEC = ("name", "fingerprint", "dim", "max_pieces", "stop_threshold")
"""Attributes of the codec that results.json names."""
NEIGHBOURS = 3
SHOWN = 5
"""Examples of each kind."""


@dataclass(frozen=True, kw_only=True)
class ReportOptions:
    """Extent of the measurements."""

    limit: Annotated[int, Option(least=1)] = 2000
    """Sentences, drawn at random."""
    fragility_limit: Annotated[int, Option(least=0)] = 500
    """Sentences among them whose fragility is measured, by nine decodings each; 0 for none."""
    beam: Annotated[int, Option(least=1)] = 1
    """Hypotheses of a decoding; 1 is greedy."""
    noise: tuple[float, ...] = (0.1, 0.2, 0.3, 0.5, 1.0)
    """Multiples of each channel's σ."""
    bootstrap: Annotated[int, Option(least=1)] = 200
    """Samples of each interval."""
    seed: Annotated[int, Option(least=0)] = 0
    """Seed of the draws and of all noise."""

    def __post_init__(self) -> None:
        check_fields(self)
        if wrong := [level for level in self.noise if not (level > 0 and math.isfinite(level))]:
            raise UserError(f"--noise={wrong[0]}: expected multiples of the standard deviation above 0")


@dataclass(frozen=True)
class Judged:
    """results: the content of results.json. rows: of sentences.parquet, in the order of the input."""

    results: dict[str, Any]
    rows: list[dict[str, Any]]


@dataclass(frozen=True)
class Measured:
    """Measurements of a sample, from which its results follow; of all sentences, or of one language.

    decoded:    the sentences after encoding and decoding
    noised:     likewise, for each multiple of noise
    neighbours: nearest sentences
    fragile:    scores of the first sentences of the sample, as many as `fragility_limit`
    public:     the public encoder's unit vectors, if there is one
    """

    sample: Sample
    decoded: list[str]
    noised: Mapping[float, list[str]]
    neighbours: Int[Tensor, "n k"]
    midpoints: list[decoding.Midpoint]
    fragile: decoding.NoiseScores | None
    public: Float[Tensor, "n E"] | None

    def part(self, at: list[int]) -> "Measured":
        """Some of the sentences, with the neighbours among themselves and the midpoints that they begin."""
        sample, measured = self.sample.part(at), [i for i in at if self.fragile and i < len(self.fragile.texts)]
        return Measured(
            sample,
            [self.decoded[i] for i in at],
            {level: [texts[i] for i in at] for level, texts in self.noised.items()},
            space.nearest(sample, NEIGHBOURS)[0],
            [point for point in self.midpoints if point.places[0] in set(at)],
            self.fragile.part(measured) if self.fragile and measured else None,
            None if self.public is None else self.public[at],
        )


def judge(
    codec: Codec, sentences: Sequence[Sentence], options: ReportOptions, public: PublicEncoder | None = None
) -> Judged:
    """Measure `codec` on these sentences; each stage is announced on stderr.

    Nothing depends on the order of the sentences. Raises UserError for a language that the codec does not know.
    """
    if not sentences:
        raise UserError("codec report: no sentences to judge")
    coder, stages, seed = Coder(codec, options.beam), Stages(), options.seed
    chosen = drawn(sentences, options.limit, seed)
    _check_languages(codec, chosen)
    with stages.of("encoding", f"{len(chosen):,} of {len(sentences):,} sentences"):
        sample = Sample.encoded(codec, chosen)
    if not bool(sample.vectors.isfinite().all()):
        raise UserError(f"codec {codec.name!r} makes vectors that are not finite: there is nothing to measure")
    with stages.of("decoding", f"{len(sample):,} vectors"):
        decoded = coder.decode(sample.vectors, sample.langs)
    noised = {}
    for level in options.noise:
        with stages.of(f"noise {level:g}", "times each channel's standard deviation"):
            noised[level] = decoding.under_noise(coder, sample, level, seed)
    neighbours, closeness = space.nearest(sample, NEIGHBOURS)
    with stages.of("halfway", "between neighbours"):
        midpoints = decoding.halfway(coder, sample, decoded, neighbours)
    with stages.of("agreement", "with the public encoder" if public else "left out: no public encoder"):
        directions = public.encode(sample.texts) if public else None
    some = sample.part(range(min(options.fragility_limit, len(sample))))
    fragile = None
    if len(some):
        with stages.of("fragility", f"of {len(some):,} sentences at {len(decoding.LEVELS)} levels of noise"):
            fragile = decoding.noise_scores(coder, some, sample.vectors, seed, public.encode if public else None)
    measured = Measured(sample, decoded, noised, neighbours, midpoints, fragile, directions)
    with stages.of("gathering", "the results"):
        results = {
            "codec": {name: getattr(codec, name) for name in CODEC},
            "counts": _counts(codec, sample, len(sentences)),
            "settings": asdict(options),
            **_results(measured, options),
            "binding": space.binding_scores(coder, sample.vectors.mean(dim=0), public.encode if public else None),
            "end_of_text": space.end_of_text(codec, sample),
            "languages": _languages(measured, options),
            "examples": _examples(measured, closeness),
        }
    speed = {name: len(sample) / max(stages.seconds[name], 0.01) for name in ("encoding", "decoding")}
    results |= {"speed": speed | {"threads": torch.get_num_threads()}, "seconds": stages.seconds}
    return Judged(results, _rows(codec, measured, closeness))


def _check_languages(codec: Codec, sentences: Sequence[Sentence]) -> None:
    if unknown := [s for s in sentences if s.lang not in codec.languages]:
        raise UserError(
            f"sentence {unknown[0].row} is in {unknown[0].lang!r}, which codec {codec.name!r} does not know; name the "
            "column of FLORES codes by --lang-column (one that is not there: all are in --lang)"
        )


def _counts(codec: Codec, sample: Sample, read: int) -> dict[str, Any]:
    """fingerprint: of the judged sentences, so that a comparison knows whether they are the same."""
    over = [s.text for s in sample.sentences if not codec.fits(s.text, s.lang)]
    return {
        "read": read,
        "judged": len(sample),
        "over_limit": len(over),
        "longest_over_limit": min(over, key=lambda text: (-len(text), text), default=None),
        "fingerprint": hashlib.sha256("\n".join(sorted(sample.texts)).encode()).hexdigest()[:16],
    }


def _results(measured: Measured, options: ReportOptions) -> dict[str, Any]:
    """The part of the results that each language has, too."""
    sample, decoded, langs = measured.sample, measured.decoded, measured.sample.langs
    agreed, fragile = None, None
    if measured.public is not None:
        agreed = space.agreement(sample, measured.public, measured.neighbours, options.bootstrap, options.seed)
    if scored := measured.fragile:
        some = sample.part(range(len(scored.texts)))
        fragile = decoding.fragility_means(scored, some) | decoding.fragility_examples(scored, some, SHOWN)
    return {
        "reconstruction": scores(decoded, sample.texts, langs),
        "by_length": [
            {"from": start, "to": end}
            | scores([decoded[i] for i in at], [sample.texts[i] for i in at], [langs[i] for i in at])
            for start, end, at in by_length(sample.texts)
        ],
        "noise": [{"multiple": level} | scores(texts, sample.texts, langs) for level, texts in measured.noised.items()],
        "halfway": decoding.midpoint_means(measured.midpoints),
        "agreement": agreed,
        "fragility": fragile,
        "space": space.statistics(sample.vectors),
    }


def _languages(measured: Measured, options: ReportOptions) -> dict[str, Any]:
    """Results of each language; empty where there is only one."""
    langs = measured.sample.langs
    places = {lang: [i for i, other in enumerate(langs) if other == lang] for lang in sorted(set(langs))}
    return {lang: _results(measured.part(at), options) for lang, at in places.items()} if len(places) > 1 else {}


def _examples(measured: Measured, closeness: Float[Tensor, "n k"]) -> dict[str, Any]:
    texts, shown = measured.sample.texts, range(min(SHOWN, len(measured.sample)))
    near = [[texts[j] for j in measured.neighbours[i].tolist()] for i in shown]
    return {
        "neighbours": [{"text": texts[i], "nearest": near[i], "cosines": closeness[i].tolist()} for i in shown],
        "halfway": [
            {"ends": [texts[i] for i in p.places], "midpoint": p.text, "is_end": p.is_end, "round_trip": p.round_trip}
            for p in measured.midpoints[:SHOWN]
        ],
    }


def _rows(codec: Codec, measured: Measured, closeness: Float[Tensor, "n k"]) -> list[dict[str, Any]]:
    """A row a sentence. fragility is None where it was not measured, nearest where there is no other sentence."""
    sample, fragile = measured.sample, measured.fragile
    bleu = decoding.sentence_bleu(measured.decoded, sample.texts, sample.langs)
    fragility: dict[str, dict[int, float]] = {"bleu": {}, "cosine": {}}
    if fragile:
        fragility |= {name: dict(enumerate(fragile.fragility(name).tolist())) for name in fragile.scores}
    rows = []
    for i, sentence in enumerate(sample.sentences):
        near = measured.neighbours[i].tolist()
        rows.append(
            asdict(sentence)
            | {
                "words": len(sentence.text.split()),
                "pieces": codec.pieces(sentence.text),
                "fits": codec.fits(sentence.text, sentence.lang),
                "decoded": measured.decoded[i],
                "bleu": float(bleu[i]),
                "exact": measured.decoded[i] == sentence.text,
                "fragility": fragility["bleu"].get(i),
                "fragility_cosine": fragility["cosine"].get(i),
                "nearest": sample.texts[near[0]] if near else None,
                "nearest_cosine": float(closeness[i, 0]) if near else None,
            }
        )
    return sorted(rows, key=lambda row: row["row"])
