"""SONAR's speech encoders, by sonar-space: recordings into the space of the text codec.

Shapes.  n recordings · D concept width
"""

from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from lcm.errors import UserError

_OTHER_NAMES = {"zho": "cmn"}
"""Languages whose card is not named by the first part of their FLORES code."""


class SonarSpeech:
    """Encoders by language, each loaded when it is needed first.

    card:   one for all languages, such as sonar_speech_encoder_eng; None: that of each language
    Raises UserError where sonar-space is not installed, or a card's checkpoint cannot be had.
    """

    def __init__(self, card: str | None = None, *, device: str = "cpu") -> None:
        try:
            import soundfile  # noqa: F401 (first: it brings the libsndfile that fairseq2 looks for)
            from fairseq2.assets import get_asset_store
            from sonar.inference_pipelines.speech import SpeechToEmbeddingModelPipeline
        except (ImportError, OSError) as error:
            raise UserError(
                f"speech needs sonar-space: pip install 'lcm-train[sonar]' ({str(error).splitlines()[0]})"
            ) from error
        self._load, self._store = SpeechToEmbeddingModelPipeline, get_asset_store()
        self._device = torch.device(device)
        self._card = card
        self._pipelines: dict[str, Any] = {}
        if card and not self._has(card):
            raise UserError(f"--speech-encoder={card}: fairseq2's asset store has no such card")

    def knows(self, lang: str) -> bool:
        """Whether there is a card for it."""
        return self._has(self._card or card_of(lang))

    def encode(self, recordings: Sequence[Float[Tensor, " samples"]], lang: str) -> Float[Tensor, "n D"]:
        """fp32 vectors of recordings at 16 kHz, side by side in one batch."""
        pipeline = self._pipeline(self._card or card_of(lang))
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


def card_of(lang: str) -> str:
    """The card that encodes a language, given as FLORES code: sonar_speech_encoder_fra for fra_Latn."""
    language = lang.partition("_")[0]
    return f"sonar_speech_encoder_{_OTHER_NAMES.get(language, language)}"
