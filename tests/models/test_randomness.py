"""Random numbers: what they depend on, what they do not, and how they are distributed."""

import torch

from lcm.batch import Draws, generators, random_rows
from lcm.models.interface import prompt_number

KEYS = torch.tensor([[5, 0], [6, 0], [5, 1]])


def test_each_row_s_numbers_depend_on_the_seed_and_its_keys_alone():
    torch.manual_seed(0)
    numbers = random_rows(torch.randn, 3, KEYS, (4,))
    torch.manual_seed(1)
    assert torch.equal(random_rows(torch.randn, 3, KEYS[[2, 0]], (4,)), numbers[[2, 0]])
    assert torch.equal(random_rows(torch.randn, 3, KEYS[1:2], (4,)), numbers[1:2])
    other = random_rows(torch.randn, 4, KEYS, (4,))
    assert len({tuple(row) for row in torch.cat([numbers, other]).tolist()}) == 6


def test_no_number_is_drawn_twice():
    draws = Draws(0, KEYS)
    drawn = [*draws.gaussian(0, 4), *draws.gaussian(1, 4), *draws.gaussian(40, 4), *draws.uniform(0, 4)]
    assert len({tuple(row.tolist()) for row in drawn}) == 12
    assert torch.equal(draws.gaussian(1, 4), Draws(0, KEYS).gaussian(1, 4))
    assert torch.equal(draws.uniform(0, 4)[1:], Draws(0, KEYS[1:]).uniform(0, 4))
    assert not torch.equal(draws.gaussian(0, 4), Draws(1, KEYS).gaussian(0, 4))
    assert not torch.equal(draws.uniform(0, 4), Draws(1, KEYS).uniform(0, 4))


def test_concepts_at_some_slots_get_the_numbers_of_their_slots():
    """Other slots change nothing; two slots never share numbers."""
    keys, slots = torch.tensor([[5], [6]]), 4
    every = Draws(0, keys, slots, torch.arange(8))
    some = torch.tensor([1, 2, 7])
    for draw in ("gaussian", "uniform"):
        whole = getattr(every, draw)(2, 3)
        assert whole.shape == (8, 3)
        assert torch.equal(getattr(Draws(0, keys, slots, some), draw)(2, 3), whole[some])
        assert len({tuple(row) for row in whole.tolist()}) == 8


def test_they_are_standard_gaussian_and_uniform():
    draws = Draws(0, torch.arange(500)[:, None])
    normal, uniform = draws.gaussian(0, 40), draws.uniform(0, 40)
    assert abs(normal.mean().item()) < 0.02
    assert abs(normal.std().item() - 1) < 0.02
    assert uniform.min().item() >= 0
    assert uniform.max().item() < 1
    assert abs(uniform.mean().item() - 0.5) < 0.01
    assert abs(uniform.var().item() - 1 / 12) < 0.002
    neighbours = torch.corrcoef(normal[:2])[0, 1].item()
    assert abs(neighbours) < 0.5


def test_generators_are_independent_objects():
    first, second = generators(0, torch.tensor([[1], [1]]))
    assert torch.equal(torch.rand(3, generator=first), torch.rand(3, generator=second))


def test_a_prompt_s_number_survives_rounding_and_tells_prompts_apart():
    torch.manual_seed(0)
    z = torch.randn(50, 16)
    numbers = prompt_number(z)
    assert len(set(numbers.tolist())) == 50
    assert torch.equal(prompt_number(z * (1 + 1e-3 * torch.rand(50, 16))), numbers)
    assert torch.equal(prompt_number(z[[7, 3]]), numbers[[7, 3]])
    assert int(numbers.min()) >= 0, "a seed"
