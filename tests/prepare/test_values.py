"""A value of any type becomes text, a number, or a refused and counted row; no type ends the job."""

import json
from datetime import UTC, date, datetime, time, timedelta
from decimal import Decimal
from pathlib import Path
from uuid import UUID

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from lcm.prepare.rows import Columns, Document, Refused, bound
from lcm.prepare.sources import Sources, read_rows


def read(path, columns, table=None):
    if table is not None:
        pq.write_table(table, path)
    return list(Sources([path], columns))


NANOSECOND = pa.array([1_700_000_000_000_000_001], pa.int64())
IDS = {
    "2023-11-14 22:13:20.000000001": NANOSECOND.cast(pa.timestamp("ns")),
    "2023-11-14 22:13:20.000000001Z": NANOSECOND.cast(pa.timestamp("ns", "UTC")),
    "2023-11-14 22:13:20.000": pa.array([datetime(2023, 11, 14, 22, 13, 20)], pa.timestamp("s")),
    "2023-11-14": pa.array([date(2023, 11, 14)]),
    "22:13:20.000000": pa.array([time(22, 13, 20)]),
    "90000000": pa.array([timedelta(seconds=90)], pa.duration("us")),
    "1.50": pa.array([Decimal("1.50")]),
    "123456789012345678901234567890.1": pa.array([Decimal("123456789012345678901234567890.1")]),
    "18446744073709551615": pa.array([2**64 - 1], pa.uint64()),
    "0.5": pa.array([0.5], pa.float16()),
    "name": pa.array(["name"]).dictionary_encode(),
    "large": pa.array(["large"], pa.large_string()),
    "bytes": pa.array([b"bytes"]),
    "a.parquet:1": pa.array([b"\xff"]),
}
OTHERS = {
    "list of nanoseconds": pa.array([[1]], pa.list_(pa.timestamp("ns"))),
    "year 20000": pa.array([[569_000_000_000]], pa.list_(pa.timestamp("s"))),
    "struct": pa.array([{"a": 1, "b": [Decimal("1.5")]}]),
    "map": pa.array([[("a", 1)]], pa.map_(pa.string(), pa.int64())),
    "null": pa.array([None], pa.null()),
    "bool": pa.array([True]),
    "nan": pa.array([float("nan")]),
}


@pytest.mark.parametrize("expected", IDS)
def test_any_scalar_is_an_id_as_text(expected, tmp_path):
    table = pa.table({"id": IDS[expected], "text": ["Text."], "title": IDS[expected]})
    (document,) = read(tmp_path / "a.parquet", Columns(), table)
    assert document.id == expected
    assert document.title in (expected, "")


@pytest.mark.parametrize("kind", OTHERS)
@pytest.mark.parametrize("column", ["id", "text", "split", "score"])
def test_no_type_ends_the_job_and_the_other_files_are_read(kind, column, tmp_path):
    table = {"id": ["x"], "text": ["Text."], "split": ["train"], "score": [1.0]} | {column: OTHERS[kind]}
    pq.write_table(pa.table(table), tmp_path / "a.parquet")
    (tmp_path / "b.jsonl").write_text(json.dumps({"text": "Good.", "score": 0.5}))
    columns = Columns(drop=(bound("score=1", "above"),))
    first, second = Sources([tmp_path / "a.parquet", tmp_path / "b.jsonl"], columns)
    assert second.text == "Good."
    assert isinstance(first, Refused) or column in ("id", "split")
    assert isinstance(next(iter(read_rows(tmp_path / "a.parquet")))[1], dict | Refused)


@pytest.mark.parametrize(
    "numbers",
    [
        pa.array([Decimal("0.9"), Decimal("1.1")]),
        pa.array([0.9, 1.1], pa.float16()),
        pa.array([0.9, 1.1], pa.float32()),
        pa.array([0, 2], pa.uint8()),
        pa.array([-(2**63), 2**63 - 1]),
        pa.array([Decimal(-(10**37)), Decimal(10**37)]),
        pa.array([float("-inf"), float("inf")]),
    ],
)
def test_bounds_hold_for_numbers_of_every_type(numbers, tmp_path):
    table = pa.table({"text": ["low", "high"], "score": numbers})
    low, high = read(tmp_path / "a.parquet", Columns(drop=(bound("score=1", "above"),)), table)
    assert (low.text, high.reason) == ("low", "score above 1")
    assert low == read(tmp_path / "a.parquet", Columns(drop=(bound("score=1", "above"),)))[0]
    assert [
        i.reason
        for i in read(tmp_path / "a.parquet", Columns(drop=(bound("score=1", "below"),)))[:1]
        if isinstance(i, Refused)
    ] == ["score below 1"]


def test_numbers_that_no_float_holds_are_compared_and_shown(tmp_path):
    (tmp_path / "a.jsonl").write_text(f'{{"text": "T.", "id": {10**400}, "n": {10**400}}}\n{{"text": "T.", "n": "1"}}')
    above, no_number = read(tmp_path / "a.jsonl", Columns(drop=(bound("n=1", "above"),)))
    assert (above.reason, len(above.example) < 100) == ("n above 1", True)
    assert no_number.reason == "no number in 'n'"
    (document, _) = read(tmp_path / "a.jsonl", Columns())
    assert document.id == str(10**400)


@pytest.mark.parametrize("value", [0, 0.0, False, [], {}, 1, "dev", b"train"])
def test_a_split_that_is_none_of_the_three_is_refused_whatever_it_is(value, tmp_path):
    row = {"text": "T.", "split": value}
    assert Columns().document(row, "a", "a:1", "eng_Latn", tmp_path).reason == "unknown split"
    for none in (None, "", float("nan")):
        assert Columns().document(row | {"split": none}, "a", "a:1", "eng_Latn", tmp_path).split is None


def test_ids_of_python_types_are_text():
    for value in (datetime(2024, 1, 1, tzinfo=UTC), UUID(int=7), Decimal("1.50"), timedelta(days=1)):
        document = Columns().document({"text": "T.", "id": value}, "a", "a:1", "eng_Latn", Path())
        assert isinstance(document, Document)
        assert document.id == str(value)
