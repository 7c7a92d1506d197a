"""The progress of a preparation: speed and time left from what has been read, encoded and finished."""

import io
import sys

import pytest

from lcm.prepare import sharding
from lcm.prepare.sharding import PrepareProgress


@pytest.fixture
def clock(monkeypatch):
    """Seconds that a test sets by hand."""
    now = [0.0]
    monkeypatch.setattr(sharding.time, "monotonic", lambda: now[0])
    return now


def test_the_time_left_follows_from_speed_and_bytes(clock):
    shown = PrepareProgress(total_bytes=1000)
    shown.start()
    shown.read(characters=1000, bytes_read=250)  # so 4,000 characters in all
    shown.report(10)
    clock[0] = 5.0
    shown.finished(sentences=10, characters=500, resumed=False)  # so 80 sentences in all
    assert str(shown) == "10 sentences · 2/s · 12% · 35 s left"


def test_what_an_earlier_run_did_counts_as_done_but_not_as_speed(clock):
    shown = PrepareProgress(total_bytes=1000)
    shown.start()
    shown.read(characters=4000, bytes_read=1000)
    shown.finished(sentences=40, characters=2000, resumed=True)
    shown.report(20)
    clock[0] = 2.0
    assert str(shown) == "60 sentences · 10/s · 75% · 2 s left"


def test_a_line_now_and_then_where_there_is_no_terminal(clock, capsys):
    shown = PrepareProgress(total_bytes=1000, every=10.0)
    shown.start()
    shown.read(characters=8800, bytes_read=1000)
    for second in range(25):
        clock[0] = float(second)
        shown.report(2)
    shown.close()
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 2
    assert lines[0].startswith("lcm prepare: 24 sentences · 2/s · 24% · ")


def test_a_terminal_gets_a_bar_that_is_gone_in_the_end(clock, monkeypatch):
    class Terminal(io.StringIO):
        def isatty(self):
            return True

    out = Terminal()
    monkeypatch.setattr(sys, "stderr", out)
    shown = PrepareProgress(total_bytes=1000)
    shown.start()
    shown.read(characters=8800, bytes_read=1000)
    shown.report(2)
    shown.close()
    assert "2 sentences" in out.getvalue()
    assert "\x1b[2K" in out.getvalue().split("2 sentences")[-1]  # the line is erased


def test_before_anything_is_read_the_progress_is_zero():
    assert PrepareProgress(total_bytes=0).fraction == 0.0


@pytest.mark.parametrize(("seconds", "text"), [(5.0, "5 s"), (99.4, "99 s"), (600.0, "10 min"), (7200.0, "2.0 h")])
def test_durations_are_for_people(seconds, text):
    assert sharding._duration(seconds) == text
