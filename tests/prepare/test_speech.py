"""Recordings become concepts: cut at pauses, in order, nothing loud lost, and in the same shards as text."""

import json
import sys
from itertools import pairwise

import numpy as np
import pytest
import soundfile
import torch
from stub_codec import StubCodec, load_polyglot, use_codec

from lcm.codec import SonarSpeech
from lcm.data.shards import read_documents
from lcm.data.verify import verify
from lcm.errors import UserError
from lcm.prepare import worker
from lcm.prepare.command import prepare
from lcm.prepare.discovery import find_inputs
from lcm.prepare.options import PrepareOptions
from lcm.prepare.rows import Refused
from lcm.prepare.speech import FRAME, MARGIN, RATE, Segment, cut_at_pauses, segments


@pytest.fixture(autouse=True)
def _inline(monkeypatch):
    use_codec(monkeypatch, load_polyglot)
    monkeypatch.setattr(worker, "SonarSpeech", FakeSpeech)


class FakeSpeech(SonarSpeech):
    """Loudness, length and first sample of a recording, and whether it was French."""

    def __init__(self, card, *, device):
        assert card in (None, "a-card")

    def knows(self, lang):
        return lang != "deu_Latn"

    def encode(self, recordings, lang):
        rows = [[r.abs().mean(), len(r) / RATE, r.abs().max(), float(lang == "fra_Latn")] for r in recordings]
        return torch.tensor(rows, dtype=torch.float32)


def sound(*parts, seed=0):
    """(seconds, loudness) after one another, as noise."""
    generator = np.random.default_rng(seed)
    pieces = [generator.uniform(-1, 1, round(seconds * RATE)) * loudness for seconds, loudness in parts]
    return np.concatenate(pieces).astype(np.float32)


def write(path, *parts, rate=RATE):
    soundfile.write(path, sound(*parts), rate)
    return str(path)


def seconds(found):
    return [(round(s.start / RATE, 2), round(s.end / RATE, 2)) for s in found]


def test_a_recording_is_cut_at_its_longest_pauses(tmp_path):
    parts = [(1.0, 0.5), (0.4, 0), (2.0, 0.5), (1.0, 0), (2.0, 0.5), (0.4, 0), (1.0, 0.5)]
    path = tmp_path / "a.wav"
    write(path, *parts)
    assert seconds(segments(path, 15.0)) == [(0.0, 7.8)]
    assert seconds(segments(path, 4.0)) == [(0.0, 3.5), (4.3, 7.8)]  # a tenth of a second of quiet stays
    assert seconds(segments(path, 3.0)) == [(0.0, 1.1), (1.3, 3.5), (4.3, 6.5), (6.7, 7.8)]


def test_quiet_at_the_ends_goes_and_silence_has_nothing_to_say(tmp_path):
    path = tmp_path / "a.flac"
    write(path, (1.0, 0), (1.0, 0.3), (2.0, 1e-4))
    assert seconds(segments(path, 15.0)) == [(0.9, 2.1)]
    assert str(segments(path, 15.0)[0]) == "a.flac 0.90–2.10 s"
    write(path, (3.0, 1e-5))
    assert segments(path, 15.0) == []
    soundfile.write(path.with_suffix(".wav"), np.zeros(0, np.float32), RATE)
    assert segments(path.with_suffix(".wav"), 15.0) == []


def test_without_a_pause_the_quietest_moment_is_cut(tmp_path):
    write(tmp_path / "a.wav", (3.0, 0.5), (0.02, 0.3), (3.0, 0.5))
    assert seconds(segments(tmp_path / "a.wav", 4.0)) == [(0.0, 3.0), (3.0, 6.02)]


def naive_pauses(quiet):
    """Runs of quiet, frame by frame."""
    runs, start = [], None
    for i, is_quiet in enumerate([*quiet, False]):
        if is_quiet and start is None:
            start = i
        if not is_quiet and start is not None:
            runs.append((start, i))
            start = None
    return runs


@pytest.mark.parametrize("most", [50, 120, 750])
def test_segments_keep_every_loud_frame_once_in_order_and_under_the_cap(most):
    for seed in range(30):
        generator = np.random.default_rng(seed)
        runs = [np.full(generator.integers(1, 60), generator.choice([-80.0, -20.0, -22.5])) for _ in range(80)]
        levels = np.concatenate([*runs, [-20.0]]) + generator.normal(0, 0.1, sum(map(len, runs)) + 1)
        found = cut_at_pauses(levels, most)
        assert all(0 < end - start <= most for start, end in found)
        assert all(a[1] <= b[0] for a, b in pairwise(found))
        inside = np.zeros(len(levels), bool)
        for start, end in found:
            inside[start:end] = True
        quiet = levels < np.quantile(levels, 0.95) - 30
        assert inside[~quiet].all()
        assert not any(quiet[start : start + MARGIN + 1].all() for start, _ in found)
        first = max(naive_pauses(quiet), key=lambda run: run[1] - run[0])
        if len(found) > 1 and first[1] - first[0] > 2 * MARGIN and first[0] > 0 and first[1] < len(levels):
            assert not inside[first[0] + MARGIN : first[1] - MARGIN].any()


def test_a_long_recording_is_read_in_pieces_and_cut_exactly(tmp_path):
    write(tmp_path / "a.wav", *[(7.0, 0.5), (0.5, 0)] * 30)
    found = segments(tmp_path / "a.wav", 8.0)
    assert len(found) == 30
    samples, _ = soundfile.read(tmp_path / "a.wav", dtype="float32")
    assert torch.equal(found[20].samples(), torch.from_numpy(samples)[found[20].start : found[20].end])
    assert found[20].start % FRAME == 0


@pytest.mark.parametrize(("rate", "channels"), [(44_100, 1), (16_000, 2), (8_000, 1)])
def test_another_rate_or_stereo_is_refused_with_the_line_that_converts(rate, channels, tmp_path):
    path = tmp_path / "a.wav"
    soundfile.write(path, np.zeros((rate, channels), np.float32), rate)
    assert segments(path, 15.0) == Refused(
        "not 16 kHz mono",
        f"{path}: {rate} Hz, {channels} channels; ffmpeg -i {path} -ar 16000 -ac 1 {tmp_path}/a-16k.wav",
    )


def test_without_soundfile_the_line_says_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "soundfile", None)
    with pytest.raises(UserError, match=r"reading audio needs soundfile: pip install 'lcm-train\[sonar\]'"):
        segments(tmp_path / "a.wav", 15.0)


def test_a_file_without_audio_is_refused(tmp_path):
    (tmp_path / "a.wav").write_text("no sound")
    assert segments(tmp_path / "a.wav", 15.0).reason == "damaged audio"


def options(tmp_path, source, **more):
    return PrepareOptions(input=(str(source),), output=str(tmp_path / "data"), **more)


def test_files_become_documents_in_the_same_shards(tmp_path):
    (tmp_path / "audio").mkdir()
    for i in range(6):
        write(tmp_path / "audio" / f"{i}.wav", (1.0, 0.5), (0.5, 0), (1.0 + i / 2, 0.25))
    write(tmp_path / "audio" / "stereo.wav", (1.0, 0.5), rate=8000)
    manifest = prepare(options(tmp_path, tmp_path / "audio", max_seconds=3.5))
    assert verify(tmp_path / "data").problems == ()
    assert manifest.documents == 6
    assert manifest.refused["not 16 kHz mono"].first.startswith("stereo.wav: ")
    assert manifest.options["max_seconds"] == 3.5
    documents = {d.id: d for s in ("train", "validation", "test") for d in read_documents(tmp_path / "data", s)}
    document = documents["3.wav"]
    assert document.sentences == ["3.wav 0.00–1.10 s", "3.wav 1.40–4.00 s", "End of text."]
    path = tmp_path / "audio" / "3.wav"
    expected = FakeSpeech(None, device="cpu").encode([s.samples() for s in segments(path, 3.5)], "eng_Latn").half()
    assert np.array_equal(document.vectors[:-1], expected)
    assert np.array_equal(document.vectors[-1:], StubCodec("").encode(["End of text."]).half())
    with pytest.raises(UserError, match=r"--max-seconds 3.5, now not given"):
        prepare(options(tmp_path, tmp_path / "audio"))


def corpus(tmp_path, rows):
    for name, loudness in (("a.wav", 0.5), ("b.flac", 0.25), ("c.wav", 0.125)):
        write(tmp_path / name, (1.0, loudness))
    soundfile.write(tmp_path / "high.wav", np.zeros(48_000, np.float32), 48_000)
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps({"split": "train", **row}) + "\n" for row in rows))
    return tmp_path / "rows.jsonl"


def test_rows_name_their_files_and_languages(tmp_path):
    rows = [
        {"id": "both", "wav": ["a.wav", "b.flac"], "l": "eng_Latn"},
        {"id": "one", "wav": "c.wav", "l": "fra_Latn"},
        {"id": "gone", "wav": "d.wav", "l": "eng_Latn"},
        {"id": "high", "wav": ["a.wav", "high.wav"], "l": "eng_Latn"},
        {"id": "none", "wav": [], "l": "eng_Latn"},
        {"id": "klingon", "wav": "a.wav", "l": "tlh_Latn"},
        {"id": "typed", "wav": 3, "l": "eng_Latn"},
    ]
    asked = options(tmp_path, corpus(tmp_path, rows), audio_column="wav", lang_column="l", speech_encoder="a-card")
    manifest = prepare(asked)
    both, one = read_documents(tmp_path / "data", "train")
    assert both.sentences == ["a.wav 0.00–1.00 s", "b.flac 0.00–1.00 s", "End of text."]
    assert one.sentences == ["c.wav 0.00–1.00 s", "End of text."]
    assert both.vectors[:2, 2] == pytest.approx([0.5, 0.25], rel=0.01)
    assert (both.vectors[0, 3], one.vectors[0, 3], one.lang) == (0, 1, "fra_Latn")
    assert {reason: record.count for reason, record in manifest.refused.items()} == {
        "empty": 1,
        "no such audio file": 1,
        "not 16 kHz mono": 1,
        "not text": 1,
        "unknown language": 1,
    }


def test_a_recording_may_have_a_written_summary(tmp_path):
    rows = [{"wav": "a.wav", "summary": "Noise. Loud."}]
    prepare(options(tmp_path, corpus(tmp_path, rows), audio_column="wav", pairs=True))
    (document,) = read_documents(tmp_path / "data", "train")
    assert document.sentences == ["a.wav 0.00–1.00 s", "[MODEL]:", "Noise.", "Loud.", "End of text."]
    assert document.source_length == 2
    assert np.array_equal(document.vectors[2:4], StubCodec("").encode(["Noise.", "Loud."]).half())


def test_many_short_recordings_keep_their_own_vectors(tmp_path):
    (tmp_path / "audio").mkdir()
    rows = []
    for i in range(40):  # more than a batch, of many lengths
        soundfile.write(tmp_path / "audio" / f"{i}.wav", sound((0.2 + (i * 7 % 11) / 10, 0.01 + i / 50)), RATE)
        rows.append({"id": i, "wav": f"audio/{i}.wav"})
    prepare(options(tmp_path, corpus(tmp_path, rows), audio_column="wav"))
    for document in read_documents(tmp_path / "data", "train"):
        assert document.vectors[0, 2] == pytest.approx(0.01 + int(document.id) / 50, rel=0.01)


def test_text_in_a_folder_goes_before_its_recordings(tmp_path):
    source = corpus(tmp_path, [])
    assert find_inputs([str(tmp_path)], audio=True) == [source]
    assert find_inputs([str(tmp_path / "a.wav")], audio=True) == [tmp_path / "a.wav"]
    source.unlink()
    assert [p.name for p in find_inputs([str(tmp_path)], audio=True)] == ["a.wav", "b.flac", "c.wav", "high.wav"]
    for name in (tmp_path, tmp_path / "a.wav"):
        with pytest.raises(UserError, match=r"expected \.txt, "):
            find_inputs([str(name)])


def test_recordings_need_a_codec_of_their_own_width_and_a_known_language(tmp_path, monkeypatch):
    class Wide(FakeSpeech):
        def encode(self, recordings, lang):
            return torch.zeros(len(recordings), 1024)

    monkeypatch.setattr(worker, "SonarSpeech", Wide)
    source = corpus(tmp_path, [{"wav": "a.wav"}])
    with pytest.raises(UserError, match=r"4 channels, those of SONAR's speech encoder 1024; speech goes with"):
        prepare(options(tmp_path, source, audio_column="wav"))
    with pytest.raises(UserError, match=r"--max-seconds=0\.5: expected 1 to 60"):
        options(tmp_path, source, max_seconds=0.5)
    with pytest.raises(
        UserError,
        match="no row has a column 'sound'; only split, wav; name yours by --audio-column",
    ):
        prepare(options(tmp_path, source, audio_column="sound"))
    assert isinstance(Segment(tmp_path / "a.wav", 0, 160).samples(), torch.Tensor)


def test_a_language_that_no_encoder_speaks_is_refused(tmp_path, monkeypatch):
    class German(StubCodec):
        languages = ("eng_Latn", "deu_Latn")

    use_codec(monkeypatch, lambda name, **_: German(name))
    source = corpus(tmp_path, [{"wav": "a.wav", "id": "x", "l": "deu_Latn"}, {"wav": "b.flac", "l": "eng_Latn"}])
    asked = options(tmp_path, source, audio_column="wav", lang_column="l")
    manifest = prepare(asked)
    assert manifest.refused["no speech encoder"].first == "x: deu_Latn"
    assert manifest.documents == 1
