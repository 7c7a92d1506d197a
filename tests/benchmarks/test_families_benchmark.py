"""benchmarks/families.py and its parts: equal size, equal time, tables, charts, and the token model's texts."""

import sys
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from xml.etree import ElementTree

import pytest
import torch

sys.path.append(str(Path(__file__).parents[2] / "benchmarks"))
import curve
import sampling
import tales_runs
from charts import Line, Panel, charts

from lcm.codec import load_codec
from lcm.config import load_config
from lcm.models import build_model

ROOT = Path(__file__).parents[2]
# Under a name of its own: tests/families.py is another module.
_spec = spec_from_file_location("families_benchmark", ROOT / "benchmarks" / "families.py")
families = module_from_spec(_spec)
_spec.loader.exec_module(families)
SENTENCES = ["Anna is a baker who lives near the mill.", "Anna has lost her red hat."]


@pytest.fixture(scope="module")
def tokenizer():
    return load_codec("mini").tokenizer


def run_of(kind, seed, consistent):
    value = {"value": consistent, "low": consistent - 0.1, "high": consistent + 0.1}
    truth = {name: value for name in ("consistent", "grammatical", "recall", "calibration", "coverage")}
    truth["gist"] = {"word_for_word": value, "count": 5}
    row = {"kind": kind, "seed": seed, "steps": 900, "seconds": 149.6, "sentences_per_second": 5500.0}
    return row | {"parameters": 5_400_000, "seconds_a_sentence": 0.0314, "truth": truth}


@pytest.mark.needs("transformers")
def test_all_six_have_equal_size():
    import token_model

    sizes = []
    for kind in tales_runs.KINDS:
        with torch.device("meta"):
            if kind == "token":
                model = token_model.build(vocab=8000)
            else:
                words = [word.removeprefix("--") for word in (*tales_runs.RECIPE, *tales_runs.OWN.get(kind, ()))]
                model = build_model(load_config(ROOT / f"configs/{kind}_toy.yaml", words).model)
        sizes.append(sum(p.numel() for p in model.parameters()))
    assert max(sizes) <= 1.03 * min(sizes)


def test_steps_fill_the_time_whatever_a_step_takes():
    reports = [(5, 10.0), (10, 13.0), (15, 14.0), (20, 15.0), (25, 999.0), (30, 1000.0)]
    step = tales_runs.seconds_of_steps(reports, warm=10)
    assert step == pytest.approx(0.2)  # neither the warm-up nor the interruption counts
    assert tales_runs.steps_in(150, step) == 750
    assert tales_runs.steps_in(1, step) == 20


def test_precision_is_what_training_knows():
    assert tales_runs.fast_precision() in ("bf16", "fp32")


def test_the_summary_has_mean_and_range_over_seeds():
    rows = [run_of("base", 1, 0.2), run_of("base", 2, 0.4), run_of("token", 1, 0.5)]
    lines = families.summary(rows, {"random": rows[0]["truth"]}).splitlines()
    assert lines[2].startswith("| base | 5,400,000 | 900 | 150 (150–150) | 30.0 (20.0–40.0) |")
    assert "| 50.0 |" in lines[3]
    assert lines[4].startswith("| random |  |  |  | 20.0 (10.0–30.0) |")
    assert len({line.count("|") for line in lines}) == 1


def test_every_run_has_its_intervals_and_a_score_that_is_not_defined_is_empty():
    row = run_of("base", 1, 0.2)
    row["truth"] |= {"recall": {"value": None, "low": None, "high": None}}
    del row["truth"]["gist"]
    line = families.every_run([row]).splitlines()[2]
    assert line == (
        "| base | 1 | 900 | 150 | 20.0 (10.0–30.0) | 20.0 (10.0–30.0) |  |  | 20.0 (10.0–30.0) | 20.0 (10.0–30.0) "
        "| 5,500 | 0.031 |"
    )


def test_charts_are_xml_with_every_point_inside():
    line = Line("a < b", [(5, 10.0), (40, 120.0)], "#3b6ea5", [(5, 20)])
    panel = Panel("guidance 1", [line], "steps", "%", 100, (5, 10, 20, 40), doubling=True)
    svg = ElementTree.fromstring(charts([panel] * 3, columns=2))
    circles = [e for e in svg.iter() if e.tag.endswith("circle")]
    assert len(circles) == 6
    assert all(0 < float(c.get("cx")) < 260 and 0 < float(c.get("cy")) < 200 for c in circles)


def test_the_pictures_have_a_line_for_each_model_and_each_setting():
    value = {"value": 0.5, "low": 0.4, "high": 0.6}
    points = [{"kind": kind, "minutes": m, "consistent": value, "gists": value} for kind in curve.DRAWN for m in (3, 9)]
    drawn = ElementTree.fromstring(curve.picture(points))
    assert len([e for e in drawn.iter() if e.tag.endswith("polyline")]) == 2 * len(curve.DRAWN)
    settings = [{**found, "consistent": value, "calibration": value} for found in sampling.combinations()]
    drawn = ElementTree.fromstring(sampling.picture(settings))
    assert len([e for e in drawn.iter() if e.tag.endswith("polyline")]) == 2 * 4 * 3 * 3


def test_the_grid_of_sampling_settings_is_whole():
    found = sampling.combinations()
    assert len(found) == 4 * 3 * 4 * 3
    assert len({tuple(sorted(settings.items())) for settings in found}) == len(found)


@pytest.mark.needs("transformers")
def test_a_text_of_the_token_model_is_its_sentences_and_an_answer_is_what_it_learns(tokenizer):
    from token_model import IGNORED, Text, inputs_and_targets

    document, pair = Text.of(SENTENCES, 0, tokenizer), Text.of(SENTENCES, 1, tokenizer)
    first, second = tokenizer.encode(SENTENCES)
    assert document.pieces == pair.pieces == [*first, tokenizer.end, *second, tokenizer.end]
    assert document.sentences == 2
    inputs, targets = inputs_and_targets([pair, Text.of(SENTENCES[1:], 0, tokenizer)], tokenizer.end)
    assert inputs[0].tolist() == [tokenizer.end, *pair.pieces[:-1]]
    assert targets[0].tolist() == [IGNORED] * (len(first) + 1) + [*second, tokenizer.end]
    padding = len(first) + 1
    assert targets[1].tolist() == [*second, tokenizer.end] + [IGNORED] * padding
    assert inputs[1].tolist() == [tokenizer.end, *second] + [tokenizer.end] * padding


@pytest.mark.needs("transformers")
def test_batches_hold_every_text_once_an_epoch_and_keep_to_their_size():
    from token_model import Text, batches

    texts = [Text([7] * (3 + i % 5), i) for i in range(20)]
    source = batches(texts, pieces=24, seed=1)
    epochs = []
    for _ in range(2):
        seen = []
        while len(seen) < 20:
            batch = next(source)
            assert len(batch) * max(len(text.pieces) for text in batch) <= 24
            seen += [text.sentences for text in batch]
        assert sorted(seen) == list(range(20))
        epochs.append(seen)
    assert epochs[0] != epochs[1]


@pytest.mark.needs("transformers")
def test_a_draft_cuts_sentences_at_their_ends(tokenizer):
    from token_judge import LONGEST, Draft

    draft = Draft(tokenizer, most=3)
    for sentence in (*SENTENCES, "End of text."):
        for piece in (*tokenizer.encode([sentence])[0], tokenizer.end):
            assert not draft.over
            assert draft.take(piece) == piece
    assert draft.sentences == SENTENCES
    assert draft.over
    assert draft.ended
    endless = Draft(tokenizer, most=1)
    piece = tokenizer.encode(["mill"])[0][0]
    assert [endless.take(piece) for _ in range(LONGEST + 1)] == [piece] * LONGEST + [tokenizer.end]
    assert endless.over
    assert not endless.ended


@pytest.mark.needs("transformers")
def test_the_token_model_writes_after_each_prompt_what_it_would_write_alone(tokenizer, monkeypatch):
    import token_judge
    from token_model import Text, build

    monkeypatch.setattr(token_judge, "LONGEST", 5)
    monkeypatch.setattr(torch, "multinomial", lambda probabilities, _: probabilities.argmax(1, keepdim=True))
    torch.manual_seed(0)
    model = build(8000).eval()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    prompts = [[tokenizer.end, *Text.of(SENTENCES[:n], 0, tokenizer).pieces] for n in (1, 2)]
    alone = [token_judge.write(model, [prompt], tokenizer, most=n, draws=1) for n, prompt in enumerate(prompts, 1)]
    assert alone[0] != alone[1]
    together = token_judge.write(model, prompts, tokenizer, most=2, draws=2)
    assert [len(sentences) for sentences, _ in together] == [2] * 4
    assert together[0] == together[1]
    assert together[0][0][:1] == alone[0][0][0]
    assert together[2:] == alone[1] * 2
