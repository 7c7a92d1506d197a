"""Tasks: each on three rows in the schema of its set, fetched from a hub that is played here, or brought as a file."""

import sys
from types import SimpleNamespace

import pytest
from fakes import FakeCodec, reciting
from played_hub import ROWS, SHA, Hub, no_network, rows_of, write_file

from lcm.cli import main
from lcm.codec.text import END_OF_TEXT, PROMPT_SUFFIX
from lcm.errors import UserError
from lcm.evaluation.command import EvaluateOptions, evaluate
from lcm.evaluation.report import write_report
from lcm.evaluation.task_rows import find_files, read_task
from lcm.evaluation.tasks import HERE, TASKS, load_task, task_names
from lcm.prepare import split_of

FIRST = {
    "cnn_dailymail": (["The mill closed.", "The town was angry.", "A vote is due."],
                      ["Mill closes in small town.", "A vote is due on Monday."]),
    "cnn_dailymail_expansion": (["Mill closes in small town.", "A vote is due on Monday."],
                                ["The mill closed.", "The town was angry.", "A vote is due."]),
    "xsum": (["The bridge opened.", "Many came to see it."], ["A bridge has opened."]),
    "xsum_expansion": (["A bridge has opened."], ["The bridge opened.", "Many came to see it."]),
    "xlsum/english": (["The bridge opened.", "Many came."], ["A bridge has opened."]),
    "xlsum/russian": (["Мост открыли.", "Пришли люди."], ["Мост открыт."]),
    "lcfo/5": (["One went out.", "It was late.", "She slept."], ["Night."]),
    "lcfo/10": (["One went out.", "It was late.", "She slept."], ["Night has come."]),
    "lcfo/20": (["One went out.", "It was late.", "She slept."], ["Someone left.", "She rested."]),
    "roc_stories": (["Tom ran.", "He fell.", "It hurt.", "A nurse came.", "Tom was fine."], []),
    "c4": (["A shop sells tea.", "It is cheap.", "Come in."], []),
    "wikipedia": (["Albedo is a share.", "It is of light."], []),
    "gutenberg": (["It was a dark night.", "The wind blew.", "She slept."], []),
    "cosmopedia_stories": (["Write a story on a fox."], ["A fox ran.", "It hid."]),
}  # fmt: skip
"""Sentences of the first row: of its document, and of its summary."""


@pytest.fixture
def offline(monkeypatch):
    gone = SimpleNamespace(HfApi=lambda: SimpleNamespace(dataset_info=no_network), hf_hub_download=no_network)
    monkeypatch.setitem(sys.modules, "huggingface_hub", gone)


def given(name, monkeypatch, tmp_path):
    """Options of --task: from the hub where the set is on one, else with the file that is brought."""
    task = load_task(name)
    if task.files:
        monkeypatch.setitem(sys.modules, "huggingface_hub", Hub(task, rows_of(name), tmp_path))
        return {"task": name}
    ending = "csv" if name == "roc_stories" else "jsonl"
    return {"task": name, "data": (str(write_file(tmp_path / f"brought.{ending}", rows_of(name))),)}


def test_every_task_has_its_rows_here():
    assert {name.partition("/")[0] for name in ROWS} == set(TASKS) - {"tales"}
    assert set(FIRST) == set(ROWS)


@pytest.mark.parametrize("name", ROWS)
def test_a_task_is_scored_from_three_rows_in_its_sets_own_schema(name, monkeypatch, tmp_path):
    options = EvaluateOptions(**given(name, monkeypatch, tmp_path), bootstrap=5, roundtrip=5)
    document, summary = FIRST[name]
    evaluation = evaluate(reciting([*document, PROMPT_SUFFIX, *summary], FakeCodec(), slots=32), options)
    results, task = evaluation.results, load_task(name)
    expected = 2 if name == "wikipedia" else 3
    assert (results["counts"]["scored"], results["counts"]["failed"]) == (expected, 0)
    assert results["counts"]["pairs"] == (expected if summary else 0)
    kind = "summary" if summary else "document"
    first = next(row for row in evaluation.rows if row["kind"] == kind)
    if summary:
        assert (first["prompt"], first["reference"]) == (document, summary)
        assert first["model"] == summary[: task.most or 16], "the model knows the first row"
        assert results["settings"]["lead"] == (task.lead or 3)
        assert results["settings"]["most"] == min(task.most or 16, 16)
    else:
        assert first["sentences"] == len(document) - 1
    record = results["task"]
    assert record["commit"] == (SHA if task.files and (not task.commit or "*" in task.files[0]) else task.commit)
    assert record["protocol"] == task.protocol
    assert len(record["files"]) == 1
    if name == "xsum":
        write_report(tmp_path / "report.html", results, evaluation.rows, tmp_path)
        assert "the test split of task xsum. LCM paper" in (tmp_path / "report.html").read_text(encoding="utf-8")


@pytest.mark.parametrize("name", [name for name in ROWS if load_task(name).files])
def test_a_file_that_is_brought_is_what_the_hub_gives(name, monkeypatch, tmp_path, offline):
    task, path = load_task(name), write_file(tmp_path / "mine.jsonl", rows_of(name))
    brought = read_task(name, task, find_files(name, task, str(path)))
    hub = Hub(task, rows_of(name), tmp_path)
    monkeypatch.setitem(sys.modules, "huggingface_hub", hub)
    assert read_task(name, task, find_files(name, task)) == brought
    documents, refused, _ = brought
    assert not refused
    assert all(split_of(one.id) == "test" for one in documents if task.held_out)
    exact = task.commit and "*" not in task.files[0]
    asked = [] if exact else [("info", task.commit or task.revision)]
    assert hub.asked == [*asked, (task.dataset, task.commit if exact else SHA)], "nothing is read but at one commit"


@pytest.mark.parametrize("name", ROWS)
def test_without_a_network_a_line_says_which_file_to_bring_and_how_to_name_it(name, offline):
    task = load_task(name)
    with pytest.raises(UserError) as error:
        find_files(name, task)
    line = str(error.value)
    assert "\n" not in line
    assert f"and name it: --task {name} --data FILE (.parquet, .jsonl or .csv with " in line
    assert all(column in line for column in task.columns_of_set)
    assert (task.dataset or "rochester" if name != "lcfo/5" else "facebook/LCFO") in line or name.startswith("lcfo")
    assert "(no network)" in line or not task.files


def test_a_story_ends_with_its_right_ending(tmp_path):
    task, path = load_task("roc_stories"), write_file(tmp_path / "stories.csv", ROWS["roc_stories"])
    stories, _, _ = read_task("roc_stories", task, find_files("roc_stories", task, str(path)))
    ends = ["Tom was fine.", "Ann went home.", "He ordered a pizza."]
    assert [story.text.endswith(f" {end}") for story, end in zip(stories, ends, strict=True)] == [True] * 3


def test_lengths_of_long_summaries_are_the_papers_medians():
    """Sentences of the references (LCM paper, table 9)."""
    assert [load_task(f"lcfo/{percent}").lead for percent in (5, 10, 20)] == [15, 27, 48]


def test_without_the_extra_a_line_names_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(UserError, match=r"--task xsum: pip install 'lcm-train\[data\]' fetches it; or bring data/test"):
        find_files("xsum", load_task("xsum"))


def test_no_version_is_made_up():
    """A commit is one in full, or there is none and a branch is named, whose commit the results then record."""
    for task in map(load_task, [*ROWS, "tales"]):
        assert bool(task.commit) != bool(task.revision) or not task.files, task.dataset
        assert task.commit == "" or len(set(task.commit)) > 8, task.dataset


def test_xlsum_has_45_languages_and_sonar_knows_the_papers_42():
    langs = {name: load_task(name).lang for name in task_names() if name.startswith("xlsum/")}
    known = set((HERE.parent.parent / "codec/assets/sonar_languages.txt").read_text().split())
    assert len(langs) == len(set(langs.values())) == 45
    unknown = {name for name, lang in langs.items() if lang not in known}
    assert unknown == {"xlsum/pidgin", "xlsum/serbian_latin", "xlsum/uzbek"}
    assert load_task("xlsum/welsh").files == ("welsh/test/*.parquet",)


def test_sentences_are_in_the_tasks_language_and_markers_in_the_models(monkeypatch, tmp_path):
    class Speaking(FakeCodec):
        def encode(self, sentences, lang="eng_Latn", *, progress=None):
            langs = lang if isinstance(lang, list) else [lang] * len(sentences)
            self.heard = {**getattr(self, "heard", {}), **dict(zip(sentences, langs, strict=True))}
            return super().encode(sentences)

        def decode(self, vectors, lang="eng_Latn", *, beam=1, progress=None):
            self.spoken = {*getattr(self, "spoken", ()), lang}
            return super().decode(vectors)

    codec = Speaking()
    model = reciting(["a", PROMPT_SUFFIX], codec, slots=32)
    codec.heard = {}
    found = evaluate(
        model, EvaluateOptions(**given("xlsum/russian", monkeypatch, tmp_path), bootstrap=5, roundtrip=0)
    ).results
    assert codec.heard.pop(PROMPT_SUFFIX) == codec.heard.pop(END_OF_TEXT) == "eng_Latn"
    assert codec.heard["Мост открыт."] == "rus_Cyrl"
    assert codec.spoken == {"rus_Cyrl"}
    assert (found["rouge"]["lang"], found["rouge"]["tokens"]) == ("rus_Cyrl", "words")
    assert model.lang == "eng_Latn", "the model itself stays as it was"


def test_rows_that_cannot_be_used_are_counted_and_no_more_are_taken_than_the_task_says(tmp_path):
    rows = [*ROWS["roc_stories"], {**ROWS["roc_stories"][0], "AnswerRightEnding": 3}]
    rows.append({**ROWS["roc_stories"][0], "InputSentence2": " "})
    path = write_file(tmp_path / "stories.csv", rows)
    options = EvaluateOptions(task="roc_stories", data=(str(path),), bootstrap=5)
    counts = evaluate(reciting(["a"], FakeCodec()), options).results["counts"]
    assert (counts["scored"], counts["failed"]) == (3, 2)
    assert {reason: entry["first"] for reason, entry in counts["reasons"].items()} == {
        "no such choice": "roc_stories:4: AnswerRightEnding is '3'", "empty": "roc_stories:5: InputSentence2",
    }  # fmt: skip
    few = load_task("c4").model_copy(update={"documents": 2})
    path = write_file(tmp_path / "c4.jsonl", ["x", *ROWS["c4"]])
    documents, refused, read = read_task("c4", few, find_files("c4", few, str(path)))
    assert (len(documents), len(refused), read) == (2, 1, 3)


def test_a_text_of_which_the_clean_up_leaves_nothing_is_refused(tmp_path):
    text = "*** START OF THE PROJECT GUTENBERG EBOOK Z ***\n*** END OF THE PROJECT GUTENBERG EBOOK Z ***"
    task, path = load_task("gutenberg"), write_file(tmp_path / "g.jsonl", [{"id": "9-0", "text": text}])
    _, (refused,), _ = read_task("gutenberg", task, find_files("gutenberg", task, str(path)))
    assert refused.reason == "empty"


def test_the_task_tales_is_the_stories_that_truth_judges_without_data(monkeypatch):
    seen = []
    monkeypatch.setattr("lcm.evaluation.run.judge_truth", lambda *args: seen.append(args[1:]) or ({"model": {}}, []))
    for options in ({"task": "tales"}, {"truth": True}):
        model = reciting(["Once."], FakeCodec(), slots=32)
        results = evaluate(model, EvaluateOptions(**options, limit=3, roundtrip=0, bootstrap=5)).results
        assert results["truth"] == {"model": {}}
        assert results.get("task", {"name": "none"})["name"] == options.get("task", "none")
    stories, same = ([[one.sentences for one in texts] for texts in found] for found in seen)
    assert stories == same
    assert [len(texts) for texts in stories] == [3, 3], "stories, and gists"


def test_what_cannot_be_fetched_is_known_before_the_model_is_loaded(offline, monkeypatch, tmp_path, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(["evaluate", "--model", "nowhere", "--task", "xlsum/english", "--output", "out"]) == 1
    line = capsys.readouterr().err.strip()
    assert line.startswith("lcm evaluate: --task xlsum/english: the hub does not give it (no network); ")
    assert "bring english/test/0000.parquet from the branch refs/convert/parquet of huggingface.co/datasets/" in line
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"task": "xsumm"}, "--task xsumm: no such task; did you mean 'xsum'"),
        ({"task": "xlsum"}, "--task xlsum: expected one of its variants; xlsum/amharic, "),
        ({"task": "xlsum/englsh"}, "did you mean 'english'"),
        ({"task": "xsum/english"}, "--task xsum/english: xsum has no variants; expected --task xsum"),
        ({"task": "xsum", "split": "test"}, "--split=test: a --task says by itself"),
        ({"task": "tales", "truth": True}, "--truth: a --task says by itself"),
        ({"task": "xsum", "data": ("a", "b")}, "--data a b: with --task, expected one file"),
        ({"task": "xsum", "data": ("a.jsonl",)}, "--data=a.jsonl: no such file"),
        ({}, "--data is missing: expected prepared folders, or a file; or --task"),
    ],
)
def test_a_mistake_is_one_line(options, expected, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=expected):
        evaluate(reciting(["a"], FakeCodec()), EvaluateOptions(**options))


def test_a_language_that_the_splitter_cannot_cut_is_refused(monkeypatch, tmp_path):
    monkeypatch.setitem(ROWS, "xlsum/thai", ROWS["xlsum/english"])
    with pytest.raises(UserError, match="--task xlsum/thai: --lang=tha_Thai: Thai has no mark that ends a sentence"):
        evaluate(reciting(["a"], FakeCodec()), EvaluateOptions(**given("xlsum/thai", monkeypatch, tmp_path)))
