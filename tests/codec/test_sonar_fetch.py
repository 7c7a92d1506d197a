"""The codec named "sonar": fetched where it is missing, converted once, kept, and reported by the doctor."""

import threading
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer

import pytest
import torch
from official import HEADS, LANGUAGES, TEXT

from lcm import doctor
from lcm.codec import load_codec, official, storage
from lcm.codec.official import convert
from lcm.errors import UserError

SENTENCES = [*TEXT, "", "a"]


@pytest.fixture(scope="module")
def folder(converted_folder):
    return converted_folder


@pytest.fixture
def cache(tmp_path, monkeypatch):
    """An empty cache, no sonar-space, and small heads."""
    monkeypatch.setenv("LCM_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(official, "find_spec", lambda _: None)
    monkeypatch.setattr(official, "HEADS", HEADS)
    return tmp_path / "cache"


@pytest.fixture
def server(files, monkeypatch):
    """Serves the official files; `asked` tells which."""
    asked: list[str] = []

    class Handler(SimpleHTTPRequestHandler):
        def log_message(self, *_):
            asked.append(self.path)

    http = ThreadingHTTPServer(("127.0.0.1", 0), partial(Handler, directory=files.encoder.parent))
    threading.Thread(target=http.serve_forever, daemon=True).start()
    monkeypatch.setenv("LCM_SONAR_URL", f"http://127.0.0.1:{http.server_port}/")
    yield asked
    http.shutdown()
    http.server_close()


def converted(files, folder):
    convert(files.encoder, files.decoder, files.vocabulary, LANGUAGES, folder, heads=HEADS)
    return folder


def test_sonar_is_fetched_and_converted_once(cache, server, folder):
    codec = load_codec("sonar", device="cpu")
    assert torch.equal(codec.encode(SENTENCES), load_codec(folder, device="cpu").encode(SENTENCES))
    assert codec.folder == cache / "codecs" / "sonar"
    assert (codec.dim, codec.max_pieces, codec.stop_threshold) == (64, 512, 0.9)
    assert sorted(server) == sorted(
        f"/{name}" for name in (official.ENCODER_FILE, "sonar_text_decoder.pt", official.VOCABULARY_FILE)
    )
    assert [p.name for p in cache.iterdir()] == ["codecs"], "what was fetched is not kept beside what was made of it"
    server.clear()
    load_codec("sonar", device="cpu").encode(["a"])
    assert server == []


def test_several_that_need_it_at_once_fetch_it_once(cache, server):
    with ThreadPoolExecutor(3) as pool:
        folders = list(pool.map(official.sonar_folder, ["sonar"] * 3))
    assert folders == [cache / "codecs" / "sonar"] * 3
    assert len(server) == 3, "an encoder, a decoder and a vocabulary"


def test_a_full_disk_is_one_line(cache, server, monkeypatch):
    def full_disk(*_, **__):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(official, "convert", full_disk)
    with pytest.raises(UserError, match="No space left on device; put it right and run the same command again"):
        load_codec("sonar")


def test_the_finetuned_decoder_has_a_name_of_its_own(cache, server, folder):
    codec = load_codec("sonar-finetuned", device="cpu")
    assert "/finetuned_decoder.pt" in server
    assert codec.fingerprint == storage.fingerprint(folder)


def test_without_a_network_both_ways_out_are_named(cache, monkeypatch):
    monkeypatch.setenv("LCM_SONAR_URL", "http://127.0.0.1:9/")
    with pytest.raises(UserError) as caught:
        load_codec("sonar")
    message = str(caught.value)
    assert f"not in {cache / 'codecs' / 'sonar'}" in message
    assert "http://127.0.0.1:9/sonar_text_encoder.pt could not be fetched" in message
    assert "python data_prep/convert_sonar.py --encoder" in message
    assert "\n" not in message


def test_an_interrupted_download_resumes_with_the_files_that_are_missing(cache, server, files, monkeypatch):
    whole = official.fetch

    def broken(url, path):
        if url.endswith("decoder.pt"):
            raise UserError("connection reset")
        whole(url, path)

    monkeypatch.setattr(official, "fetch", broken)
    with pytest.raises(UserError, match="connection reset"):
        load_codec("sonar")
    monkeypatch.setattr(official, "fetch", whole)
    load_codec("sonar")
    assert server.count(f"/{official.ENCODER_FILE}") == 1


def test_the_doctor_reports_absent_whole_and_damaged(cache, files):
    def states():
        return {finding.name: finding.state for finding in doctor._sonar()}

    assert states() == {"codec sonar": "absent", "codec sonar-finetuned": "absent"}
    folder = converted(files, cache / "codecs" / "sonar")
    assert states() == {"codec sonar": "ok", "codec sonar-finetuned": "absent"}
    content = bytearray((folder / "decoder.safetensors").read_bytes())
    content[-1] ^= 1
    (folder / "decoder.safetensors").write_bytes(content)
    assert states()["codec sonar"] == "broken"
