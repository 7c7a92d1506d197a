"""The only file that imports sonar and fairseq2: official files through their asset store, their pipelines, speech.

Nothing else in `lcm` needs either library. The text pipelines are for comparing: with ours, in tests and benchmarks.

Shapes.  n sentences or recordings · D concept width
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Float
from torch import Tensor

from lcm.codec import storage
from lcm.codec.sonar import Originals
from lcm.errors import UserError

if TYPE_CHECKING:
    from fairseq2.data.tokenizers import Tokenizer as OfficialTokenizer

    from lcm.codec.codec import Codec

ENCODER_CARD = "text_sonar_basic_encoder"
_OTHER_SPEECH_NAMES = {"zho": "cmn"}
"""Languages whose card is not named by the first part of their FLORES code."""


def require() -> None:
    """Make both libraries importable. Raises UserError that says what to install."""
    try:
        import soundfile  # noqa: F401, I001  (first: fairseq2 wants libsndfile, and soundfile's wheel brings one)
        import fairseq2  # noqa: F401
        import sonar  # noqa: F401
    except (ImportError, OSError) as error:
        raise UserError(
            f"sonar-space and fairseq2 are needed for this, and do not import ({error}): "
            "pip install 'lcm-train[sonar]' in an environment of its own, because they pin torch"
        ) from error


def official_files(decoder_card: str, encoder_card: str = ENCODER_CARD) -> Originals:
    """The checkpoints and the vocabulary that the cards name, downloaded by fairseq2 where it has not done so before.

    Raises UserError for a card that is not there, and for files that cannot be fetched.
    """
    require()
    from fairseq2.assets import AssetDownloadError, AssetNotFoundError, get_asset_download_manager, get_asset_store

    store, downloads = get_asset_store(), get_asset_download_manager()
    try:
        encoder, decoder = store.retrieve_card(encoder_card), store.retrieve_card(decoder_card)
        options: Any = encoder.field("tokenizer_config").value
        languages = options.get("_set_", options)["langs"]
        return Originals(
            encoder=downloads.download_model(encoder.field("checkpoint").as_uri()),
            decoder=downloads.download_model(decoder.field("checkpoint").as_uri()),
            vocabulary=downloads.download_tokenizer(encoder.field("tokenizer").as_uri()),
            languages=tuple(languages),
        )
    except (AssetNotFoundError, AssetDownloadError) as error:
        raise UserError(
            f"fairseq2's asset store cannot give {encoder_card} and {decoder_card}: {error}. Run it once with a "
            "network, or bring the files and run: python data_prep/convert_sonar.py --help"
        ) from error


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
    """The same weights as `codec`, in sonar-space's own classes and with fairseq2's NLLB tokenizer."""
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
    """Copy the weights over. Those that do nothing stay as they were initialised: they show in no result."""
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


class SonarSpeech:
    """Encoders by language, each loaded when it is needed first.

    card:   one for all languages, such as sonar_speech_encoder_eng; None: that of each language
    Raises UserError where sonar-space is not installed, or a card's checkpoint cannot be had.
    """

    def __init__(self, card: str | None = None, *, device: str = "cpu") -> None:
        require()
        from fairseq2.assets import get_asset_store
        from sonar.inference_pipelines.speech import SpeechToEmbeddingModelPipeline

        self._load, self._store = SpeechToEmbeddingModelPipeline, get_asset_store()
        self._device = torch.device(device)
        self._card = card
        self._pipelines: dict[str, Any] = {}
        if card and not self._has(card):
            raise UserError(f"--speech-encoder={card}: fairseq2's asset store has no such card")

    def knows(self, lang: str) -> bool:
        """Whether there is a card for it."""
        return self._has(self._card or speech_card(lang))

    def encode(self, recordings: Sequence[Float[Tensor, " samples"]], lang: str) -> Float[Tensor, "n D"]:
        """fp32 vectors of recordings at 16 kHz, side by side in one batch."""
        pipeline = self._pipeline(self._card or speech_card(lang))
        waves = [recording[None] for recording in recordings]
        vectors: Tensor = pipeline.predict(waves, batch_size=max(1, len(waves)))
        return vectors.float().cpu().clone()  # out of inference mode

    def _has(self, card: str) -> bool:
        from fairseq2.assets import AssetNotFoundError

        try:
            self._store.retrieve_card(card)
        except AssetNotFoundError:
            return False
        return True

    def _pipeline(self, card: str) -> Any:
        if card not in self._pipelines:
            try:
                self._pipelines[card] = self._load(encoder=card, device=self._device)
            except Exception as error:  # of fairseq2: its errors for downloads and checkpoints share no class
                line = next(iter(str(error).splitlines()), type(error).__name__)
                raise UserError(
                    f"{card}: cannot be loaded ({line}); fetch its checkpoint where there is a network, and say where "
                    "it is in a card of FAIRSEQ2_USER_ASSET_DIR"
                ) from error
        return self._pipelines[card]


def speech_card(lang: str) -> str:
    """The card that encodes a language, given as FLORES code: sonar_speech_encoder_fra for fra_Latn."""
    language = lang.partition("_")[0]
    return f"sonar_speech_encoder_{_OTHER_SPEECH_NAMES.get(language, language)}"
