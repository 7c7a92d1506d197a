"""Greedy and beam search over the decoder, with a cache of keys and values from which finished rows are removed.

Shapes.  B rows · N sentences · W beams of a sentence · D concept width · V vocabulary · P prefix or new pieces
         S pieces so far · H heads · K head width · E entries of a sentence in the cache
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


class Cache:
    """Keys and values of the decoder's self-attention, for sentences with `beams` hypotheses each.

    A piece of a beam is an entry of its sentence. Entries do not move when beams are reordered: `sees` marks those in
    each beam's own past, and masks the others in the one product by which all beams of a sentence attend. Beams share
    most of their past; entries that no beam sees any longer are dropped when the room is used up.

    positions: longest sequence; a sentence never needs more room than this for each beam
    """

    START = 64
    """Initial room, in entries of a sentence."""

    def __init__(self, decoder: Decoder, rows: int, positions: int, beams: int = 1) -> None:
        self.decoder, self.beams, self.most = decoder, beams, positions * beams
        self.length, self.used = 0, 0
        self.sees = torch.ones(rows, beams, 0, device=decoder.embed.weight.device, dtype=torch.bool)
        self.mask: Float[Tensor, "N 1 W E"] | None = None
        self.kv = self._room(min(self.START, self.most))

    def _room(self, entries: int) -> Float[Tensor, "2 L N H E K"]:
        weight, heads = self.decoder.embed.weight, self.decoder.sizes.decoder_heads
        return weight.new_empty(2, len(self.decoder.layers), len(self.sees), heads, entries, weight.shape[1] // heads)

    def extend(self, pieces: Int[Tensor, "B P"], memory: Float[Tensor, "L B D"]) -> Float[Tensor, "B P D"]:
        """The decoder's states of new pieces, which follow the cached ones and are added to them.

        B is N for the prefix, which has no beams yet, and N·W for every later piece, one at a time.
        """
        states: Tensor = self.decoder(pieces, memory, self._attend, self.length)
        if self.length == 0:
            self.used = pieces.shape[1]
            self.sees = self.sees.new_ones(len(self.sees), self.beams, self.used)
        else:
            assert pieces.shape[1] == 1, "the causal mask has no offset"
            self.used += self.beams
        self.length += pieces.shape[1]
        return states

    def _attend(
        self, layer: int, q: Float[Tensor, "B H P K"], k: Float[Tensor, "B H P K"], v: Float[Tensor, "B H P K"]
    ) -> Float[Tensor, "B H P K"]:
        """Add the keys and values of new pieces, and attend from them to all pieces so far."""
        rows = len(self.sees)
        new = slice(self.used, self.used + len(k) // rows * k.shape[2])
        self._reserve(new.stop - self.used)
        for kind, beams in enumerate((k, v)):
            self.kv[kind, layer, :, :, new] = beams.view(rows, -1, *k.shape[1:]).transpose(1, 2).flatten(2, 3)
        if self.length == 0:
            return F.scaled_dot_product_attention(q, k, v, is_causal=True)
        keys, values = self.kv[:, layer, :, :, : new.stop]
        q = q.view(rows, -1, *q.shape[1:]).squeeze(3).transpose(1, 2)
        if keys.device.type == "cpu" and keys.dtype == torch.float32:
            # Unfused: for so few queries per head, batched products are faster on a CPU than the fused kernel.
            scores = torch.matmul(q * q.shape[-1] ** -0.5, keys.transpose(2, 3))
            if self.mask is not None:
                scores += self.mask
            y = torch.matmul(scores.softmax(-1), values)
        else:
            y = F.scaled_dot_product_attention(q, keys, values, attn_mask=self.mask)
        return y.transpose(1, 2).flatten(0, 1).unsqueeze(2)

    def branch(self, parent: Int[Tensor, "N W"]) -> None:
        """Give each beam the past of its parent; the entry of its next piece is its own."""
        if self.beams == 1:
            return
        self.sees = self.sees.gather(1, parent[..., None].expand(-1, -1, self.used))
        self._reserve(self.beams)
        own = torch.eye(self.beams, device=parent.device, dtype=torch.bool).expand(len(parent), -1, -1)
        self.sees = torch.cat([self.sees, own], dim=2)
        self.mask = self.kv.new_zeros(self.sees.shape).masked_fill_(~self.sees, -torch.inf)[:, None]

    def _reserve(self, more: int) -> None:
        """Make room for `more` entries of each row: drop unseen ones, and double the room if over half stays in use."""
        if self.used + more <= self.kv.shape[4]:
            return
        if self.beams > 1:
            self._drop_unseen()
        assert self.used + more <= self.most, f"{self.used + more} entries in a cache of {self.most}"
        if 2 * (self.used + more) > self.kv.shape[4] < self.most:
            wider = self._room(min(max(2 * self.kv.shape[4], self.used + more), self.most))
            wider[..., : self.used, :] = self.kv[..., : self.used, :]
            self.kv = wider

    def _drop_unseen(self) -> None:
        """Move the entries that some beam sees to the front. Rows with fewer of them than others keep unseen ones."""
        seen = self.sees.any(1)
        kept = int(seen.sum(1).max())
        order = seen.int().argsort(dim=1, descending=True, stable=True)[:, :kept]
        self.sees = self.sees.gather(2, order[:, None].expand(-1, self.beams, -1))
        rows = torch.arange(len(order), device=order.device)[:, None]
        for kv in self.kv.flatten(0, 1):
            kv[:, :, :kept] = kv.transpose(1, 2)[rows, order].transpose(1, 2)
        self.used = kept

    def select(self, rows: Int[Tensor, " N"]) -> None:
        """Keep these rows, in this order. A row may be repeated, but the number of rows never grows."""
        moved = (rows != torch.arange(len(rows), device=rows.device)).nonzero()[:, 0]
        # Layer by layer: copying all at once would allocate memory at every step, which costs more than the copy.
        for kv in self.kv.flatten(0, 1):
            kv[moved, :, : self.used] = kv[:, :, : self.used].index_select(0, rows[moved])
        self.kv, self.sees = self.kv[:, :, : len(rows)], self.sees[rows]
        self.mask = None if self.mask is None else self.mask[rows]


@torch.no_grad()
def greedy(
    decoder: Decoder, vectors: Float[Tensor, "N D"], prefix: Int[Tensor, "N P"], rules: Rules
) -> list[list[int]]:
    """Greedy search: pieces of each sentence, without prefix and end. prefix: its first pieces."""
    memory = decoder.memory(vectors)
    cache = Cache(decoder, len(vectors), prefix.shape[1] + rules.limit)
    pieces = torch.full((len(vectors), rules.limit), rules.end, device=vectors.device)
    sentence = torch.arange(len(vectors), device=vectors.device)
    running = torch.ones_like(sentence, dtype=torch.bool)
    tokens = prefix
    for place in range(rules.limit):
        logits = decoder.logits(cache.extend(tokens, memory)[:, -1])
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
    no beam can beat the best of them. The mean is over pieces, end, and the prefix after its first token: the language.
    """
    longest = prefix.shape[1] + rules.limit
    cache = Cache(decoder, len(vectors), longest, beams)
    memory = decoder.memory(vectors)
    states = cache.extend(prefix, memory)
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
        states = cache.extend(piece.reshape(-1, 1), memory)[:, -1]
    return _until_end(best.pieces, rules.end)


def _next_pieces(
    decoder: Decoder, states: Float[Tensor, "B D"], rules: Rules, place: int, count: int
) -> tuple[Float[Tensor, "B C"], Int[Tensor, "B C"]]:
    """(log-probabilities, pieces) of the `count` likeliest pieces after each state, best first.

    After `rules.limit` pieces the only candidate is the end.
    """
    batches = torch.split(states, max(1, LOGITS // len(decoder.embed.weight)))
    parts = zip(*(_likeliest(decoder.logits(batch), rules, place, count) for batch in batches), strict=True)
    top, piece = map(torch.cat, parts)
    return top, piece


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
    each, piece = top.shape[1], piece.view(len(score), -1)
    every = (score.reshape(-1, 1) + top).view(len(score), -1)
    if every.shape[1] < count:
        missing = (0, count - every.shape[1])
        every, piece = F.pad(every, missing, value=-torch.inf), F.pad(piece, missing)
    top, which = every.topk(count, dim=1)
    return top, (which // each).clamp(max=score.shape[1] - 1), piece.gather(1, which)


class _Best:
    """The best finished hypothesis of each sentence, and the number of finished ones."""

    def __init__(self, sentences: int, rules: Rules, device: torch.device) -> None:
        self.score = torch.full((sentences,), -torch.inf, device=device)
        self.pieces = torch.full((sentences, rules.limit), rules.end, device=device)
        self.finished = torch.zeros(sentences, dtype=torch.long, device=device)

    def offer(self, sentence: Int[Tensor, " N"], pieces: Int[Tensor, "N W S"], score: Float[Tensor, "N W"]) -> None:
        """Consider W hypotheses of each sentence, none shorter than those before; an unfinished one has score -inf."""
        self.finished[sentence] += (score > -torch.inf).sum(1)
        highest, which = score.max(dim=1)
        better = (highest > self.score[sentence]).nonzero()[:, 0]
        self.score[sentence[better]] = highest[better]
        self.pieces[sentence[better], : pieces.shape[2]] = pieces[better, which[better]]


def _gathered(history: Int[Tensor, "N W S"], parent: Int[Tensor, "N C"]) -> Int[Tensor, "N C S"]:
    return history.gather(1, parent[..., None].expand(-1, -1, history.shape[2]))


def _compacted(running: Bool[Tensor, " N"]) -> Int[Tensor, " M"]:
    """Running rows, ordered so that few rows of a cache move: the last ones take the places of finished ones."""
    kept = running.nonzero()[:, 0]
    rows = torch.arange(len(kept), device=running.device)
    rows[~running[: len(kept)]] = kept[kept >= len(kept)]
    return rows


def _until_end(pieces: Int[Tensor, "N S"], end: int) -> list[list[int]]:
    return [row[: row.index(end)] if end in row else row for row in pieces.tolist()]
