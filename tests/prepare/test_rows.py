"""Columns decide the language of a row, and whether it is kept. Refusals are counted by reason."""

import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from stub_codec import Polyglot, load_polyglot, use_codec

from lcm.data.shards import read_documents
from lcm.errors import UserError
from lcm.prepare.command import prepare
from lcm.prepare.options import PrepareOptions
from lcm.prepare.rows import Bound, Columns, Document, bound


@pytest.fixture(autouse=True)
def _inline(monkeypatch):
    use_codec(monkeypatch, load_polyglot)


def prepared(tmp_path, rows, **options):
    (tmp_path / "a.jsonl").write_text("".join(json.dumps({"split": "train", **row}) + "\n" for row in rows))
    source, output = str(tmp_path / "a.jsonl"), str(tmp_path / "data")
    return prepare(PrepareOptions(input=(source,), output=output, **options))


def shown(manifest):
    return {reason: (record.count, record.first) for reason, record in manifest.refused.items()}


def encoded(*sentences, lang):
    return Polyglot("").encode(sentences, lang).half()


def test_each_row_is_encoded_in_its_own_language(tmp_path):
    rows = [{"text": f"T{i}. And.", "lang": lang} for i, lang in enumerate(("eng_Latn", "fra_Latn", " eng_Latn "))]
    prepared(tmp_path, rows, lang_column="lang")
    documents = list(read_documents(tmp_path / "data", "train"))
    assert [d.lang for d in documents] == ["eng_Latn", "fra_Latn", "eng_Latn"]
    english = encoded("T0.", "And.", "T2.", "And.", lang="eng_Latn")
    assert np.array_equal(documents[0].vectors[:2], english[:2])
    assert np.array_equal(documents[2].vectors[:2], english[2:])
    assert np.array_equal(documents[1].vectors[:2], encoded("T1.", "And.", lang="fra_Latn"))


@pytest.mark.parametrize("lang", ["eng_Latn", "fra_Latn"])
def test_the_constants_stay_in_the_language_of_the_command(lang, tmp_path):
    rows = [{"document": "D.", "summary": "S.", "lang": "fra_Latn", "to": "eng_Latn"}]
    prepared(tmp_path, rows, pairs=True, lang=lang, lang_column="lang", summary_lang_column="to")
    (document,) = read_documents(tmp_path / "data", "train")
    expected = [encoded("D.", lang="fra_Latn"), encoded("[MODEL]:", lang=lang), encoded("S.", lang="eng_Latn")]
    assert np.array_equal(document.vectors, np.concatenate([*expected, encoded("End of text.", lang=lang)]))


def test_a_pair_is_in_one_language_unless_its_summary_has_a_column(tmp_path):
    prepared(tmp_path, [{"document": "D.", "summary": "S.", "lang": "fra_Latn"}], pairs=True, lang_column="lang")
    (document,) = read_documents(tmp_path / "data", "train")
    assert np.array_equal(document.vectors[[0, 2]], encoded("D.", "S.", lang="fra_Latn"))


def test_a_row_without_a_known_language_is_refused_by_its_reason(tmp_path):
    langs = ({"lang": "eng_Latn"}, {"lang": "xyz_Latn"}, {"lang": ""}, {"lang": 5}, {}, {"lang": "klingon"})
    manifest = prepared(tmp_path, [{"text": "T.", "id": f"d{i}", **r} for i, r in enumerate(langs)], lang_column="lang")
    assert shown(manifest) == {
        "unknown language": (2, "d1: xyz_Latn"),
        "empty": (1, "a.jsonl:3: lang"),
        "no column 'lang'": (1, "a.jsonl:5"),
        "not text": (1, "a.jsonl:4: lang is 5"),
    }
    assert manifest.documents == 1


def test_a_summarys_unknown_language_refuses_the_pair(tmp_path):
    row = {"document": "D.", "summary": "S.", "lang": "eng_Latn", "to": "xyz_Latn", "id": "p"}
    options = {"pairs": True, "lang_column": "lang", "summary_lang_column": "to"}
    manifest = prepared(tmp_path, [row, {**row, "to": "fra_Latn"}], **options)
    assert shown(manifest) == {"unknown language": (1, "p: xyz_Latn")}


def test_a_column_that_no_row_has_is_named_with_its_option(tmp_path):
    with pytest.raises(UserError, match="no row has a column 'flores'; only split, text; name yours by --lang-column"):
        prepared(tmp_path, [{"text": "T."}], lang_column="flores")


@pytest.mark.parametrize("packed", [".jsonl", ".parquet"])
def test_rows_beyond_a_bound_are_refused_and_counted(packed, tmp_path):
    found = [0.1, 0.3, 0.31, None, 1.0, float("nan")]
    rows = [{"text": "T.", "fragility": x, "length": float(i), "split": "train"} for i, x in enumerate(found)]
    path = tmp_path / f"a{packed}"
    if packed == ".jsonl":
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    else:
        pq.write_table(pa.Table.from_pylist(rows), path)
    bounds = {"drop_above": ("fragility=0.3",), "drop_below": ("length=1",)}
    options = PrepareOptions(input=(str(path),), output=str(tmp_path / "data"), **bounds)
    manifest = prepare(options)
    assert shown(manifest) == {
        "fragility above 0.3": (2, f"a{packed}:3: 0.31"),
        "no number in 'fragility'": (2, f"a{packed}:4: None"),
        "length below 1": (1, f"a{packed}:1: 0"),
    }
    assert manifest.documents == 1
    assert (manifest.options["drop_above"], manifest.options["drop_below"]) == ("fragility=0.3", "length=1")


@pytest.mark.parametrize("value", ["0.2", True, [1], {}])
def test_a_value_that_is_no_number_is_within_no_bound(value):
    columns = Columns(drop=(Bound("f", "above", 9.0),))
    assert columns.document({"text": "T", "f": value}, "n", "n:1", "eng_Latn", Path()).reason == "no number in 'f'"
    assert isinstance(columns.document({"text": "T", "f": 9}, "n", "n:1", "eng_Latn", Path()), Document)


@pytest.mark.parametrize("given", ["fragility", "=3", "fragility=", "fragility=low", "fragility=nan"])
def test_a_malformed_bound_is_refused(given):
    with pytest.raises(UserError, match="expected COLUMN=NUMBER"):
        PrepareOptions(output="", drop_above=(given,))
    assert bound("a=b=-1e3", "below") == Bound("a=b", "below", -1000.0)


def test_a_second_run_with_other_bounds_or_languages_is_refused(tmp_path):
    rows = [{"text": "T.", "lang": "eng_Latn", "f": 1}]
    prepared(tmp_path, rows)
    with pytest.raises(UserError, match="--drop-above not given, now f=3"):
        prepared(tmp_path, rows, drop_above=("f=3",))
    with pytest.raises(UserError, match="--lang-column not given, now lang"):
        prepared(tmp_path, rows, lang_column="lang")
    assert "lang_column" not in prepared(tmp_path, rows).options
