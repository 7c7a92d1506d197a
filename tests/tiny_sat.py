"""A SaT model with random weights, in the format that wtpsplit reads: a folder that needs no network."""

from pathlib import Path

import torch


def write_tiny_sat(folder: Path, seed: int = 0) -> Path:
    """config.json, model.safetensors and tokenizer.json of an XLM-R with one layer, whose pieces are characters."""
    import wtpsplit.models  # noqa: F401 (registers the architecture)
    from tokenizers import Regex, Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast
    from wtpsplit.configs import SubwordXLMConfig
    from wtpsplit.models import SubwordXLMForTokenClassification

    special = ["<s>", "<pad>", "</s>", "<unk>"]
    letters = [*special, *"abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789.,;:!?日本。"]
    tokenizer = Tokenizer(models.WordLevel({letter: i for i, letter in enumerate(letters)}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Split(Regex("."), "isolated")]
    )
    torch.manual_seed(seed)
    config = SubwordXLMConfig(
        vocab_size=len(letters),
        hidden_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=16,
        max_position_embeddings=600,
        type_vocab_size=1,
        pad_token_id=1,
        num_labels=1,
        initializer_range=0.5,
    )
    SubwordXLMForTokenClassification(config).save_pretrained(folder)
    names = dict(zip(("cls_token", "pad_token", "sep_token", "unk_token"), special, strict=True))
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, **names).save_pretrained(folder)
    return folder
