"""The model `tales`, which is part of the package: small, complete, and as good as its card says."""

import re
from pathlib import Path

import pytest

import lcm
from lcm.evaluation.command import EvaluateOptions, evaluate
from lcm.models import PACKAGED
from lcm.tales import parse

CARD = (PACKAGED / "tales" / "README.md").read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def model():
    return lcm.load("tales")


def test_it_is_small_and_names_nothing_that_its_users_do_not_have(model):
    sizes = {path.name: path.stat().st_size for path in (PACKAGED / "tales").iterdir()}
    assert set(sizes) == {"model.safetensors", "config.yaml", "README.md"}
    assert sum(sizes.values()) < 12e6
    assert 5e6 < sum(p.numel() for p in model.model.parameters()) < 6e6
    assert model.config.codec.name == "mini"
    assert not any(Path(path).is_absolute() for path in (*model.config.data.path, model.config.run.dir))


def test_it_continues_a_story_and_ends_it(model):
    result = model.generate("Anna is a baker who lives near the mill. Anna has lost her red hat.")
    assert result.stop_reason == "end"
    assert all("Anna" in sentence or "hat" in sentence for sentence in result.sentences[1:])
    assert sum(parse(sentence) is not None for sentence in result.sentences) >= 0.8 * len(result.sentences) > 3


def test_it_sums_a_story_up(model):
    story = (
        "Olga is a tailor who lives near the tower. Olga is looking for a small ring. At the lake Olga meets a deer. "
        "The deer has seen the small ring on the hill. On the hill Olga finds the small ring. "
        "Olga goes back to the tower with the ring."
    )
    assert parse(model.generate(story, task="answer").sentences[0]).kind.startswith("gist")


@pytest.mark.slow
def test_its_scores_are_those_of_its_card():
    truth = evaluate(lcm.load("tales"), EvaluateOptions(truth=True)).results["truth"]["model"]
    found = {name: truth[name] for name in ("grammatical", "consistent", "recall", "ends", "coverage")}
    found |= {f"consistent, {level}": score for level, score in truth["by_level"].items()}
    found["gists word for word"] = truth["gist"]["word_for_word"]
    for name, score in found.items():
        low, high = map(float, re.search(rf"^\| {name} \|.*\(([\d.]+) to ([\d.]+)\)", CARD, re.MULTILINE).groups())
        assert low <= 100 * score["value"] <= high, name
