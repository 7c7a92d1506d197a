import pytest
import torch
from official import HEADS, LANGUAGES, Official, write_official

from lcm.codec import Codec, load_codec
from lcm.codec.architecture import Sizes, SonarText
from lcm.codec.official import convert


@pytest.fixture(scope="session")
def mini() -> Codec:
    return load_codec("mini", device="cpu")


@pytest.fixture(scope="session")
def toy() -> SonarText:
    """A random model whose sentences have many lengths."""
    torch.manual_seed(14)
    model = SonarText(
        Sizes(
            vocabulary=11,
            dim=16,
            encoder_layers=2,
            decoder_layers=3,
            encoder_heads=2,
            decoder_heads=4,
            encoder_ffn=24,
            decoder_ffn=40,
            positions=24,
        )
    )
    # Louder than a fresh model, which would repeat one piece whatever came before it.
    for name, parameter in model.named_parameters():
        if "embed" not in name:
            parameter.data *= 3
    return model.requires_grad_(False).eval()


@pytest.fixture(scope="session")
def files(tmp_path_factory) -> Official:
    """Small checkpoints, vocabulary and cards in SONAR's official format."""
    return write_official(tmp_path_factory.mktemp("official"))


@pytest.fixture(scope="session")
def converted_folder(files, tmp_path_factory):
    """The codec of the basic ones of these files."""
    folder = tmp_path_factory.mktemp("codecs") / "basic"
    convert(files.encoder, files.decoder, files.vocabulary, LANGUAGES, folder, heads=HEADS)
    return folder
