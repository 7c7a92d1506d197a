"""Every term does what its name says: closed forms and symmetries."""

import pytest
import torch

from lcm.codec_lab import terms
from lcm.models.interface import Normalizer

STARTS = torch.tensor([False, True, False, True, False, True])
ROW = [1, 2, 3, 4, 5, 1]  # four words: 1 2 · 3 4 · 5 · 1


def test_damage_of_size_zero_changes_nothing():
    assert terms.damaged(ROW, STARTS, drop=0.0, swap=0.0) == ROW


def test_swapped_words_change_places_with_their_neighbour_and_stay_whole():
    assert terms.damaged(ROW, STARTS, drop=0.0, swap=1.0) == [3, 4, 1, 2, 1, 5]


def test_dropped_words_go_whole_and_never_all():
    words = [(1, 2), (3, 4), (5,), (1,)]
    torch.manual_seed(0)
    for _ in range(50):
        left = terms.damaged(ROW, STARTS, drop=0.5, swap=0.0)
        rest = iter(words)
        place = 0
        while place < len(left):  # what is left is a subsequence of whole words
            word = next(w for w in rest if tuple(left[place : place + len(w)]) == w)
            place += len(word)
    assert terms.damaged(ROW, STARTS, drop=1.0, swap=0.0) == [1, 2]


def test_unknowns_replace_the_mean_share_and_touch_nothing_else():
    torch.manual_seed(0)
    pieces = torch.arange(10, 210).expand(2000, -1)
    read = terms.with_unknowns(pieces, 0.1, unknown=1)
    replaced = read == 1
    assert float(replaced.float().mean()) == pytest.approx(0.1, abs=0.004)
    assert torch.equal(read[~replaced], pieces[~replaced])


def test_noise_has_a_third_of_the_largest_variance_and_follows_each_channel():
    torch.manual_seed(0)
    vectors = torch.randn(40_000, 2) * torch.tensor([1.0, 5.0])
    noise = terms.with_noise(vectors, 0.6) - vectors
    assert torch.allclose(noise.std(0), 0.6 / 3**0.5 * torch.tensor([1.0, 5.0]), rtol=0.03)


def test_noise_of_a_single_row_is_none():
    vectors = torch.randn(1, 4)
    assert torch.equal(terms.with_noise(vectors, 0.5), vectors)


def test_robust_noise_keeps_the_distribution_of_normalized_gaussians():
    """sqrt(1 - a) x + sqrt(a) e of two standard normals is one again, whatever a: mean, spread, and their shift."""
    torch.manual_seed(0)
    normalizer = Normalizer(3)
    location, scale = torch.tensor([1.0, -2.0, 0.0]), torch.tensor([1.0, 3.0, 0.5])
    normalizer.set(location, scale)
    vectors = location + scale * torch.randn(40_000, 3)
    noised = terms.robust(vectors, normalizer, 1.0)
    assert torch.allclose(noised.mean(0), location, atol=0.05)
    assert torch.allclose(noised.std(0), scale, rtol=0.03)
    kept = (normalizer(noised) * normalizer(vectors)).mean()
    assert float(kept) == pytest.approx(2 / 3, abs=0.02), "the mean of sqrt(1 - a) over uniform a"


def test_robust_noise_of_size_zero_changes_nothing():
    vectors = torch.randn(5, 3)
    assert torch.allclose(terms.robust(vectors, Normalizer(3), 0.0), vectors)


def test_targets_are_the_pieces_then_their_end_then_nothing():
    wanted = terms.targets(torch.tensor([[7, 8, 9], [7, 0, 0]]), torch.tensor([3, 1]), end=3)
    assert wanted.tolist() == [[7, 8, 9, 3], [7, 3, -100, -100]]


def test_what_is_ignored_does_not_move_the_cross_entropy():
    logits = torch.randn(1, 3, 5)
    short = terms.cross_entropy(logits[:, :2], torch.tensor([[1, 2]]))
    assert torch.allclose(terms.cross_entropy(logits, torch.tensor([[1, 2, -100]])), short)


@pytest.mark.parametrize("kind", ["mse", "kl"])
def test_similarity_ignores_rotation_scale_and_shift(kind):
    torch.manual_seed(0)
    teacher = torch.randn(6, 4)
    turned = 3 * teacher @ torch.linalg.qr(torch.randn(4, 4))[0] + torch.randn(4)
    assert float(terms.similarity_loss(turned, teacher, kind, 0.1)) == pytest.approx(0, abs=1e-6)
    assert terms.similarity_loss(torch.randn(6, 4), teacher, kind, 0.1) > 1e-3


@pytest.mark.parametrize("kind", ["mse", "kl"])
def test_following_the_similarity_loss_makes_vectors_agree_with_the_teacher(kind):
    torch.manual_seed(0)
    teacher, vectors = torch.randn(8, 4), torch.randn(8, 6, requires_grad=True)
    optimizer = torch.optim.Adam([vectors], lr=0.05)
    first = last = float(terms.similarity_loss(vectors.detach(), teacher, kind, 0.5))
    for _ in range(200):
        optimizer.zero_grad()
        loss = terms.similarity_loss(vectors, teacher, kind, 0.5)
        loss.backward()
        optimizer.step()
        last = float(loss.detach())
    assert last < first / 20


def test_two_rows_have_no_similarity_to_learn():
    assert float(terms.similarity_loss(torch.randn(2, 4), torch.randn(2, 3), "mse", 0.1)) == 0
