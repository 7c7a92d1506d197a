"""The codec that training starts from: an existing one or an initialization, with its vocabulary and languages."""

import io
import re
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import sentencepiece
import torch
from jaxtyping import Bool
from torch import Tensor

from lcm.codec import Tokenizer, load_codec, storage
from lcm.codec.architecture import Sizes, SonarText
from lcm.codec.storage import VOCABULARY, read_sizes
from lcm.codec_lab.training import analytic
from lcm.codec_lab.training.settings import CodecTraining
from lcm.errors import UserError
from lcm.options import existing_file

STALE = ("held_out", "training")
"""Keys of a codec's config.json that describe weights which training changes."""
SPECIAL = {"pad": 0, "unk": 1, "bos": 2, "eos": 3}
SAMPLE = 120_000
"""Sentences to train a vocabulary on: at least as many where there are more, and less than twice as many."""


@dataclass
class Start:
    """A codec in parts.

    vocabulary: bytes of the SentencePiece file
    config:     the future config.json, without the record of the training
    folder:     of the codec that is trained further; None for a new one
    """

    model: SonarText
    vocabulary: bytes
    config: dict[str, Any]
    folder: Path | None = None

    def __post_init__(self) -> None:
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder, VOCABULARY)
            path.write_bytes(self.vocabulary)
            self.tokenizer = Tokenizer(path, self.config)
        self.max_pieces: int = self.config["max_pieces"]
        self.unknown: int = self.config["special"]["unk"]

    @property
    def fingerprint(self) -> str:
        """The fingerprint of the codec that is trained further."""
        assert self.folder, "the settings refuse a frozen encoder without a codec"
        return storage.fingerprint(self.folder)

    @cached_property
    def starts_word(self) -> Bool[Tensor, " V"]:
        """For each id, True if a word begins with it."""
        return torch.tensor([self.tokenizer.starts_word(piece) for piece in range(self.model.sizes.vocabulary)])


def make_start(settings: CodecTraining, sentences: Sequence[str], languages: Sequence[str]) -> Start:
    """sentences: to train a vocabulary on, where none is given. languages: of the corpus.

    Raises UserError where vocabulary, languages and sizes do not fit together.
    """
    if settings.start in ("analytic", "random"):
        start = _new(settings, sentences, languages)
    else:
        start = _from_codec(settings.start, languages, settings.freeze == "encoder")
    size, written = start.model.sizes.vocabulary, start.tokenizer.written
    if written.stop > min(start.config["languages"].values(), default=size):
        raise UserError(
            f"the vocabulary has {len(written)} pieces, which leaves no ids for languages in "
            f"model.vocabulary={size}; raise it"
        )
    return start


def _new(settings: CodecTraining, sentences: Sequence[str], languages: Sequence[str]) -> Start:
    chosen = settings.model
    if len(languages) > chosen.reserved:
        raise UserError(
            f"model.reserved={chosen.reserved}, but the corpus has {len(languages)} languages: {', '.join(languages)}"
        )
    first = chosen.vocabulary - chosen.reserved
    if settings.spm is not None:
        vocabulary = existing_file(settings.spm, "spm").read_bytes()
    else:
        vocabulary = train_vocabulary(sentences, first)
    config = {
        "model": {
            "vocab": chosen.vocabulary,
            "d": chosen.dim,
            "enc_layers": chosen.encoder_layers,
            "dec_layers": chosen.decoder_layers,
            "enc_heads": chosen.heads,
            "dec_heads": chosen.heads,
            "enc_ffn": chosen.encoder_ffn,
            "dec_ffn": chosen.decoder_ffn,
        },
        "embedding_dim": chosen.dim,
        "tokenizer": VOCABULARY,
        "languages": {lang: first + i for i, lang in enumerate(languages)},
        "special": SPECIAL,
        "source": "[lang] pieces </s>",
        "decoder_prefix": "</s> [lang]",
        "position_offset": Sizes.position_offset,
        "max_pieces": chosen.max_pieces,
    }
    model = SonarText(read_sizes(config))
    if settings.start == "analytic":
        analytic.initialize(model, chosen.max_pieces, settings.run.seed)
    else:
        analytic.spread(model, torch.Generator().manual_seed(settings.run.seed))
    return Start(model, vocabulary, config)


def _from_codec(name: str, languages: Sequence[str], is_frozen: bool) -> Start:
    """A copy of a codec's weights in fp32. Languages that are new to it get the next reserved ids.

    Raises UserError where no id is left for them, and where they would be new to a frozen encoder.
    """
    codec = load_codec(name, device="cpu", dtype=torch.float32)
    sizes = read_sizes(codec.config)
    model = SonarText(sizes)
    model.load_state_dict({name: value.detach().float().clone() for name, value in codec.model.state_dict().items()})
    known: dict[str, int] = dict(codec.config["languages"])
    new = [lang for lang in languages if lang not in known]
    if is_frozen and new:
        raise UserError(
            f"freeze=encoder: the encoder of {name!r} does not know {', '.join(new)}, and learns nothing; leave these "
            "languages out of data, or set freeze: none"
        )
    for lang in new:
        known[lang] = max(known.values()) + 1
    if max(known.values()) >= sizes.vocabulary:
        raise UserError(
            f"codec {name!r} has no reserved id left for {', '.join(languages)}; it knows {', '.join(codec.languages)}"
        )
    config = {key: value for key, value in codec.config.items() if key not in STALE} | {"languages": known}
    return Start(model, (codec.folder / VOCABULARY).read_bytes(), config, codec.folder)


def train_vocabulary(sentences: Sequence[str], size: int) -> bytes:
    """The file of a unigram vocabulary of `size` pieces. Raises UserError where the text is too small for it."""
    file = io.BytesIO()
    step = max(1, len(sentences) // SAMPLE)
    try:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=iter(sentences[::step]),
            model_writer=file,
            model_type="unigram",
            vocab_size=size,
            character_coverage=0.9999,
            normalization_rule_name="nmt_nfkc",
            split_digits=True,
            pad_id=SPECIAL["pad"],
            unk_id=SPECIAL["unk"],
            bos_id=SPECIAL["bos"],
            eos_id=SPECIAL["eos"],
            num_threads=1,
            minloglevel=2,
        )
    except RuntimeError as error:
        most = re.search(r"value <= (\d+)", str(error))
        given = f"at most {most[1]}" if most else "less"
        raise UserError(
            f"model.vocabulary - model.reserved = {size} pieces, but {len(sentences):,} sentences give {given}; "
            "lower model.vocabulary, or add text"
        ) from error
    return file.getvalue()
