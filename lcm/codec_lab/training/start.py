"""What training starts from: a codec, or an initialization; with its vocabulary and its languages."""

import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from lcm.codec import Tokenizer, load_codec
from lcm.codec.architecture import Sizes, SonarText
from lcm.codec.storage import VOCABULARY, read_sizes
from lcm.codec_lab.training import analytic
from lcm.codec_lab.training.settings import CodecTraining
from lcm.codec_lab.training.vocabulary import SPECIAL, train_vocabulary
from lcm.errors import UserError, existing_file

STALE = ("held_out", "training")
"""Parts of a codec's config.json that tell of weights which training changes."""


@dataclass
class Start:
    """A codec in parts. config: what config.json will hold, the training record aside."""

    model: SonarText
    tokenizer: Tokenizer
    vocabulary: bytes
    config: dict[str, Any]
    unknown: int
    starts_word: torch.Tensor
    """For each id, whether a word begins with it."""
    folder: Path | None = None
    """Of the codec that training goes on from."""

    @property
    def max_pieces(self) -> int:
        return int(self.config["max_pieces"])


def make_start(settings: CodecTraining, sentences: Sequence[str], languages: Sequence[str]) -> Start:
    """`sentences`: what a vocabulary is trained on, where none is given; `languages`: those of the corpus."""
    if settings.start in ("analytic", "random"):
        return _new(settings, sentences, languages)
    return _from_codec(settings.start, languages, settings.freeze == "encoder")


def _new(settings: CodecTraining, sentences: Sequence[str], languages: Sequence[str]) -> Start:
    chosen = settings.model
    if len(languages) > chosen.reserved:
        raise UserError(
            f"model.reserved={chosen.reserved}, but the corpus has {len(languages)} languages: {', '.join(languages)}"
        )
    if settings.spm is not None:
        vocabulary = existing_file(settings.spm, "spm").read_bytes()
    else:
        vocabulary = train_vocabulary(sentences, chosen.vocabulary - chosen.reserved)
    sizes = Sizes(
        vocabulary=chosen.vocabulary,
        dim=chosen.dim,
        encoder_layers=chosen.encoder_layers,
        decoder_layers=chosen.decoder_layers,
        encoder_heads=chosen.heads,
        decoder_heads=chosen.heads,
        encoder_ffn=chosen.encoder_ffn,
        decoder_ffn=chosen.decoder_ffn,
    )
    model = SonarText(sizes)
    if settings.start == "analytic":
        analytic.initialize(model, chosen.max_pieces, settings.run.seed)
    else:
        analytic.spread(model, torch.Generator().manual_seed(settings.run.seed))
    first = chosen.vocabulary - chosen.reserved
    config = _config(sizes, {lang: first + i for i, lang in enumerate(languages)}, chosen.max_pieces)
    return _assembled(model, vocabulary, config)


def _from_codec(name: str, languages: Sequence[str], is_frozen: bool) -> Start:
    """An own copy of a codec's weights, in fp32; languages it does not know get the next reserved ids.

    Raises UserError where there is none left for them, and where they would be new to an encoder that is frozen.
    """
    codec = load_codec(name, device="cpu", dtype=torch.float32)
    sizes = read_sizes(codec.config)
    model = SonarText(sizes)
    model.load_state_dict({name: value.detach().float().clone() for name, value in codec.model.state_dict().items()})
    known: dict[str, int] = dict(codec.config["languages"])
    if is_frozen and (new := [lang for lang in languages if lang not in known]):
        raise UserError(
            f"freeze=encoder: the encoder of {name!r} does not know {', '.join(new)}, and learns nothing; leave these "
            "languages out of data, or set freeze: none"
        )
    for lang in languages:
        if lang not in known:
            known[lang] = max(known.values()) + 1
    if max(known.values()) >= sizes.vocabulary:
        raise UserError(
            f"codec {name!r} has no reserved id left for {', '.join(languages)}; it knows {', '.join(codec.languages)}"
        )
    config = {key: value for key, value in codec.config.items() if key not in STALE} | {"languages": known}
    return replace(_assembled(model, (codec.folder / VOCABULARY).read_bytes(), config), folder=codec.folder)


def _assembled(model: SonarText, vocabulary: bytes, config: dict[str, Any]) -> Start:
    size, special = model.sizes.vocabulary, config["special"]
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, VOCABULARY)
        path.write_bytes(vocabulary)
        tokenizer = Tokenizer(path, config)
    if tokenizer.written.stop > min(config["languages"].values(), default=size):
        raise UserError(
            f"the vocabulary has {len(tokenizer.written)} pieces, which leaves no ids for languages in "
            f"model.vocabulary={size}; raise it"
        )
    starts = torch.tensor([tokenizer.starts_word(piece) for piece in range(size)])
    return Start(model, tokenizer, vocabulary, config, special["unk"], starts)


def _config(sizes: Sizes, languages: dict[str, int], max_pieces: int) -> dict[str, Any]:
    """config.json of a new codec, with sonar-space's own configurations of the same sizes."""
    shared = {
        "model_dim": sizes.dim,
        "max_seq_len": sizes.positions,
        "vocab_info": {"size": sizes.vocabulary, "unk_idx": 1, "bos_idx": 2, "eos_idx": 3, "pad_idx": 1},
        "learned_pos": False,
        "no_scale_embedding": False,
        "no_token_positional_embeddings": False,
        "activation_fn": "ReLU",
        "emb_dropout_p": 0.0,
        "attention_dropout_p": 0.0,
        "activation_dropout_p": 0.0,
        "num_encoder_layers": sizes.encoder_layers,
        "num_decoder_layers": sizes.decoder_layers,
        "num_encoder_attn_heads": sizes.encoder_heads,
        "num_decoder_attn_heads": sizes.decoder_heads,
    }
    return {
        "model": {
            "vocab": sizes.vocabulary,
            "d": sizes.dim,
            "enc_layers": sizes.encoder_layers,
            "dec_layers": sizes.decoder_layers,
            "enc_heads": sizes.encoder_heads,
            "dec_heads": sizes.decoder_heads,
            "enc_ffn": sizes.encoder_ffn,
            "dec_ffn": sizes.decoder_ffn,
        },
        "embedding_dim": sizes.dim,
        "tokenizer": VOCABULARY,
        "languages": languages,
        "special": SPECIAL,
        "source": "[lang] pieces </s>",
        "decoder_prefix": "</s> [lang]",
        "position_offset": sizes.position_offset,
        "max_pieces": max_pieces,
        "sonar_text_encoder_config": {
            **shared,
            "pooling": "mean",
            "normalize_before": False,
            "ffn_inner_dim": sizes.encoder_ffn,
            "_from_fairseq": False,
        },
        "sonar_text_decoder_config": {**shared, "normalize_before": True, "ffn_inner_dim": sizes.decoder_ffn},
    }
