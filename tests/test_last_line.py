"""The last line of defence: whatever the system or a library refuses is one line, in commands, scripts and Python."""

import errno
import os
import resource
import runpy
import signal
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

import lcm
from lcm.cli import run_command, starting
from lcm.errors import UserError, explained, in_one_line, refused_by_system
from lcm.files import atomic, atomic_path, disk_errors

ROOT = Path(__file__).parent.parent


def line_of(capsys, error, program="lcm x"):
    """The line that a command prints which ends by this error."""

    def work():
        raise error

    assert run_command(program, work) == 1
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.count("\n") == 1
    assert "Traceback" not in captured.err
    return captured.err.removeprefix(f"{program}: ").rstrip("\n")


def raised(work):
    try:
        work()
    except Exception as error:
        return error
    raise AssertionError("nothing was raised")


def test_an_error_of_the_system_names_the_file_and_the_way_out(capsys, tmp_path):
    again = "put it right and run the same command again"
    cases = {
        f"{tmp_path}: Is a directory (expected a file); {again}": raised(lambda: tmp_path.read_bytes()),
        f"{tmp_path / 'no'}: No such file or directory; {again}": raised((tmp_path / "no").read_bytes),
        f"the system refuses: No space left on device; {again}": OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)),
        f"a.npy: Permission denied (see who may read and write it: ls -l); {again}": PermissionError(
            errno.EACCES, os.strerror(errno.EACCES), "a.npy"
        ),
    }
    for line, error in cases.items():
        assert line_of(capsys, error) == line
    line = refused_by_system(OSError(errno.ENOMEM, os.strerror(errno.ENOMEM)), "runs/a")
    assert line.startswith("runs/a: Cannot allocate memory (memory ran out, not the disk: ask for less, or")
    full = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    assert refused_by_system(full, "out") == f"out: No space left on device; {again}"


def test_text_that_is_no_text_is_named_by_its_byte(capsys):
    assert line_of(capsys, raised(lambda: b"ab\xff".decode())).startswith(
        "not UTF-8 at byte 2: b'\\xff'; convert the file first"
    )
    line = line_of(capsys, raised(lambda: "a→".encode("latin-1")))
    assert line == "'→' cannot be written as latin-1; set PYTHONIOENCODING=utf-8"


@pytest.mark.parametrize(
    "work",
    [
        lambda: np.empty(10**15),
        lambda: torch.empty(10**15),
        lambda: bytearray(10**15),
    ],
    ids=["numpy", "torch", "python"],
)
def test_memory_that_ran_out_is_one_line_whoever_asked(work, capsys):
    assert line_of(capsys, raised(work)).startswith("memory ran out")


def test_threads_that_the_system_refuses_are_told_with_the_way_out(capsys):
    refused = RuntimeError("can't start new thread")
    expected = "this process may start no more threads (see ulimit -u, or the job's limit); use fewer workers"
    assert line_of(capsys, refused) == expected


def test_a_library_is_named_and_a_fault_of_our_own_is_told_from_it(capsys):
    line = line_of(capsys, raised(lambda: torch.zeros(2) @ torch.zeros(3)))
    assert "RuntimeError" in line
    assert line.endswith("LCM_DEBUG=1 shows the traceback")
    assert line_of(capsys, raised(faulty)) == (
        "ZeroDivisionError: division by zero, at lcm/batch.py:1; a fault of lcm: please report it, with what "
        "LCM_DEBUG=1 shows"
    )


def faulty():
    """Fails as if in lcm/batch.py."""
    exec(compile("1 / 0", str(ROOT / "lcm" / "batch.py"), "exec"))


def test_of_an_error_in_a_worker_the_worker_s_line_is_named():
    class _RemoteTraceback(Exception):
        pass

    error = ValueError("strange")
    error.__cause__ = _RemoteTraceback(f'  File "{ROOT}/lcm/prepare/worker.py", line 7, in f\n')
    assert "at lcm/prepare/worker.py:7; a fault of lcm" in explained(error)


def test_debug_shows_the_traceback_before_the_line(monkeypatch, capsys):
    monkeypatch.setenv("LCM_DEBUG", "1")
    assert run_command("lcm x", lambda: int("x")) == 1
    err = capsys.readouterr().err
    assert err.startswith("Traceback (most recent call last):")
    assert err.splitlines()[-1].startswith("lcm x: invalid literal for int()")
    monkeypatch.setenv("LCM_DEBUG", "0")
    run_command("lcm x", lambda: int("x"))
    assert "Traceback" not in capsys.readouterr().err


def test_python_gets_the_same_line_as_an_exception(tmp_path):
    @in_one_line()
    def work(do):
        return do()

    for do in (tmp_path.read_bytes, lambda: b"\xff".decode(), lambda: np.empty(10**15)):
        error = raised(lambda do=do: work(do))
        assert type(error) is UserError
        assert str(error) == explained(raised(do))
        assert "\n" not in str(error)
    assert type(raised(lambda: work(faulty))) is ZeroDivisionError, "a fault stays what it is"
    with pytest.raises(BrokenPipeError):
        work(lambda: (_ for _ in ()).throw(BrokenPipeError()))


def test_the_api_is_under_the_last_line(tmp_path, monkeypatch):
    def refuses(*_, **__):
        raise PermissionError(errno.EACCES, "Permission denied", "model.safetensors")

    monkeypatch.setattr("lcm.inference.pipeline.load_model", refuses)
    with pytest.raises(UserError, match=r"model.safetensors: Permission denied \(see who may"):
        lcm.load(tmp_path)


@pytest.fixture
def small_files():
    """No file may grow beyond 4 kB: what a full disk does, without one."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, before)
    signal.signal(signal.SIGXFSZ, handler)


@pytest.mark.parametrize("writer", ["safetensors", "torch", "numpy", "bytes"])
def test_a_disk_that_fills_in_while_a_file_is_written_is_one_line_with_its_name(writer, tmp_path, small_files, capsys):
    path = tmp_path / "model.safetensors"
    path.write_bytes(b"old")

    def write():
        tensor = torch.zeros(10_000)
        with atomic_path(path) as part:
            if writer == "bytes":
                part.write_bytes(bytes(40_000))
            elif writer == "numpy":
                with part.open("wb") as file:
                    np.save(file, tensor.numpy())
            else:
                (save_file if writer == "safetensors" else torch.save)({"a": tensor}, part)

    line = line_of(capsys, raised(write))
    assert str(path) in line
    assert "File too large" in line, "the system's reason, which the libraries do not tell"
    assert path.read_bytes() == b"old"
    assert [p.name for p in tmp_path.iterdir()] == ["model.safetensors"]


def test_a_file_that_is_appended_to_is_named_too(tmp_path, small_files):
    with pytest.raises(UserError, match=r"metrics\.csv: File too large"), disk_errors(tmp_path / "metrics.csv"):
        (tmp_path / "metrics.csv").write_bytes(bytes(40_000))


@pytest.mark.parametrize("script", sorted(path.name for path in (ROOT / "data_prep").glob("*.py")))
def test_an_interrupt_while_a_script_imports_is_one_line(script, monkeypatch, capsys):
    """A script imports what takes long under `starting`, and nothing before it."""
    text = (ROOT / "data_prep" / script).read_text()
    if script == "embed.py":  # it is `lcm prepare`, which imports inside the command
        assert "starting" not in text
        return
    before = text.partition("with starting(")[0]
    assert not {"import torch", "import numpy", "from lcm.codec", "from lcm.data"} & set(before.splitlines())
    monkeypatch.setitem(sys.modules, "lcm.options", None)  # importing it fails
    with pytest.raises(SystemExit) as exit_:
        runpy.run_path(str(ROOT / "data_prep" / script), run_name="a_script")
    assert exit_.value.code == 1
    assert capsys.readouterr().err.count("\n") == 1


def test_an_interrupt_under_starting_has_status_130(capsys):
    with pytest.raises(SystemExit) as exit_, starting("fit_x"):
        raise KeyboardInterrupt
    assert exit_.value.code == 130
    assert capsys.readouterr().err == "fit_x: interrupted\n"


def test_threads_that_fail_to_write_name_the_file(tmp_path, small_files):
    def write(path):
        with atomic(path) as file:
            file.write(bytes(40_000))

    with ThreadPoolExecutor(2) as pool:
        error = pool.submit(write, tmp_path / "a").exception()
    assert str(tmp_path / "a") in explained(error)
