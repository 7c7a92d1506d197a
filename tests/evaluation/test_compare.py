"""Two evaluations side by side: differences with paired intervals, wins and losses, and what cannot be compared."""

import json

import numpy as np
import pytest

from lcm.cli import main
from lcm.errors import UserError
from lcm.evaluation.compare import compare
from lcm.scores import bootstrap, paired_bootstrap

N = 40


def summary(key, rouge, text="A text.", reference="A reference.", **scores):
    scored = {"rouge": {"model": {"rougeL": rouge, "rouge1": rouge}}, "scores": {"model": scores}}
    texts = {"prompt": ["Read <b>this</b>."], "reference": [reference], "others": [], "model": [text]}
    return {"kind": "summary", "id": key, **texts, **scored}


def forced(key, l2, sentences=3):
    return {"kind": "document", "id": key, "l2": l2, "l2_roundtrip": l2, "par": 1.0, "contrastive_accuracy": 0.5,
            "sentences": sentences}  # fmt: skip


def tale(key, consistent, sentences):
    scores = {"grammatical": 1.0, "consistent": consistent, "sentences": sentences}
    return {"kind": "tale", "id": key, "prompt": ["So."], "reference": ["Then."], "model": ["Now."], "scores": scores}


def write_run(folder, rows, **results):
    about = {"rep4": {"better": "lower"}, "ovl3": {"better": "neither"}}
    folder.mkdir()
    base = {"scores": about, "rouge": {"convention": "lcm"}, "codec": {"fingerprint": "f00"}}
    (folder / "results.json").write_text(json.dumps({**base, **results}))
    (folder / "examples.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(folder)


def of_rouge(folder, values, **results):
    return write_run(folder, [summary(f"row {i}", float(value)) for i, value in enumerate(values)], **results)


@pytest.fixture
def rouge():
    return np.random.default_rng(0).uniform(0.2, 0.8, N)


def test_a_shift_of_every_example_is_certain(tmp_path, rouge):
    found = compare(of_rouge(tmp_path / "a", rouge), of_rouge(tmp_path / "b", rouge + 0.1)).scores["rougeL"]
    assert (found.difference, found.low, found.high) == pytest.approx((0.1, 0.1, 0.1))
    assert (found.wins, found.losses, found.ties, found.examples) == (N, 0, 0, N)
    assert found.p == pytest.approx(2 / 10_001)


def test_equal_runs_do_not_differ(tmp_path, rouge):
    found = compare(of_rouge(tmp_path / "a", rouge), of_rouge(tmp_path / "b", rouge)).scores["rougeL"]
    assert (found.difference, found.low, found.high, found.p) == (0, 0, 0, 1)
    assert (found.wins, found.losses, found.ties) == (0, 0, N)


def test_the_other_way_round_everything_changes_its_sign(tmp_path, rouge):
    other = rouge + np.random.default_rng(1).normal(0, 0.05, N)
    a, b = of_rouge(tmp_path / "a", rouge), of_rouge(tmp_path / "b", other)
    one, two = compare(a, b).scores["rougeL"], compare(b, a).scores["rougeL"]
    assert (one.difference, one.low, one.high) == pytest.approx((-two.difference, -two.high, -two.low))
    assert (one.a, one.b, one.wins, one.losses) == (two.b, two.a, two.losses, two.wins)
    assert one.p == pytest.approx(two.p)


def test_the_interval_is_that_of_the_differences_where_all_weigh_the_same():
    """An implementation of its own: the mean of resampled differences."""
    random = np.random.default_rng(2)
    a, b, ones = random.normal(0, 1, 60), random.normal(0.3, 1, 60), np.ones(60)
    found = paired_bootstrap(a, ones, b, ones, 20_000, seed=3)
    drawn = np.random.default_rng(3).integers(60, size=(20_000, 60))
    means = (b - a)[drawn].mean(axis=1)
    assert (found.low, found.high) == pytest.approx(np.quantile(means, (0.025, 0.975)).tolist())
    assert found.p == pytest.approx(2 * min((means <= 0).mean(), (means >= 0).mean()), abs=2e-4)
    normal = (b - a).mean() + 1.96 * (b - a).std() / 60**0.5
    assert found.high == pytest.approx(normal, rel=0.05)


def test_pairs_are_surer_than_two_intervals():
    random = np.random.default_rng(4)
    hard = random.normal(0, 1, 200)
    a, b, ones = hard + random.normal(0, 0.1, 200), hard + random.normal(0.05, 0.1, 200), np.ones(200)
    paired = paired_bootstrap(a, ones, b, ones, 4000)
    alone = bootstrap(a, ones, 4000)
    assert paired.high - paired.low < 0.2 * (alone.high - alone.low)
    assert paired.low > 0


def test_chance_is_not_taken_for_a_difference():
    """Equal systems have a p-value below 0.05 in one of twenty comparisons."""
    random = np.random.default_rng(5)
    found = [
        paired_bootstrap(random.normal(0, 1, 50), np.ones(50), random.normal(0, 1, 50), np.ones(50), 1000, seed).p
        for seed in range(200)
    ]
    assert 1 <= sum(p < 0.05 for p in found) <= 22


def test_documents_weigh_by_their_sentences_and_less_distance_is_better(tmp_path):
    a = write_run(tmp_path / "a", [forced("x", 3.0, 1), forced("y", 1.0, 9)])
    b = write_run(tmp_path / "b", [forced("x", 1.0, 1), forced("y", 2.0, 9)])
    found = compare(a, b).scores["l2"]
    assert (found.a, found.b) == pytest.approx((1.2, 1.9))
    assert (found.wins, found.losses) == (1, 1)
    assert compare(a, b).scores["par"].wins is None


def test_a_story_weighs_by_what_each_run_wrote(tmp_path):
    a = write_run(tmp_path / "a", [tale("x", 1.0, 2), tale("y", 0.5, 8)])
    b = write_run(tmp_path / "b", [tale("x", 0.5, 4), tale("y", 1.0, 4)])
    found = compare(a, b).scores["truth.consistent"]
    assert (found.a, found.b) == pytest.approx((0.6, 0.75))


def test_examples_of_one_run_alone_are_counted_and_scores_of_one_left_out(tmp_path):
    a = write_run(tmp_path / "a", [summary("x", 0.5, rep4=0.1), summary("y", 0.1), summary("z", 0.2)])
    b = write_run(tmp_path / "b", [summary("x", 0.6), summary("y", 0.1), summary("w", 0.9)])
    found = compare(a, b)
    assert (found.scores["rougeL"].examples, found.only_a, found.only_b) == (2, 1, 1)
    assert found.left_out == {"rep4": "only a has it"}


def test_rows_that_are_not_scored_are_in_no_pair(tmp_path):
    a = write_run(tmp_path / "a", [summary("x", 0.5), summary("y", None)])
    b = write_run(tmp_path / "b", [summary("x", 0.6), summary("y", 0.9)])
    assert compare(a, b).scores["rougeL"].examples == 1


def test_spaces_of_two_codecs_and_judges_of_two_kinds_are_left_out(tmp_path):
    rows = [summary("x", 0.5, cola=0.5), forced("y", 1.0)]
    a = write_run(tmp_path / "a", rows, scores={"cola": {"better": "higher", "weights": "one"}})
    b = write_run(
        tmp_path / "b", rows, scores={"cola": {"better": "higher", "weights": "two"}}, codec={"fingerprint": "other"}
    )
    found = compare(a, b)
    assert set(found.scores) == {"rougeL", "rouge1"}
    assert found.left_out["l2"] == "their codecs differ, and so do their spaces"
    assert found.left_out["cola"] == "it was measured with other weights or settings"


def test_what_is_no_evaluation_of_the_same_test_set_is_refused(tmp_path):
    a = of_rouge(tmp_path / "a", [0.5])
    with pytest.raises(UserError, match=r"missing: no results.json there; expected a folder that lcm evaluate"):
        compare(a, str(tmp_path / "missing"))
    b = of_rouge(tmp_path / "b", [0.5], rouge={"convention": "helm"})
    with pytest.raises(UserError, match=r"a was scored by --convention lcm, b by helm"):
        compare(a, b)
    c = write_run(tmp_path / "c", [summary("row 0", 0.5, reference="Another.")])
    with pytest.raises(UserError, match=r"row 0: has one reference in a and another in c"):
        compare(a, c)
    d = write_run(tmp_path / "d", [summary("other", 0.5)])
    with pytest.raises(UserError, match=r"have no scored example in common"):
        compare(a, d)
    (tmp_path / "d/examples.jsonl").write_text("{")
    with pytest.raises(UserError, match=r"d: results.json or examples.jsonl is damaged"):
        compare(a, d)


def test_the_command_writes_table_file_and_page(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    rows = [summary(f"row {i}", 0.1 * i, text=f"Text {i} of A & more.") for i in range(6)]
    a = write_run(tmp_path / "a", [*rows, tale("t", 0.5, 4)])
    rows = [summary(f"row {i}", 0.1 * (5 - i), text=f"Text {i} of B.") for i in range(6)]
    b = write_run(tmp_path / "b", [*rows, tale("t", 1.0, 4)])
    assert main(["compare", a, b, "--bootstrap", "500"]) == 0
    out = capsys.readouterr().out
    assert out.splitlines()[-1] == "compare-a-b/compare.html"
    (line,) = [line for line in out.splitlines() if line.startswith("rougeL")]
    assert line.split()[-3:] == ["3", "3", "6"]
    stored = json.loads((tmp_path / "compare-a-b/compare.json").read_text())
    assert stored["scores"]["rougeL"]["wins"] == 3
    assert (stored["bootstrap"], stored["seed"], stored["a"]) == (500, 0, "a")
    page = (tmp_path / "compare-a-b/compare.html").read_text()
    assert "Read &lt;b&gt;this&lt;/b&gt;." not in page, "sorted by stories, which both runs have"
    assert "Now." in page
    assert main(["compare", a, b, "--json", "--output", str(tmp_path / "out")]) == 0
    assert json.loads("\n".join(capsys.readouterr().out.splitlines()[:-1]))["only_a"] == 0


def test_the_page_shows_the_largest_gains_of_either_first(tmp_path):
    a = write_run(tmp_path / "a", [summary(f"row {i}", 0.5, text=f"Old {i} <i>.") for i in range(3)])
    b = write_run(
        tmp_path / "b", [summary(f"row {i}", value, text=f"New {i}.") for i, value in enumerate((0.6, 0.9, 0.1))]
    )
    assert main(["compare", a, b, "--output", str(tmp_path / "out")]) == 0
    page = (tmp_path / "out/compare.html").read_text()
    assert page.index("New 1.") < page.index("New 0.") < page.index("Where A is better") < page.index("New 2.")
    assert "Old 1 &lt;i&gt;." in page
    assert "<script" not in page
