"""Files are complete or absent, locks exclude, and a disk's error is one line."""

import errno
import os
import signal
import subprocess
import sys
import threading
from contextlib import suppress
from pathlib import Path

import pytest

from lcm.errors import UserError
from lcm.files import atomic, atomic_path, atomic_result, cache_folder, disk_errors, lock, sha256, write_result

ROOT = Path(__file__).parent.parent


@pytest.mark.parametrize("options", [{}, {"many_writers": True}, {"scratch": True}], ids=str)
def test_a_file_appears_complete_or_not_at_all(options, tmp_path):
    (scratch := tmp_path / "scratch").mkdir()
    options = {**options, **({"scratch": scratch} if "scratch" in options else {})}
    (folder := tmp_path / "folder").mkdir()
    path = folder / "file"
    with suppress(KeyboardInterrupt), atomic(path, **options) as file:
        file.write(b"half")
        raise KeyboardInterrupt
    assert list(folder.iterdir()) == list(scratch.iterdir()) == []
    with atomic(path, **options) as file:
        file.write(b"whole")
        written = os.fstat(file.fileno()).st_ino
        assert not path.exists()
    assert path.read_bytes() == b"whole"
    assert path.stat().st_ino == written  # renamed, not copied: a copy can be killed half-way
    assert [p.name for p in folder.iterdir()] == ["file"]
    assert list(scratch.iterdir()) == []


def test_an_old_file_stays_until_the_new_one_is_complete(tmp_path):
    (path := tmp_path / "file").write_text("old")
    with suppress(ValueError), atomic_path(path) as partial:
        partial.write_text("new")
        assert path.read_text() == "old"
        raise ValueError
    assert path.read_text() == "old"
    with atomic_path(path) as partial:
        partial.write_text("new")
    assert path.read_text() == "new"


def partial_name(path, **options):
    """The temporary name of one attempt, which fails."""
    names = []
    with suppress(ValueError), atomic_path(path, **options) as partial:
        names.append(partial.name)
        raise ValueError
    return names[0]


def test_one_writer_reuses_its_temporary_name_and_several_have_their_own(tmp_path):
    path = tmp_path / "file"
    assert partial_name(path) == partial_name(path) == "file.tmp"
    assert partial_name(path, many_writers=True) != partial_name(path, many_writers=True)
    assert partial_name(path, scratch=tmp_path) != partial_name(path, scratch=tmp_path)


def test_what_a_killed_writer_left_behind_is_overwritten(tmp_path):
    path = tmp_path / "file"
    path.with_name("file.tmp").write_text("half, and longer than the whole")
    with atomic(path) as file:
        file.write(b"whole")
    assert [p.name for p in tmp_path.iterdir()] == ["file"]
    assert path.read_bytes() == b"whole"


def test_a_lock_keeps_others_out_and_shared_ones_together(tmp_path):
    path = tmp_path / "new" / "lock"
    with lock(path) as mine:
        assert mine
        with lock(path, patience=0.0) as second, lock(path, shared=True, patience=0.2) as third:
            assert (second, third) == (False, False)
    with (
        lock(path, shared=True) as one,
        lock(path, shared=True, patience=0.0) as two,
        lock(path, patience=0.0) as three,
    ):
        assert (one, two, three) == (True, True, False)
    with lock(path, patience=0.0) as mine:
        assert mine


def test_patience_waits_until_the_lock_is_free(tmp_path):
    path, got = tmp_path / "lock", []

    def wait():
        with lock(path, patience=30.0) as mine:
            got.append(mine)

    with lock(path):
        thread = threading.Thread(target=wait)
        thread.start()
        thread.join(timeout=0.3)
        assert got == []
    thread.join(timeout=30)
    assert got == [True]


def test_the_lock_of_a_killed_process_is_free(tmp_path):
    path = tmp_path / "lock"
    script = f"""
from pathlib import Path
from lcm.files import lock
with lock(Path({str(path)!r})):
    print("held", flush=True)
    input()
"""
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    with subprocess.Popen([sys.executable, "-c", script], env=environment, **pipes) as process:
        assert process.stdout.readline() == "held\n"
        with lock(path, patience=0.0) as mine:
            assert not mine
        process.send_signal(signal.SIGKILL)
    with lock(path, patience=0.0) as mine:
        assert mine


def test_a_full_disk_is_one_line_that_names_the_file(tmp_path):
    expected = r"a\.tar: No space left on device; put it right and run the same"
    with pytest.raises(UserError, match=expected), disk_errors(tmp_path):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "a.tar")
    with pytest.raises(UserError, match=f"{tmp_path}: Read-only file system"), disk_errors(tmp_path):
        raise OSError(errno.EROFS, os.strerror(errno.EROFS))
    with pytest.raises(BrokenPipeError), disk_errors(tmp_path):
        raise BrokenPipeError


def fill_the_disk(path):
    with atomic_result(path) as part:
        part.write_text("hal")
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def test_a_result_that_the_disk_refuses_leaves_the_earlier_one(tmp_path):
    path, link = tmp_path / "disk" / "v.npy", tmp_path / "v.npy"
    path.parent.mkdir()
    link.symlink_to(path)
    write_result(link, "earlier")
    with pytest.raises(UserError, match=r"v\.npy: No space left on device"):
        fill_the_disk(link)
    assert link.is_symlink(), "the link stays"
    assert path.read_text() == "earlier"
    assert [file.name for file in path.parent.iterdir()] == ["v.npy"]


def test_a_result_that_is_a_pipe_is_written_into_it(tmp_path):
    """`--output >(gzip)`; nor may a file replace /dev/null."""
    os.mkfifo(pipe := tmp_path / "pipe")
    reader = os.open(pipe, os.O_RDONLY | os.O_NONBLOCK)
    write_result(pipe, "text")
    assert os.read(reader, 10) == b"text"
    os.close(reader)
    assert pipe.is_fifo()


def test_a_checksum_is_that_of_the_bytes(tmp_path):
    (tmp_path / "abc").write_bytes(b"abc")
    assert sha256(tmp_path / "abc") == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"


def test_the_cache_is_where_the_environment_says(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.delenv("LCM_CACHE", raising=False)
    assert cache_folder() == tmp_path / "lcm"
    monkeypatch.setenv("LCM_CACHE", str(tmp_path / "own"))
    assert cache_folder() == tmp_path / "own"
    monkeypatch.delenv("LCM_CACHE")
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert cache_folder() == Path.home() / ".cache" / "lcm"
