"""The ledger: every kind with its number and its first example, in one line."""

from lcm.ledger import LONGEST, Entry, Ledger


def test_the_first_example_of_each_kind_stays_and_the_most_frequent_kind_is_first():
    ledger = Ledger()
    assert (ledger.line, bool(ledger), ledger.total) == ("", False, 0)
    for kind, example in [("empty", "a:1"), ("hidden", ".b"), ("hidden", ".c"), ("empty", "a:2"), ("hidden", ".d")]:
        ledger.add(kind, example)
    assert ledger.line == "5 refused: 3 hidden (first: .b), 2 empty (first: a:1)"
    assert ledger.stored == {"hidden": {"count": 3, "first": ".b"}, "empty": {"count": 2, "first": "a:1"}}


def test_ledgers_are_added_in_the_order_of_reading():
    first, second = {"empty": Entry(count=1, first="a")}, {"empty": Entry(count=1000, first="b")}
    assert Ledger(first).extend(second, second).line == "2,001 refused: 2,001 empty (first: a)"
    assert first["empty"].count == 1, "what was added to stays as it was"


def test_an_example_is_one_line_that_utf_8_can_hold_whatever_it_was():
    ledger = Ledger()
    ledger.add("empty", "a\nb\r\x1b[31m\u2028é\udcff" + "x" * 1000)
    entry = ledger.entries["empty"]
    assert entry.first.startswith("a\\nb\\r\\x1b[31m\\u2028é\\udcffxxx")
    assert len(entry.first) == LONGEST + 1
    assert ledger.line.encode("utf-8").isascii() is False
    assert len(ledger.line.splitlines()) == 1
