"""Residual quantization: units by brute force, partial sums, targets, and the file."""

import json

import pytest
import torch
from safetensors.torch import save_file

from lcm.errors import UserError
from lcm.models import quantizer as module
from lcm.models.interface import Normalizer
from lcm.models.quantizer import QuantizerRecord, ResidualQuantizer, load_quantizer, save_quantizer

Q, V, D = 5, 7, 4


def made_up(codebooks=Q, units=V, dim=D, seed=0):
    torch.manual_seed(seed)
    quantizer = ResidualQuantizer(codebooks, units, dim)
    quantizer.set(torch.randn(codebooks, units, dim) / torch.arange(1, codebooks + 1)[:, None, None])
    return quantizer


def by_hand(quantizer, z):
    """(s_0 … s_Q), (u_0 … u_{Q-1}), (r_0 … r_Q) of one vector, from all distances, in float64."""
    sums, units, residuals = [torch.zeros(D).double()], [], [z.double()]
    for codebook in quantizer.codebooks.double():
        units.append(int((codebook - residuals[-1]).square().sum(1).argmin()))
        sums.append(sums[-1] + codebook[units[-1]])
        residuals.append(residuals[-1] - codebook[units[-1]])
    return sums, units, residuals


def test_units_sums_and_residuals_are_those_of_all_distances():
    quantizer, z = made_up(), torch.randn(30, D)
    codes = quantizer.encode(z)
    assert codes.dtype == torch.int64
    assert codes.shape == (30, Q)
    for row, vector in enumerate(z):
        sums, units, residuals = by_hand(quantizer, vector)
        assert codes[row].tolist() == units
        for k in range(Q + 1):
            at = torch.tensor([k])
            assert torch.allclose(quantizer.dequantize(codes[row : row + 1], at)[0].double(), sums[k], atol=1e-6)
            if k < Q:
                found_sums, found_units = quantizer.targets(vector[None], at)
                assert torch.allclose(found_sums[0].double(), sums[k], atol=1e-6)
                assert found_units.tolist() == [units[k]]
                assert torch.allclose((vector - found_sums[0]).double(), residuals[k], atol=1e-6)


def test_the_sum_of_the_nearest_units_by_hand():
    quantizer = ResidualQuantizer(2, 2, 1)
    quantizer.set(torch.tensor([[[0.0], [10.0]], [[1.0], [-1.0]]]))
    assert quantizer(torch.tensor([[10.8], [-0.7]])).tolist() == [[11.0], [-1.0]]


def test_the_first_input_is_zeros_and_the_last_sum_the_rounded_vector():
    quantizer, z = made_up(), torch.randn(6, D)
    first_input, _ = quantizer.targets(z, torch.zeros(6, dtype=torch.long))
    assert first_input.abs().max() == 0
    codes = quantizer.encode(z)
    assert torch.equal(quantizer.dequantize(codes, torch.full((6,), Q)), quantizer.dequantize(codes))
    assert torch.equal(quantizer(z), quantizer.dequantize(codes))
    assert quantizer.dequantize(codes, torch.zeros(6, dtype=torch.long)).abs().max() == 0


def test_a_depth_for_each_row_is_all_depths_and_a_choice():
    quantizer, z = made_up(), torch.randn(40, D)
    k = torch.randint(0, Q, (40,))
    codes, (sums, units) = quantizer.encode(z), quantizer.targets(z, k)
    every = torch.stack([quantizer.dequantize(codes, torch.full((40,), depth)) for depth in range(Q + 1)])
    rows = torch.arange(40)
    assert torch.equal(quantizer.dequantize(codes, k), every[k, rows])
    assert torch.equal(sums, every[k, rows]), "bit for bit: the model adds up the same way when it generates"
    assert torch.equal(units, codes[rows, k])


def test_a_row_searches_no_codebook_after_its_own(monkeypatch):
    quantizer, asked = made_up(), []
    nearest = ResidualQuantizer.nearest

    def recorded(self, residuals, k):
        asked.append((k, len(residuals)))
        return nearest(self, residuals, k)

    monkeypatch.setattr(ResidualQuantizer, "nearest", recorded)
    quantizer.targets(torch.randn(6, D), torch.tensor([0, 3, 0, 1, 3, 0]))
    assert [pair for pair in asked if pair[1]] == [(0, 6), (1, 3), (2, 2), (3, 2)]


def test_long_batches_may_be_searched_in_parts(monkeypatch):
    quantizer, z = made_up(), torch.randn(23, D)
    k = torch.randint(0, Q, (23,))
    before, codes = quantizer.targets(z, k), quantizer.encode(z)
    sizes = []
    argmin = torch.Tensor.argmin
    monkeypatch.setattr(torch.Tensor, "argmin", lambda self, dim: sizes.append(self.numel()) or argmin(self, dim))
    monkeypatch.setattr(module, "DISTANCES", 3 * V)
    assert all(torch.equal(a, b) for a, b in zip(before, quantizer.targets(z, k), strict=True))
    assert torch.equal(codes, quantizer.encode(z))
    assert max(sizes) == 3 * V


def test_of_units_at_one_distance_the_first_wins():
    quantizer = ResidualQuantizer(1, 4, 2)
    quantizer.set(torch.tensor([[[5.0, 0.0], [1.0, 0.0], [-1.0, 0.0], [1.0, 0.0]]]))
    assert quantizer.encode(torch.tensor([[0.0, 3.0], [2.0, 0.0]])).tolist() == [[1], [1]]


def test_distances_are_squared_and_euclidean():
    quantizer, z = made_up(), torch.randn(9, D)
    for k in range(Q):
        expected = torch.cdist(z, quantizer.codebooks[k]).square()
        assert torch.allclose(quantizer.squared_distances(z, k), expected, atol=1e-5)
    far = made_up(1, 200, 64)
    far.set(1000 + far.codebooks)
    assert (far._scores(far.codebooks[0], 0) + far.codebooks[0].square().sum(1, keepdim=True)).min() < 0
    assert far.squared_distances(far.codebooks[0], 0).min() == 0, "rounding makes no distance negative"


def test_a_unit_by_its_number():
    quantizer = made_up()
    units, k = torch.tensor([0, 6, 3]), torch.tensor([4, 0, 2])
    assert torch.equal(quantizer.centroid(2, units), quantizer.codebooks[2][units])
    assert [row.tolist() for row in quantizer.centroid(k, units)] == [
        quantizer.codebooks[a, b].tolist() for a, b in ((4, 0), (0, 6), (2, 3))
    ]


def test_autocast_changes_no_code():
    quantizer, z = made_up(units=200), torch.randn(300, D)
    codes = quantizer.encode(z)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(quantizer.encode(z), codes)
        assert quantizer.dequantize(codes).dtype == torch.float32


def test_the_largest_sizes_build_without_memory():
    with torch.device("meta"):
        quantizer = ResidualQuantizer(64, 8192, 1024)
    assert quantizer.codebooks.shape == (64, 8192, 1024)
    assert set(quantizer.state_dict()) == {"codebooks"}
    assert not list(quantizer.parameters())


@pytest.mark.parametrize("device", ["cpu", "meta"])
def test_loaded_codebooks_choose_as_those_that_were_saved(device):
    quantizer, z = made_up(), torch.randn(20, D)
    with torch.device(device):
        again = ResidualQuantizer(Q, V, D)
    again.load_state_dict(quantizer.state_dict(), assign=device == "meta")
    assert torch.equal(again.encode(z), quantizer.encode(z))
    assert torch.equal(again.squares, quantizer.squares)


# ---- the file ----


def record(space="normalised", scale=2.0):
    normalizer = Normalizer(D)
    if space == "normalised":
        normalizer.set(torch.arange(D).float(), torch.full((D,), scale))
    return QuantizerRecord("mini", "abc", space, normalizer)


def test_a_file_comes_back_bit_for_bit(tmp_path):
    quantizer, path = made_up(), tmp_path / "folder" / "q.safetensors"
    save_quantizer(path, quantizer, record())
    again, about = load_quantizer(path)
    assert torch.equal(again.codebooks, quantizer.codebooks)
    assert torch.equal(again.encode(torch.ones(1, D)), quantizer.encode(torch.ones(1, D)))
    assert (about.codec, about.fingerprint, about.space) == ("mini", "abc", "normalised")
    assert about.normalizer.location.tolist() == [0, 1, 2, 3]
    assert about.normalizer.scale.tolist() == [2] * D
    first = path.read_bytes()
    save_quantizer(path, again, about)
    assert path.read_bytes() == first
    assert [file.name for file in path.parent.iterdir()] == ["q.safetensors"]


def test_another_codec_or_normalizer_is_refused():
    here = record()
    here.check("model.quantizer=q", "abc", record().normalizer)
    with pytest.raises(UserError, match=r"model.quantizer=q: fitted to vectors of codec 'mini' \(fingerprint abc\)"):
        here.check("model.quantizer=q", "xyz", record().normalizer)
    with pytest.raises(UserError, match="a different normalizer"):
        here.check("model.quantizer=q", "abc", record(scale=2.1).normalizer)
    record("raw").check("model.quantizer=q", "abc", record(scale=2.1).normalizer)


def test_other_files_are_refused_plainly(tmp_path):
    path = tmp_path / "q.safetensors"
    with pytest.raises(UserError, match="no such file"):
        load_quantizer(path)
    path.write_bytes(b"nonsense")
    with pytest.raises(UserError, match="not a whole safetensors file"):
        load_quantizer(path)
    save_file({"codebooks": torch.zeros(1, 2, 3)}, path)
    with pytest.raises(UserError, match="not a quantizer"):
        load_quantizer(path)
    save_file({"weight": torch.zeros(2)}, path, {"lcm quantizer": json.dumps({"codec": "mini"})})
    with pytest.raises(UserError, match="not a"):
        load_quantizer(path)
