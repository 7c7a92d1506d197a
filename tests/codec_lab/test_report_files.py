"""The three files and the command: what the page shows, what may be compared, and mistakes in one line."""

import importlib.util
import json
import re
import sys
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from judged_fakes import FakePublic, Perfect, Translator, sentences

from lcm.codec_lab.judging import ReportOptions, judge
from lcm.codec_lab.sentences import Sentence
from lcm.codec_lab.writing import headline, read_results, report_page, shown, systems_of, verdict, write
from lcm.errors import UserError
from lcm.evaluation import finite

OPTIONS = ReportOptions(fragility_limit=20, noise=(0.1, 0.5), bootstrap=10)


def script(name):
    path = Path(__file__).parents[2] / "data_prep" / f"{name}.py"
    spec = importlib.util.spec_from_file_location(f"{name}_script", path)
    module = sys.modules[spec.name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


command = script("codec_report")


@pytest.fixture(scope="module")
def judged():
    codec = Perfect(64)
    return judge(codec, sentences(61), OPTIONS, FakePublic(codec))


def named(judged, name):
    results = finite(judged.results)
    return {**results, "codec": {**results["codec"], "name": name}}


def test_the_files_hold_what_was_judged(judged, tmp_path):
    write(judged, tmp_path / "report")
    assert read_results(tmp_path / "report" / "results.json") == json.loads(json.dumps(finite(judged.results)))
    table = pq.read_table(tmp_path / "report" / "sentences.parquet").to_pylist()
    assert [row["text"] for row in table] == [row["text"] for row in judged.rows]
    assert [row["fragility"] for row in table] == pytest.approx([row["fragility"] for row in judged.rows])
    assert sum(row["fragility"] is not None for row in table) == 20


def test_the_page_stands_alone(judged):
    page = report_page(finite(judged.results))
    assert not re.search(r"https?://|<script|<link|<img|src=", page)
    for title in ("At a glance", "What comes back", "Under noise", "Fragility", "Halfway", "near", "The space"):
        assert title in page
    assert "None" not in page
    assert "nan" not in re.sub(r"<[^>]*>", "", page).split()


def test_whatever_a_text_holds_is_shown_as_text(judged):
    def hostile(value):
        match value:
            case dict():
                return {key: hostile(inner) for key, inner in value.items()}
            case list() | tuple():
                return [hostile(inner) for inner in value]
        return "<b>a & b</b>" if isinstance(value, str) else value

    page = report_page(hostile(finite(judged.results)))
    assert "<b>a" not in page
    assert page.count("&lt;b&gt;a &amp; b&lt;/b&gt;") > 40


def test_what_is_not_finite_becomes_null():
    assert finite({"a": [float("nan"), 1.5], "b": (float("-inf"), "x", None)}) == {
        "a": [None, 1.5],
        "b": [None, "x", None],
    }


def test_the_table_of_lengths_shows_every_sentence(judged):
    page = report_page(finite(judged.results))
    section = page[page.index("What comes back") : page.index("Under noise")]
    counts = [int(n.replace(",", "")) for n in re.findall(r"<tr[^>]*><td>[^<]*</td><td>([\d,]+)</td>", section)]
    assert sum(counts[:-1]) == counts[-1] == 61


def test_others_stand_beside_it(judged):
    one = {**named(judged, "new")}
    other = named(judged, "old")
    other["reconstruction"] = {**other["reconstruction"], "bleu": 12.3}
    other["by_length"][1] = {**other["by_length"][1], "bleu": 23.4}
    other["noise"][1] = {**other["noise"][1], "bleu": 34.5}
    other["agreement"]["random"]["centred"] = {"value": 0.456, "low": 0.4, "high": 0.5}
    page = report_page(one, [other])
    section = page[page.index("At a glance") : page.index("What comes back")]
    assert re.search(r"<th>new</th><th>old</th>", section)
    assert "<td>AutoBLEU</td><td>100.0</td><td>12.3</td>" in section
    assert "<td>AutoBLEU at 0.5 σ of noise</td><td>100.0</td><td>34.5</td>" in section
    assert re.search(r"<td>agreement, random pairs</td><td>[\d.]+</td><td>0.46</td>", section)
    assert re.search(r"<td>6–10</td>.*<td>100.0%</td><td>23.4</td>", page)
    assert re.search(r"<td>0.5 σ</td>.*<td>100.0%</td><td>34.5</td>", page)
    assert re.search(r"<td>old, random pairs</td>.*0.456<small>0.400 – 0.500</small>", page)
    table = headline(systems_of(one, [other])).splitlines()
    assert table[0].split() == ["new", "old"]
    assert table[1].split() == ["AutoBLEU", "100.0", "12.3"]


def test_a_name_that_is_taken_gets_a_number(judged):
    mini = named(judged, "mini")
    assert list(systems_of(mini, [mini, mini, named(judged, "b")])) == ["mini", "mini (2)", "mini (3)", "b"]


def test_what_was_not_measured_is_a_dash(judged):
    codec = Perfect(8)
    codec.languages = ("fra_Latn",)
    bare = judge(codec, sentences(1, "fra_Latn"), ReportOptions(fragility_limit=0, noise=(), bootstrap=10))
    page = report_page(finite(bare.results), [named(judged, "old")])
    assert "–" in page
    assert "None" not in page
    assert (shown(None), shown(-0.25, 2)) == ("–", "−0.25")


def test_the_page_shows_the_most_and_the_least_fragile_sentences(judged):
    results = finite(judged.results)
    fragility = results["fragility"]
    rows = {
        key: [{"text": f"{key} {i}", "fragility": -i / 10, "decoded": ""} for i in range(2)]
        for key in ("most", "least")
    }
    page = report_page({**results, "fragility": {**fragility, **rows}})
    most, least = page.index("The most fragile"), page.index("The least fragile")
    assert most < page.index("most 0") < page.index("most 1") < least < page.index("least 0")
    assert page.count("<i>nothing</i>") == 4


@pytest.mark.parametrize(
    ("bleu", "message"),
    [
        ([95, 91, 80, 99], "up to 5 words AutoBLEU stays above 90."),
        ([95, 91, 90, 99], "up to any number of words AutoBLEU stays above 90."),
        ([89, 91], "no length reaches AutoBLEU 90."),
    ],
)
def test_the_verdict_names_the_length_up_to_which_sentences_come_back(judged, bleu, message):
    ends = [2, 5, 10, None]
    groups = [{"bleu": score, "to": end} for score, end in zip(bleu, ends, strict=False)]
    assert message in verdict({**judged.results, "by_length": groups})


def test_languages_have_a_table():
    codec = Translator(64)
    french = [Sentence(s.text + " fr", "fra_Latn", s.row + 30) for s in sentences(30)]
    results = finite(judge(codec, sentences(30) + french, OPTIONS).results)
    page = report_page(results)
    assert re.search(r"<td>fra_Latn</td><td>30</td><td>100.0</td>", page)


def test_the_command_writes_a_report(tmp_path, capsys):
    texts = ["The sea was calm.", "We went home before night came.", "A dog barked.", "The old man slept."]
    (tmp_path / "held.tsv").write_text("".join(f"x\t{text}\n" for text in texts))
    args = ["--input", str(tmp_path / "held.tsv"), "--output", str(tmp_path / "out"), "--no-public-encoder"]
    args += ["--fragility-limit", "2", "--noise", "0.1", "--bootstrap", "5"]
    assert command.main(args) == 0
    captured = capsys.readouterr()
    assert captured.out.splitlines()[1].startswith("AutoBLEU")
    assert captured.err.splitlines()[-1] == str(tmp_path / "out" / "report.html")
    again = tmp_path / "again"
    assert command.main([*args, "--output", str(again), "--compare", str(tmp_path / "out" / "results.json")]) == 0
    assert "mini (2)" in (again / "report.html").read_text()
    first, second = (json.loads((folder / "results.json").read_text()) for folder in (tmp_path / "out", again))
    for results in (first, second):
        del results["seconds"], results["speed"]
    assert first == second, "the same command gives the same numbers"


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["--input", "nothing.txt"], "--input=nothing.txt: no such file"),
        (["--limit", "0"], "--limit=0: expected 1 or more"),
        (["--codec", "nothing"], "codec 'nothing'"),
        (["--lang", "xxx_Latn"], "sentence 0 is in 'xxx_Latn', which codec 'mini' does not know"),
        (["--input", "row.jsonl"], "sentence 1 is in 'en', which codec 'mini' does not know; name the column"),
        (["--compare", "nothing.json"], "--compare=nothing.json: no such file"),
        (["--compare", "text.txt"], "not valid JSON"),
        (["--compare", "empty.json"], "no codec, counts"),
        (["--compare", "five.json"], "no codec, counts"),
        (["--output", "text.txt"], "--output=text.txt: cannot be a folder"),
    ],
)
def test_a_mistake_is_one_line(tmp_path, monkeypatch, capsys, args, message):
    monkeypatch.chdir(tmp_path)
    Path("text.txt").write_text("A sentence.\n")
    Path("row.jsonl").write_text('{"text": "A sentence.", "lang": "en"}\n')
    Path("empty.json").write_text("[]")
    Path("five.json").write_text("5")
    assert command.main(["--input", "text.txt", "--output", "out", "--no-public-encoder", *args]) == 1
    captured = capsys.readouterr()
    assert captured.out == ""
    last = captured.err.splitlines()[-1]
    assert last.startswith("codec_report: ")
    assert message in last


def test_results_of_another_kind_are_refused(tmp_path):
    (tmp_path / "results.json").write_text('{"codec": {}, "teacher_forced": {}}')
    with pytest.raises(UserError, match="no counts, reconstruction"):
        read_results(tmp_path / "results.json")
