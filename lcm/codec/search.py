"""Greedy and beam search over the decoder, in batches from which finished rows are removed.

Shapes.  B rows · N sentences · W beams of a sentence · D concept width · V vocabulary · P prefix · S pieces so far
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor

from lcm.codec.architecture import Decoder

BLOCK = 64
"""Pieces in a block of the vocabulary; top-k first compares blocks by their largest logit."""
LOGITS = 2**26
"""Most logits computed at once (256 MiB): with a large vocabulary, beams are processed in several batches."""


@dataclass(frozen=True)
class Rules:
    """Limits on a decoded sentence."""

    end: int
    """Piece that ends a sentence."""
    banned: list[int]
    """Pieces that are never produced."""
    limit: int
    """Longest sentence in pieces. After that many it must end, as in fairseq2."""


@torch.no_grad()
def greedy(
    decoder: Decoder, vectors: Float[Tensor, "N D"], prefix: Int[Tensor, "N P"], rules: Rules
) -> list[list[int]]:
    """Greedy search: pieces of each sentence, without prefix and end. prefix: first pieces of each row."""
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
        kept = _compacted(running)
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
    """Beam search by fairseq2's rules: the finished hypothesis with the highest mean log-probability.

    Each step looks at the best 2·beams continuations of a sentence. Those that end and are among the first `beams` are
    finished; the first `beams` that do not end continue. A sentence is done once `beams` hypotheses have finished, or
    no beam can beat the best of them. The mean is over the pieces, the end, and the prefix after its first token, that
    is, the language.
    """
    longest = prefix.shape[1] + rules.limit
    cache = decoder.cache(len(vectors), longest, beams)
    memory = decoder.memory(vectors)
    states = decoder(prefix, memory, cache)
    logits = decoder.logits(states[:, :-1].contiguous())
    prefix_score = logits.gather(2, prefix[:, 1:, None])[..., 0] - logits.logsumexp(-1)
    score, states = prefix_score.sum(1, keepdim=True), states[:, -1]
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
        best.offer(sentence, _gathered(history, parent[:, :beams]), finished / (prefix.shape[1] + place))
        continuing = ended.int().argsort(dim=1, stable=True)[:, :beams]
        score, parent, piece = (x.gather(1, continuing) for x in (top, parent, piece))
        # Log-probabilities are negative: no beam can end with a better mean than its score over the longest length.
        running &= (best.finished[sentence] < beams) & (score[:, 0] / longest > best.score[sentence])
        kept = _compacted(running)
        if place == rules.limit or len(kept) == 0:
            break
        history = torch.cat([_gathered(history, parent), piece[..., None]], dim=2)
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
    """(log-probabilities, pieces) of the `count` likeliest pieces after each state, best first.

    After `rules.limit` pieces the only candidate is the end.
    """
    rows = max(1, LOGITS // len(decoder.embed.weight))
    batches = [_likeliest(decoder.logits(some), rules, place, count) for some in torch.split(states, rows)]
    top, piece = zip(*batches, strict=True)
    return torch.cat(top), torch.cat(piece)


def _likeliest(
    logits: Float[Tensor, "B V"], rules: Rules, place: int, count: int
) -> tuple[Float[Tensor, "B C"], Int[Tensor, "B C"]]:
    """`_next_pieces` of logits, which are overwritten: each pass over a large vocabulary costs time."""
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
    """torch.topk in two steps, faster for a large vocabulary: the blocks with the largest maxima, then their pieces."""
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
    """The `count` best continuations of each sentence, best first, as (score, beam that is continued, next piece).

    top, piece: the candidates of each beam. Where there are fewer continuations than `count`, the last score -inf.
    """
    each = top.shape[1]
    every, piece = (score.reshape(-1, 1) + top).view(len(score), -1), piece.view(len(score), -1)
    if every.shape[1] < count:
        missing = (0, count - every.shape[1])
        every, piece = F.pad(every, missing, value=-torch.inf), F.pad(piece, missing)
    top, which = every.topk(count, dim=1)
    return top, (which // each).clamp(max=score.shape[1] - 1), piece.gather(1, which)


class _Best:
    """The best finished hypothesis of each sentence, and the number of finished ones."""

    def __init__(self, sentences: int, rules: Rules, device: torch.device) -> None:
        self.end = rules.end
        self.score = torch.full((sentences,), -torch.inf, device=device)
        self.pieces = torch.full((sentences, rules.limit), rules.end, device=device)
        self.finished = torch.zeros(sentences, dtype=torch.long, device=device)

    def offer(self, sentence: Int[Tensor, " N"], pieces: Int[Tensor, "N W S"], score: Float[Tensor, "N W"]) -> None:
        """Consider W hypotheses of each of these sentences; one that has not finished has the score -inf."""
        self.finished[sentence] += (score > -torch.inf).sum(1)
        highest, which = score.max(dim=1)
        better = (highest > self.score[sentence]).nonzero()[:, 0]
        self.score[sentence[better]] = highest[better]
        winners = torch.full((len(better), self.pieces.shape[1]), self.end, device=pieces.device)
        winners[:, : pieces.shape[2]] = pieces[better, which[better]]
        self.pieces[sentence[better]] = winners


def _gathered(history: Int[Tensor, "N W S"], parent: Int[Tensor, "N C"]) -> Int[Tensor, "N C S"]:
    """The pieces of each child's parent beam."""
    return history.gather(1, parent[..., None].expand(-1, -1, history.shape[2]))


def _compacted(running: Bool[Tensor, " N"]) -> Int[Tensor, " M"]:
    """Running rows, ordered so that few rows of a cache move: the last ones take the places of finished ones."""
    kept = running.nonzero()[:, 0]
    rows = torch.arange(len(kept), device=running.device)
    rows[~running[: len(kept)]] = kept[kept >= len(kept)]
    return rows


def _until_end(pieces: Int[Tensor, "N S"], end: int) -> list[list[int]]:
    return [row[: row.index(end)] if end in row else row for row in pieces.tolist()]
