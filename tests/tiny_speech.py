"""A speech encoder with random weights in the official format: a card over sonar-space's own, and fairseq's names."""

import re
from dataclasses import replace
from pathlib import Path

import torch
import yaml

NAMES = (
    (r"^encoder_frontend\.post_extract_layer_norm\.", "encoder.w2v_model.layer_norm."),
    (r"^encoder_frontend\.model_dim_proj\.", "encoder.w2v_model.post_extract_proj."),
    (r"^encoder\.layers\.(\d+)\.conv\.", r"encoder.w2v_model.encoder.layers.\1.conv_module."),
    (r"^encoder\.layers\.(\d+)\.conv_layer_norm\.", r"encoder.w2v_model.encoder.layers.\1.conv_module.layer_norm."),
    (r"^encoder\.layers\.(\d+)\.ffn(1|2)_layer_norm\.", r"encoder.w2v_model.encoder.layers.\1.ffn\2.layer_norm."),
    (r"^encoder\.layers\.(\d+)\.ffn(1|2)\.inner_proj\.", r"encoder.w2v_model.encoder.layers.\1.ffn\2.w_1."),
    (r"^encoder\.layers\.(\d+)\.ffn(1|2)\.output_proj\.", r"encoder.w2v_model.encoder.layers.\1.ffn\2.w_2."),
    (
        r"^encoder\.layers\.(\d+)\.self_attn\.sdpa\.r_proj\.",
        r"encoder.w2v_model.encoder.layers.\1.self_attn.linear_pos.",
    ),
    (
        r"^encoder\.layers\.(\d+)\.self_attn\.sdpa\.(u|v)_bias",
        r"encoder.w2v_model.encoder.layers.\1.self_attn.pos_bias_\2",
    ),
    (
        r"^encoder\.layers\.(\d+)\.self_attn\.output_proj\.",
        r"encoder.w2v_model.encoder.layers.\1.self_attn.linear_out.",
    ),
    (
        r"^encoder\.layers\.(\d+)\.self_attn\.(q|k|v)_proj\.",
        r"encoder.w2v_model.encoder.layers.\1.self_attn.linear_\2.",
    ),
    (r"^encoder\.layers\.(\d+)\.self_attn_layer_norm\.", r"encoder.w2v_model.encoder.layers.\1.self_attn_layer_norm."),
    (r"^encoder\.layers\.(\d+)\.layer_norm\.", r"encoder.w2v_model.encoder.layers.\1.final_layer_norm."),
    (r"^layer_norm\.", "encoder.w2v_model.encoder.layer_norm."),
    (r"^encoder_pooler\.decoder_frontend\.embed\.", "decoder.embed_tokens."),
    (r"^encoder_pooler\.projection_out\.weight", "decoder.embed_out"),
    (r"^encoder_pooler\.decoder\.", "decoder."),
    (r"^(decoder\.layers\.\d+)\.encoder_decoder_attn", r"\1.encoder_attn"),
    (r"^(decoder\.layers\.\d+\.\w+)\.output_proj\.", r"\1.out_proj."),
    (r"^(decoder\.layers\.\d+)\.ffn\.inner_proj\.", r"\1.fc1."),
    (r"^(decoder\.layers\.\d+)\.ffn\.out_proj\.", r"\1.fc2."),
    (r"^(decoder\.layers\.\d+)\.ffn_layer_norm\.", r"\1.final_layer_norm."),
)


INSIDE = {"num_encoder_layers": 1, "num_encoder_attn_heads": 2, "ffn_inner_dim": 32, "depthwise_conv_kernel_size": 3}
AROUND = {"num_decoder_layers": 1, "num_decoder_attn_heads": 2, "ffn_inner_dim": 32}
"""w2v-BERT in miniature: one conformer layer, and one layer of attention that pools."""


def write_tiny_speech(folder: Path, dim: int, language: str = "eng", seed: int = 0) -> Path:
    """The folder of cards, for FAIRSEQ2_USER_ASSET_DIR."""
    from sonar.models.sonar_speech import get_sonar_speech_encoder_hub
    from sonar.models.sonar_speech.factory import SonarSpeechEncoderFactory

    inside, around = {"model_dim": dim, **INSIDE}, {"model_dim": dim, **AROUND}
    config = get_sonar_speech_encoder_hub().get_arch_config("english")
    config = replace(config, **around, w2v2_encoder_config=replace(config.w2v2_encoder_config, **inside))
    torch.manual_seed(seed)
    model = SonarSpeechEncoderFactory(config).create_model()
    state = {name: value.clone() for name, value in model.state_dict().items()}
    for old, new in NAMES:
        state = {re.sub(old, new, name): value for name, value in state.items()}
    torch.save({"model": state}, folder / "spenc.pt")
    (folder / "cards").mkdir(exist_ok=True)
    card = {
        "name": f"sonar_speech_encoder_{language}@user",
        "checkpoint": f"file://{folder / 'spenc.pt'}",
        "model_config": {"_set_": around, "w2v2_encoder_config": {"_set_": inside}},
        "model_arch": "english",
    }
    (folder / "cards" / f"{language}.yaml").write_text(yaml.safe_dump(card))
    return folder / "cards"
