"""Streams of a command: its results on stdout, its log on stderr, whatever has become of either."""

import errno
import os
import sys
import threading
from contextlib import suppress

import pytest

from lcm.cli import main, run_command


def test_output_that_cannot_be_flushed_is_an_error(monkeypatch, capsys):
    with open("/dev/full", "w") as full:
        monkeypatch.setattr(sys, "stdout", full)
        monkeypatch.setattr("lcm.cli._discard", lambda stream: None)

        def work():
            print("result")
            return 0

        assert run_command("lcm x", work) == 1
        monkeypatch.undo()
        with pytest.raises(OSError, match="No space left"):
            full.close()
    assert "No space left on device" in capsys.readouterr().err


def without_reader():
    reader, writer = os.pipe()
    os.close(reader)
    return os.fdopen(writer, "w", buffering=1)


def full_disk():
    return open("/dev/full", "w", buffering=1)


@pytest.mark.parametrize("open_log", [without_reader, full_disk, lambda: None])
def test_a_log_that_cannot_be_written_ends_no_work(open_log, monkeypatch):
    """`lcm train 2>&1 | head`, a log on a full disk, `2>&-`."""
    done = []
    log = open_log()
    monkeypatch.setattr(sys, "stderr", log)

    def work():
        print("step 1", file=sys.stderr)
        done.append(sys.stderr.isatty())
        print("step 2", file=sys.stderr)
        return 0

    assert run_command("lcm x", work) == 0
    assert done == [False]
    assert run_command("lcm x", lambda: int("x")) == 1
    assert sys.stderr is log
    if log:
        log.close()  # has nothing left that it could not write


def test_the_error_of_a_thread_is_one_line(capsys):
    def work():
        thread = threading.Thread(target=lambda: int("x"))
        thread.start()
        thread.join()
        return 0

    before = threading.excepthook
    assert run_command("lcm x", work) == 0
    assert threading.excepthook is before
    err = capsys.readouterr().err
    assert err.startswith("lcm x: invalid literal for int()")
    assert err.count("\n") == 1


def test_a_closed_stdout_is_no_fault(monkeypatch, capsys):
    monkeypatch.setattr(sys, "stdout", None)
    assert run_command("lcm x", lambda: print("result") or 0) == 0
    assert capsys.readouterr().err == ""


def test_only_of_stdout_a_broken_pipe_is_no_error(monkeypatch, capsys):
    """A worker's or a connection's is: the work is not done."""

    def lost():
        raise BrokenPipeError(errno.EPIPE, "Broken pipe")

    assert run_command("lcm x", lost) == 1
    assert "Broken pipe" in capsys.readouterr().err
    with open(os.devnull, "w") as stdout:
        monkeypatch.setattr(sys, "stdout", stdout)
        assert run_command("lcm x", lost) == 1
    monkeypatch.setattr(sys, "stdout", without_reader())
    assert run_command("lcm x", lambda: print("result") or 0) == 0
    assert run_command("lcm x", lost) == 1, "stdout is discarded by now"


def test_help_whose_reader_has_ended_is_no_error(monkeypatch):
    for words in (["--help"], ["--version"], ["train", "--help"]):
        monkeypatch.setattr(sys, "stdout", without_reader())
        with suppress(SystemExit):
            assert main(words) == 0
