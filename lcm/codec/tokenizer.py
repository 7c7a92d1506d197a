"""Sentences ↔ pieces: SentencePiece, with SONAR's language tokens around them."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import sentencepiece

from lcm.errors import UserError


class Tokenizer:
    """The encoder reads [language] pieces </s>; the decoder starts from </s> [language] and ends with </s>.

    From config.json: special and languages, their ids; piece_shift, what the ids of the file are moved by (NLLB's file
    knows no padding, which is put in before all its pieces); banned, the ids that no decoder may produce: where it is
    not there, padding, begin, language tokens and the reserved. Unknown is a piece.
    """

    def __init__(self, path: Path, config: Mapping[str, Any]) -> None:
        """Raises KeyError for what the configuration lacks, UserError for a file that is no vocabulary."""
        special, shift, banned = config["special"], config.get("piece_shift", 0), config.get("banned")
        try:
            self._model = sentencepiece.SentencePieceProcessor(model_file=str(path))
        except (RuntimeError, OSError) as error:
            raise UserError(f"{path}: not a SentencePiece vocabulary; copy it again") from error
        self.end = special["eos"]
        self.languages: dict[str, int] = dict(config["languages"])
        self._shift = shift
        self.written = range(shift, shift + self._model.get_piece_size())
        """Ids of the pieces of text."""
        if banned is None:
            banned = [
                i
                for i in range(config["model"]["vocab"])
                if i in (special["pad"], special["bos"]) or i not in self.written
            ]
        self.banned: list[int] = list(banned)

    def encode(self, sentences: Sequence[str]) -> list[list[int]]:
        """The pieces of each sentence alone. Raises UserError for a string that no file could hold."""
        for number, sentence in enumerate(sentences):
            try:
                sentence.encode("utf-8")
            except UnicodeEncodeError as error:
                raise UserError(f"sentence {number} is not text: {sentence[:60]!r} is half of a character") from error
        # One thread: callers that want more cores run several processes.
        rows: list[list[int]] = self._model.encode(list(sentences), num_threads=1)
        return [[piece + self._shift for piece in row] for row in rows] if self._shift else rows

    def decode(self, pieces: list[int]) -> str:
        """The text of these pieces; tokens that are not text, such as languages, leave no trace."""
        return self._model.decode([piece - self._shift for piece in pieces if piece in self.written])

    def starts_word(self, piece: int) -> bool:
        """Whether a word begins with this piece; False for what is not text."""
        return piece in self.written and self._model.id_to_piece(piece - self._shift).startswith("▁")

    def language(self, lang: str) -> int:
        """The token of a language such as eng_Latn. Raises UserError naming the known ones, the likely ones first."""
        if lang not in self.languages:
            alike = sorted(self.languages, key=lambda code: (code[:3] != lang[:3], code[:1] != lang[:1]))
            known = ", ".join(alike[:8]) + (f", … ({len(alike)} in all)" if len(alike) > 8 else "")
            raise UserError(f"lang={lang!r}: this codec knows {known}")
        return self.languages[lang]
