"""Small SONAR checkpoints in exactly the official format: state-dict names, vocabulary, languages, cards on disk.

Written by hand from what sonar-space 0.5.0 reads, without any of our own code.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import sentencepiece
import torch
import yaml
from torch import nn

LANGUAGES = (Path(__file__).parents[2] / "lcm/codec/assets/sonar_languages.txt").read_text().split()
DIM, HEADS, FFN = 64, 4, 96
LAYERS = {"encoder": 2, "decoder": 3}
TEXT = (
    "The cat sat on the mat. He was born in London and studied at Cambridge.",
    "Le chat est assis sur le tapis. Où sont les neiges d'antan ?",
    "Кошка сидит на коврике. Он родился в Москве.",
    "猫がマットの上に座っています。彼は東京で生まれました。",
    "Der Hund bellt laut, während die Katze schläft; 1984 war 42.",
)


@dataclass(frozen=True)
class Official:
    """Paths of the files. cards: a folder for FAIRSEQ2_USER_ASSET_DIR."""

    encoder: Path
    decoder: Path
    finetuned: Path
    vocabulary: Path
    cards: Path


def write_official(folder: Path) -> Official:
    files = Official(
        encoder=folder / "sonar_text_encoder.pt",
        decoder=folder / "sonar_text_decoder.pt",
        finetuned=folder / "finetuned_decoder.pt",
        vocabulary=folder / "sentencepiece.source.256000.model",
        cards=folder / "cards",
    )
    pieces = _train_vocabulary(files.vocabulary)
    vocabulary = 1 + pieces + len(LANGUAGES) + 3
    encoder, decoder, finetuned = (state(part, vocabulary, seed) for part, seed in
                                   (("encoder", 1), ("decoder", 2), ("decoder", 3)))  # fmt: skip
    torch.save({"model": encoder}, files.encoder)
    torch.save({"model": decoder}, files.decoder)
    torch.save({"state_dict": to_fairseq(finetuned, "decoder")}, files.finetuned)
    _write_cards(files, vocabulary)
    return files


def _train_vocabulary(path: Path) -> int:
    """A vocabulary like NLLB's: <unk> <s> </s> at 0, 1, 2 and no padding."""
    with path.open("wb") as file:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=iter(TEXT * 20), model_writer=file, vocab_size=150, character_coverage=1.0,
            hard_vocab_limit=False,
            minloglevel=2,
        )  # fmt: skip
    return sentencepiece.SentencePieceProcessor(model_file=str(path)).get_piece_size()


def state(part: str, vocabulary: int, seed: int) -> dict[str, torch.Tensor]:
    """Random weights under fairseq2's names, loud enough for sentences of many lengths."""
    generator = torch.Generator().manual_seed(seed)

    def linear(name: str, into: int, out: int) -> dict[str, torch.Tensor]:
        weight = torch.randn(out, into, generator=generator) * 3 / into**0.5
        return {f"{name}.weight": weight, f"{name}.bias": torch.randn(out, generator=generator) * 0.1}

    def norm(name: str) -> dict[str, torch.Tensor]:
        weight = 1 + 0.1 * torch.randn(DIM, generator=generator)
        return {f"{name}.weight": weight, f"{name}.bias": torch.randn(DIM, generator=generator) * 0.1}

    embed = torch.randn(vocabulary, DIM, generator=generator) * DIM**-0.5
    embed[3] *= 2  # </s>: so that sentences end, at many lengths
    tensors = {f"{part}_frontend.embed.weight": embed}
    for layer in range(LAYERS[part]):
        inside = f"{part}.layers.{layer}"
        for attention in ("self_attn", "encoder_decoder_attn") if part == "decoder" else ("self_attn",):
            for proj in ("q_proj", "k_proj", "v_proj", "output_proj"):
                tensors |= linear(f"{inside}.{attention}.{proj}", DIM, DIM)
            tensors |= norm(f"{inside}.{attention}_layer_norm")
        tensors |= linear(f"{inside}.ffn.inner_proj", DIM, FFN) | linear(f"{inside}.ffn.output_proj", FFN, DIM)
        tensors |= norm(f"{inside}.ffn_layer_norm")
    tensors |= norm("layer_norm" if part == "encoder" else "decoder.layer_norm")
    return tensors | ({"final_proj.weight": embed} if part == "decoder" else {})


def to_fairseq(tensors: dict[str, torch.Tensor], part: str, module: bool = False) -> dict[str, Any]:
    """Translate weights to fairseq's format. module: store the embedding as a module, like some files."""
    names = {
        f"{part}.layers.": "layers.",
        "encoder_decoder_attn": "encoder_attn",
        "output_proj": "out_proj",
        "ffn.inner_proj": "fc1",
        "ffn.out_proj": "fc2",
        "ffn_layer_norm": "final_layer_norm",
        f"{part}_frontend.embed": "embed_tokens",
        "decoder.layer_norm": "layer_norm",
        "final_proj": "output_projection",
    }
    out: dict[str, Any] = {"version": torch.tensor([3.0]), "embed_positions._float_tensor": torch.zeros(1)}
    embed = tensors[f"{part}_frontend.embed.weight"]
    pad, unk, bos, eos = embed[:4]
    embed = torch.cat([torch.stack([bos, pad, eos, unk]), embed[4:]])
    for name, value in tensors.items():
        for new, old in names.items():
            name = name.replace(new, old)
        out[name] = embed if name in ("embed_tokens.weight", "output_projection.weight") else value
    if module:
        out["embed_tokens"] = nn.Embedding.from_pretrained(out.pop("embed_tokens.weight"))
    return out


def _write_cards(files: Official, vocabulary: int) -> None:
    """Over those of sonar-space: '@user' is how fairseq2 lets a site replace fields of a card."""
    sizes = {"model_dim": DIM, "ffn_inner_dim": FFN, "num_encoder_attn_heads": HEADS, "num_decoder_attn_heads": HEADS,
             "num_encoder_layers": LAYERS["encoder"], "num_decoder_layers": LAYERS["decoder"],
             "vocab_info": {"size": vocabulary, "unk_idx": 1, "bos_idx": 2, "eos_idx": 3, "pad_idx": 1}}  # fmt: skip
    files.cards.mkdir()
    checkpoints = {"basic_encoder": files.encoder, "basic_decoder": files.decoder, "finetuned_decoder": files.finetuned}
    cards = [
        {
            "name": f"text_sonar_{name}@user",
            "checkpoint": f"file://{path}",
            "tokenizer": f"file://{files.vocabulary}",
            "model_config": {
                "_set_": {
                    **sizes,
                    "vocab_info": {"size": vocabulary, "unk_idx": 1, "bos_idx": 2, "eos_idx": 3, "pad_idx": 1},
                }
            },
        }
        for name, path in checkpoints.items()
    ]
    (files.cards / "small.yaml").write_text(yaml.safe_dump_all(cards))
