"""The generation loop: what ends it, and that the rows of a batch are independent."""

import pytest
import torch
from fakes import Reciter

from lcm.config import BaseLCMConfig
from lcm.errors import UserError
from lcm.inference.loop import StopRules, generate
from lcm.models.base import BaseLCM
from lcm.models.interface import Sampling

DIM = 8
END = torch.eye(DIM)[0]
A, B, C, D = torch.eye(DIM)[1:5]


def reciter(*story):
    return Reciter(torch.stack(story), END)


def recite(story, prompt, **rules):
    """Let a Reciter of `story` continue one prompt; return the names of its concepts and the reason it stops."""
    names = {"A": A, "B": B, "C": C, "D": D}
    stop = StopRules(**{"max_sentences": 9, "end_threshold": 0.95} | rules)
    model = reciter(*(names[n] for n in story))
    (result,) = generate(model, [torch.stack([names[n] for n in prompt])], stop, Sampling())
    return "".join(n for v in result.vectors for n in names if torch.equal(v, names[n])), result.reason


def test_the_end_of_text_ends_the_text_and_is_no_part_of_it():
    assert recite("ABCD", "AB") == ("CD", "end")


def test_a_repetition_ends_the_text_and_is_no_part_of_it():
    assert recite("ABCC", "A") == ("BC", "repetition")
    assert recite("ABCC", "A", repetition_threshold=None) == ("BC" + "C" * 7, "length")


def test_the_maximum_always_wins():
    assert recite("ABCD", "A", max_sentences=2) == ("BC", "length")
    assert recite("ABCD", "A", max_sentences=2, min_sentences=5) == ("BC", "length")
    assert recite("ABCD", "A", max_sentences=3) == ("BCD", "length")


def test_a_minimum_of_one_is_not_two():
    assert recite("AB", "A", min_sentences=1) == ("B", "end")
    assert recite("AB", "A", min_sentences=0) == ("B", "end")
    assert recite("AB", "B", min_sentences=0) == ("", "end")


def test_a_repetition_counts_for_the_minimum_where_nothing_else_comes():
    assert recite("ABB", "A", min_sentences=3)[0] == "BBB"


@pytest.mark.parametrize("minimum", [1, 2, 3])
def test_a_text_below_the_minimum_continues_without_its_end_of_text_part(minimum):
    almost_end = END + 0.1 * C
    stop = StopRules(max_sentences=5, min_sentences=minimum, end_threshold=0.95, repetition_threshold=None)
    (result,) = generate(reciter(A, almost_end), [A[None]], stop, Sampling())
    assert (len(result.vectors), result.reason) == (minimum, "end")
    torch.testing.assert_close(result.vectors[0], 0.1 * C)
    torch.testing.assert_close(result.vectors @ END, torch.zeros(minimum))


def test_the_threshold_itself_is_an_end():
    between = 0.8 * END + 0.6 * B
    for threshold, expected in [(0.799, "end"), (0.801, "length")]:
        stop = StopRules(max_sentences=1, min_sentences=0, end_threshold=threshold)
        (result,) = generate(reciter(A, between), [A[None]], stop, Sampling())
        assert result.reason == expected


def test_finished_rows_leave_the_batch_and_results_keep_their_order():
    model = reciter(A, B, C, D)
    prompts = [torch.stack([A, B, C]), A[None], torch.stack([D, A, B])]
    results = generate(model, prompts, StopRules(max_sentences=9, end_threshold=0.95), Sampling())
    assert [len(r.vectors) for r in results] == [1, 3, 2]
    assert torch.equal(results[1].vectors, torch.stack([B, C, D]))
    assert torch.equal(results[2].vectors, torch.stack([C, D]))
    # Each result's own sentences and one more to see the end: 2 + 4 + 3 calls, in a batch that shrinks.
    assert model.batch_sizes == [3, 3, 2, 1]


def test_the_model_is_not_called_after_the_last_sentence():
    model = reciter(A, B, C, D)
    generate(model, [A[None]], StopRules(max_sentences=2, end_threshold=0.95), Sampling())
    assert (model.batch_sizes, model.extend_calls) == ([1, 1], 1)


def test_a_diverged_model_is_one_line():
    model = reciter(A, B)
    model.next = lambda context, sampling: A[None] * torch.nan
    with pytest.raises(UserError, match="diverged"):
        generate(model, [A[None]], StopRules(max_sentences=2, end_threshold=0.95), Sampling())


@pytest.mark.parametrize("wrong", [{"max_sentences": 0}, {"min_sentences": -1}])
def test_impossible_lengths_are_refused(wrong):
    with pytest.raises(UserError, match="expected"):
        StopRules(**{"max_sentences": 3, "end_threshold": 0.9} | wrong)


@pytest.fixture
def base():
    torch.manual_seed(0)
    model = BaseLCM(BaseLCMConfig(kind="base", dim=DIM, width=32, heads=2, layers=2)).eval()
    model.normalizer.set(0.3 * torch.randn(DIM), 0.5 + torch.rand(DIM))
    model.end_of_text.copy_(torch.randn(DIM))
    return model


def ragged_prompts():
    torch.manual_seed(1)
    return [torch.randn(n, DIM) for n in (3, 1, 7, 4)]


def uncached(model, prompt, stop, sampling):
    """The rules again, reading everything from the start for each new concept."""
    text = prompt
    while True:
        new = model.next(model.prefill([text]), sampling)[0]
        written = len(text) - len(prompt)
        cosines = [torch.cosine_similarity(new, other, dim=0) for other in (model.end_of_text, text[-1])]
        if written >= stop.min_sentences and (
            cosines[0] >= stop.end_threshold or cosines[1] >= stop.repetition_threshold
        ):
            return text[len(prompt) :]
        text = torch.cat([text, new[None]])
        if written + 1 == stop.max_sentences:
            return text[len(prompt) :]


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_a_batch_gives_what_each_prompt_gives_alone(base, temperature):
    stop = StopRules(max_sentences=6, end_threshold=0.6, repetition_threshold=0.8)
    sampling = Sampling(temperature=temperature)
    together = generate(base, ragged_prompts(), stop, sampling)
    for prompt, result in zip(ragged_prompts(), together, strict=True):
        (alone,) = generate(base, [prompt], stop, sampling)
        assert alone.reason == result.reason
        torch.testing.assert_close(alone.vectors, result.vectors, rtol=1e-4, atol=1e-5)


def test_cached_equals_uncached(base):
    stop = StopRules(max_sentences=6, min_sentences=0, end_threshold=0.6, repetition_threshold=0.999)
    for prompt, result in zip(ragged_prompts(), generate(base, ragged_prompts(), stop, Sampling()), strict=True):
        expected = uncached(base, prompt, stop, Sampling())
        torch.testing.assert_close(result.vectors, expected, rtol=1e-4, atol=1e-5)
    assert len(expected) > 1


def test_seed_0_is_a_seed_of_its_own(base):
    stop = StopRules(max_sentences=3, end_threshold=2.0, repetition_threshold=None)

    def draw(seed):
        return generate(base, ragged_prompts(), stop, Sampling(temperature=1.0, seed=seed))[0].vectors

    assert torch.equal(draw(0), draw(0))
    assert not torch.equal(draw(0), draw(1))
