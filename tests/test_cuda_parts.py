"""The parts on a GPU: schedules, samplers, normalizer, quantizer, and the codec with its vectors and texts."""

import sys
from pathlib import Path

import pytest
import torch
from families import close
from on_cuda import CUDA, exact_products, needs_cuda
from synthetic import DIM
from torch.nn.attention import SDPBackend, sdpa_kernel

from lcm.codec import load_codec
from lcm.config import DiffusionConfig
from lcm.models.diffusion import Diffusion
from lcm.models.interface import Normalizer
from lcm.models.quantizer import ResidualQuantizer
from lcm.models.samplers import alpha_bar, ddim, dpm_solver, guided, sampling_timesteps

sys.path.insert(0, str(Path(__file__).parent.parent / "benchmarks"))
from codec_sizes import sentences

pytestmark = needs_cuda
assert exact_products()


@pytest.fixture(scope="module")
def texts():
    """Real sentences of many lengths."""
    return sentences(64)


@pytest.mark.parametrize("prediction", ["x0", "eps", "v"])
def test_noising_and_its_float64_table_move_along(prediction):
    diffusion = Diffusion(DiffusionConfig(prediction=prediction, weight="snr"), DIM)
    torch.manual_seed(0)
    z, eps, t = torch.randn(100, DIM), torch.randn(100, DIM), torch.arange(100)
    results = []
    for device in ("cpu", CUDA):
        moved = diffusion.to(device).half()
        assert (moved.alpha_bar.dtype, moved.alpha_bar.device.type) == (torch.float64, device)
        here = [x.to(device) for x in (z, t, eps)]
        x_t, out = moved.noise(*here), moved.target(*here)
        results.append([x.cpu() for x in (x_t, out, moved.x0(out, x_t, here[1]), moved.weight(here[0], here[1]))])
    torch.testing.assert_close(results[1], results[0], rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("eta", [0.0, 1.0])
def test_samplers_walk_the_cpus_path(eta):
    """With guidance over a denoiser that bends; ancestral noise from the CPU."""
    table = alpha_bar("cosine")
    levels = [table[t].item() for t in sampling_timesteps(100, 12)]
    start = torch.randn(20, DIM, generator=torch.Generator().manual_seed(0))

    def noise(device):
        return lambda step: torch.randn(20, DIM, generator=torch.Generator().manual_seed(step)).to(device)

    def alone(x, i):
        return torch.tanh(x) * (0.5 + i / 24)

    results = []
    for device in ("cpu", CUDA):
        denoise = guided(lambda x, i: (alone(x, i), 0.5 * x), alone, levels, scale=3.0, rescale=0.7)
        x = start.to(device)
        found = [ddim(denoise, x, levels, eta=eta, epsilon_scaling=1.00045, noise=noise(device))]
        results.append([x.cpu() for x in (*found, dpm_solver(denoise, x, levels))])
    for found, expected in zip(results[1], results[0], strict=True):
        close(found, expected, 1e-4)


def test_the_normalizer_and_the_quantizer_are_the_cpus():
    torch.manual_seed(0)
    normalizer, quantizer = Normalizer(32), ResidualQuantizer(4, 16, 32)
    normalizer.set(torch.randn(32), torch.rand(32) + 0.5)
    quantizer.set(torch.randn(4, 16, 32) * 0.5 ** torch.arange(4)[:, None, None])
    x, k = torch.randn(300, 32).half(), torch.arange(300) % 4
    results = []
    for device in ("cpu", CUDA):
        scale, rounds = normalizer.to(device), quantizer.to(device)
        z = scale(x.to(device))
        codes = rounds.encode(z)
        with torch.autocast(device, torch.bfloat16):
            assert torch.equal(rounds.encode(z), codes), "in fp32 under autocast, too"
        tensors = (z, scale.inverse(z), codes, rounds.dequantize(codes), *rounds.targets(z, k.to(device)))
        results.append([tensor.cpu() for tensor in tensors])
    torch.testing.assert_close(results[1], results[0], rtol=1e-5, atol=1e-5)


def test_vectors_in_fp32_are_the_cpus(texts):
    expected, found = (load_codec("mini", device=d, dtype=torch.float32).encode(texts) for d in ("cpu", CUDA))
    assert found.device.type == "cpu"
    close(found, expected, 1e-4)


@pytest.mark.parametrize(("beam", "count"), [(1, 64), (5, 16)])
def test_texts_in_fp32_are_the_cpus(beam, count, texts):
    expected = load_codec("mini", device="cpu", dtype=torch.float32)
    vectors = expected.encode(texts[:count])
    found = load_codec("mini", device=CUDA, dtype=torch.float32).decode(vectors, beam=beam)
    assert found == expected.decode(vectors, beam=beam)


@pytest.mark.parametrize(("dtype", "tolerance"), [(None, 0.03), (torch.bfloat16, 0.03), (torch.float16, 0.005)])
def test_vectors_in_half_precision_are_close(dtype, tolerance, texts):
    """The distance to the fp32 vector is a share of its length. The default precision is bf16."""
    codec = load_codec("mini", device=CUDA, dtype=dtype)
    assert codec.dtype == (dtype or torch.bfloat16)
    exact = load_codec("mini", device="cpu", dtype=torch.float32).encode(texts)
    error = (codec.encode(texts) - exact).norm(dim=1) / exact.norm(dim=1)
    assert error.max().item() < tolerance


def test_encoding_sentences_of_one_length_is_the_same_by_every_kernel(texts):
    """Without a mask, in bf16: flash attention among them."""
    codec, vectors = load_codec("mini", device=CUDA, dtype=torch.bfloat16), []
    for kernel in (SDPBackend.FLASH_ATTENTION, SDPBackend.EFFICIENT_ATTENTION, SDPBackend.MATH):
        with sdpa_kernel(kernel):
            vectors.append(codec.encode(texts[:1] * 8))
    close(vectors[0], vectors[2], 0.03)
    close(vectors[1], vectors[2], 0.03)
