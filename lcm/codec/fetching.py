"""Files from the network, whole or not at all: length and contents are checked, and what is broken is not kept."""

import http.client
import shutil
import urllib.error
import urllib.request
import zipfile
from pathlib import Path

from lcm.errors import UserError
from lcm.files import atomic_path

PATIENCE = 60.0
"""Seconds without a byte after which a server counts as gone."""


def fetch(url: str, path: Path) -> None:
    """Download `url` to `path`, which appears when it is complete. Proxies are those of the environment.

    Raises UserError where it cannot be reached, is cut off, damaged, or is a web page instead of a file.
    """
    request = urllib.request.Request(url, headers={"User-Agent": "lcm"})
    try:
        with atomic_path(path) as part:
            with urllib.request.urlopen(request, timeout=PATIENCE) as answer, part.open("wb") as file:
                shutil.copyfileobj(answer, file, 1 << 20)
                expected, kind = answer.headers.get("Content-Length"), answer.headers.get_content_type()
            if problem := wrong_with(part, None if expected is None else int(expected), kind):
                raise UserError(problem)
    except (urllib.error.URLError, http.client.HTTPException, OSError) as error:
        raise UserError(f"{getattr(error, 'reason', error) or type(error).__name__}") from error


def wrong_with(path: Path, expected: int | None = None, kind: str = "") -> str | None:
    """A reason not to keep a file that was fetched; None where it is whole. expected: its bytes; kind: its MIME type"""
    size = path.stat().st_size
    if expected is not None and size != expected:
        return f"the download was cut off: {size:,} of {expected:,} bytes"
    with path.open("rb") as file:
        start = file.read(512).lstrip().lower()
    if kind == "text/html" or start.startswith((b"<!doctype", b"<html", b"<?xml")):
        return "the answer is a web page, as of a login or a proxy, not the file"
    if start.startswith(b"pk\x03\x04"):
        try:
            damaged = zipfile.ZipFile(path).testzip()
        except (zipfile.BadZipFile, EOFError):
            damaged = "its end is missing"
        return f"the file is damaged ({damaged})" if damaged else None
    return None if size else "the file is empty"
