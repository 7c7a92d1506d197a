"""The codec that training starts from, an existing one or an initialization, and what its updates keep of the start.

The analytic start's weights learn slowly, and no update enters the directions of positions: its gates stay exact.

Shapes.  K directions · D width · V vocabulary
"""

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
from jaxtyping import Bool, Float
from torch import Tensor, nn

from lcm.codec import Tokenizer, load_codec, storage
from lcm.codec.architecture import Sizes, SonarText
from lcm.codec.storage import VOCABULARY, read_sizes
from lcm.codec_lab import analytic
from lcm.codec_lab.analytic import coded_positions, feed_forward
from lcm.codec_lab.settings import CodecTraining, OptimizerSettings
from lcm.errors import UserError
from lcm.options import existing_file

STALE = ("held_out", "training")
"""Keys of a codec's config.json that describe weights which training changes."""
SPECIAL = {"pad": 0, "unk": 1, "bos": 2, "eos": 3}
SAMPLE = 120_000
"""Sentences to train a vocabulary on: at least as many where there are more, and less than twice as many."""
STRUCTURED = {"encoder": ("layers.1.ffn.",), "decoder": ("layers.1.ffn.", "layers.1.encoder_decoder_attn.")}
"""Blocks that hold the construction of the analytic start; the norms count with them."""
EMPTY = 1e-4
"""A direction is empty where the power of the pieces is below this share of its median over all directions."""


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
    spm = settings.spm
    vocabulary = train_vocabulary(sentences, first) if spm is None else existing_file(spm, "spm").read_bytes()
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
    model.load_state_dict(codec.model.state_dict())
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


def parameter_groups(model: SonarText, optimizer: OptimizerSettings) -> list[dict[str, Any]]:
    """Trained parameters in three groups (structured, embedding, free), each with its base rate."""
    factors = {"structured": 1.0, "embedding": optimizer.embedding_factor, "free": optimizer.free_factor}
    rates = {kind: optimizer.lr * factor for kind, factor in factors.items()}
    groups: dict[str, dict[str, Any]] = {kind: {"params": [], "lr": r, "base": r} for kind, r in rates.items()}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            kind = "embedding" if name.endswith("embed.weight") else "free" if _is_free(name) else "structured"
            groups[kind]["params"].append(parameter)
    return [group for group in groups.values() if group["params"]]


def _is_free(name: str) -> bool:
    """True for parameters that the analytic start does not set: attention, and blocks outside its two layers.

    The first feed-forward block counts as free, because its units that write the code get no gradient.
    """
    side, _, rest = name.partition(".")
    block = any(f".{kind}." in name for kind in ("self_attn", "encoder_decoder_attn", "ffn"))
    return block and not rest.startswith(STRUCTURED[side])


def empty_directions(model: SonarText) -> Float[Tensor, "K D"]:
    """The directions that no piece uses: those of positions and their codes. A random start has none.

    Read from the embedding table instead of constructed again: the complement of the sinusoids that a linear algebra
    library returns differs from one library to the next.
    """
    table = model.encoder.embed.weight.detach().cpu().double()
    if len(table) <= table.shape[1]:
        return torch.empty(0, table.shape[1])
    power, directions = torch.linalg.eigh(table.T @ table)
    empty = directions[:, power < EMPTY * power.median()]
    # Eigenvectors of equal power come in any rotation. Projected random vectors are unique.
    random = torch.randn(empty.shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    return torch.linalg.qr(empty @ (empty.T @ random))[0].T.float().contiguous()


@torch.no_grad()
def protect(model: SonarText, directions: Float[Tensor, "K D"], max_pieces: int, embedding: bool) -> None:
    """Project all trained weights that write into `directions` out of them, except the units that write the code.

    embedding: project the embedding table, too
    """
    for side in (model.encoder, model.decoder):
        output = feed_forward(side, 0).output_proj
        if not output.weight.requires_grad:
            continue
        writers = [output.weight[:, coded_positions(max_pieces) :], output.bias]
        for name, module in side.named_modules():
            if name.endswith("attn.output_proj") and isinstance(module, nn.Linear):
                writers += [module.weight, module.bias]
        for writer in writers:
            writer.sub_(directions.T @ (directions @ writer))
    table = model.encoder.embed.weight
    if embedding and table.requires_grad:
        table.sub_((table @ directions.T) @ directions)


def hold_code_units(model: SonarText, max_pieces: int) -> None:
    """Zero the gradient of the units that write the code: they are exact already."""
    units = coded_positions(max_pieces)
    for side in (model.encoder, model.decoder):
        block = feed_forward(side, 0)
        for gradient in (block.inner_proj.weight.grad, block.inner_proj.bias.grad):
            if gradient is not None:
                gradient[:units] = 0
        if block.output_proj.weight.grad is not None:
            block.output_proj.weight.grad[:, :units] = 0
