"""The report: complete, self-contained, and safe with any text in it."""

import json
import re
import tomllib
from html.parser import HTMLParser
from itertools import pairwise
from pathlib import Path

import pytest
from fakes import FakeCodec, reciting, write_dataset
from jinja2 import UndefinedError

from lcm.evaluation.command import EvaluateOptions, evaluate
from lcm.evaluation.report import headline, render, round_steps, write_report

EVIL = '<script>alert("1 & 2")</script>'


@pytest.fixture(scope="module")
def evaluation(tmp_path_factory):
    folder = tmp_path_factory.mktemp("report") / "data"
    story = ["The sea was calm.", EVIL, "Then the wind rose.", "The boat came home."]
    codec = FakeCodec()
    texts = [story, ["Another.", EVIL, "Text."], (story[:2], [EVIL]), (["Another.", "Text."], ["Short."])]
    write_dataset(folder, codec, {"train": texts, "test": texts})
    return evaluate(reciting(story, codec), EvaluateOptions(data=(str(folder),), bootstrap=10))


def rendered(evaluation, folder: Path, model: str = "runs/mine") -> str:
    write_report(folder / "report.html", evaluation.results, evaluation.rows, folder / model)
    return (folder / "report.html").read_text(encoding="utf-8")


class Tags(HTMLParser):
    """Checks that tags are closed in order, and lists what a browser would fetch."""

    def __init__(self):
        super().__init__()
        self.open, self.seen, self.fetched = [], [], []

    def handle_starttag(self, tag, attributes):
        self.seen.append(tag)
        self.fetched += [value for name, value in attributes if name in ("src", "href", "srcset", "data")]
        if tag != "meta":
            self.open.append(tag)

    def handle_startendtag(self, tag, attributes):
        self.seen.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


def test_the_page_is_well_formed_and_fetches_nothing(evaluation, tmp_path):
    page = rendered(evaluation, tmp_path)
    tags = Tags()
    tags.feed(page)
    assert tags.open == []
    assert tags.fetched == []
    assert "script" not in tags.seen
    assert not re.search(r"url\(|@import|https?://", page)


def test_no_text_becomes_markup(evaluation, tmp_path):
    page = rendered(evaluation, tmp_path, model="<b>run</b>")
    assert "<script>" not in page
    assert "&lt;script&gt;alert(&#34;1 &amp; 2&#34;)&lt;/script&gt;" in page
    assert "Evaluation of &lt;b&gt;" not in page  # the folder's last part is its name
    assert "<b>" not in page


def test_the_page_shows_scores_controls_and_examples(evaluation, tmp_path):
    page = rendered(evaluation, tmp_path)
    assert f"{evaluation.results['controls']['mean']['l2']:.2f}" in page
    for words in (
        "always the mean",
        "the sentence before",
        "ROUGE-Lsum",
        "Continuation · test",
        "Summary · test",
        "<dt>nearest",
    ):
        assert words in page
    assert "Loss" not in page


def test_loss_curves_come_from_the_runs_metrics_file(evaluation, tmp_path):
    rows = ["step,train/loss,val/loss,val/l2", "1,9.5,,", "2,8.5,8.75,0.5", "3,7.5,,", "4,7.0,7.25,0.4"]
    (tmp_path / "runs/mine").mkdir(parents=True)
    (tmp_path / "runs/mine/metrics.csv").write_text("\n".join(rows) + "\n")
    page = rendered(evaluation, tmp_path)
    assert "optimizer step" in page
    assert "validation" in page
    captions = re.findall(r'<figcaption>(Loss|L2) <span class="legend">(.*?)</span></figcaption>', page)
    assert [(name, re.findall(r">(\w+)<", legend)) for name, legend in captions] == [
        ("Loss", ["training", "validation"]),
        ("L2", ["validation"]),
    ]


def test_scores_that_are_not_defined_are_dashes(evaluation, tmp_path):
    results = json.loads(json.dumps(evaluation.results))
    for scores in (results["teacher_forced"], *results["controls"].values()):
        scores["par"] = None
    for scores in results["intervals"].values():
        scores["par"] = {"value": None, "low": None, "high": None}
    write_report(tmp_path / "report.html", results, evaluation.rows, tmp_path)
    assert "<td>–<small>– – –</small></td>" in (tmp_path / "report.html").read_text()
    assert "–" in headline(results)


def test_without_pairs_there_is_no_table_of_summaries(evaluation, tmp_path):
    results = {**evaluation.results, "summaries": {}}
    write_report(tmp_path / "report.html", results, [], tmp_path)
    page = (tmp_path / "report.html").read_text()
    assert "ROUGE" not in page
    assert "Examples" not in page
    assert "rouge" not in headline(results)


def test_the_verdict_says_who_wins(evaluation, tmp_path):
    results = json.loads(json.dumps(evaluation.results))
    results["teacher_forced"] |= {"l2": 1.0, "contrastive_accuracy": 0.4}
    results["controls"]["mean"] |= {"l2": 2.0, "contrastive_accuracy": 0.3}
    results["controls"]["previous"] |= {"l2": 3.0, "contrastive_accuracy": 0.6}
    page = rendered(type(evaluation)(results, []), tmp_path)
    assert "in L2 the model beats &#39;always the mean&#39; (1.00 against 2.00)" in page
    assert "the model does not beat &#39;the sentence before&#39; (40.0% against 60.0%)" in page


def fill(folder: Path, template: str, **values) -> str:
    (folder / "mine.html").write_text(template)
    return render(folder / "mine.html", values)


def test_a_template_elsewhere_has_the_frame_and_the_macros(tmp_path):
    template = """{% extends "page.html" %}{% from "macros.html" import card, facts, table %}
        {% block title %}{{ name }}{% endblock %}
        {% block body %}{% call table(["&"]) %}<tr><td>{{ name }}</td></tr>{% endcall %}
        {% call card(name) %}{{ facts([("<", name)]) }}{% endcall %}{% endblock %}"""
    page = fill(tmp_path, template, name="a < b")
    tags = Tags()
    tags.feed(page)
    assert tags.open == []
    for part in ("<h1>a &lt; b</h1>", "<th>&amp;</th>", "<td>a &lt; b</td>", "<dt>&lt;</dt><dd>a &lt; b</dd>"):
        assert part in page


def test_a_misspelt_value_is_refused(tmp_path):
    with pytest.raises(UndefinedError, match="'nmae' is undefined"):
        fill(tmp_path, "{{ nmae }}", name="a")


@pytest.mark.parametrize(("low", "high"), [(0.0, 1.0), (0.35, 0.6), (-3.0, 14.0), (5.0, 5.0), (0.0, 0.0), (1e-5, 9e-5)])
def test_round_steps_enclose_the_values_evenly(low, high):
    steps = round_steps(low, high, 5)
    assert steps[0] <= low
    assert steps[-1] >= high
    assert 2 <= len(steps) <= 8
    gaps = {round(b - a, 9) for a, b in pairwise(steps)}
    assert len(gaps) == 1


def chart(folder: Path, series, **values) -> str:
    template = """{% from "macros.html" import chart %}{{ chart("Name", series, "x", marks) }}"""
    return fill(folder, template, series=series, marks=None, **values)


def test_a_chart_puts_points_where_the_axes_say(tmp_path):
    figure = chart(tmp_path, {"a": [(0.0, 0.0), (10.0, 100.0)], "empty": []})
    (points,) = re.findall(r'points="([^"]*)"', figure)
    (x0, y0), (x1, y1) = (tuple(map(float, point.split(","))) for point in points.split())
    assert x0 < x1
    assert y0 > y1  # up is a smaller y
    grid = {float(y) for y in re.findall(r'class="grid"[^>]*y1="([\d.]+)"', figure)}
    assert {y0, y1} <= grid
    assert "empty" not in figure


def test_a_chart_without_points_is_left_out(tmp_path):
    assert chart(tmp_path, {"a": [], "b": [(1.0, float("nan"))]}).strip() == ""


def test_every_template_and_every_task_is_installed_with_the_package():
    root = Path(__file__).parents[2]
    patterns = tomllib.loads((root / "pyproject.toml").read_text())["tool"]["setuptools"]["package-data"]["lcm"]
    installed = {path for pattern in patterns for path in (root / "lcm").glob(pattern)}
    templates, tasks = (set((root / "lcm").rglob(f"*.{ending}")) for ending in ("html", "yaml"))
    assert len(templates) > 5
    assert len(tasks) > 10
    assert templates | tasks <= installed
