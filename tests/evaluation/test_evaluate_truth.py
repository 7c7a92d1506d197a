"""`lcm evaluate --truth`: a model that tells the truth scores as the truth does, and every fault shows in its score."""

import json
from pathlib import Path

import pytest
from fakes import FakeCodec, reciting, write_dataset
from teller import Teller

from lcm.batch import derive_seed
from lcm.codec.text import END_OF_TEXT, PROMPT_SUFFIX
from lcm.errors import UserError
from lcm.evaluation import truth as module
from lcm.evaluation.command import EvaluateOptions, evaluate
from lcm.evaluation.examples import from_folders
from lcm.evaluation.report import headline, write_report
from lcm.evaluation.truth_judge import TruthJudge, read_tales
from lcm.models import Sampling
from lcm.tales import Errand, Friends, judging, parse, tales

STORIES = 8


@pytest.fixture(scope="module", autouse=True)
def fewer_draws():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "POINTS", 12)
        patch.setattr(module, "DRAWS", 40)
        patch.setattr(judging, "CANDIDATES", 16)
        yield


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> tuple[str, FakeCodec]:
    folder, codec = tmp_path_factory.mktemp("tales") / "data", FakeCodec()
    errands = list(tales(Errand, STORIES))
    documents = [tale.story for tale in errands] + [tale.story for tale in tales(Friends, STORIES)]
    pairs = [(tale.story, tale.gist) for tale in errands]
    write_dataset(folder, codec, {"train": [documents[0]], "test": [*documents, *pairs]})
    return str(folder), codec


def results_of(data, fault=None, **options):
    folder, codec = data
    lcm = reciting(["Once."], codec, slots=64)
    lcm.model = Teller(codec, fault) if fault else Teller(codec)
    return evaluate(lcm, EvaluateOptions(data=(folder,), truth=True, roundtrip=1, bootstrap=50, **options))


@pytest.fixture(scope="module")
def truthful(data):
    return results_of(data)


def test_a_model_that_tells_the_truth_scores_as_the_truth_does(truthful):
    truth = truthful.results["truth"]
    for system in ("model", "truth"):
        for score in ("grammatical", "consistent", "first_grammatical", "first_consistent", "ends", "recall"):
            assert truth[system][score] == {"value": 1, "low": 1, "high": 1}, (system, score)
    assert truth["model"]["calibration"]["value"] == pytest.approx(truth["truth"]["calibration"]["value"], abs=0.08)
    assert truth["model"]["coverage"]["value"] == pytest.approx(truth["truth"]["coverage"]["value"], abs=0.1)
    assert truth["model"]["gist"]["word_for_word"]["value"] == 1
    assert truth["model"]["gist"]["facts_right"]["value"] == 1
    assert truth["model"]["gist"]["facts_wrong"]["value"] == 0


def test_controls_that_know_nothing_score_low(truthful):
    truth = truthful.results["truth"]
    assert set(truth) == {"model", "truth", "random", "previous"}
    for control in ("random", "previous"):
        assert truth[control]["grammatical"]["value"] == 1
        assert truth[control]["consistent"]["value"] < 0.2
        assert truth[control]["calibration"]["value"] > 0.8


def test_scores_are_by_level_kind_and_distance_with_their_counts(truthful):
    model = truthful.results["truth"]["model"]
    assert {name: found["count"] for name, found in model["by_level"].items()} == {
        "errand": STORIES,
        "friends": STORIES,
    }
    assert {"find", "visit"} <= set(model["by_kind"])
    assert {"1", "2", "6"} <= set(model["by_distance"])
    assert len(model["points"]) == module.POINTS
    for point in model["points"]:
        assert sum(kind["drawn"] for kind in point["kinds"]) == pytest.approx(1)
        assert sum(kind["true"] for kind in point["kinds"]) == pytest.approx(1)


def forgets(sentence: str, story, random) -> str:
    """Somebody else's name in every second sentence."""
    return sentence.replace(story.events[0].words[0].name, "Nobody" if len(story.events) % 2 else "Vera")


def test_wrong_sentences_cost_what_they_are(data, truthful):
    scores = results_of(data, forgets).results["truth"]["model"]
    assert 0.2 < scores["consistent"]["value"] < scores["grammatical"]["value"] < 0.9
    assert scores["recall"]["value"] < 0.9
    assert scores["calibration"]["value"] > truthful.results["truth"]["model"]["calibration"]["value"] + 0.1


def one_mode(sentence: str, story, random) -> str:
    """The likeliest event, always: consistent, and never anything else."""
    events = [event for event in story.next_events() if event.wordings]
    return max(events, key=lambda event: event.probability).wordings[0]


def in_german(sentence: str, story, random) -> str:
    return parse(sentence).told("deu_Latn")[0]


def test_true_sentences_in_another_language_are_wrong_in_every_score(data):
    scores = results_of(data, in_german).results["truth"]["model"]
    assert scores["grammatical"]["value"] == 0
    assert scores["coverage"]["value"] == 0
    assert all(kind["drawn"] == 0 for point in scores["points"] for kind in point["kinds"] if kind["name"] != "(wrong)"
               and kind["name"] != "end")  # fmt: skip


def test_a_model_that_always_says_the_likeliest_is_consistent_and_covers_little(data, truthful):
    scores, true = results_of(data, one_mode).results["truth"]["model"], truthful.results["truth"]["truth"]
    assert scores["consistent"]["value"] == 1
    assert scores["coverage"]["value"] < true["coverage"]["value"] - 0.2
    assert scores["calibration"]["value"] > true["calibration"]["value"] + 0.1


def test_a_story_that_goes_on_behind_its_end_does_not_end_well(data, monkeypatch):
    monkeypatch.setattr(Teller, "sentence", lambda self, told, seed: "Anna has lost her red hat.")
    scores = results_of(data).results["truth"]["model"]
    assert scores["ends"]["value"] == 0
    assert scores["gist"]["word_for_word"]["value"] == 0


def test_a_seed_gives_the_same_scores_in_batches_of_any_size(data, truthful, monkeypatch):
    monkeypatch.setattr("lcm.inference.pipeline.CONCEPTS", 100)
    assert results_of(data).results["truth"] == truthful.results["truth"]
    other = results_of(data, sampling=Sampling(seed=1)).results["truth"]
    assert other["model"]["points"] != truthful.results["truth"]["model"]["points"]


def test_rows_mark_wrong_words_and_say_what_would_have_been_right(data):
    every = [row for row in results_of(data, forgets).rows if row["kind"] == "tale"]
    assert all(0 <= row["scores"]["consistent"] <= row["scores"]["grammatical"] <= 1 for row in every)
    rows = [row for row in every if "verdicts" in row]
    assert len(rows) == module.SHOWN < len(every)
    wrong = [v for row in rows for v in row["verdicts"] if not v["grammatical"]]
    assert wrong
    for verdict in wrong:
        marked = [word for word, is_wrong in verdict["words"] if is_wrong]
        assert any("Nobody" in word for word in marked)
        assert parse(verdict["instead"])


def test_expansions_are_judged_by_the_gist_that_was_read(tmp_path, monkeypatch):
    codec, made = FakeCodec(), list(tales(Errand, 8))
    write_dataset(tmp_path / "data", codec, {"test": [(tale.long_gist, tale.story) for tale in made]})
    answers = {tuple(tale.long_gist): tale.story for tale in made}
    answers[tuple(made[0].long_gist)] = made[1].story

    def expanded(self, told, seed):
        cut = told.index(PROMPT_SUFFIX)
        return [*answers[tuple(told[:cut])], END_OF_TEXT][len(told) - cut - 1]

    monkeypatch.setattr(Teller, "sentence", expanded)
    found = results_of((str(tmp_path / "data"), codec)).results["truth"]["model"]["expansion"]
    assert found["consistent"]["value"] == 1
    assert found["gist"]["value"] == pytest.approx(7 / 8)


def test_stories_of_all_levels_are_judged_whatever_their_folders_order(data, monkeypatch):
    monkeypatch.setattr(module, "PROMPTS", 10)
    monkeypatch.setattr(module, "POINTS", 4)
    model = results_of(data).results["truth"]["model"]
    assert {name: found["count"] for name, found in model["by_level"].items()} == {"errand": 5, "friends": 5}
    assert len(model["points"]) == 4


def test_a_story_that_does_not_fit_the_model_is_left_out(data):
    folder, codec = data
    lcm = reciting(["Once."], codec, slots=12)
    lcm.model = Teller(codec)
    model = evaluate(lcm, EvaluateOptions(data=(folder,), truth=True, roundtrip=1, bootstrap=20)).results["truth"][
        "model"
    ]
    assert set(model["by_level"]) == {"errand"}
    assert model["consistent"]["value"] == 1


def test_a_pair_whose_document_is_no_whole_story_is_passed_over(tmp_path):
    codec, (tale,) = FakeCodec(), tales(Errand, 1)
    write_dataset(tmp_path / "data", codec, {"test": [tale.story, (tale.story[:3], ["A gist."])]})
    results = results_of((str(tmp_path / "data"), codec)).results
    assert "gist" not in results["truth"]["model"]
    assert results["refused"]["no story for --truth"]["count"] == 1


def test_long_gists_are_expanded_to_stories_longer_than_half_the_slots(tmp_path, monkeypatch):
    codec, made = FakeCodec(), list(tales(Errand, 3))
    write_dataset(tmp_path / "data", codec, {"test": [(tale.long_gist, tale.story) for tale in made]})
    answers = {tuple(tale.long_gist): tale.story for tale in made}

    def expanded(self, told, seed):
        cut = told.index(PROMPT_SUFFIX)
        return [*answers[tuple(told[:cut])], END_OF_TEXT][len(told) - cut - 1]

    monkeypatch.setattr(Teller, "sentence", expanded)
    lcm = reciting(["Once."], codec, slots=16)
    lcm.model = Teller(codec)
    options = EvaluateOptions(data=(str(tmp_path / "data"),), truth=True, roundtrip=1, bootstrap=20)
    assert evaluate(lcm, options).results["truth"]["model"]["expansion"]["gist"]["value"] == 1


def test_data_without_a_story_is_refused(tmp_path):
    codec = FakeCodec()
    write_dataset(tmp_path / "data", codec, {"test": [["A sea.", "A boat.", "A wind.", "A home."]]})
    with pytest.raises(UserError, match=r"--truth: no story in --data .* data_prep/make_tales.py"):
        results_of((str(tmp_path / "data"), codec))


def test_the_report_and_the_table_show_the_scores(truthful, data, tmp_path):
    json.dumps(truthful.results, allow_nan=False)
    write_report(tmp_path / "report.html", truthful.results, truthful.rows, Path("model"))
    page = (tmp_path / "report.html").read_text()
    for shown in ("Stories whose truth is known", "the truth itself", "Recall by distance", "Gists", "consistent"):
        assert shown in page
    assert "<mark>" not in page
    faulty = results_of(data, forgets)
    write_report(tmp_path / "faulty.html", faulty.results, faulty.rows, Path("model"))
    assert "<mark>Nobody</mark>" in (tmp_path / "faulty.html").read_text()
    assert "100.0%" in headline(truthful.results)
    assert f"{STORIES} gists: 100.0% right" in headline(truthful.results)


def test_without_truth_nothing_is_judged(data):
    folder, codec = data
    lcm = reciting(["Once."], codec, slots=64)
    results = evaluate(lcm, EvaluateOptions(data=(folder,), roundtrip=1, bootstrap=10)).results
    assert "truth" not in results


def test_sentences_drawn_after_one_reading_are_those_of_readings_of_their_own(data):
    folder, codec = data
    lcm = reciting(["Once."], codec, slots=64)
    lcm.model = Teller(codec)
    judge = TruthJudge(lcm, Sampling(seed=4), 10, 0)
    stories = read_tales(from_folders([folder], lcm, "test", 100, 0).documents, 64)[:6]
    cuts = [1 + i for i in range(5)] + [len(stories[5].sentences)]
    drawn = judge.drawn(stories, cuts, 8)
    for number in range(8):
        alone = judge.continued(stories, cuts, 1, derive_seed(4, 1, number))
        assert [of_one[number] for of_one in drawn] == [sentences[0] if sentences else None for sentences, _ in alone]
    assert None in drawn[5], "a whole story may end"


def test_without_data_new_stories_of_every_level_that_fits_are_judged():
    codec = FakeCodec()
    lcm = reciting(["Once."], codec, slots=32)
    lcm.model = Teller(codec)
    found = evaluate(lcm, EvaluateOptions(truth=True, limit=8, roundtrip=1, bootstrap=10)).results
    by_level = found["truth"]["model"]["by_level"]
    assert {name: score["count"] for name, score in by_level.items()} == {"errand": 3, "inventory": 3, "friends": 3}
    assert found["truth"]["model"]["consistent"]["value"] == 1
    assert found["truth"]["model"]["gist"]["word_for_word"]["value"] == 1
    small = reciting(["Once."], codec, slots=8)
    with pytest.raises(UserError, match=r"no story fits data.slots=8"):
        evaluate(small, EvaluateOptions(truth=True))
    with pytest.raises(UserError, match=r"--data is missing: expected .* or --truth"):
        EvaluateOptions()
    with pytest.raises(UserError, match=r"--split=train: goes with --data"):
        EvaluateOptions(truth=True, split="train")
