"""Search with a cache, many rows at a time, against plain loops over whole sentences."""

from dataclasses import replace
from itertools import product

import pytest
import torch

from lcm.codec.search import Cache, Rules, _compacted, _top, beam_search, greedy

END = 3
PREFIX = [END, 10]
RULES = Rules(end=END, banned=[0, 2, 9, 10], limit=12)


@pytest.fixture(scope="module")
def vectors():
    return torch.randn(16, 16, generator=torch.Generator().manual_seed(5))


def started(vectors):
    return torch.tensor([PREFIX]).expand(len(vectors), -1)


def read_out(model, vectors, rules):
    return greedy(model.decoder, vectors, started(vectors), rules)


def searched(model, vectors, rules, beams):
    return beam_search(model.decoder, vectors, started(vectors), rules, beams)


def log_probabilities(model, vector, tokens):
    """Log-probabilities of every next token after each of `tokens`, without a cache."""
    decoder = model.decoder
    return decoder.logits(decoder(torch.tensor([tokens]), decoder.memory(vector[None]))).log_softmax(-1)[0]


def mean_score(model, vector, pieces, rules):
    """The mean log-probability of a whole hypothesis, its end included."""
    tokens = [*PREFIX, *pieces, rules.end]
    logp = log_probabilities(model, vector, tokens)
    return sum(float(logp[i, token]) for i, token in enumerate(tokens[1:])) / (len(tokens) - 1)


def naive_greedy(model, vector, rules):
    pieces: list[int] = []
    while len(pieces) < rules.limit:
        logp = log_probabilities(model, vector, PREFIX + pieces)[-1]
        best = max((float(logp[t]), t) for t in range(len(logp)) if t not in rules.banned)[1]
        if best == rules.end:
            break
        pieces.append(best)
    return pieces


def naive_beam(model, vector, rules, beams):
    """One sentence, plain lists, everything computed anew at every step."""
    given = float(log_probabilities(model, vector, PREFIX)[0, PREFIX[1]])
    alive, finished = [(given, [])], []
    for length in range(rules.limit + 1):
        options = []
        for score, pieces in alive:
            logp = log_probabilities(model, vector, PREFIX + pieces)[-1]
            allowed = [t for t in range(len(logp)) if t not in rules.banned] if length < rules.limit else [rules.end]
            options += [(score + float(logp[t]), [*pieces, t]) for t in allowed]
        options = sorted(options, reverse=True)[: 2 * beams]
        finished += [(s / (length + 2), p[:-1]) for s, p in options[:beams] if p[-1] == rules.end]
        if len(finished) >= beams:
            break
        alive = [(s, p) for s, p in options if p[-1] != rules.end][:beams]
    return max(finished)[1]


def test_decoding_with_a_cache_equals_decoding_without(toy, vectors):
    decoder = toy.decoder
    tokens = torch.randint(0, 11, (16, 9), generator=torch.Generator().manual_seed(0))
    memory = decoder.memory(vectors)
    whole = decoder(tokens, memory)
    cache = Cache(decoder, rows=16, positions=9)
    parts = [
        cache.extend(tokens[:, :2], memory),
        *(cache.extend(tokens[:, i : i + 1], memory) for i in range(2, 9)),
    ]
    assert (torch.cat(parts, dim=1) - whole).abs().max() <= 1e-5 * whole.abs().max()


def test_a_selected_cache_continues_as_its_rows_would(toy, vectors):
    decoder = toy.decoder
    tokens = torch.randint(0, 11, (6, 5), generator=torch.Generator().manual_seed(0))
    rows = torch.tensor([4, 1, 1, 0])
    cache = Cache(decoder, rows=6, positions=5)
    cache.extend(tokens[:, :4], decoder.memory(vectors[:6]))
    cache.select(rows)
    after = cache.extend(tokens[rows, 4:], decoder.memory(vectors[rows]))
    whole = decoder(tokens[rows], decoder.memory(vectors[rows]))
    assert (after - whole[:, 4:]).abs().max() <= 1e-5 * whole.abs().max()


def test_a_piece_never_sees_the_next(toy, vectors):
    tokens = torch.randint(0, 11, (1, 6), generator=torch.Generator().manual_seed(0))
    changed = tokens.clone()
    changed[0, 3] = (tokens[0, 3] + 1) % 11
    memory = toy.decoder.memory(vectors[:1])
    same = (toy.decoder(tokens, memory) == toy.decoder(changed, memory)).all(-1)
    assert same[0].tolist() == [True, True, True, False, False, False]


def test_greedy_equals_a_plain_loop(toy, vectors):
    found = read_out(toy, vectors, RULES)
    assert found == [naive_greedy(toy, vector, RULES) for vector in vectors]
    assert len({len(pieces) for pieces in found}) >= 5, "the rows must leave the batch at different times"
    assert max(map(len, found)) == RULES.limit


def test_one_beam_is_greedy(toy, vectors):
    assert searched(toy, vectors, RULES, beams=1) == greedy(toy.decoder, vectors, started(vectors), RULES)


@pytest.mark.parametrize("beams", [2, 3, 5])
def test_beams_equal_a_plain_loop(toy, vectors, beams):
    found = searched(toy, vectors, RULES, beams)
    assert found == [naive_beam(toy, vector, RULES, beams) for vector in vectors]
    assert found != read_out(toy, vectors, RULES)


def test_beams_are_the_same_when_unseen_entries_are_dropped_again_and_again(toy, vectors, monkeypatch):
    expected = searched(toy, vectors, RULES, beams=3)
    drops = []
    original = Cache._drop_unseen
    monkeypatch.setattr(Cache, "START", 7)
    monkeypatch.setattr(Cache, "_drop_unseen", lambda cache: drops.append(cache.used) or original(cache))
    assert searched(toy, vectors, RULES, beams=3) == expected
    assert len(drops) > 1, "the cache must have been full more than once"


@pytest.mark.parametrize("beams", [1, 3])
def test_a_cache_never_takes_more_room_than_its_longest_sequences(toy, vectors, beams, monkeypatch):
    rooms = []
    original = Cache._room
    monkeypatch.setattr(Cache, "START", 5)
    monkeypatch.setattr(Cache, "_room", lambda cache, entries: rooms.append(entries) or original(cache, entries))
    if beams == 1:
        read_out(toy, vectors, RULES)
    else:
        searched(toy, vectors, RULES, beams)
    assert len(rooms) > 1, "it must have grown"
    assert max(rooms) <= (len(PREFIX) + RULES.limit) * beams


@pytest.mark.parametrize("width", [1280, 1284, 640])
def test_the_best_by_blocks_are_the_best_of_all(width):
    logits = torch.randn(50, width, generator=torch.Generator().manual_seed(0))
    logits[0, -12:] = torch.arange(12) + 10.0  # all in the last block
    logits[1, ::64] = 9.0 + torch.arange(len(logits[1, ::64])) / 100  # one in each
    found, expected = _top(logits, 10), logits.topk(10, dim=1)
    assert torch.equal(found[0], expected.values)
    assert torch.equal(found[1], expected.indices)


def test_running_rows_are_compacted_by_moving_as_few_as_there_are_gaps():
    running = torch.tensor([True, False, True, True, False, True, True])
    assert _compacted(running).tolist() == [0, 5, 2, 3, 6]
    assert _compacted(torch.zeros(3, dtype=torch.bool)).tolist() == []
    assert _compacted(torch.ones(3, dtype=torch.bool)).tolist() == [0, 1, 2]


def test_wide_enough_beams_find_the_best_of_all_sentences(toy, vectors):
    rules = replace(RULES, banned=[0, 2, 6, 7, 8, 9, 10], limit=3)
    words = [t for t in range(11) if t not in rules.banned and t != END]
    every = [list(pieces) for length in range(4) for pieces in product(words, repeat=length)]
    found = searched(toy, vectors[:8], rules, beams=len(every) * 2)
    for vector, pieces in zip(vectors, found, strict=False):
        assert pieces == max(every, key=lambda p: mean_score(toy, vector, p, rules))


def test_a_banned_piece_is_never_produced(toy, vectors):
    favourite = read_out(toy, vectors[:1], RULES)[0][0]
    rules = replace(RULES, banned=[*RULES.banned, favourite])
    for found in (
        read_out(toy, vectors, rules),
        searched(toy, vectors, rules, 4),
    ):
        assert not {piece for pieces in found for piece in pieces} & set(rules.banned)


def test_no_sentence_is_longer_than_the_limit(toy, vectors):
    rules = replace(RULES, banned=[*RULES.banned, END], limit=7)
    for found in (
        read_out(toy, vectors, rules),
        searched(toy, vectors, rules, 3),
    ):
        assert {len(pieces) for pieces in found} == {7}


def test_a_sentence_does_not_depend_on_its_companions(toy, vectors):
    together = searched(toy, vectors, RULES, 4)
    assert together == [searched(toy, v[None], RULES, 4)[0] for v in vectors]
