"""SaT Capped: the reference's rule, letter by letter, and the model that gives it its probabilities."""

import random
import socket
import sys

import numpy as np
import pytest
from tiny_sat import write_tiny_sat

from lcm.codec import sat
from lcm.codec.sat import SatModel, at_separators, cut_after, cut_long, remove_emojis, sat_split
from lcm.codec.text import SatSettings, Splitter, SplitterSettings, splitter_settings
from lcm.errors import UserError

SEPARATORS = ["...", "\n", "!", "?", ";", ":", ".", ",", "\t", " "]


def fake(text):
    """A probability for each character that depends on the text alone, as a model's does."""
    generator = np.random.default_rng(sum(map(ord, text)) + len(text))
    return generator.integers(0, 40, len(text)) / 40 * np.array([0.2 if c.isalnum() else 1.0 for c in text])


def naive(text, threshold, limit):
    """The rule, written a second time: one character after the other, and no numpy."""

    def pieces_of(part, is_end):
        out, current, blanks = [], "", False
        for character, ends in zip(part, is_end, strict=True):
            if blanks and not character.isspace():
                out, current, blanks = [*out, current], "", False
            current += character
            blanks = blanks or ends
        return [*out, current]

    def greedy(part, separator):
        atoms, rest = [], part
        while separator in rest:
            place = rest.index(separator) + len(separator)
            atoms, rest = [*atoms, rest[:place]], rest[place:]
        out, current = [], ""
        for atom in [*atoms, rest]:
            if len(current + atom) > limit:
                out, current = [*out, current], ""
            current += atom
        return [*out, current]

    probabilities = list(fake(text))
    whole = len(text) <= 10 or not text.strip()
    first = [text] if whole else pieces_of(text, [p > threshold for p in probabilities])
    result = []
    for line in [line.strip() for piece in first for line in piece.split("\n")]:
        if len(line) < limit:
            result.append(line)
            continue
        again = list(fake(line))
        n = round(len(line) / limit) + 1
        least = sorted(again, reverse=True)[min(n, len(again)) - 1]
        parts = pieces_of(line, [p >= least for p in again])
        for separator in SEPARATORS:
            parts = [p.strip() for part in parts for p in greedy(part, separator)]
        result += parts
    return [piece for piece in result if piece]


def random_text(generator, length):
    pieces = [*"abcdefghij    ...,,;:!?\n\t", "...", "  ", "日本。", "é", "ab cd"]
    return "".join(generator.choice(pieces) for _ in range(length))


@pytest.mark.parametrize("limit", [1, 7, 16, 256])
def test_the_rule_equals_a_second_implementation(limit):
    generator = random.Random(limit)
    for _ in range(40):
        text, threshold = (
            random_text(generator, generator.randrange(1 + min(60 * limit, 900))),
            generator.choice([0.02, 0.5, 0.97, 1.0]),
        )
        found = sat_split(text, fake, threshold, limit)
        assert found == naive(text, threshold, limit)
        assert "".join("".join(found).split()) == "".join(text.split())


def test_a_piece_over_the_limit_is_cut_at_its_likeliest_boundaries():
    sentence = "a" * 100 + " " + "b" * 100 + " " + "c" * 98  # of 300 characters: round(300 / 256) + 1 = 2
    probabilities = np.full(300, 1e-3)
    probabilities[[99, 200, 299]] = 0.3, 0.4, 0.9
    assert [len(piece) for piece in cut_long(sentence, probabilities, 256)] == [202, 98]
    assert [len(piece) for piece in cut_long(sentence, probabilities, 150)] == [101, 101, 98]  # 3


@pytest.mark.parametrize(("length", "pieces"), [(255, 1), (256, 3), (383, 3), (385, 4)])
def test_a_sentence_as_long_as_the_cap_is_given_to_the_model_again(length, pieces):
    probabilities = np.linspace(0.5, 0.1, length)  # the first n letters end sentences, and so the rest is one more
    assert len(sat_split("x" * length, lambda _: probabilities, 0.6, 256)) == pieces


def test_blanks_stay_with_the_piece_on_their_left_and_nothing_is_lost():
    assert cut_after("ab  cd e", [1, 2, 5]) == ["ab  ", "cd ", "e"]
    assert cut_after("ab", [1]) == ["ab"]
    assert cut_after("", []) == []


def test_separators_come_in_their_order_and_pieces_are_filled_up_again():
    assert at_separators(["one, two! three, four, five"], 14) == ["one, two!", "three, four,", "five"]
    assert at_separators(["aa... bb, cc"], 8) == ["aa...", "bb, cc"]
    assert at_separators(["x" * 30], 8) == ["x" * 30]  # for the codec's own limit to cut


@pytest.mark.parametrize(
    ("text", "plain", "count"),
    [
        ("Good 😀! 👍🏽 Yes", "Good !  Yes", 2),
        ("👩‍👩‍👧 home 🇫🇷", " home ", 3),  # a family is one, a flag two letters
        ("❤️ 1️⃣ ☀", " 1 ", 3),
        ("日本。한국어 العربية हिन्दी ශ්‍රී ①❶ “x” — €5", "日本。한국어 العربية हिन्दी ශ්‍රී ①❶ “x” — €5", 0),
    ],
)
def test_emojis_go_and_letters_of_every_script_stay(text, plain, count):
    assert remove_emojis(text) == (plain, count)


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    return write_tiny_sat(tmp_path_factory.mktemp("tiny-sat"))


@pytest.fixture
def _no_network(monkeypatch):
    def refuse(*_):
        raise AssertionError("asked the network")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)


@pytest.mark.needs("wtpsplit")
@pytest.mark.usefixtures("_no_network")
def test_a_local_folder_is_read_without_network(tiny):
    model = SatModel(str(tiny))
    text = "One thing. Another 日本。 thing! " * 40
    probabilities = model(text)
    assert probabilities.shape == (len(text),)
    assert probabilities.std() > 0.01
    assert (probabilities[[c == " " for c in text]] == 0).all()
    splitter = Splitter(SatSettings(model=str(tiny), threshold=0.6, fingerprint=model.fingerprint))
    assert splitter.split(text) == [" ".join(s.split()) for s in sat_split(text, model, 0.6, 256)]
    assert 2 < len(splitter.split(text)) < len(text)


@pytest.mark.needs("wtpsplit")
def test_the_codecs_own_limit_holds_afterwards(tiny, monkeypatch):
    monkeypatch.setattr(SatModel, "__call__", lambda _, text: fake(text))
    splitter = Splitter(SatSettings(model=str(tiny), threshold=0.9), fits=lambda s: len(s) <= 12)
    text = "The sea 🌊 was calm.\r\n" * 9 + "日本" * 30
    sentences = splitter.split(text)
    assert max(map(len, sentences)) <= 12
    assert "".join("".join(sentences).split()) == "".join(remove_emojis(text)[0].split())
    assert splitter.emojis == 9


@pytest.mark.needs("wtpsplit")
def test_another_model_than_the_texts_is_refused(tiny, tmp_path):
    other = write_tiny_sat(tmp_path / "other", seed=1)
    settings = SatSettings(model=str(other), fingerprint=SatModel(str(tiny)).fingerprint)
    with pytest.raises(UserError, match=r"is another one .* than the text was cut with"):
        Splitter(settings)


@pytest.mark.needs("wtpsplit")
def test_a_model_that_loads_and_does_not_run_is_refused_before_any_text(tiny, monkeypatch):
    """Another version of transformers does so, with errors of any type."""

    def other_version(*_, **__):
        raise TypeError("forward() got an unexpected keyword argument")

    monkeypatch.setattr("wtpsplit.SaT.predict_proba", other_version)
    with pytest.raises(UserError, match=r"it does not run here \(forward\(\) got an unexpected .*--splitter nupunkt"):
        SatModel(str(tiny))


@pytest.mark.needs("wtpsplit")
def test_missing_files_of_the_model_are_named_with_the_way_out(tiny, tmp_path, monkeypatch):
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(UserError, match=r"no model.safetensors in that folder; name a folder with config.json, "):
        SatModel(str(tmp_path))
    (tmp_path / "model.safetensors").write_bytes(b"nothing")
    (tmp_path / "tokenizer.json").write_bytes((tiny / "tokenizer.json").read_bytes())
    with pytest.raises(UserError, match="SaT model"):
        SatModel(str(tmp_path))
    monkeypatch.setattr("huggingface_hub.snapshot_download", lambda *_, **__: (_ for _ in ()).throw(OSError("offline")))
    with pytest.raises(UserError, match="segment-any-text/sat-3l can neither be fetched nor found"):
        SatModel("sat-3l")
    monkeypatch.setitem(sys.modules, "wtpsplit", None)
    with pytest.raises(UserError, match=r"pip install 'lcm-train\[sat\]'"):
        SatModel("sat-3l")


def test_settings_go_into_a_config_and_come_back():
    for settings in (SatSettings(model="sat-6l", threshold=0.2, fingerprint="f"), SplitterSettings(max_characters=99)):
        assert splitter_settings(settings.model_dump()) == settings
    assert splitter_settings({"max_characters": 7}) == SplitterSettings(max_characters=7)
    assert list(sat.SEPARATORS) == SEPARATORS
