"""Residual quantization: units by brute force, partial sums, targets, the file, and what fitting promises."""

import json

import pytest
import torch
from safetensors.torch import save_file

from lcm import quantizer as module
from lcm.errors import UserError
from lcm.normalizer import Normalizer
from lcm.quantizer import QuantizerRecord, ResidualQuantizer, load_quantizer, save_quantizer
from lcm.quantizer_fitting import clusters, fit_quantizer, principal_directions, variance, widths

Q, V, D = 5, 7, 4


def made_up(codebooks=Q, units=V, dim=D, seed=0):
    torch.manual_seed(seed)
    quantizer = ResidualQuantizer(codebooks, units, dim)
    quantizer.set(torch.randn(codebooks, units, dim) / torch.arange(1, codebooks + 1)[:, None, None])
    return quantizer


def by_hand(quantizer, z):
    """(s_0 … s_Q), (u_0 … u_{Q-1}), (r_0 … r_Q) of one vector, from all distances, in float64."""
    sums, units, rests = [torch.zeros(D).double()], [], [z.double()]
    for codebook in quantizer.codebooks.double():
        units.append(int((codebook - rests[-1]).square().sum(1).argmin()))
        sums.append(sums[-1] + codebook[units[-1]])
        rests.append(rests[-1] - codebook[units[-1]])
    return sums, units, rests


def test_units_sums_and_rests_are_those_of_all_distances():
    quantizer, z = made_up(), torch.randn(30, D)
    codes = quantizer.encode(z)
    assert codes.dtype == torch.int64
    assert codes.shape == (30, Q)
    for row, vector in enumerate(z):
        sums, units, rests = by_hand(quantizer, vector)
        assert codes[row].tolist() == units
        for k in range(Q + 1):
            at = torch.tensor([k])
            assert torch.allclose(quantizer.dequantise(codes[row : row + 1], at)[0].double(), sums[k], atol=1e-6)
            if k < Q:
                found = quantizer.targets(vector[None], at)
                assert torch.allclose(found.sums[0].double(), sums[k], atol=1e-6)
                assert found.units.tolist() == [units[k]]
                assert torch.allclose(found.rests[0].double(), rests[k], atol=1e-6)


def test_the_sum_of_the_nearest_units_by_hand():
    quantizer = ResidualQuantizer(2, 2, 1)
    quantizer.set(torch.tensor([[[0.0], [10.0]], [[1.0], [-1.0]]]))
    assert quantizer(torch.tensor([[10.8], [-0.7]])).tolist() == [[11.0], [-1.0]]


def test_the_first_input_is_zeros_and_the_last_sum_the_rounded_vector():
    quantizer, z = made_up(), torch.randn(6, D)
    first = quantizer.targets(z, torch.zeros(6, dtype=torch.long))
    assert first.sums.abs().max() == 0
    assert torch.equal(first.rests, z)
    codes = quantizer.encode(z)
    assert torch.equal(quantizer.dequantise(codes, torch.full((6,), Q)), quantizer.dequantise(codes))
    assert torch.equal(quantizer(z), quantizer.dequantise(codes))
    assert quantizer.dequantise(codes, torch.zeros(6, dtype=torch.long)).abs().max() == 0


def test_a_depth_for_each_row_is_all_depths_and_a_choice():
    quantizer, z = made_up(), torch.randn(40, D)
    k = torch.randint(0, Q, (40,))
    codes, found = quantizer.encode(z), quantizer.targets(z, k)
    every = torch.stack([quantizer.dequantise(codes, torch.full((40,), depth)) for depth in range(Q + 1)])
    rows = torch.arange(40)
    assert torch.equal(quantizer.dequantise(codes, k), every[k, rows])
    assert torch.equal(found.sums, every[k, rows]), "bit for bit: the model adds up the same way when it generates"
    assert torch.equal(found.units, codes[rows, k])
    assert torch.allclose(found.rests, z - found.sums, atol=1e-6)


def test_a_row_asks_no_codebook_after_its_own(monkeypatch):
    quantizer, asked = made_up(), []
    nearest = ResidualQuantizer.nearest
    monkeypatch.setattr(
        ResidualQuantizer, "nearest", lambda self, rests, k: asked.append((k, len(rests))) or nearest(self, rests, k)
    )
    quantizer.targets(torch.randn(6, D), torch.tensor([0, 3, 0, 1, 3, 0]))
    assert [pair for pair in asked if pair[1]] == [(0, 6), (1, 3), (2, 2), (3, 2)]


def test_rows_may_be_compared_in_pieces(monkeypatch):
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


def test_of_units_at_one_distance_the_first_is_taken():
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
    assert (far._compared(far.codebooks[0], 0) + far.codebooks[0].square().sum(1, keepdim=True)).min() < 0
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
        assert quantizer.dequantise(codes).dtype == torch.float32


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


def test_another_codec_or_normaliser_is_refused():
    here = record()
    here.check("model.quantizer=q", "abc", record().normalizer)
    with pytest.raises(UserError, match=r"model.quantizer=q: fitted to vectors of codec 'mini' \(fingerprint abc\)"):
        here.check("model.quantizer=q", "xyz", record().normalizer)
    with pytest.raises(UserError, match="another normaliser"):
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


# ---- fitting ----


def test_every_codebook_leaves_less_of_what_it_was_fitted_to():
    torch.manual_seed(0)
    vectors = torch.randn(600, 6) * torch.tensor([5.0, 3, 1, 1, 0.3, 0.1]) + 4
    quantizer = fit_quantizer(vectors, 8, 8, seed=0)
    codes = quantizer.encode(vectors)
    assert codes.min() == 0
    assert codes.max() == 7
    norms = [float((vectors - quantizer.dequantise(codes, torch.full((600,), k))).norm(dim=1).mean()) for k in range(9)]
    assert norms == sorted(norms, reverse=True)
    assert norms[8] < 0.2 * norms[1]


def test_every_codebook_leaves_less_of_vectors_that_fitting_has_not_seen():
    torch.manual_seed(0)
    vectors, others = torch.randn(2000, 6), torch.randn(500, 6)
    left = [float((others - fit_quantizer(vectors, n, 8, seed=0)(others)).square().mean()) for n in (1, 2, 4)]
    assert left[0] > 1.3 * left[1] > 1.3 * 1.3 * left[2]


def test_the_first_codebooks_do_not_depend_on_how_many_follow():
    vectors = torch.randn(200, 5, generator=torch.Generator().manual_seed(0))
    few, many = (fit_quantizer(vectors, n, 6, seed=3) for n in (2, 4))
    assert torch.equal(few.codebooks, many.codebooks[:2])


@pytest.mark.parametrize(("units", "dim", "copies"), [(8, 5, 1), (8, 5, 40), (16, 3, 7), (5, 12, 3), (1, 4, 9)])
def test_as_many_distinct_vectors_as_units_come_back_exactly(units, dim, copies):
    vectors = torch.randn(units, dim, generator=torch.Generator().manual_seed(units)).repeat(copies, 1)
    assert torch.allclose(fit_quantizer(vectors, 1, units, seed=0)(vectors), vectors, atol=1e-5)
    assert torch.allclose(fit_quantizer(vectors, 3, units, seed=0)(vectors), vectors, atol=1e-5)


def test_vectors_that_are_all_alike_are_one_unit():
    vectors = torch.full((20, 3), 7.0)
    assert torch.allclose(fit_quantizer(vectors, 2, 4, seed=0)(vectors), vectors, atol=1e-5)


def test_refitting_gives_the_same_bytes_and_another_seed_others():
    vectors = torch.randn(300, 6, generator=torch.Generator().manual_seed(0))
    before = vectors.clone()
    one, two, other = (fit_quantizer(vectors, 3, 9, seed=seed).codebooks for seed in (0, 0, 1))
    assert torch.equal(one, two)
    assert not torch.equal(one, other)
    assert torch.equal(vectors, before), "the caller's vectors stay what they are"


def test_centres_are_the_means_of_what_is_nearest_to_them():
    """k-means has come to rest in all directions, turned back to where the vectors are."""
    torch.manual_seed(0)
    vectors = (20 * torch.randn(6, 1, 8) + torch.randn(6, 50, 8)).flatten(0, 1)
    found = clusters(vectors, 6, seed=0)
    chosen = torch.cdist(vectors, found).argmin(1)
    means = torch.stack([vectors[chosen == unit].mean(0) for unit in range(6)])
    assert torch.allclose(found, means, atol=1e-4)


def test_principal_directions_by_their_variance():
    torch.manual_seed(0)
    vectors = torch.randn(500, 4) * torch.tensor([1.0, 9.0, 0.1, 3.0]) + 100
    directions = principal_directions(vectors)
    assert directions.abs().argmax(0).tolist() == [1, 3, 0, 2]
    assert torch.allclose(directions.T @ directions, torch.eye(4), atol=1e-5)


def test_clusters_are_looked_for_in_more_and_more_directions():
    assert widths(1) == [1]
    assert widths(3) == [1, 2, 3]
    assert widths(1024) == [1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024]


def test_the_share_of_the_variance_is_told_after_each_codebook():
    vectors, lines = torch.randn(100, 4, generator=torch.Generator().manual_seed(0)) + 50, []
    quantizer = fit_quantizer(vectors, 2, 5, seed=0, tell=lines.append)
    left = float((vectors - quantizer(vectors)).square().sum()) / variance(vectors)
    assert lines[1] == f"codebook 2 of 2: {left:.2%} of the variance left"
    assert variance(vectors) == pytest.approx(float((vectors - vectors.mean(0)).square().sum()), rel=1e-4)


def test_what_cannot_be_fitted_is_refused():
    with pytest.raises(UserError, match="units=9, but there are only 8 vectors"):
        fit_quantizer(torch.randn(8, 2), 1, 9, seed=0)
    with pytest.raises(UserError, match="codebooks=0"):
        fit_quantizer(torch.randn(8, 2), 0, 4, seed=0)
    with pytest.raises(UserError, match="not finite"):
        fit_quantizer(torch.tensor([[0.0], [torch.inf]]), 1, 1, seed=0)
