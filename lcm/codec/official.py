"""The codecs named "sonar": official weights, fetched and converted once, then folders like those of any codec."""

import os
import shutil
import sys
import urllib.error
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

import torch

from lcm.codec import storage
from lcm.codec.conversion import Originals, convert
from lcm.errors import UserError
from lcm.files import cache_folder, disk_errors, lock

RELEASE = "https://dl.fbaipublicfiles.com/SONAR"
"""Address in sonar-space's cards. The environment variable LCM_SONAR_URL names a mirror."""
HEADS = 16
ENCODER_FILE, VOCABULARY_FILE = "sonar_text_encoder.pt", "sentencepiece.source.256000.model"
LANGUAGES = Path(__file__).parent / "assets" / "sonar_languages.txt"
"""File with the 202 FLORES codes of the tokenizer's card, in its order."""


@dataclass(frozen=True)
class Release:
    """An official decoder; all share one encoder."""

    decoder_card: str
    decoder_file: str


RELEASES = {
    "sonar": Release("text_sonar_basic_decoder", "sonar_text_decoder.pt"),
    "sonar-finetuned": Release("text_sonar_finetuned_decoder", "finetuned_decoder.pt"),
}


def sonar_folder(name: str) -> Path:
    """Folder of the converted codec in the user's cache; converted first where it is missing.

    Where sonar-space is installed the files come from its asset store, which honors its cards and its cache; otherwise
    they are fetched from the address in its cards. Raises UserError with both ways to get missing files.
    """
    folder = cache_folder() / "codecs" / name
    if not storage.missing_files(folder):
        return folder
    with disk_errors(folder), lock(folder.parent / f".{folder.name}.lock"):  # several processes may start at once
        if storage.missing_files(folder):  # otherwise another process has made it meanwhile
            with _originals(name) as files:
                _report(f"converting to {folder}")
                convert(files.encoder, files.decoder, files.vocabulary, files.languages, folder, heads=HEADS)
    return folder


@contextmanager
def _originals(name: str) -> Iterator[Originals]:
    """Files of a release, for the length of the block; files fetched for it are removed after a success."""
    release = RELEASES[name]
    if find_spec("sonar") and find_spec("fairseq2"):
        from lcm.codec.sonar_space import official_files

        yield official_files(release.decoder_card)
        return
    parent = cache_folder() / "fetched"
    parent.mkdir(parents=True, exist_ok=True)
    url = os.environ.get("LCM_SONAR_URL", RELEASE).rstrip("/")
    names = (ENCODER_FILE, release.decoder_file, VOCABULARY_FILE)
    for file in names:
        _fetch(f"{url}/{file}", parent / file, name)
    encoder, decoder, vocabulary = (parent / file for file in names)
    languages = tuple(LANGUAGES.read_text(encoding="utf-8").split())
    yield Originals(encoder, decoder, vocabulary, languages)
    shutil.rmtree(parent, ignore_errors=True)


def _fetch(url: str, path: Path, name: str) -> None:
    """Download one file unless it is there; it appears complete or not at all."""
    if path.is_file():
        return
    _report(f"fetching {url}")
    try:
        torch.hub.download_url_to_file(url, str(path), progress=sys.stderr.isatty())
    except (urllib.error.URLError, OSError) as error:
        folder = cache_folder() / "codecs" / name
        reason = getattr(error, "reason", error)
        raise UserError(
            f"codec {name!r}: not in {folder}, and {url} could not be fetched ({reason}). With a network, run this "
            f"again. Without, bring {ENCODER_FILE}, {RELEASES[name].decoder_file} and {VOCABULARY_FILE} from {RELEASE} "
            f"and run: python data_prep/convert_sonar.py --encoder F --decoder F --vocabulary F --output {folder}"
        ) from error


def _report(message: str) -> None:
    print(f"lcm: {message}", file=sys.stderr)
