"""The token model of token_model.py as a writer of sentences, to be judged by lcm.evaluation.truth like any model."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from token_model import RECORD
from transformers import DynamicCache, LlamaForCausalLM

from lcm.codec import load_codec
from lcm.codec.text import END_OF_TEXT, Tokenizer
from lcm.config import CodecRecord, load_config
from lcm.evaluation.examples import Example
from lcm.evaluation.truth_judge import Tale, TruthJudge
from lcm.inference import LCM
from lcm.models import Sampling, build_model

ROOT = Path(__file__).parent.parent
LONGEST = 64
"""Pieces after which a sentence ends anyway; the codec's longest have 61."""
ROWS = 128
"""Texts that are written at once."""
Written = tuple[list[str], bool]
"""Sentences, and whether the text ended by itself."""


@dataclass(frozen=True)
class TokenJudge(TruthJudge):
    """Pieces are drawn at temperature 1, also those of gists. `lcm` is an untrained model: only its slots are used."""

    model: LlamaForCausalLM

    def continued(self, tales: Sequence[Tale], cuts: Sequence[int], most: int, seed: int) -> list[Written]:
        return self.written([tale.sentences[:cut] for tale, cut in zip(tales, cuts, strict=True)], most, seed)

    def drawn(self, tales: Sequence[Tale], cuts: Sequence[int], draws: int) -> list[list[str | None]]:
        prompts = [tale.sentences[:cut] for tale, cut in zip(tales, cuts, strict=True)]
        texts = [sentences[0] if sentences else None for sentences, _ in self.written(prompts, 1, 1, draws)]
        return [texts[i : i + draws] for i in range(0, len(texts), draws)]

    def answered(self, pairs: Sequence[Example], most: int) -> list[Written]:
        return self.written([pair.sentences[: pair.source_length] for pair in pairs], most, self.sampling.seed)

    def written(self, prompts: Sequence[Sequence[str]], most: int, seed: int, draws: int = 1) -> list[Written]:
        """`draws` continuations of each prompt, of at most `most` sentences; all draws of a prompt side by side."""
        torch.manual_seed(seed)
        tokenizer = self.lcm.codec.tokenizer
        pieces = [[tokenizer.end, *(p for row in tokenizer.encode(s) for p in (*row, tokenizer.end))] for s in prompts]
        order = sorted(range(len(prompts)), key=lambda i: len(pieces[i]))
        found: dict[int, list[Written]] = {}
        for start in range(0, len(order), max(1, ROWS // draws)):
            chosen = order[start : start + max(1, ROWS // draws)]
            texts = write(self.model, [pieces[i] for i in chosen], tokenizer, most, draws)
            found |= {i: texts[n * draws : (n + 1) * draws] for n, i in enumerate(chosen)}
        return [text for i in range(len(prompts)) for text in found[i]]


@torch.no_grad()
def write(
    model: LlamaForCausalLM, prompts: Sequence[list[int]], tokenizer: Tokenizer, most: int, draws: int
) -> list[Written]:
    """Continue a batch of pieces. Prompts are padded on the left; finished rows leave the batch."""
    longest = max(map(len, prompts))
    padding = [longest - len(prompt) for prompt in prompts]
    read = torch.tensor([[tokenizer.end] * n + prompt for n, prompt in zip(padding, prompts, strict=True)])
    mask = torch.tensor([[0] * n + [1] * (longest - n) for n in padding])
    cache = DynamicCache()
    place = (mask.cumsum(1) - 1).clamp(min=0)
    logits = model(read, attention_mask=mask, position_ids=place, past_key_values=cache, logits_to_keep=1).logits
    cache.batch_repeat_interleave(draws)
    logits, mask, place = (x.repeat_interleave(draws, 0) for x in (logits, mask, place[:, -1:]))
    rows, texts = list(range(len(logits))), [Draft(tokenizer, most) for _ in range(len(logits))]
    while True:
        drawn = torch.multinomial(logits[:, -1].softmax(1), 1)
        pieces = [texts[row].take(piece) for row, piece in zip(rows, drawn[:, 0].tolist(), strict=True)]
        stay = [i for i, row in enumerate(rows) if not texts[row].over]
        if not stay:
            return [(text.sentences, text.ended) for text in texts]
        if len(stay) < len(rows):
            cache.batch_select_indices(torch.tensor(stay))
            rows, mask, place = [rows[i] for i in stay], mask[stay], place[stay]
        read, place = torch.tensor([[pieces[i]] for i in stay]), place + 1
        mask = torch.cat([mask, torch.ones_like(read)], dim=1)
        logits = model(read, attention_mask=mask, position_ids=place, past_key_values=cache).logits


class Draft:
    """A text that is being written, piece by piece."""

    def __init__(self, tokenizer: Tokenizer, most: int) -> None:
        self.tokenizer, self.most = tokenizer, most
        self.sentences: list[str] = []
        self.ended = self.over = False
        self._pieces: list[int] = []

    def take(self, piece: int) -> int:
        """Add a piece, or the end of a sentence that is too long; return what was added."""
        if len(self._pieces) >= LONGEST:
            piece = self.tokenizer.end
        if piece != self.tokenizer.end:
            self._pieces.append(piece)
            return piece
        sentence, self._pieces = self.tokenizer.decode(self._pieces), []
        self.ended = sentence == END_OF_TEXT
        if not self.ended:
            self.sentences.append(sentence)
        self.over = self.ended or len(self.sentences) == self.most
        return piece


def token_judge(folder: Path, bootstrap: int, seed: int) -> TokenJudge:
    """The judge of the model in a folder of token_model.py."""
    record = CodecRecord(**json.loads((folder / RECORD).read_text(encoding="utf-8"))["codec"])
    config = load_config(ROOT / "configs/base_toy.yaml", ["data.slots=32"]).model_copy(update={"codec": record})
    lcm = LCM(build_model(config.model), load_codec(record.name), config)
    model = LlamaForCausalLM.from_pretrained(folder, use_safetensors=True).eval()  # a module's eval: no dropout
    return TokenJudge(lcm, Sampling(), bootstrap, seed, model)
