"""Cutting and packing: nothing lost, nothing twice, nothing out of its document."""

import numpy as np
import pytest

from lcm.data.packing import best_fit, cut_documents, pack, row_count


def an_index(*documents: tuple[int, int]) -> np.ndarray:
    """(concepts, source_length) of each document → the index of a shard with 1 byte a concept."""
    concepts = np.array([n for n, _ in documents])
    return np.stack([concepts.cumsum() - concepts, concepts, [s for _, s in documents]], axis=1)


def pieces_of(concepts: int, source: int = 0, slots: int = 8) -> list[list[tuple[int, int, int, int]]]:
    """(first, count, pos, prompt) of each span of each piece of one document."""
    spans, piece = cut_documents(an_index((concepts, source)), np.zeros(1, dtype=np.int64), slots)
    fields = spans[["first", "count", "pos", "prompt"]]
    return [
        sorted((tuple(s) for s in fields[piece == p].tolist()), key=lambda s: s[2]) for p in range(int(piece.max()) + 1)
    ]


def rooms_by_hand(lengths: list[int], slots: int) -> list[int]:
    """The free slots of each row, sorted: they do not depend on which of two rows with equal room is taken."""
    free: list[int] = []
    for length in sorted(lengths, reverse=True):
        enough = [room for room in free if room >= length]
        if enough:
            free.remove(min(enough))
        free.append((min(enough) if enough else slots) - length)
    return sorted(free)


@pytest.mark.parametrize("slots", [2, 3, 8, 128, 2048, 2**16 + 1])
def test_packing_is_exactly_best_fit_the_longest_first(slots):
    rng = np.random.default_rng(slots)
    for longest in {slots, slots // 2, min(slots, 5)}:
        lengths = rng.integers(1, longest + 1, 600)
        used = np.bincount(best_fit(lengths, slots), weights=lengths).astype(int)
        assert sorted((slots - used).tolist()) == rooms_by_hand(lengths.tolist(), slots)


def test_long_rows_are_packed_alike():
    assert best_fit(np.array([1, 2**16 + 1, 2**16, 2]), 2**16 + 1).tolist() == [1, 0, 1, 2]


def test_nothing_is_packed_into_nothing():
    assert best_fit(np.empty(0, dtype=np.int64), 8).tolist() == []


def test_which_lengths_share_a_row_does_not_depend_on_the_order_of_documents():
    rng = np.random.default_rng(0)
    lengths = rng.integers(1, 65, 500)
    shared = set()
    for order in (np.arange(500), rng.permutation(500), np.arange(500)[::-1]):
        rows = best_fit(lengths[order], 128)
        shared.add(tuple(tuple(sorted(lengths[order][rows == row])) for row in range(rows.max() + 1)))
    assert len(shared) == 1


@pytest.mark.parametrize("slots", [2, 8, 16, 64])
def test_rows_are_counted_without_being_packed(slots):
    """Documents of any length, pairs that lose some of their prompt, and pairs whose answer alone is too long."""
    rng = np.random.default_rng(slots)
    for number in range(20):
        concepts = rng.integers(1, 40, 30 + number)
        documents = [(n, int(rng.integers(0, n))) for n in concepts.tolist()]
        index, shard = an_index(*documents), np.zeros(len(documents), dtype=np.int64)
        assert row_count(index, slots) == len(pack(index, shard, slots, predicts_first=True))


def test_a_document_that_fits_is_one_piece():
    assert pieces_of(8) == [[(0, 8, 0, 0)]]
    assert pieces_of(8, source=3) == [[(0, 8, 0, 3)]]


def test_a_long_document_is_cut_into_documents_of_their_own():
    assert pieces_of(19) == [[(0, 8, 0, 0)], [(8, 8, 0, 0)], [(16, 3, 0, 0)]]


def test_a_long_pair_loses_prompt_concepts_just_before_the_suffix():
    """15 of prompt, the suffix among them at 14, and 4 of answer: the first 3, the suffix and the answer remain."""
    assert pieces_of(19, source=15) == [[(0, 3, 0, 3), (14, 5, 3, 1)]]


def test_a_pair_keeps_its_suffix_even_where_no_other_prompt_concept_fits():
    assert pieces_of(19, source=12) == [[(11, 8, 0, 1)]]


def test_a_pair_with_too_long_an_answer_is_cut_like_any_other_document():
    """Answer and suffix are 9: targets are the concepts from 11 on, wherever the cuts fall."""
    assert pieces_of(19, source=11) == [[(0, 8, 0, 8)], [(8, 8, 0, 3)], [(16, 3, 0, 0)]]


def test_no_piece_is_longer_than_a_row_and_every_concept_of_a_continuation_has_one_place():
    rng = np.random.default_rng(0)
    documents = [(int(n), 0) for n in rng.integers(1, 60, 200)]
    packed = pack(an_index(*documents), np.zeros(200, dtype=np.int64), slots=16, predicts_first=True)
    seen = [
        (offset, first + i)
        for offset, first, count in packed.spans[["offset", "first", "count"]].tolist()
        for i in range(count)
    ]
    assert len(seen) == len(set(seen)) == sum(n for n, _ in documents)


def test_spans_lie_side_by_side_in_a_row_and_number_their_documents():
    documents = [(3, 0), (19, 15), (4, 0), (1, 0)]
    packed = pack(an_index(*documents), np.zeros(4, dtype=np.int64), slots=8, predicts_first=True)
    rows = [packed.row(number)[0] for number in range(len(packed))]
    assert [r["slot"].tolist() for r in rows] == [[0, 3], [0, 3, 7]]
    assert [r["doc"].tolist() for r in rows] == [[0, 0], [0, 1, 2]]
    assert [r["count"].tolist() for r in rows] == [[3, 5], [3, 4, 1]]


def test_counts_know_whether_the_first_concept_is_predicted():
    documents = [(3, 0), (5, 2), (19, 15)]
    index, shard = an_index(*documents), np.zeros(3, dtype=np.int64)
    assert pack(index, shard, 8, predicts_first=True).targets.tolist() == [4, 3 + 3]
    assert pack(index, shard, 8, predicts_first=False).targets.tolist() == [4, 2 + 3]


@pytest.mark.parametrize("slots", [128, 2048])
def test_few_slots_stay_empty(slots):
    rng = np.random.default_rng(slots)
    lengths = rng.integers(4, 65, 20_000)
    rows = int(best_fit(lengths, slots).max()) + 1
    assert lengths.sum() > 0.998 * rows * slots
