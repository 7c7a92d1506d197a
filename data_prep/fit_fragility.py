"""Fit the network that predicts a concept's fragility, for weight `fragility` of diffusion models (paper §2.4.4).

    python data_prep/fit_fragility.py --codec mini --input sentences.txt --output fragility.safetensors
    python data_prep/fit_fragility.py --codec mini --scores report/sentences.parquet --output fragility.safetensors

Sentences (.txt, .jsonl, .tsv, .parquet; one a line or row) are encoded, noised at nine levels and decoded; --scores
reads the measurements of data_prep/codec_report.py instead. Prints the error on held-out sentences. The file fits every
data set of this codec, whatever its normalizer. Fragility is 1 − E score here, between 0 and 1.
"""

import argparse
import copy
import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from lcm.cli import run_command, starting

with starting("fit_fragility"):
    import pyarrow as pa
    import pyarrow.parquet as pq
    import torch
    from torch import Tensor
    from torch.optim import AdamW

    from lcm.codec import Codec, load_codec
    from lcm.codec_lab.decoding import LEVELS, Coder, noise_scores
    from lcm.codec_lab.sentences import Sample, Sentence, drawn, read_sentences
    from lcm.codec_lab.writing import RESULTS, read_results
    from lcm.data.manifest import location_and_scale
    from lcm.errors import UserError
    from lcm.ledger import Ledger
    from lcm.models import Normalizer
    from lcm.models.fragility import FragilityNetwork, save_fragility
    from lcm.options import Option, add_options, check_fields, existing_file, options_from, refuse_idle, writable_file

LEAST = 20
"""Fewest sentences: 16 to fit, two to choose the epoch, two to report on."""
BATCH, PATIENCE = 256, 10


@dataclass(frozen=True)
class Fitted:
    """The network of the best epoch, and its error on sentences used for neither weights nor epoch.

    mse, mse_of_the_mean: error of the network, and of always predicting the mean of the training sentences
    correlation:          between predictions and truth; None if either is constant
    """

    network: FragilityNetwork
    epoch: int
    held_out: int
    mse: float
    mse_of_the_mean: float
    correlation: float | None


def fit(z: Tensor, truth: Tensor, *, lr: float = 1e-3, epochs: int = 200, seed: int = 0) -> Fitted:
    """Minimize the mean squared error with AdamW on 80% of the vectors; 10% choose the epoch, 10% are reported on.

    z: (n, D) normalized vectors in random order. truth: (n,) their fragility, 0 to 1
    """
    tenth = len(z) // 10
    validation, held_out, train = slice(0, tenth), slice(tenth, 2 * tenth), slice(2 * tenth, None)
    generator = torch.Generator().manual_seed(seed)
    network = FragilityNetwork(z.shape[1])
    network.start(generator)
    weights = [buffer.requires_grad_() for buffer in network.buffers()]
    optimizer = AdamW(weights, lr=lr)
    best, best_mse, best_epoch = network, float("inf"), 0
    for epoch in range(1, epochs + 1):
        for rows in torch.split(torch.randperm(len(z[train]), generator=generator), BATCH):
            optimizer.zero_grad()
            (network(z[train][rows]) - truth[train][rows]).square().mean().backward()
            optimizer.step()
        mse = _mse(network, z[validation], truth[validation])
        print(f"epoch {epoch}: validation mse {mse:.5f}", file=sys.stderr)
        if mse < best_mse:
            best, best_mse, best_epoch = copy.deepcopy(network), mse, epoch
        if epoch - best_epoch >= PATIENCE:
            break
    for buffer in best.buffers():
        buffer.requires_grad_(False)
    return Fitted(best, best_epoch, tenth, *_judged(best, z[held_out], truth[held_out], truth[train].mean()))


def _mse(network: FragilityNetwork, z: Tensor, truth: Tensor) -> float:
    with torch.no_grad():
        return (network(z) - truth).square().mean().item()


def _judged(network: FragilityNetwork, z: Tensor, truth: Tensor, mean: Tensor) -> tuple[float, float, float | None]:
    predicted = network(z)
    varies = bool(predicted.std() > 0) and bool(truth.std() > 0)
    correlation = torch.corrcoef(torch.stack([predicted, truth]))[0, 1].item() if varies else None
    return _mse(network, z, truth), (truth - mean).square().mean().item(), correlation


def measured(codec: Codec, sentences: Sequence[Sentence], limit: int, seed: int) -> tuple[Tensor, Tensor]:
    """Vectors, and the 1 − E score of each from nine decodings of its sentence."""
    sample = _encoded(codec, drawn(sentences, limit, seed))

    def tell(stage: str) -> None:
        print(f"{stage}, the last is {LEVELS[-1]}: decoding {len(sample):,} sentences", file=sys.stderr)

    found = noise_scores(Coder(codec), sample, sample.vectors, seed, tell=tell)
    return sample.vectors, torch.from_numpy(1 + found.fragility("bleu")).float()


def scored(codec: Codec, path: Path, limit: int, seed: int) -> tuple[Tensor, Tensor]:
    """Vectors, and their 1 − E scores from a codec report."""
    try:
        rows = pq.read_table(path, columns=["text", "lang", "fragility"]).to_pylist()
    except (pa.ArrowInvalid, OSError) as error:
        raise UserError(f"--scores={path}: expected the sentences.parquet of a codec report ({error})") from error
    results = path.parent / RESULTS
    if results.is_file() and (of := read_results(results)["codec"])["fingerprint"] != codec.fingerprint:
        raise UserError(
            f"--scores={path}: measured on codec {of['name']!r}, not on --codec={codec.name}; measure again"
        )
    known = {(row["text"], row["lang"]): row["fragility"] for row in rows if row["fragility"] is not None}
    ledger = Ledger()
    for row in rows:
        if row["fragility"] is None:
            ledger.add("no fragility", str(row["text"])[:80])
    if ledger:
        print(f"fit_fragility: {ledger.line}", file=sys.stderr)
    chosen = drawn([Sentence(text, lang, i) for i, (text, lang) in enumerate(known)], limit, seed)
    truth = torch.tensor([1 + known[sentence.text, sentence.lang] for sentence in chosen])
    return _encoded(codec, chosen).vectors, truth


def _encoded(codec: Codec, sentences: list[Sentence]) -> Sample:
    if len(sentences) < LEAST:
        raise UserError(
            f"{len(sentences)} sentences to fit on: expected {LEAST} at least, and some thousands to be good"
        )
    if unknown := [s.lang for s in sentences if s.lang not in codec.languages]:
        raise UserError(f"codec {codec.name!r} does not know the language {unknown[0]!r}; expected {codec.languages}")
    print(f"encoding {len(sentences):,} sentences", file=sys.stderr)
    return Sample.encoded(codec, sentences)


@dataclass(frozen=True, kw_only=True)
class Options:
    codec: Annotated[str, Option("NAME|DIR", place=True, read=True)] = "mini"
    """The codec of the sentences."""
    input: Annotated[tuple[str, ...], Option("F", place=True)] = ()
    """A sentence a line or row; their fragility is measured."""
    scores: Annotated[str | None, Option("F", place=True, read=True)] = None
    """File sentences.parquet of data_prep/codec_report.py, instead of --input."""
    output: Annotated[str, Option("F", place=True)]
    """File for model.diffusion.fragility."""
    text_column: Annotated[str | None, Option("C")] = None
    """Name, or number in .tsv (default: text; the last in .tsv)."""
    lang_column: Annotated[str, Option("C")] = "lang"
    """Column with the language."""
    lang: Annotated[str, Option("CODE")] = "eng_Latn"
    """Language of rows without one."""
    limit: int = 10_000
    """Sentences, drawn at random."""
    epochs: int = 200
    """Epochs at most."""
    lr: float = 1e-3
    """Learning rate."""
    seed: Annotated[int, Option(least=0)] = 0
    """Seed of the draw and of the weights."""

    def __post_init__(self) -> None:
        check_fields(self)
        for name in ("limit", "epochs", "lr"):
            if not getattr(self, name) > 0:
                raise UserError(f"--{name}={getattr(self, name)}: expected more than 0")
        if bool(self.input) == bool(self.scores):
            raise UserError("expected either --input, sentences to measure, or --scores, of a codec report")
        if self.scores:
            refuse_idle(self, ("text_column", "lang_column", "lang"), "goes with --input")


def fit_fragility(options: Options) -> int:
    """Fit and save a network; prints the results as JSON."""
    output = writable_file(options.output)
    scores = existing_file(options.scores, "--scores") if options.scores else None
    found = []
    if scores is None:
        columns = {"text_column": options.text_column, "lang_column": options.lang_column, "lang": options.lang}
        found = read_sentences(options.input, **columns)
        # Duplicates would put training sentences among the held-out ones.
        found = list({(sentence.text, sentence.lang): sentence for sentence in reversed(found)}.values())
    codec, limit, seed = load_codec(options.codec), options.limit, options.seed
    vectors, truth = scored(codec, scores, limit, seed) if scores else measured(codec, found, limit, seed)
    normalizer = Normalizer(codec.dim)
    normalizer.set(*location_and_scale(vectors))
    fitted = fit(normalizer(vectors), truth, lr=options.lr, epochs=options.epochs, seed=seed)
    save_fragility(output, fitted.network, normalizer, codec.name, codec.fingerprint)
    results: dict[str, Any] = {"sentences": len(vectors), "held_out": fitted.held_out, "epoch": fitted.epoch}
    results |= {"mean_fragility": truth.mean().item(), "mse": fitted.mse, "mse_of_the_mean": fitted.mse_of_the_mean}
    print(json.dumps(results | {"correlation": fitted.correlation, "output": options.output}))
    return 0


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description="fit the network that predicts a concept's fragility", allow_abbrev=False
    )
    add_options(parser, Options)
    return run_command("fit_fragility", lambda: fit_fragility(options_from(parser.parse_args(argv), Options)))


if __name__ == "__main__":
    sys.exit(main())
