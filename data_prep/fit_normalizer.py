"""Fit a data set's normalizer again, from a larger or smaller sample, and show the normalized quantiles.

    python data_prep/fit_normalizer.py data/corpus --sample 1000000

`lcm prepare` fits one already: this is for inspection, and for data sets put together by hand.
"""

import argparse
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from lcm.cli import run_command, starting

with starting("fit_normalizer"):
    import torch

    from lcm.data.manifest import SAMPLE, SPLITS, Manifest, local_folder, open_dataset
    from lcm.data.shards import Shard, fit_normalizer, sample_vectors
    from lcm.files import disk_errors
    from lcm.models import Normalizer
    from lcm.options import Option, add_options, check_fields, options_from

QUANTILES = (0.001, 0.01, 0.25, 0.5, 0.75, 0.99, 0.999)


@dataclass(frozen=True, kw_only=True)
class Options:
    folder: Annotated[str, Option("DIR", place=True, positional=True)]
    """Data set, written by lcm prepare."""
    sample: Annotated[int, Option("N", least=1)] = SAMPLE
    """Vectors to fit to."""

    def __post_init__(self) -> None:
        check_fields(self)


def quantiles(folder: Path, manifest: Manifest, limit: int) -> list[tuple[float, float, float]]:
    """(quantile, raw value, normalized value), over all channels."""
    split = next(name for name in SPLITS if manifest.shards(name))
    dim = manifest.codec.dim
    raw = torch.from_numpy(sample_vectors([Shard(folder, s) for s in manifest.shards(split)], dim, limit)).float()
    normalizer = Normalizer(dim)
    normalizer.set(torch.tensor(manifest.normalizer.location), torch.tensor(manifest.normalizer.scale))
    columns = [numbers.flatten().sort().values for numbers in (raw, normalizer(raw))]
    rows = []
    for q in QUANTILES:
        place = round(q * (len(columns[0]) - 1))
        rows.append((q, columns[0][place].item(), columns[1][place].item()))
    return rows


def fit_again(options: Options) -> int:
    """Write the manifest with the new normalizer, and print `quantiles`."""
    folder = local_folder(options.folder, "DIR")
    manifest = open_dataset(folder)
    fitted = fit_normalizer(folder, manifest.splits, manifest.codec.dim, options.sample)
    manifest = manifest.model_copy(update={"normalizer": fitted})
    with disk_errors(folder):
        manifest.save(folder)
    print("quantile         raw  normalized")
    for q, raw, normalized in quantiles(folder, manifest, limit=20_000):
        print(f"{q:8.1%}  {raw:10.5f}  {normalized:10.3f}")
    return 0


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="fit a data set's normalizer again", allow_abbrev=False)
    add_options(parser, Options)
    return run_command("fit_normalizer", lambda: fit_again(options_from(parser.parse_args(argv), Options)))


if __name__ == "__main__":
    sys.exit(main())
