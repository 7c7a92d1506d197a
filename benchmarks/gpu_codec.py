"""The sections encode and decode of gpu.py: SONAR's own size with random weights, and the embedded codec."""

from collections.abc import Callable
from functools import cache

import torch
from codec_sizes import RANDOM, sentences
from gpu_cases import Bench, Case
from torch import Tensor

from lcm.codec import Codec, load_codec
from lcm.codec.architecture import Sizes, SonarText
from lcm.codec.codec import PIECES

BUDGETS = (8_192, 32_768, 131_072)
DECODED = ((1, 1024), (5, 256))
"""Beams and sentences."""
read = cache(sentences)


def encode(bench: Bench) -> None:
    def measure(codec: Codec, name: Case) -> None:
        texts, usual = read(20 if bench.tiny else 8_000), PIECES[bench.device.type]
        pieces = sum(len(row) + 2 for row in codec.tokenizer.encode(texts))
        for budget in BUDGETS[: 1 if bench.tiny else 3]:
            PIECES[bench.device.type] = budget
            bench.case("encode", {**name, "batch_pieces": budget}, lambda: encoded(bench, codec, texts, pieces))
        PIECES[bench.device.type] = usual

    of_all(bench, "encode", measure)


def encoded(bench: Bench, codec: Codec, texts: list[str], pieces: int) -> Case:
    codec.encode(texts)  # the allocator and the libraries see every shape once
    seconds = bench.seconds(lambda: codec.encode(texts))
    speed = {"sentences_per_second": round(len(texts) / seconds), "pieces_per_second": round(pieces / seconds)}
    return {**speed, "sentences": len(texts), "pieces": pieces, "peak_gb": bench.peak_gb()}


def decode(bench: Bench) -> None:
    def measure(codec: Codec, name: Case) -> None:
        for beam, count in DECODED:
            vectors = codec.encode(read(20 if bench.tiny else count)[:count])
            bench.case("decode", {**name, "beam": beam}, lambda v=vectors, b=beam: decoded(bench, codec, v, b))

    of_all(bench, "decode", measure)


def decoded(bench: Bench, codec: Codec, vectors: Tensor, beam: int) -> Case:
    codec.decode(vectors[:8], beam=beam)
    seconds = bench.seconds(lambda: codec.decode(vectors, beam=beam))
    speed = round(len(vectors) / seconds, 1)
    return {"sentences_per_second": speed, "sentences": len(vectors), "peak_gb": bench.peak_gb()}


def of_all(bench: Bench, section: str, measure: Callable[[Codec, Case], None]) -> None:
    """Both codecs in both half precisions; a codec that cannot be made is a case that failed."""
    for dtype in (torch.float32,) if bench.tiny else (torch.bfloat16, torch.float16):
        for size in ("SONAR's", "mini"):
            name: Case = {"codec": size, "dtype": str(dtype).removeprefix("torch.")}
            try:
                is_mini = size == "mini"
                codec = load_codec("mini", device=bench.device, dtype=dtype) if is_mini else sonar_sized(bench, dtype)
                codec.encode(["One."])
                measure(codec, name)
            except Exception as error:

                def failed(error: Exception = error) -> Case:
                    raise error

                bench.case(section, name, failed)
            bench.free()


def sonar_sized(bench: Bench, dtype: torch.dtype) -> Codec:
    """On the device at once, without the 6.5 GB of files that `codec_of` writes."""
    layers, ffn, vocabulary = (2, 128, 8_192) if bench.tiny else RANDOM["L"]
    codec = load_codec("mini", device=bench.device, dtype=dtype)
    torch.manual_seed(0)
    with bench.device:
        sizes = Sizes(vocabulary, 1024, layers, layers, 16, 16, ffn, ffn, positions=514, shared_embedding=False)
        model = SonarText(sizes).to(bench.device).requires_grad_(False).eval()
    for name, parameter in model.named_parameters():
        if "layer_norm" not in name:
            parameter.data = parameter.data.to(dtype)
    codec._model, codec.dim, codec.config["max_generated"] = model, sizes.dim, 4 if bench.tiny else 32
    codec.encoder, codec.decoder = model.encoder, model.decoder  # as if they had been read from its folder
    return codec
