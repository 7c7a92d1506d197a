"""SaT Capped (paper §2.2): sentences from a boundary model, and the reference's rule for sentences that are too long.

`SatModel` (wtpsplit's "Segment any Text") computes the boundary probabilities that the rule takes.
"""

import hashlib
import re
import warnings
from collections.abc import Callable, Iterable
from pathlib import Path

import numpy as np
from jaxtyping import Float

from lcm.errors import UserError

SHORT = 10
"""A text of at most this many characters is one sentence; the model is not run."""
SEPARATORS = ("...", "\n", "!", "?", ";", ":", ".", ",", "\t", " ")
"""Separators at which a piece that is still too long is cut, strongest first."""
NEEDED = ("config.json", "model.safetensors")
TOKENIZER = ("tokenizer.json", "tokenizer_config.json")
HUB = "segment-any-text"
HUB_TOKENIZER = "facebookAI/xlm-roberta-base"
# Neither enclosed letters nor dingbat digits, and no range that reaches into the Chinese characters.
_PICTURE = (
    "[\U0001f1e6-\U0001f1ff\U0001f300-\U0001f64f\U0001f680-\U0001f6ff\U0001f7e0-\U0001f7eb\U0001f900-\U0001faff"
    "\u2600-\u2775\u2794-\u27bf]"
)
_MODIFIER = "[\ufe0e\ufe0f\u20e3\U0001f3fb-\U0001f3ff\U000e0020-\U000e007f]"
_EMOJI = re.compile(f"{_PICTURE}{_MODIFIER}*(?:\u200d{_PICTURE}{_MODIFIER}*)*|\ufe0f?\u20e3")

Probabilities = Callable[[str], Float[np.ndarray, " characters"]]
"""Maps a text to the probabilities that a sentence ends after each of its characters."""


def sat_split(text: str, probabilities: Probabilities, threshold: float, limit: int) -> list[str]:
    """Split a text without emojis into stripped sentences, at boundaries more probable than `threshold`.

    A newline always ends a sentence. A sentence of `limit` characters or more is given to the model again, by itself,
    and cut at its most probable boundaries; pieces still longer than `limit` are cut at separators.
    """
    is_short = len(text) <= SHORT or text.isspace()
    ends = [] if is_short else np.flatnonzero(probabilities(text) > threshold).tolist()
    pieces = []
    for line in (line.strip() for sentence in cut_after(text, ends) for line in sentence.split("\n")):
        is_long = len(line) >= limit
        pieces += at_separators(cut_long(line, probabilities(line), limit), limit) if is_long else [line]
    return [piece for piece in pieces if piece]


def cut_after(text: str, ends: Iterable[int]) -> list[str]:
    """Cut a text after each of the characters `ends`; blanks stay with the piece on their left."""
    pieces, start = [], 0
    for end in ends:
        place = end + 1
        while place < len(text) and text[place].isspace():
            place += 1
        pieces.append(text[start:place])
        start = max(start, place)
    return [piece for piece in (*pieces, text[start:]) if piece]


def cut_long(sentence: str, probabilities: Float[np.ndarray, " characters"], limit: int) -> list[str]:
    """Cut a sentence at its n most probable boundaries, n = round(length / limit) + 1.

    The end of the sentence, which is probable itself, counts as one of the n.
    """
    wanted = min(round(len(sentence) / limit) + 1, len(sentence))
    least = np.sort(probabilities)[-wanted]
    return cut_after(sentence, np.flatnonzero(probabilities >= least).tolist())


def at_separators(pieces: list[str], limit: int) -> list[str]:
    """Cut pieces over `limit` after each separator in turn, and join the parts again, from the left, while they fit."""
    for separator in SEPARATORS:
        pieces = [part.strip() for piece in pieces for part in _filled(piece, separator, limit)]
    return [piece for piece in pieces if piece]


def _filled(piece: str, separator: str, limit: int) -> list[str]:
    *parts, last = piece.split(separator)
    filled = [""]
    for part in (*(part + separator for part in parts), last):
        if len(filled[-1]) + len(part) <= limit:
            filled[-1] += part
        else:
            filled.append(part)
    return filled


def remove_emojis(text: str) -> tuple[str, int]:
    """(text without emojis, number of emojis). A joined one counts once; letters and a keycap's digit stay."""
    return _EMOJI.subn("", text)


class SatModel:
    """Boundary probabilities from wtpsplit, in fp32, one text at a time, so that they do not depend on other texts.

    model:       a name on the hub such as "sat-3l", or a folder with config.json and model.safetensors; if the folder
                 has tokenizer.json, too, no network is used
    fingerprint: hash of the model's files
    Raises UserError where wtpsplit, the model or its tokenizer is not available.
    """

    def __init__(self, model: str, device: str = "cpu") -> None:
        with warnings.catch_warnings():  # the import changes the global filters
            try:
                from wtpsplit import SaT
            except ImportError as error:
                raise _missing(model, "wtpsplit is not installed: pip install 'lcm-train[sat]'") from error
        folder, tokenizer = _find(model)
        files = [*(folder / name for name in NEEDED), tokenizer / TOKENIZER[0]]
        sums = b"".join(hashlib.sha256(path.read_bytes()).digest() for path in files)
        self.fingerprint = hashlib.sha256(sums).hexdigest()[:16]
        try:
            offline = {"local_files_only": True}
            self._sat = SaT(folder, tokenizer_name_or_path=str(tokenizer), from_pretrained_kwargs=offline)
            self._sat.float().eval().to(device)
            self("It was cold. The sea was calm.")  # another version of transformers fails here, not when it is loaded
        except Exception as error:  # wtpsplit and transformers raise a dozen types
            why = next(iter(str(error).strip().splitlines()), type(error).__name__)
            raise _missing(model, f"it does not run here ({why}); lcm doctor says which version does") from error

    def __call__(self, text: str) -> Float[np.ndarray, " characters"]:
        """Probability that a sentence ends after each character; zero inside a word piece."""
        # Blocks side by side, without overlap, as in the reference.
        return np.asarray(self._sat.predict_proba(text, stride=256, block_size=256, batch_size=32), dtype=np.float32)


def _find(model: str) -> tuple[Path, Path]:
    """(folder of the weights, folder of the tokenizer)"""
    folder = Path(model)
    if folder.is_dir():
        if missing := [name for name in NEEDED if not (folder / name).is_file()]:
            raise _missing(model, f"no {', '.join(missing)} in that folder")
    else:
        folder = _from_hub(model, f"{HUB}/{model}", NEEDED)
    tokenizer = folder if (folder / TOKENIZER[0]).is_file() else _from_hub(model, HUB_TOKENIZER, TOKENIZER)
    return folder, tokenizer


def _from_hub(model: str, repository: str, files: tuple[str, ...]) -> Path:
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(repository, allow_patterns=list(files)))
    except (OSError, ValueError) as error:
        why = f"{', '.join(files)} of {repository} can neither be fetched nor found in the cache"
        raise _missing(model, why) from error


def _missing(model: str, why: str) -> UserError:
    return UserError(
        f"SaT model '{model}': {why}; name a folder with {', '.join((*NEEDED, *TOKENIZER[:1]))} by --sat-model "
        "(of a trained model: codec.splitter.model in its config.yaml), or prepare with --splitter nupunkt"
    )
