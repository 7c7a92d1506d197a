"""Models of a layer or two, in the format of the judges: folders that need no network, the same with any version.

ROWS are the texts that they judge. tests/scores/expected.json has what the published code makes of both.
"""

import json
from pathlib import Path
from zlib import crc32

import torch
from safetensors.torch import save_file

from lcm.scores.rows import Row

LETTERS = [*"abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789.,;:!?'-\n", "▁1", "Ġ"]
SIZES = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 16}
LONG = " ".join(f"I saw a fox at a mill, and so did he on day {n} of it." for n in range(2, 60))
ROWS = [
    Row(
        "cat",
        "The cat sat on the mat. It was a cold day. The dog ran away.",
        ("The cat sat.", "A cat on a mat."),
        "The cat sat down. It was cold.",
    ),
    Row(
        "mill",
        "Anna went to the mill.\nShe met the baker there.\nThen she went home.",
        ("Anna met the baker.",),
        "Anna met a fox.",
    ),
    Row("foxes", LONG, ("He saw many foxes.",), "I saw 59 foxes. He saw a mill."),
    Row(
        "long",
        "Bob sleeps. Bob snores.",
        ("Bob sleeps all day, and all night.",),
        "Bob sleeps, and then he snores. " * 18,
    ),
]
"""A pair with two references; one with newlines; a document of 870 words; a prediction of 18 sentences."""


def fill(model: torch.nn.Module, scale: float) -> None:
    """Make the weights a function of their names, so that they do not depend on how a library initializes them."""
    with torch.no_grad():
        for name, weight in model.named_parameters():
            random = torch.Generator().manual_seed(crc32(name.encode()))
            is_norm = any(word in name.lower() for word in ("norm", "ln_")) and name.endswith("weight")
            weight.copy_(is_norm + scale * torch.randn(weight.shape, generator=random))


def write_letters(folder: Path, special: dict[str, str], template: str, pair: str, shift: int = 0) -> int:
    """Write a tokenizer whose pieces are characters; returns their number.

    template, pair: how one text and two are framed, such as "$A </s>"
    shift: pieces that stand between the special ones and the letters
    """
    from tokenizers import Regex, Tokenizer, models, normalizers, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    names = [*dict.fromkeys(special.values()), *(f"<extra{i}>" for i in range(shift)), *LETTERS]
    pieces = {name: i for i, name in enumerate(names)}
    tokenizer = Tokenizer(models.WordLevel(pieces, unk_token=special["unk_token"]))
    tokenizer.normalizer = normalizers.Replace(" ", "Ġ")
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(r"[\s\S]"), "isolated")
    marks = [(name, pieces[name]) for name in sorted(set(special.values()))]
    tokenizer.post_processor = processors.TemplateProcessing(single=template, pair=pair, special_tokens=marks)
    inputs = ["input_ids", "attention_mask"]
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, model_input_names=inputs, **special).save_pretrained(folder)
    return len(names)


def write_bytes(folder: Path, kind: str, special: list[str], most: int) -> int:
    """Write a tokenizer of RoBERTa or GPT-2 that has no merges, so that its pieces are bytes; returns their number."""
    import transformers
    from tokenizers import pre_tokenizers

    names = [*special, *sorted(pre_tokenizers.ByteLevel.alphabet())]
    tokenizer = getattr(transformers, kind)
    vocabulary, merges = folder / "vocab.json", folder / "merges.txt"
    vocabulary.write_text(json.dumps({name: i for i, name in enumerate(names)}), encoding="utf-8")
    merges.write_text("#version: 0.2\n", encoding="utf-8")
    tokenizer(str(vocabulary), str(merges), model_max_length=most).save_pretrained(folder)
    return len(names)


def _roberta(folder: Path, places: int) -> dict[str, object]:
    names = ["<s>", "<pad>", "</s>", "<unk>", "<mask>"]
    vocabulary = write_bytes(folder, "RobertaTokenizerFast", names, places - 2)
    return {
        **SIZES,
        "vocab_size": vocabulary,
        "max_position_embeddings": places,
        "pad_token_id": 1,
        "type_vocab_size": 1,
    }


def write_cola(folder: Path) -> Path:
    from transformers import RobertaConfig, RobertaForSequenceClassification

    model = RobertaForSequenceClassification(RobertaConfig(**_roberta(folder, 66), num_labels=2))
    fill(model, 0.6)
    model.save_pretrained(folder)
    return folder


def write_roberta(folder: Path) -> Path:
    """Write the encoder of BERTScore."""
    from transformers import RobertaConfig, RobertaModel

    model = RobertaModel(RobertaConfig(**_roberta(folder, 700)), add_pooling_layer=False)
    fill(model, 0.6)
    model.save_pretrained(folder)
    return folder


def write_alignscore(folder: Path) -> Path:
    """Write tensors under the names of the published checkpoint, with the heads that nothing reads."""
    from transformers import RobertaConfig, RobertaModel

    config = RobertaConfig(**_roberta(folder, 514))
    parts = {f"{name}_layer": torch.nn.Linear(16, size) for name, size in (("bin", 2), ("tri", 3), ("reg", 1))}
    model = torch.nn.ModuleDict({"base_model": RobertaModel(config), **parts})
    fill(model, 0.6)
    config.save_pretrained(folder)
    save_file({name: tensor.contiguous() for name, tensor in model.state_dict().items()}, folder / "model.safetensors")
    return folder


def write_t5(folder: Path) -> Path:
    """Write the model of SEAHORSE, whose piece for yes is "▁1", and of MiniCheck, whose tokens are 3 and 209."""
    from transformers import T5Config, T5ForConditionalGeneration

    special = {"pad_token": "<pad>", "eos_token": "</s>", "unk_token": "<unk>"}
    vocabulary = write_letters(folder, special, "$A </s>", "$A </s> $B </s>", shift=200)
    sizes = {"d_model": 16, "d_kv": 8, "d_ff": 16, "num_layers": 1, "num_heads": 2}
    model = T5ForConditionalGeneration(T5Config(vocab_size=vocabulary, **sizes, decoder_start_token_id=0))
    fill(model, 0.6)
    model.save_pretrained(folder)
    return folder


def write_gpt2(folder: Path) -> Path:
    from transformers import GPT2Config, GPT2LMHeadModel

    vocabulary = write_bytes(folder, "GPT2TokenizerFast", ["<|endoftext|>"], 700)
    ends = {"bos_token_id": 0, "eos_token_id": 0}
    model = GPT2LMHeadModel(GPT2Config(vocab_size=vocabulary, n_embd=16, n_layer=2, n_head=2, n_positions=700, **ends))
    fill(model, 0.6)
    model.save_pretrained(folder)
    return folder


def write_coherence(folder: Path) -> Path:
    """Write tensors under sgnlp's names, with the momentum encoder that nothing reads."""
    from transformers import XLNetConfig, XLNetModel

    special = {"pad_token": "<pad>", "cls_token": "<cls>", "sep_token": "<sep>", "unk_token": "<unk>"}
    vocabulary = write_letters(folder, special, "$A <sep> <cls>", "$A <sep> $B <sep> <cls>")
    config = XLNetConfig(vocab_size=vocabulary, d_model=16, n_layer=1, n_head=2, d_inner=16)
    parts = {"main_encoder": XLNetModel(config), "momentum_encoder": XLNetModel(config)}
    model = torch.nn.ModuleDict({**parts, "conlinear": torch.nn.Linear(16, 1)})
    fill(model, 0.6)
    config.save_pretrained(folder)
    save_file({name: tensor.contiguous() for name, tensor in model.state_dict().items()}, folder / "model.safetensors")
    return folder


WRITERS = {
    "cola": write_cola, "seahorse-q4": write_t5, "seahorse-q5": write_t5, "bertscore": write_roberta,
    "coherence": write_coherence, "perplexity": write_gpt2, "alignscore": write_alignscore, "minicheck": write_t5,
    "mauve": write_gpt2, "mi": write_gpt2,
}  # fmt: skip
"""The writers of the judges, by name."""
