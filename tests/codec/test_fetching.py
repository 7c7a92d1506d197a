"""Files that are fetched: whole, or not kept; and what was not whole is fetched again."""

import io
import threading
import zipfile
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from lcm.codec import official
from lcm.codec.fetching import fetch, wrong_with
from lcm.errors import UserError


def archive(damaged=False):
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as file:
        file.writestr("data.pkl", bytes(1000))
    content = bytearray(buffer.getvalue())
    if damaged:
        content[200] ^= 1
    return bytes(content)


@pytest.fixture
def served():
    """An address, and a dictionary of what it answers: (body, Content-Length or None, MIME type)."""
    answers = {}

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            body, length, kind = answers[self.path]
            self.send_response(200)
            self.send_header("Content-Type", kind)
            if length is not None:
                self.send_header("Content-Length", str(length))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_):
            pass

    http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=http.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{http.server_port}", answers
    http.shutdown()
    http.server_close()


BINARY = "application/octet-stream"


@pytest.mark.parametrize(
    ("answer", "line"),
    [
        ((b"x" * 10, 20, BINARY), "the download was cut off: 10 of 20 bytes"),
        ((b"hello", 5, "text/html; charset=utf-8"), "the answer is a web page, as of a login or a proxy, not the file"),
        ((b"\n <!DOCTYPE html><p>log in", 26, BINARY), "the answer is a web page"),
        ((archive(damaged=True), None, BINARY), "the file is damaged (data.pkl)"),
        ((archive()[:-10], None, BINARY), "the file is damaged (its end is missing)"),
        ((b"", 0, BINARY), "the file is empty"),
    ],
    ids=["cut off", "page", "page by its first bytes", "wrong bytes", "no end", "empty"],
)
def test_what_is_not_whole_is_not_kept(answer, line, served, tmp_path):
    url, answers = served
    answers["/f"] = answer
    with pytest.raises(UserError) as caught:
        fetch(f"{url}/f", tmp_path / "f")
    assert line in str(caught.value)
    assert list(tmp_path.iterdir()) == []


def test_a_whole_file_is_kept(served, tmp_path):
    url, answers = served
    answers["/f"] = (archive(), len(archive()), BINARY)
    fetch(f"{url}/f", tmp_path / "f")
    assert (tmp_path / "f").read_bytes() == archive()
    assert wrong_with(tmp_path / "f") is None


def test_a_server_that_is_not_there_is_one_line(tmp_path):
    with pytest.raises(UserError, match="Connection refused"):
        fetch("http://127.0.0.1:9/f", tmp_path / "f")


def test_what_was_broken_is_fetched_again_by_the_next_command(served, tmp_path, monkeypatch):
    """A page instead of each file, left by an older version, and files that cannot be converted, are not kept."""
    url, answers = served
    monkeypatch.setenv("LCM_CACHE", str(tmp_path))
    monkeypatch.setenv("LCM_SONAR_URL", url)
    monkeypatch.setattr(official, "find_spec", lambda _: None)
    names = (official.ENCODER_FILE, "sonar_text_decoder.pt", official.VOCABULARY_FILE)
    for name in names:
        answers[f"/{name}"] = (b"<html>log in</html>", 19, "text/html")
    with pytest.raises(UserError, match=r"could not be fetched \(the answer is a web page"):
        official.sonar_folder("sonar")
    fetched = tmp_path / "fetched"
    assert list(fetched.iterdir()) == []
    for name in names:
        (fetched / name).write_bytes(b"<html>")  # as an older version kept it
        answers[f"/{name}"] = (archive(), len(archive()), BINARY)
    with pytest.raises(UserError) as caught:
        official.sonar_folder("sonar")
    message = str(caught.value)
    assert message.endswith("it is removed, and the next command fetches it again")
    assert "weights_only" not in message
    assert sorted(path.name for path in fetched.iterdir()) == sorted(names[1:]), "the encoder alone was named"
