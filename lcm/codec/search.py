"""Greedy and beam search over the decoder: many vectors side by side, rows leave the batch as they finish.

Shapes.  B rows · N sentences · W beams of a sentence · D concept width · V vocabulary · P prefix · S pieces so far
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor

from lcm.codec.architecture import Decoder

BLOCK = 64
"""Pieces of the vocabulary that are first compared by their largest logit."""
LOGITS = 2**26
"""Numbers of the largest table of logits (256 MiB): of a large vocabulary, few beams are looked at together."""


@dataclass(frozen=True)
class Rules:
    """What a decoded sentence may look like."""

    end: int
    banned: list[int]
    """Pieces that are never produced."""
    limit: int
    """Most pieces of a sentence. After that many it must end, as it does in fairseq2."""


@torch.no_grad()
def greedy(
    decoder: Decoder, vectors: Float[Tensor, "N D"], prefix: Int[Tensor, "N P"], rules: Rules
) -> list[list[int]]:
    """The likeliest piece at every place. prefix: what the decoder starts from, row by row; not returned."""
    memory = decoder.memory(vectors)
    cache = decoder.cache(len(vectors), prefix.shape[1] + rules.limit)
    pieces = torch.full((len(vectors), rules.limit), rules.end, device=vectors.device)
    sentence = torch.arange(len(vectors), device=vectors.device)
    running = torch.ones_like(sentence, dtype=torch.bool)
    tokens = prefix
    for place in range(rules.limit):
        logits = decoder.logits(decoder(tokens, memory, cache)[:, -1])
        logits[:, rules.banned] = -torch.inf
        chosen = logits.argmax(-1)
        pieces[sentence, place] = chosen
        running &= chosen != rules.end
        kept = _closed_up(running)
        if len(kept) == 0:
            break
        if len(kept) < len(running):
            cache.select(kept)
            memory, sentence, running, chosen = memory[:, kept], sentence[kept], running[kept], chosen[kept]
        tokens = chosen[:, None]
    return _until_end(pieces, rules.end)


@torch.no_grad()
def beam_search(
    decoder: Decoder, vectors: Float[Tensor, "N D"], prefix: Int[Tensor, "N P"], rules: Rules, beams: int
) -> list[list[int]]:
    """The hypothesis with the highest mean log-probability of those that the beams meet, by fairseq2's rules.

    Of the best 2·beams continuations of a sentence, those that end and are among the first `beams` are finished, and
    the first `beams` that do not end go on; a sentence is done once `beams` hypotheses have finished, or no beam can
    become better than the best of them. The mean is over the pieces, the end, and what follows the first token of the
    prefix: the language.
    """
    longest = prefix.shape[1] + rules.limit
    cache = decoder.cache(len(vectors), longest, beams)
    memory = decoder.memory(vectors)
    states = decoder(prefix, memory, cache)
    logits = decoder.logits(states[:, :-1].contiguous())
    given = logits.gather(2, prefix[:, 1:, None])[..., 0] - logits.logsumexp(-1)
    score, states = given.sum(1, keepdim=True), states[:, -1]
    memory = memory.repeat_interleave(beams, dim=1)
    best = _Best(len(vectors), rules, vectors.device)
    sentence = torch.arange(len(vectors), device=vectors.device)
    running = torch.ones_like(sentence, dtype=torch.bool)
    history = torch.empty(len(vectors), 1, 0, dtype=torch.long, device=vectors.device)
    for place in range(rules.limit + 1):
        likeliest = _next_pieces(decoder, states, rules, place, 2 * beams)
        top, parent, piece = _continuations(score, *likeliest, 2 * beams)
        ended = piece == rules.end
        finished = top[:, :beams].masked_fill(~ended[:, :beams] | ~running[:, None], -torch.inf)
        best.offer(sentence, _of_parents(history, parent[:, :beams]), finished / (prefix.shape[1] + place))
        going = ended.int().argsort(dim=1, stable=True)[:, :beams]
        score, parent, piece = (x.gather(1, going) for x in (top, parent, piece))
        # Log-probabilities only add up, so no beam can end better than with its score over the longest length.
        running &= (best.finished[sentence] < beams) & (score[:, 0] / longest > best.score[sentence])
        kept = _closed_up(running)
        if place == rules.limit or len(kept) == 0:
            break
        history = torch.cat([_of_parents(history, parent), piece[..., None]], dim=2)
        cache.branch(parent)
        if len(kept) < len(running):
            cache.select(kept)
            memory = memory.view(len(memory), len(running), beams, -1)[:, kept].flatten(1, 2)
            sentence, running, history, score, piece = (x[kept] for x in (sentence, running, history, score, piece))
        states = decoder(piece.reshape(-1, 1), memory, cache)[:, -1]
    return _until_end(best.pieces, rules.end)


def _next_pieces(
    decoder: Decoder, states: Float[Tensor, "B D"], rules: Rules, place: int, count: int
) -> tuple[Float[Tensor, "B C"], Int[Tensor, "B C"]]:
    """The `count` likeliest pieces after each state, best first, with their log-probabilities.

    The only piece after `rules.limit` of them is the end.
    """
    rows = max(1, LOGITS // len(decoder.embed.weight))
    found = [_likeliest(decoder.logits(some), rules, place, count) for some in torch.split(states, rows)]
    top, piece = zip(*found, strict=True)
    return torch.cat(top), torch.cat(piece)


def _likeliest(
    logits: Float[Tensor, "B V"], rules: Rules, place: int, count: int
) -> tuple[Float[Tensor, "B C"], Int[Tensor, "B C"]]:
    """`_next_pieces` of the logits, which are overwritten: a vocabulary wide, they are read as rarely as can be."""
    if place == rules.limit:
        end = logits[:, rules.end, None] - logits.logsumexp(-1, keepdim=True)
        return end, torch.full_like(end, rules.end, dtype=torch.long)
    banned = logits[:, rules.banned]
    logits[:, rules.banned] = -torch.inf
    top, piece = _top(logits, min(count, logits.shape[1]))
    highest = torch.cat([top[:, :1], banned], dim=1).amax(1, keepdim=True)
    total = logits.sub_(highest).exp_().sum(1, keepdim=True) + (banned - highest).exp().sum(1, keepdim=True)
    return top - highest - total.log(), piece


def _top(logits: Float[Tensor, "B V"], count: int) -> tuple[Float[Tensor, "B C"], Int[Tensor, "B C"]]:
    """torch.topk, first among blocks by their largest: a pass over the vocabulary that does little."""
    rows, width = logits.shape
    blocks = width // BLOCK
    if width % BLOCK or blocks <= count:
        return logits.topk(count, dim=1)
    by_block = logits.view(rows, blocks, BLOCK)
    best = by_block.amax(2).topk(count, dim=1).indices
    top, place = by_block.gather(1, best[..., None].expand(-1, -1, BLOCK)).flatten(1).topk(count, dim=1)
    return top, best.gather(1, place // BLOCK) * BLOCK + place % BLOCK


def _continuations(
    score: Float[Tensor, "N W"], top: Float[Tensor, "B K"], piece: Int[Tensor, "B K"], count: int
) -> tuple[Float[Tensor, "N C"], Int[Tensor, "N C"], Int[Tensor, "N C"]]:
    """The `count` best ways to go on of each sentence, best first: score, beam that is continued, next piece.

    top, piece: of each beam its best, among which those of the sentence are. Where there are fewer ways than `count`,
    the last have the score -inf.
    """
    each = top.shape[1]
    every, piece = (score.reshape(-1, 1) + top).view(len(score), -1), piece.view(len(score), -1)
    if every.shape[1] < count:
        missing = (0, count - every.shape[1])
        every, piece = F.pad(every, missing, value=-torch.inf), F.pad(piece, missing)
    top, which = every.topk(count, dim=1)
    return top, (which // each).clamp(max=score.shape[1] - 1), piece.gather(1, which)


class _Best:
    """The best finished hypothesis of each sentence, and how many have finished."""

    def __init__(self, sentences: int, rules: Rules, device: torch.device) -> None:
        self.end = rules.end
        self.score = torch.full((sentences,), -torch.inf, device=device)
        self.pieces = torch.full((sentences, rules.limit), rules.end, device=device)
        self.finished = torch.zeros(sentences, dtype=torch.long, device=device)

    def offer(self, sentence: Int[Tensor, " N"], pieces: Int[Tensor, "N W S"], score: Float[Tensor, "N W"]) -> None:
        """W hypotheses of each of these sentences; the score is -inf where one has not finished."""
        self.finished[sentence] += (score > -torch.inf).sum(1)
        highest, which = score.max(dim=1)
        better = (highest > self.score[sentence]).nonzero()[:, 0]
        self.score[sentence[better]] = highest[better]
        winners = torch.full((len(better), self.pieces.shape[1]), self.end, device=pieces.device)
        winners[:, : pieces.shape[2]] = pieces[better, which[better]]
        self.pieces[sentence[better]] = winners


def _of_parents(history: Int[Tensor, "N W S"], parent: Int[Tensor, "N C"]) -> Int[Tensor, "N C S"]:
    """The pieces of each child's parent."""
    return history.gather(1, parent[..., None].expand(-1, -1, history.shape[2]))


def _closed_up(running: Bool[Tensor, " N"]) -> Int[Tensor, " M"]:
    """The rows that go on, the last of them in the places of those that do not: few rows of a cache need to move."""
    kept = running.nonzero()[:, 0]
    rows = torch.arange(len(kept), device=running.device)
    rows[~running[: len(kept)]] = kept[kept >= len(kept)]
    return rows


def _until_end(pieces: Int[Tensor, "N S"], end: int) -> list[list[int]]:
    return [row[: row.index(end)] if end in row else row for row in pieces.tolist()]
