"""Sentences ↔ pieces: SentencePiece, and SONAR's language tokens."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import sentencepiece

from lcm.errors import UserError


class Tokenizer:
    """The encoder reads [language] pieces </s>; the decoder starts from </s> [language] and ends with </s>.

    config.json has: `special` and `languages`, the ids of these tokens; `piece_shift`, the offset of the file's ids
    (NLLB's file has no padding token, which comes before all its pieces); `banned`, the ids that no decoder may produce
    (default: padding, begin, the language tokens and the reserved ones; unknown is a piece like any other).
    """

    def __init__(self, path: Path, config: Mapping[str, Any]) -> None:
        """Raises KeyError for a missing entry of the configuration, UserError for a file that is no vocabulary."""
        special, self._shift, banned = config["special"], config.get("piece_shift", 0), config.get("banned")
        try:
            self._model = sentencepiece.SentencePieceProcessor(model_file=str(path))
        except (RuntimeError, OSError) as error:
            raise UserError(f"{path}: not a SentencePiece vocabulary; copy it again") from error
        self.end = special["eos"]
        self.languages: dict[str, int] = dict(config["languages"])
        self.written = range(self._shift, self._shift + self._model.get_piece_size())
        """Ids of pieces of text."""
        if banned is None:
            controls = (special["pad"], special["bos"])
            banned = [i for i in range(config["model"]["vocab"]) if i in controls or i not in self.written]
        self.banned: list[int] = list(banned)

    def encode(self, sentences: Sequence[str]) -> list[list[int]]:
        """Pieces of each sentence, without language and end. Raises UserError for a string of invalid Unicode."""
        for number, sentence in enumerate(sentences):
            try:
                sentence.encode("utf-8")
            except UnicodeEncodeError as error:
                raise UserError(f"sentence {number} is not text: {sentence[:60]!r} is half of a character") from error
        # One thread: callers use more cores by running several processes.
        rows: list[list[int]] = self._model.encode(list(sentences), num_threads=1)
        return [[piece + self._shift for piece in row] for row in rows] if self._shift else rows

    def decode(self, pieces: list[int]) -> str:
        """Text of the pieces; tokens that are not text, such as languages, are dropped."""
        return self._model.decode([piece - self._shift for piece in pieces if piece in self.written])

    def starts_word(self, piece: int) -> bool:
        """True where a word begins with this piece; False for tokens that are not text."""
        return piece in self.written and self._model.id_to_piece(piece - self._shift).startswith("▁")

    def language(self, lang: str) -> int:
        """Token of a language such as eng_Latn. Raises UserError naming the known ones, the most similar first."""
        if lang not in self.languages:
            alike = sorted(self.languages, key=lambda code: (code[:3] != lang[:3], code[:1] != lang[:1]))
            known = ", ".join(alike[:8]) + (f", … ({len(alike)} in all)" if len(alike) > 8 else "")
            raise UserError(f"lang={lang!r}: this codec knows {known}")
        return self.languages[lang]
