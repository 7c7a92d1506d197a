"""The order of training is a pure function of rows, seed and step; every row comes once an epoch."""

from collections import Counter
from itertools import islice

import torch
from lightning.fabric.utilities import move_data_to_device

from lcm.codec_lab.batches import Batches, Order, PieceRow, collate, fixed_batches
from lcm.codec_lab.settings import CorpusSettings


def example(length, number, taught=False):
    pieces = tuple(range(10, 10 + length))
    return PieceRow(pieces, pieces, 90, 90, number, taught)


SENTENCES = [example(2 + i % 5, i, taught=i % 3 == 0) for i in range(60)]
PAIRS = [PieceRow((4,) * (1 + i % 4), (5,) * (1 + i % 3), 90, 91) for i in range(20)]
ORDER = Order(CorpusSettings(tokens=30), seed=1)


def test_an_epoch_takes_every_row_once():
    counts = Counter(i for batch in ORDER.epoch(SENTENCES + PAIRS, 0) for i in batch)
    assert counts == Counter(range(80))


def test_sentences_of_a_batch_have_one_length_and_fit_the_budget():
    for batch in ORDER.epoch(SENTENCES + PAIRS, 0):
        examples = [(SENTENCES + PAIRS)[i] for i in batch]
        assert len({e.is_translation for e in examples}) == 1
        if not examples[0].is_translation:
            assert len({(len(e.source), e.taught) for e in examples}) == 1
        longest = max(len(e.target) for e in examples) + 2
        assert len(examples) == 1 or longest * len(examples) <= 30


def test_epochs_differ_and_repeat_with_their_seed():
    assert ORDER.epoch(SENTENCES, 0) != ORDER.epoch(SENTENCES, 1)
    assert ORDER.epoch(SENTENCES, 1) == Order(CorpusSettings(tokens=30), seed=1).epoch(SENTENCES, 1)
    assert ORDER.epoch(SENTENCES, 0) != Order(CorpusSettings(tokens=30), seed=2).epoch(SENTENCES, 0)


def test_starting_late_gives_what_starting_early_would_have_reached():
    batches = len(ORDER.epoch(SENTENCES, 0))
    for start in (0, 3, batches, batches + 2):
        whole = list(islice(ORDER.batches(SENTENCES), start, start + 4))
        late = list(islice(Batches(lambda start=start: ORDER.batches(SENTENCES, start)), 4))
        assert [b.sentence.tolist() for b in late] == [b.sentence.tolist() for b in whole]


def test_short_sentences_come_by_their_share_and_long_ones_always():
    many = [example(3 + 5 * (i % 2), i) for i in range(2000)]
    order = Order(CorpusSettings(tokens=100, short_pieces=5, short_share=0.25), seed=1)
    taken = [i for batch in order.epoch(many, 0) for i in batch]
    assert sum(i % 2 for i in taken) == 1000
    assert 200 < sum(i % 2 == 0 for i in taken) < 300


def test_collated_rows_end_where_their_lengths_say():
    batch = collate([PAIRS[0], PAIRS[1], PAIRS[5]])
    assert batch.is_translation
    for row, pair in enumerate((PAIRS[0], PAIRS[1], PAIRS[5])):
        assert batch.source[row, : batch.source_lengths[row]].tolist() == list(pair.source)
        assert batch.target[row, : batch.target_lengths[row]].tolist() == list(pair.target)
    assert batch.target_lang.tolist() == [91] * 3
    moved = move_data_to_device(batch, torch.device("meta"))
    assert moved.is_translation
    assert all(tensor.is_meta for tensor in moved[:-1])


def test_validation_reads_each_sentence_once():
    numbers = [int(i) for batch in fixed_batches(SENTENCES, 30) for i in batch.sentence]
    assert sorted(numbers) == list(range(60))


STARTS = [piece % 3 == 0 for piece in range(100)]
SPANS = Order(CorpusSettings(tokens=30, spans=0.5), seed=1, starts_word=STARTS)
LONG = [example(12 + i % 9, i) for i in range(400)]


def test_a_span_is_a_run_of_whole_words_and_its_own_target():
    shorter = 0
    for before, after in zip(LONG, SPANS.with_spans(LONG, 0), strict=True):
        assert after.source == after.target
        assert after.sentence == before.sentence
        if after == before:
            continue
        shorter += 1
        first = before.source.index(after.source[0])
        end = first + len(after.source)
        assert before.source[first:end] == after.source
        assert first == 0 or STARTS[before.source[first]]
        assert end == len(before.source) or STARTS[before.source[end]]
        assert sum(STARTS[piece] for piece in after.source) >= 2, "three words, of which the first may be cut by nature"
    assert 120 < shorter < 200, "half of them, save those that drew all their words"


def test_every_epoch_draws_other_spans_and_repeats_with_its_seed():
    assert SPANS.with_spans(LONG, 0) != SPANS.with_spans(LONG, 1)
    assert SPANS.with_spans(LONG, 1) == SPANS.with_spans(LONG, 1)
    assert ORDER.with_spans(LONG, 1) is LONG


def test_translations_are_never_cut_and_batches_hold_spans_of_one_length():
    assert SPANS.with_spans(PAIRS, 0) == PAIRS
    for batch in islice(SPANS.batches(LONG), 100):
        assert len(set(batch.source_lengths.tolist())) == 1


def test_starting_late_among_spans_gives_what_starting_early_would_have_reached():
    batches = len(SPANS.epoch(SPANS.with_spans(LONG, 0), 0))
    for start in (2, batches + 1):
        whole = list(islice(SPANS.batches(LONG), start, start + 3))
        late = list(islice(Batches(lambda start=start: SPANS.batches(LONG, start)), 3))
        assert all(torch.equal(a.source, b.source) for a, b in zip(whole, late, strict=True))
