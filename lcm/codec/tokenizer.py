"""Sentences ↔ pieces: SentencePiece, with SONAR's language tokens around them."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import sentencepiece

from lcm.errors import UserError


class Tokenizer:
    """The encoder reads [language] pieces </s>; the decoder starts from </s> [language] and ends with </s>."""

    def __init__(self, path: Path, special: Mapping[str, int], languages: Mapping[str, int], vocabulary: int) -> None:
        try:
            self._model = sentencepiece.SentencePieceProcessor(model_file=str(path))
        except (RuntimeError, OSError) as error:
            raise UserError(f"{path}: not a SentencePiece vocabulary; copy it again") from error
        self.end = special["eos"]
        self.languages = dict(languages)
        written = range(self._model.get_piece_size())
        self.banned = [i for i in range(vocabulary) if i in (special["pad"], special["bos"]) or i not in written]
        """Ids that no decoder may produce: padding, begin, language tokens and the reserved. Unknown is a piece."""

    def encode(self, sentences: Sequence[str]) -> list[list[int]]:
        """The pieces of each sentence alone. Raises UserError for a string that no file could hold."""
        for number, sentence in enumerate(sentences):
            try:
                sentence.encode("utf-8")
            except UnicodeEncodeError as error:
                raise UserError(f"sentence {number} is not text: {sentence[:60]!r} is half of a character") from error
        # One thread: callers that want more cores run several processes.
        return self._model.encode(list(sentences), num_threads=1)

    def decode(self, pieces: list[int]) -> str:
        return self._model.decode(pieces)

    def language(self, lang: str) -> int:
        """The token of a language such as eng_Latn. Raises UserError naming the known ones."""
        if lang not in self.languages:
            known = ", ".join(list(self.languages)[:8]) + (", …" if len(self.languages) > 8 else "")
            raise UserError(f"lang={lang!r}: this codec knows {known}")
        return self.languages[lang]
