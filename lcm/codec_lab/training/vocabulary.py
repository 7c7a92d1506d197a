"""Sentences → a SentencePiece vocabulary."""

import io
import re
from collections.abc import Sequence

import sentencepiece

from lcm.errors import UserError

SPECIAL = {"pad": 0, "unk": 1, "bos": 2, "eos": 3}
SAMPLE = 120_000
"""Sentences that the vocabulary is trained on, at most about twice as many."""


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
