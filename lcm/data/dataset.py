"""Prepared folders, local and remote, opened together: one codec, one dimension, one end-of-text vector.

Shapes.  D concept width
"""

import hashlib
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor

from lcm.codec.text import PROMPT_SUFFIX
from lcm.config import CodecRecord
from lcm.data.manifest import Manifest, is_url, open_dataset
from lcm.data.remote import Unreachable
from lcm.data.shard_cache import RemoteShard, ShardCache, shards_at
from lcm.data.shards import Shard
from lcm.errors import UserError
from lcm.options import several

Place = Path | str
"""A data set's local folder, or its URL."""


class PreparedData:
    """The folders of data.path. Where they differ, the folder with the most training concepts decides."""

    def __init__(self, folders: Sequence[Place], cache: ShardCache | None = None) -> None:
        """cache: for shards behind URLs; without it, the default one.

        Raises UserError if there is no folder, one is named twice or not prepared, or two cannot be trained on
        together.
        """
        folders = several(folders)
        if not folders:
            raise UserError("data.path is empty; name one or more folders written by lcm prepare: --data.path DIR")
        places: dict[str, Place] = {}
        for folder in folders:
            place = str(folder).rstrip("/") if is_url(folder) else str(Path(folder).resolve())
            if place in places:
                raise UserError(f"data.path: {folder} is named twice, also as {places[place]}; name each data set once")
            places[place] = folder
        self.cache = cache or ShardCache()
        self.manifests: dict[Place, Manifest] = {
            folder if is_url(folder) else Path(folder): open_dataset(folder, self.cache.retries) for folder in folders
        }
        _check_that_they_agree(self.manifests)
        if not self.shards("train"):
            raise UserError(f"data.path={', '.join(map(str, folders))}: there is no document to train on")
        sizes = {place: sum(s.concepts for s in manifest.shards("train")) for place, manifest in self.manifests.items()}
        self._main = max(sizes, key=sizes.__getitem__)

    def shards(self, split: str, folder: Place | None = None) -> list[Shard]:
        """The shards of a split that hold concepts, in one folder or in all."""
        folder = folder if folder is None or is_url(folder) else Path(folder)
        return [
            shard
            for place, manifest in self.manifests.items()
            for shard in shards_at(place, manifest.shards(split), self.cache)
            if folder in (None, place) and shard.record.concepts
        ]

    @cached_property
    def codec(self) -> CodecRecord:
        """The facts about the codec that a model trained on this data keeps."""
        manifest = self.manifests[self._main]
        only_pairs = all(shard.record.pairs == shard.record.documents for shard in self.shards("train"))
        return CodecRecord(
            **manifest.codec.model_dump(exclude={"end_of_text"}),
            splitter=manifest.splitter.model_dump(),
            default_task="answer" if only_pairs else "continue",
            lengths=any(each.options.get("lengths") for each in self.manifests.values()),
            **self._marks(),
        )

    def _marks(self) -> dict[str, str]:
        """The sentences around a text that are not the usual ones; data sets of pairs agree about their suffix."""
        manifests = self.manifests.values()
        found = {name: [m.options.get(name) for m in manifests] for name in ("end_of_text", "prompt_suffix")}
        return {name: str(next(filter(None, marks))) for name, marks in found.items() if any(marks)}

    def check_dim(self, dim: int) -> None:
        """Raises UserError where model.dim, which is `dim`, is not that of the concepts."""
        if self.codec.dim != dim:
            raise UserError(
                f"model.dim={dim}, but the concepts of {next(iter(self.manifests))} have {self.codec.dim} channels "
                f"(codec '{self.codec.name}'); set model.dim={self.codec.dim}, or data.path to data of another codec"
            )

    @property
    def normalizer(self) -> tuple[Float[Tensor, " D"], Float[Tensor, " D"]]:
        """(location, scale) of the deciding folder: quantiles of several folders cannot be combined."""
        fitted = self.manifests[self._main].normalizer
        return torch.tensor(fitted.location), torch.tensor(fitted.scale)

    def end_of_text(self, skip_dead: bool = False) -> Float[Tensor, " D"]:
        """The vector that ends every document, fp16 as stored, read from a shard that is here already if there is one.

        skip_dead: try another shard if one cannot be fetched
        Raises UserError if the vector is not that of the manifest.
        """
        manifest, shards = self.manifests[self._main], self.shards("train", self._main)
        shards.sort(key=lambda shard: isinstance(shard, RemoteShard) and not shard.path.is_file())
        for shard in shards:
            try:
                offset, concepts, _ = shard.load()[0].tolist()
                dim = manifest.codec.dim
                vector = shard.read(offset + (concepts - 1) * dim * 2, 1, dim)[0]
            except Unreachable:
                if not skip_dead or shard is shards[-1]:
                    raise
                continue
            if hashlib.sha256(vector.tobytes()).hexdigest() != manifest.codec.end_of_text:
                raise UserError(
                    f"{shard.path}: its first document does not end with the manifest's end-of-text vector; "
                    f"'lcm verify {shard.place}' says what is broken"
                )
            return torch.from_numpy(vector)
        raise AssertionError("there is a shard to train on")


def _check_that_they_agree(manifests: dict[Place, Manifest]) -> None:
    (first, one), *others = manifests.items()
    for folder, other in others:
        if (one.codec.fingerprint, one.codec.dim) != (other.codec.fingerprint, other.codec.dim):
            raise UserError(
                f"data.path: {first} was encoded with {one.codec}, {folder} with {other.codec}; "
                "train on folders of one codec, or prepare one of them again"
            )
        if one.codec.end_of_text != other.codec.end_of_text:
            raise UserError(
                f"data.path: documents of {first} (lang {one.codec.lang}) and {folder} (lang {other.codec.lang}) end "
                "with different vectors, and a model knows only one; prepare both with the same --lang, --end-of-text"
            )
    pairs = {place: m.options.get("prompt_suffix", PROMPT_SUFFIX) for place, m in manifests.items() if _has_pairs(m)}
    (here, suffix), *rest = pairs.items() or [(first, PROMPT_SUFFIX)]
    if different := [(place, mark) for place, mark in rest if mark != suffix]:
        raise UserError(
            f"data.path: prompts of {here} end with '{suffix}', those of {different[0][0]} with '{different[0][1]}', "
            "and a model knows only one; prepare both with the same --prompt-suffix"
        )


def _has_pairs(manifest: Manifest) -> bool:
    return bool(manifest.options.get("pairs"))
