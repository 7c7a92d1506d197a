"""sonar-space's own pipelines, around official cards or around the weights of one of our codecs: to compare with.

Shapes.  n sentences · D concept width
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Float
from torch import Tensor

from lcm.codec import Codec, storage
from lcm.codec.sonar_space import require

if TYPE_CHECKING:
    from fairseq2.data.tokenizers import Tokenizer as OfficialTokenizer


class OfficialPipelines:
    """sonar-space's own way from sentences to vectors and back, on the CPU."""

    def __init__(self, encoder: Any, decoder: Any, tokenizer: OfficialTokenizer | str) -> None:
        """encoder, decoder, tokenizer: sonar-space's models, or names of cards."""
        require()
        from sonar.inference_pipelines.text import EmbeddingToTextModelPipeline, TextToEmbeddingModelPipeline

        cpu = torch.device("cpu")
        self.to_vectors = TextToEmbeddingModelPipeline(encoder, tokenizer, device=cpu)
        self.to_text = EmbeddingToTextModelPipeline(decoder, tokenizer, device=cpu)

    def encode(
        self, sentences: Sequence[str], lang: str, batch_size: int | None = 5, batch_max_tokens: int | None = None
    ) -> Float[Tensor, "n D"]:
        """The defaults are sonar-space's."""
        return self.to_vectors.predict(
            sentences, source_lang=lang, batch_size=batch_size, batch_max_tokens=batch_max_tokens
        ).clone()

    def decode(
        self,
        vectors: Float[Tensor, "n D"],
        lang: str,
        beam: int = 5,
        batch_size: int = 5,
        max_gen_len: tuple[float, int] = (1.0, 128),
    ) -> list[str]:
        """The defaults are sonar-space's. max_gen_len: (a, b) for at most a·D + b pieces, the end included."""
        return self.to_text.predict(
            vectors, target_lang=lang, beam_size=beam, batch_size=batch_size, max_gen_len=max_gen_len
        )


def pipelines_of(codec: Codec) -> OfficialPipelines:
    """Load the weights of `codec` into sonar-space's own classes and with fairseq2's NLLB tokenizer."""
    require()
    from fairseq2.data.tokenizers import VocabularyInfo
    from sonar.models.sonar_text.config import SonarTextDecoderConfig, SonarTextEncoderConfig
    from sonar.models.sonar_text.factory import SonarTextDecoderFactory, SonarTextEncoderFactory

    sizes = codec.model.sizes
    special = codec.config["special"]
    vocabulary = VocabularyInfo(sizes.vocabulary, unk_idx=1, bos_idx=special["bos"], eos_idx=special["eos"], pad_idx=1)
    shared: dict[str, Any] = {
        "model_dim": sizes.dim,
        "max_seq_len": sizes.positions,
        "vocab_info": vocabulary,
        "num_encoder_layers": sizes.encoder_layers,
        "num_decoder_layers": sizes.decoder_layers,
        "num_encoder_attn_heads": sizes.encoder_heads,
        "num_decoder_attn_heads": sizes.decoder_heads,
        "activation_fn": "ReLU",
        "no_scale_embedding": False,
        "no_token_positional_embeddings": False,
        "learned_pos": False,
        "emb_dropout_p": 0.1,
        "attention_dropout_p": 0.1,
        "activation_dropout_p": 0.1,
    }
    encoder_config = SonarTextEncoderConfig(ffn_inner_dim=sizes.encoder_ffn, pooling="mean", **shared)
    decoder_config = SonarTextDecoderConfig(ffn_inner_dim=sizes.decoder_ffn, normalize_before=True, **shared)
    encoder = SonarTextEncoderFactory(encoder_config).create_model()
    decoder = SonarTextDecoderFactory(decoder_config).create_model()
    _fill(encoder, codec, "encoder")
    _fill(decoder, codec, "decoder")
    return OfficialPipelines(encoder.eval(), decoder.eval(), _tokenizer_of(codec))


def _fill(official: torch.nn.Module, codec: Codec, part: storage.Part) -> None:
    """Copy the weights over. Those that do nothing stay as they were initialized: they show in no result."""
    names = {name: storage.stored_name(f"{part}.{name}", False) for name in getattr(codec.model, part).state_dict()}
    state = {
        names[name].removeprefix(f"text_{part}/"): value
        for name, value in getattr(codec.model, part).state_dict().items()
    }
    missing, unexpected = official.load_state_dict(state, strict=False)
    ours = [name for name in missing if name != "final_proj.weight" and not any(dead in name for dead in storage.DEAD)]
    assert not ours, f"sonar-space's {part} has more weights: {ours}"
    assert not unexpected, f"sonar-space's {part} lacks {unexpected}"


def _tokenizer_of(codec: Codec) -> OfficialTokenizer:
    from fairseq2.data.tokenizers.sentencepiece import load_sentencepiece_model
    from fairseq2.models.nllb.tokenizer import NllbTokenizer

    path = codec.folder / storage.VOCABULARY
    symbols = [f"__{code}__" for code in sorted(codec.languages, key=codec.tokenizer.language)]
    if codec.config.get("piece_shift", 0):
        symbols += ["<MINED_DATA>", "<MMT_BT_DATA>", "<SMT_BT_DATA>", "<pad>@0"]
    model = load_sentencepiece_model(path, control_symbols=symbols)
    return NllbTokenizer(model, set(codec.languages), codec.languages[0])
