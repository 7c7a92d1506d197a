"""Prompts in pieces that fit the model, in batches within a budget; the noise is that of the text."""

import json

import pytest
import torch
from fakes import FakeCodec, reciting
from families import build, config
from synthetic import DIM

from lcm.codec.text import LENGTHS, PROMPT_SUFFIX, is_length_wish, length_wish
from lcm.config import CodecRecord, Config, DataConfig
from lcm.errors import UserError
from lcm.inference.loop import StopRules
from lcm.inference.many import as_row
from lcm.inference.pieces import batches, fit, limit_of
from lcm.inference.pipeline import LCM
from lcm.models import Sampling

QUESTION = [f"Question {i}." for i in range(12)]


def numbered(count):
    return torch.arange(float(count))[:, None]


def parts(count, long, marks=(0, 1), slots=8, limit=2):
    """The numbers of the concepts of each piece."""
    found = fit([numbered(count)], lambda _: limit, slots, marks, long)
    return [piece[:, 0].int().tolist() for piece in found.prompts], found


@pytest.mark.parametrize(
    ("long", "expected", "dropped"),
    [
        (None, [[0, 1, 2, 3, 4, 11]], 6),
        ("head", [[0, 1, 2, 3, 4, 11]], 6),
        ("tail", [[6, 7, 8, 9, 10, 11]], 6),
        ("head+tail", [[0, 1, 2, 9, 10, 11]], 6),
        ("chunks", [[0, 1, 2, 3, 11], [4, 5, 6, 7, 11], [8, 9, 10, 11]], 0),
    ],
)
def test_a_long_document_is_read_in_the_part_that_was_asked_for_and_what_is_dropped_is_counted(long, expected, dropped):
    found, pieces = parts(12, long)
    assert found == expected
    assert (pieces.dropped, pieces.counts) == ([dropped], [len(expected)])
    assert parts(6, long)[0] == [[0, 1, 2, 3, 4, 5]], "one that fits stays whole"


def test_a_wish_at_the_beginning_stays_in_every_piece():
    assert parts(12, "tail", marks=(1, 1))[0] == [[0, 7, 8, 9, 10, 11]]
    assert all(piece[0] == 0 and piece[-1] == 11 for piece in parts(12, "chunks", marks=(1, 1))[0])
    assert parts(12, None, marks=(0, 0))[0] == [[6, 7, 8, 9, 10, 11]], "a continuation reads the end"


def test_batches_stay_within_the_budget_and_hold_every_prompt_once():
    sizes = [9, 3, 5, 5, 30, 2, 4]
    found = list(batches(sizes, 12))
    assert sorted(i for batch in found for i in batch) == list(range(7))
    assert all(len(batch) * max(sizes[i] for i in batch) <= 12 for batch in found if len(batch) > 1)
    assert found[-1] == [4], "one that is too large is alone"
    assert list(batches([4] * 6, 12)) == [[0, 1, 2], [3, 4, 5]]


def test_a_length_is_a_limit_too():
    stop = StopRules(max_sentences=10, end_threshold=0.9)
    assert [limit_of(n, stop, 0.1) for n in (1, 10, 11, 30, 500)] == [1, 1, 2, 3, 10]
    assert limit_of(500, stop, None) == 10


def test_a_length_is_asked_for_by_the_nearest_that_training_had():
    assert length_wish(0.1) == "Answer in about 10 percent of the length."
    assert length_wish(0.11) == length_wish(0.1) != length_wish(0.13)
    assert all(is_length_wish(length_wish(percent / 100)) for percent in LENGTHS)
    assert not is_length_wish("Answer in about 11 percent of the length.")


def test_a_tuned_model_reads_the_wish_before_the_text():
    model = reciting(
        [*QUESTION, PROMPT_SUFFIX, "One.", "Two.", "Three."], lengths=True, default_task="answer", slots=20
    )
    read = []
    prefill = model.model.prefill
    model.model.prefill = lambda prompts: read.extend(prompts) or prefill(prompts)
    result = model.generate(" ".join(QUESTION[:10]), length=0.2)
    assert result.sentences == ["One.", "Two."], "two of ten sentences"
    assert model.codec.decode(read[0]) == [length_wish(0.2), *QUESTION[:10], PROMPT_SUFFIX]


@pytest.mark.parametrize(
    ("record", "options", "expected"),
    [
        ({"default_task": "answer"}, {"length": 0.1}, "--length=0.1: the model was not tuned to lengths"),
        ({"lengths": True}, {"length": 0.1}, "--length=0.1: asks for the length of an answer"),
        ({}, {"long": "chunks"}, "--long=chunks: goes with answers"),
        ({}, {"long": "head"}, "--long=head: goes with answers"),
    ],
)
def test_what_the_model_would_not_heed_is_refused(record, options, expected):
    with pytest.raises(UserError, match=expected):
        reciting(QUESTION, **record).generate(QUESTION[0], **options)


def test_chunks_are_answered_one_by_one_and_joined():
    model = reciting([*QUESTION, PROMPT_SUFFIX, "An answer."], slots=8)
    result = model.generate(" ".join(QUESTION), task="answer", long="chunks", max_sentences=2)
    assert result.sentences == ["An answer."] * 3
    assert (result.chunks, result.dropped) == (3, 0)
    assert as_row("a", result)["chunks"] == 3
    head = model.generate(" ".join(QUESTION), task="answer", max_sentences=2)
    assert (head.sentences, head.dropped) == (["An answer."], 7)
    assert json.loads(json.dumps(as_row("a", head)))["dropped"] == 7


def noisy(family):
    """An LCM whose model draws noise, around a codec that knows a hundred sentences."""
    codec = FakeCodec(DIM)
    codec.encode([f"Number {i}." for i in range(100)])
    record = CodecRecord(
        name="fake",
        fingerprint="fake",
        dim=DIM,
        lang="eng_Latn",
        splitter={},
        stop_threshold=2.0,
        default_task="answer",
    )
    settings = Config(model=config(family), data=DataConfig(slots=14), codec=record)
    return LCM(build(family), codec, settings)


@pytest.mark.parametrize("family", ["base", "two_tower", "quant_d"])
def test_texts_do_not_depend_on_the_memory_of_a_batch(family):
    """All of these prompts end with the same concept, the suffix: their noise is that of their text."""
    texts = [" ".join(f"Number {j}." for j in range(i, i + 1 + i % 5)) for i in range(11)]
    sampling = Sampling(seed=4, steps=3 if family == "two_tower" else None)
    found = [
        noisy(family).generate_many(texts, max_sentences=3, sampling=sampling, batch_concepts=budget)
        for budget in (1, 40, 10**6)
    ]
    assert found[0] == found[1] == found[2]


def test_prompts_with_one_suffix_have_noise_of_their_own(monkeypatch):
    seen = []
    model = noisy("two_tower")
    prefill, draw = model.model.prefill, model.model.next
    monkeypatch.setattr(
        model.model, "next", lambda context, sampling: seen.append(context.prompt) or draw(context, sampling)
    )
    model.generate_many(["One. Two.", "Three. Two.", "One. Two."], max_sentences=1, sampling=Sampling(steps=2))
    first, other, again = seen[0].tolist()
    assert first == again != other
    assert prefill([torch.zeros(1, DIM)] * 2).prompt.unique().numel() == 1
