"""Greedy and beam search over the decoder: many vectors side by side, rows leave the batch as they finish.

Shapes.  B rows · N sentences · W beams of a sentence · D concept width · V vocabulary · S pieces so far
"""

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from lcm.codec.architecture import Cache, Decoder


@dataclass(frozen=True)
class Rules:
    """What a decoded sentence may look like."""

    prefix: list[int]
    """What the decoder starts from; not returned."""
    end: int
    banned: list[int]
    """Pieces that are never produced."""
    limit: int
    """Most pieces of a sentence. One that reaches it is cut there and scored as it stands."""


@torch.no_grad()
def greedy(decoder: Decoder, vectors: Float[Tensor, "N D"], rules: Rules) -> list[list[int]]:
    """The likeliest piece at every place."""
    memory = decoder.memory(vectors)
    cache = Cache(decoder, len(vectors), len(rules.prefix) + rules.limit)
    pieces = torch.full((len(vectors), rules.limit), rules.end, device=vectors.device)
    sentence = torch.arange(len(vectors), device=vectors.device)
    running = torch.ones_like(sentence, dtype=torch.bool)
    tokens = torch.tensor(rules.prefix, device=vectors.device).expand(len(vectors), -1)
    for place in range(rules.limit):
        logits = decoder.logits(decoder(tokens, memory, cache)[:, -1])
        logits[:, rules.banned] = -torch.inf
        chosen = logits.argmax(-1)
        pieces[sentence, place] = chosen
        running &= chosen != rules.end
        kept = running.nonzero()[:, 0]
        if len(kept) == 0:
            break
        # Dropping rows copies the cache: worth it for several at once. Until then `_until_end` ignores what they say.
        if len(kept) <= 0.9 * len(running):
            cache.select(kept)
            memory, sentence, running, chosen = memory[:, kept], sentence[kept], running[kept], chosen[kept]
        tokens = chosen[:, None]
    return _until_end(pieces, rules.end)


@torch.no_grad()
def beam_search(decoder: Decoder, vectors: Float[Tensor, "N D"], rules: Rules, beams: int) -> list[list[int]]:
    """The hypothesis with the highest mean log-probability of those that the beams meet, by fairseq2's rules.

    Of the best 2·beams continuations of a sentence, those that end and are among the first `beams` are finished, and
    the first `beams` that do not end go on; a sentence is done once `beams` hypotheses have finished. The mean is over
    the pieces, the end, and what follows the first token of the prefix: the language.
    """
    total, device = len(vectors), vectors.device
    memory = decoder.memory(vectors).repeat_interleave(beams, dim=1)
    cache = Cache(decoder, total * beams, len(rules.prefix) + rules.limit)
    tokens = torch.tensor(rules.prefix, device=device).expand(total * beams, -1)
    best = _Best(total, rules, device)
    sentence = torch.arange(total, device=device)
    history = torch.empty(total, beams, 0, dtype=torch.long, device=device)
    logp = decoder.logits(decoder(tokens, memory, cache)).log_softmax(-1)
    score = logp[:, :-1].gather(2, tokens[:, 1:, None]).sum((1, 2)).view(total, beams)
    # All beams of a sentence start alike: only the first may continue, or they would stay copies of each other.
    score[:, 1:] = -torch.inf
    for place in range(rules.limit):
        top, parent, piece = _continuations(score, logp[:, -1], rules.banned)
        ended, scored = piece == rules.end, len(rules.prefix) + place
        finished = top[:, :beams].masked_fill(~ended[:, :beams], -torch.inf)
        best.offer(sentence, _of_parents(history, parent[:, :beams]), finished / scored)
        going = ended.int().argsort(dim=1, stable=True)[:, :beams]
        score, parent, piece = (x.gather(1, going) for x in (top, parent, piece))
        history = torch.cat([_of_parents(history, parent), piece[..., None]], dim=2)
        kept = (best.finished[sentence] < beams).nonzero()[:, 0]
        if place == rules.limit - 1:
            best.offer(sentence[kept], history[kept], score[kept] / scored)
        if place == rules.limit - 1 or len(kept) == 0:
            break
        rows = (parent + beams * torch.arange(len(sentence), device=device)[:, None])[kept].flatten()
        cache.select(rows)
        memory, tokens = memory[:, rows], piece[kept].view(-1, 1)
        sentence, history, score = sentence[kept], history[kept], score[kept]
        logp = decoder.logits(decoder(tokens, memory, cache)).log_softmax(-1)
    return _until_end(best.pieces, rules.end)


def _continuations(
    score: Float[Tensor, "N W"], logp: Float[Tensor, "B V"], banned: list[int]
) -> tuple[Float[Tensor, "N C"], Int[Tensor, "N C"], Int[Tensor, "N C"]]:
    """The 2·W best ways to go on of each sentence, best first: score, beam that is continued, next piece."""
    beams, vocabulary = score.shape[1], logp.shape[1]
    logp[:, banned] = -torch.inf
    every = (score[..., None] + logp.view(-1, beams, vocabulary)).flatten(1)
    top, which = every.topk(min(2 * beams, every.shape[1]), dim=1)
    return top, which // vocabulary, which % vocabulary


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


def _until_end(pieces: Int[Tensor, "N S"], end: int) -> list[list[int]]:
    return [row[: row.index(end)] if end in row else row for row in pieces.tolist()]
