"""Official files from sonar-space's asset store, and its speech encoders. The only file that imports sonar or fairseq2.

Shapes.  n sentences or recordings · D concept width
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from lcm.errors import UserError

ENCODER_CARD = "text_sonar_basic_encoder"
_OTHER_SPEECH_NAMES = {"zho": "cmn"}
"""Languages whose card is not named after the first part of their FLORES code."""


@dataclass(frozen=True)
class Originals:
    """Files of a release."""

    encoder: Path
    decoder: Path
    vocabulary: Path
    languages: tuple[str, ...]


def require() -> None:
    """Import both libraries. Raises UserError naming what to install."""
    try:
        import soundfile  # noqa: F401, I001  (first: fairseq2 wants libsndfile, and soundfile's wheel brings one)
        import fairseq2  # noqa: F401
        import sonar  # noqa: F401
    except (ImportError, OSError) as error:
        raise UserError(
            f"sonar-space and fairseq2 are needed for this, and do not import ({error}): "
            "pip install 'lcm-train[sonar]' in an environment of its own, because they pin torch"
        ) from error


def official_files(decoder_card: str) -> Originals:
    """Checkpoints and vocabulary of the encoder and of a decoder, downloaded by fairseq2 into its cache.

    Raises UserError for a card that does not exist, and for files that cannot be fetched.
    """
    require()
    from fairseq2.assets import AssetDownloadError, AssetNotFoundError, get_asset_download_manager, get_asset_store

    store, downloads = get_asset_store(), get_asset_download_manager()
    try:
        encoder, decoder = store.retrieve_card(ENCODER_CARD), store.retrieve_card(decoder_card)
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
            f"fairseq2's asset store cannot give {ENCODER_CARD} and {decoder_card}: {error}. Run it once with a "
            "network, or bring the files and run: python data_prep/convert_sonar.py --help"
        ) from error


class SonarSpeech:
    """SONAR's speech encoders, one per language, each loaded on first use.

    card:   an encoder for all languages, such as sonar_speech_encoder_eng; None: the encoder of each language
    Raises UserError where sonar-space is not installed, or the checkpoint of a card is not available.
    """

    def __init__(self, card: str | None = None, *, device: str = "cpu") -> None:
        require()
        from fairseq2.assets import get_asset_store
        from sonar.inference_pipelines.speech import SpeechToEmbeddingModelPipeline

        self._load, self._store = SpeechToEmbeddingModelPipeline, get_asset_store()
        self._card, self._device = card, torch.device(device)
        self._pipelines: dict[str, Any] = {}
        if card and not self._has(card):
            raise UserError(f"--speech-encoder={card}: fairseq2's asset store has no such card")

    def knows(self, lang: str) -> bool:
        return self._has(self._card or speech_card(lang))

    def encode(self, recordings: Sequence[Float[Tensor, " samples"]], lang: str) -> Float[Tensor, "n D"]:
        """Encode recordings at 16 kHz, as one batch, to fp32 vectors on the CPU."""
        pipeline, waves = self._pipeline(self._card or speech_card(lang)), [recording[None] for recording in recordings]
        vectors: Tensor = pipeline.predict(waves, batch_size=max(1, len(waves)))
        return vectors.float().cpu().clone()  # not an inference tensor

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
            except Exception as error:  # fairseq2's errors for downloads and checkpoints share no class
                line = next(iter(str(error).splitlines()), type(error).__name__)
                raise UserError(
                    f"{card}: cannot be loaded ({line}); fetch its checkpoint where there is a network, and say where "
                    "it is in a card of FAIRSEQ2_USER_ASSET_DIR"
                ) from error
        return self._pipelines[card]


def speech_card(lang: str) -> str:
    """Card of the encoder of a language: sonar_speech_encoder_fra for fra_Latn."""
    language = lang.partition("_")[0]
    return f"sonar_speech_encoder_{_OTHER_SPEECH_NAMES.get(language, language)}"
