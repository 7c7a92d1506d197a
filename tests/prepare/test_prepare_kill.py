"""`lcm prepare` killed at any moment and started again gives the bytes of a run that was never killed."""

import json
import os
import random
import re
import resource
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import psutil
import pytest
from forked import Forked
from stub_codec import InlinePool, StubPool, main_of_a_group, use_codec

from lcm.data.verify import verify
from lcm.errors import UserError
from lcm.prepare import command
from lcm.prepare.command import prepare
from lcm.prepare.options import PrepareOptions
from lcm.prepare.resume import Request, claimed


def corpus(folder):
    splits = [*["train"] * 17, "test"]
    rows = [{"id": i, "text": f"Text {i} begins. It goes on! Yes {i}.", "split": s} for i, s in enumerate(splits)]
    lines = [json.dumps(row) for row in rows]
    lines[3:3] = ["no json", json.dumps({"text": 3}), json.dumps({"text": "HUGE."})]
    (folder / "a.jsonl").write_text("\n".join(lines))
    return folder / "a.jsonl"


def options(source, output, **more):
    return PrepareOptions(input=(str(source),), output=str(output), **{"workers": 1, "shard_documents": 4, **more})


def snapshot(folder):
    """Every file, hidden ones too."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in Path(folder).rglob("*") if path.is_file()}


def start(source, output, *more, delay=0.0):
    """`lcm prepare` with the stub, as a process group of its own."""
    words = ["--input", str(source), "--output", str(output), "--shard-documents", "4", *more]
    printed = output.parent / f"{output.name}-{time.monotonic_ns()}"
    out, err = Path(f"{printed}.out"), Path(f"{printed}.err")
    return Forked(main_of_a_group, words, out=out, err=err, STUB_DELAY=str(delay))


@pytest.fixture(autouse=True)
def _stub(monkeypatch):
    use_codec(monkeypatch, pool=StubPool)


@pytest.fixture(scope="module")
def reference(tmp_path_factory):
    """(input, what an uninterrupted run with one worker process makes of it)"""
    folder = tmp_path_factory.mktemp("reference")
    source = corpus(folder)
    with pytest.MonkeyPatch.context() as patch:
        use_codec(patch, pool=StubPool)
        prepare(options(source, folder / "data"))
    return source, snapshot(folder / "data")


CHANGES = ("os.rename", "os.remove", "os.rmdir", "os.mkdir", "shutil.rmtree")


def forked(function):
    """Run it in a forked process with an inline pool; the status as os.waitpid gives it."""
    child = os.fork()
    if child == 0:
        try:
            command.Pool = InlinePool
            function()
        except BaseException:
            os._exit(1)
        os._exit(0)
    return os.waitpid(child, 0)[1]


def killed_at(step, source, output, **more):
    """Run until the disk is to be changed for the `step`-th time, and kill; False if it was finished before."""
    seen = 0

    def count(event, arguments):
        nonlocal seen
        writes = event == "open" and arguments[1] not in ("r", "rb", None)
        if (writes or event in CHANGES) and str(output) in str(arguments[0]):
            seen += 1
            if seen == step:
                os.kill(os.getpid(), signal.SIGKILL)

    def run():
        sys.addaudithook(count)
        prepare(options(source, output, **more))

    status = forked(run)
    assert os.WIFSIGNALED(status) or os.WEXITSTATUS(status) == 0
    return os.WIFSIGNALED(status)


def test_killed_before_any_change_of_the_disk_and_started_again_it_is_the_same(reference, tmp_path, monkeypatch):
    """Every single moment at which the disk changes, one after the other."""
    source, expected = reference
    use_codec(monkeypatch)
    step = 1
    while killed_at(step, source, tmp_path / str(step)):
        prepare(options(source, tmp_path / str(step)))
        assert snapshot(tmp_path / str(step)) == expected, f"killed at change {step}"
        step += 1
    assert step > 30
    assert snapshot(tmp_path / str(step)) == expected


def test_killed_again_and_again_it_is_the_same(reference, tmp_path, monkeypatch):
    source, expected = reference
    use_codec(monkeypatch)
    lives = 1
    while killed_at(13, source, tmp_path / "data"):
        lives += 1
        assert lives < 30
    assert lives > 4
    assert snapshot(tmp_path / "data") == expected


@pytest.mark.parametrize(
    ("name", "damage"),
    [
        ("train-000001.tar", Path.unlink),
        ("train-000001.tar", lambda path: os.truncate(path, 512)),
        ("train-000001.index.npy", Path.unlink),
    ],
)
def test_a_finished_shard_that_is_lost_before_the_end_is_made_again(name, damage, reference, tmp_path, monkeypatch):
    source, expected = reference
    use_codec(monkeypatch)
    assert killed_at(35, source, tmp_path / "data")
    assert (tmp_path / "data" / ".unfinished" / "train-000001.tar.json").is_file()
    damage(tmp_path / "data" / name)
    prepare(options(source, tmp_path / "data"))
    assert snapshot(tmp_path / "data") == expected


def test_a_run_killed_before_its_first_shard_binds_nobody_and_leaves_nothing(reference, tmp_path, monkeypatch):
    source, _ = reference
    use_codec(monkeypatch)
    other = {"shard_documents": 1000, "max_characters": 20}
    prepare(options(source, tmp_path / "expected", **other))
    step = 1
    while killed_at(step, source, tmp_path / "data") and not (tmp_path / "data" / "train-000000.tar").exists():
        step += 1
    assert not list((tmp_path / "data" / ".unfinished").glob("*.tar.json"))
    (tmp_path / "data" / "train-000000.tar").rename(tmp_path / "data" / "train-000009.tar")
    prepare(options(source, tmp_path / "data", **other))
    assert snapshot(tmp_path / "data") == snapshot(tmp_path / "expected")


def test_a_run_that_meets_one_that_is_just_finishing_touches_nothing(reference, tmp_path):
    """Its notes are gone by then, so that every shard would seem to be half done."""
    source, expected = reference
    manifest = prepare(options(source, tmp_path / "data"))
    with (
        pytest.raises(UserError, match="another lcm prepare has just finished it"),
        claimed(tmp_path / "data", Request.model_validate(manifest, from_attributes=True)),
    ):
        pass
    assert snapshot(tmp_path / "data") == expected


def test_the_number_of_workers_changes_nothing(reference, tmp_path):
    source, expected = reference
    prepare(options(source, tmp_path / "data", workers=3))
    assert snapshot(tmp_path / "data") == expected


def test_a_real_group_of_processes_killed_is_the_same(reference, tmp_path):
    source, expected = reference
    process = start(source, tmp_path / "data", "--workers", "2", delay=0.05)
    children_at_work(process, tmp_path / "data")
    os.killpg(process.pid, signal.SIGKILL)
    process.communicate()
    prepare(options(source, tmp_path / "data"))
    assert snapshot(tmp_path / "data") == expected


@pytest.mark.slow
@pytest.mark.parametrize("workers", ["1", "3"])
def test_killed_at_many_random_moments_it_is_the_same(workers, reference, tmp_path):
    source, expected = reference
    generator = random.Random(int(workers))
    kills = 0
    for trial in range(3):
        for _ in range(4):
            process = start(source, tmp_path / str(trial), "--workers", workers, delay=0.1)
            with suppress(subprocess.TimeoutExpired):
                process.wait(timeout=generator.uniform(0.5, 5.0))
            kills += process.returncode is None
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.communicate()
        process = start(source, tmp_path / str(trial), "--workers", workers)
        out, err = process.communicate(timeout=120)
        assert process.returncode == 0, err
        assert "18 documents" in out
        assert snapshot(tmp_path / str(trial)) == expected
    assert kills > 2


@pytest.mark.slow
def test_only_the_main_process_killed_leaves_no_orphans(reference, tmp_path):
    source, expected = reference
    process = start(source, tmp_path / "data", "--workers", "2", delay=0.05)
    children = children_at_work(process, tmp_path / "data")
    process.kill()
    process.wait()  # not for its output, which an orphan would keep open
    orphans = psutil.wait_procs(children, timeout=10)[1]
    for orphan in orphans:
        orphan.kill()
    process.communicate()
    assert not orphans
    prepare(options(source, tmp_path / "data"))
    assert snapshot(tmp_path / "data") == expected


def children_at_work(process, output):
    """The processes that it started, once a shard is done."""
    notes = output / ".unfinished"
    deadline = time.monotonic() + 100
    while not list(notes.glob("*.tar.json")):
        assert time.monotonic() < deadline
        assert process.poll() is None, process.communicate()
        time.sleep(0.02)
    return psutil.Process(process.pid).children(recursive=True)


def blocks(process, number):
    """True where the process blocks the signal: otherwise it would print a traceback of its own."""
    status = Path(f"/proc/{process.pid}/status").read_text()
    return bool(int(re.search(r"SigBlk:\s*(\w+)", status)[1], 16) >> (number - 1) & 1)


def test_an_interrupt_ends_all_processes_in_one_line(reference, tmp_path):
    source, expected = reference
    process = start(source, tmp_path / "data", "--workers", "2", delay=0.6)  # long enough to be met at work
    children = children_at_work(process, tmp_path / "data")
    assert all(blocks(child, signal.SIGINT) for child in children if "spawn_main" in " ".join(child.cmdline()))
    os.killpg(process.pid, signal.SIGINT)
    out, err = process.communicate(timeout=20)
    assert (process.returncode, out, err) == (130, "", "lcm prepare: interrupted\n")
    assert not psutil.wait_procs(children, timeout=10)[1]
    prepare(options(source, tmp_path / "data"))
    assert snapshot(tmp_path / "data") == expected


@pytest.mark.parametrize(
    ("workers", "text", "error", "message"),
    [
        (2, "DIE now.", UserError, "a worker was killed, most likely because memory ran out; .* fewer --workers"),
        (1, "CRASH now.", RuntimeError, "the stub crashed"),
    ],
)
def test_a_worker_that_dies_ends_the_run_and_what_is_done_is_kept(workers, text, error, message, tmp_path):
    source = tmp_path / "a.jsonl"
    rows = [{"text": "Good.", "split": "train"}] * 30 + [{"text": text, "split": "train"}]
    source.write_text("".join(json.dumps(row) + "\n" for row in rows))
    with pytest.raises(error, match=message):
        prepare(options(source, tmp_path / "data", workers=workers))
    assert (tmp_path / "data" / "train-000000.tar").is_file()
    assert not (tmp_path / "data" / "manifest.json").exists()


def test_a_full_disk_is_one_line_and_the_run_continues_when_there_is_room(reference, tmp_path, monkeypatch):
    source, expected = reference

    def run():
        resource.setrlimit(resource.RLIMIT_FSIZE, (9000, 9000))
        try:
            prepare(options(source, tmp_path / "data"))
        except UserError as error:
            (tmp_path / "error").write_text(str(error))

    assert forked(run) == 0
    folder = tmp_path / "data"
    shard = folder / "train-000000.tar"
    expected_error = f"{shard}: File too large (see ulimit -f); put it right and run the same command again"
    assert (tmp_path / "error").read_text() == expected_error
    use_codec(monkeypatch)
    prepare(options(source, folder))
    assert snapshot(folder) == expected
    assert verify(folder).problems == ()
