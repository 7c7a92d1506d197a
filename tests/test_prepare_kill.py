"""`lcm prepare` killed at any moment and started again gives the bytes of a run that was never killed."""

import json
import os
import random
import resource
import signal
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

import psutil
import pytest
from stub_codec import InlinePool, load_stub

from lcm import prepare as prepare_module
from lcm.errors import UserError
from lcm.prepare import PrepareOptions, prepare
from lcm.verify import verify

SCRIPT = Path(__file__).parent / "stub_codec.py"


def corpus(folder, count=40, **more):
    lines = [json.dumps({"id": f"d{i}", "text": f"Text {i} begins. It goes on! Yes {i}.", **more}) for i in range(count)]
    lines[3:3] = ["no json", json.dumps({"text": 3}), json.dumps({"text": "HUGE."})]
    (folder / "a.jsonl").write_text("\n".join(lines))
    return folder / "a.jsonl"


def options(source, output, **more):
    return PrepareOptions(input=(str(source),), output=str(output), **{"workers": 1, "shard_documents": 7, **more})


def snapshot(folder):
    """Every file, hidden ones too."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in Path(folder).rglob("*") if path.is_file()}


def start(source, output, *more, delay=0.0, **options):
    """`lcm prepare` with the stub, as a process group of its own."""
    command = [sys.executable, str(SCRIPT), "--input", str(source), "--output", str(output), "--shard-documents", "7"]
    environment = {**os.environ, "STUB_DELAY": str(delay), "OMP_NUM_THREADS": "1"}
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    return subprocess.Popen([*command, *more], env=environment, start_new_session=True, **pipes, **options)


@pytest.fixture(scope="module")
def reference(tmp_path_factory):
    """(input, what an uninterrupted run with one worker process makes of it)"""
    folder = tmp_path_factory.mktemp("reference")
    source = corpus(folder)
    prepare(options(source, folder / "data"), load=load_stub)
    return source, snapshot(folder / "data")


def killed_at(step, source, output):
    """Run in a forked process that is killed at its `step`-th change of the output; True if it got that far."""
    child = os.fork()
    if child == 0:
        seen = 0

        def count(event, arguments):
            nonlocal seen
            writes = event == "open" and arguments[1] not in ("r", "rb", None)
            if (writes or event in CHANGES) and str(output) in str(arguments[0]):
                seen += 1
                if seen == step:
                    os.kill(os.getpid(), signal.SIGKILL)

        status = 1
        try:
            sys.addaudithook(count)
            prepare_module.Pool = InlinePool
            prepare(options(source, output), load=load_stub)
            status = 0
        finally:
            os._exit(status)
    _, status = os.waitpid(child, 0)
    assert os.WIFSIGNALED(status) or os.WEXITSTATUS(status) == 0
    return os.WIFSIGNALED(status)


CHANGES = ("os.rename", "os.remove", "os.rmdir", "os.mkdir", "shutil.rmtree")


def test_killed_before_any_change_of_the_disk_and_started_again_it_is_the_same(reference, tmp_path, monkeypatch):
    """Every single moment at which the disk changes, one after the other."""
    source, expected = reference
    monkeypatch.setattr(prepare_module, "Pool", InlinePool)
    step = 1
    while killed_at(step, source, tmp_path / str(step)):
        prepare(options(source, tmp_path / str(step)), load=load_stub)
        assert snapshot(tmp_path / str(step)) == expected, f"killed at change {step}"
        step += 1
    assert step > 40
    assert snapshot(tmp_path / str(step)) == expected


def test_killed_again_and_again_it_is_the_same(reference, tmp_path, monkeypatch):
    source, expected = reference
    monkeypatch.setattr(prepare_module, "Pool", InlinePool)
    lives = 0
    while killed_at(9, source, tmp_path / "data"):
        lives += 1
    assert lives > 4
    assert snapshot(tmp_path / "data") == expected


def test_the_number_of_workers_changes_nothing(reference, tmp_path):
    source, expected = reference
    prepare(options(source, tmp_path / "data", workers=3), load=load_stub)
    assert snapshot(tmp_path / "data") == expected


def kill_until_done(source, output, workers, moments):
    """Start, kill the whole group after each of the moments, let the last one finish; how often it was killed."""
    kills = 0
    for moment in moments:
        process = start(source, output, "--workers", str(workers), delay=0.01)
        try:
            process.wait(timeout=moment)
        except subprocess.TimeoutExpired:
            kills += 1
        os.killpg(process.pid, signal.SIGKILL) if process.returncode is None else None
        process.communicate()
    process = start(source, output, "--workers", str(workers))
    out, err = process.communicate(timeout=60)
    assert process.returncode == 0, err
    assert "documents" in out
    return kills


def test_a_real_group_of_processes_killed_is_the_same(reference, tmp_path):
    source, expected = reference
    assert kill_until_done(source, tmp_path / "data", workers=3, moments=[5.0]) == 1
    assert snapshot(tmp_path / "data") == expected


@pytest.mark.slow
@pytest.mark.parametrize("workers", [1, 3])
def test_killed_at_many_random_moments_it_is_the_same(workers, reference, tmp_path):
    source, expected = reference
    generator = random.Random(workers)
    kills = 0
    for trial in range(6):
        moments = [generator.uniform(1.0, 9.0) for _ in range(3)]
        kills += kill_until_done(source, tmp_path / str(trial), workers, moments)
        assert snapshot(tmp_path / str(trial)) == expected, moments
    assert kills > 6


def test_only_the_main_process_killed_leaves_no_orphans(reference, tmp_path):
    source, expected = reference
    process = start(source, tmp_path / "data", "--workers", "2", delay=0.05)
    workers = wait_for_workers(process)
    process.kill()
    process.communicate()
    _, alive = psutil.wait_procs(workers, timeout=10)
    assert not alive
    prepare(options(source, tmp_path / "data"), load=load_stub)
    assert snapshot(tmp_path / "data") == expected


def wait_for_workers(process, count=2, note="*.tar.json"):
    """The children, once a shard is done."""
    folder = Path(process.args[process.args.index("--output") + 1])
    deadline = time.monotonic() + 60
    while not list((folder / ".unfinished").glob(note)):
        assert time.monotonic() < deadline
        assert process.poll() is None, process.communicate()
        time.sleep(0.05)
    return psutil.Process(process.pid).children(recursive=True)


def test_an_interrupt_ends_all_processes_in_one_line(reference, tmp_path):
    source, expected = reference
    process = start(source, tmp_path / "data", "--workers", "2", delay=0.05)
    workers = wait_for_workers(process)
    os.killpg(process.pid, signal.SIGINT)
    out, err = process.communicate(timeout=20)
    assert (process.returncode, out, err) == (130, "", "lcm prepare: interrupted\n")
    assert not psutil.wait_procs(workers, timeout=10)[1]
    prepare(options(source, tmp_path / "data"), load=load_stub)
    assert snapshot(tmp_path / "data") == expected


@pytest.mark.parametrize(
    ("text", "error", "message"),
    [
        ("DIE now.", UserError, "a worker was killed, most likely because memory ran out; .* fewer --workers"),
        ("CRASH now.", RuntimeError, "the stub crashed"),
    ],
)
def test_a_worker_that_dies_ends_the_run_and_what_is_done_is_kept(text, error, message, tmp_path):
    source = tmp_path / "a.jsonl"
    rows = [{"text": "Good.", "split": "train"}] * 30 + [{"text": text, "split": "train"}]
    source.write_text("".join(json.dumps(row) + "\n" for row in rows))
    with pytest.raises(error, match=message):
        prepare(options(source, tmp_path / "data", workers=2), load=load_stub)
    assert (tmp_path / "data" / "train-000000.tar").is_file()
    assert not (tmp_path / "data" / "manifest.json").exists()


def test_a_full_disk_is_one_line_and_the_run_goes_on_when_there_is_room(reference, tmp_path):
    source, expected = reference
    limit = partial(resource.setrlimit, resource.RLIMIT_FSIZE, (4000, 4000))
    process = start(source, tmp_path / "data", "--workers", "1", preexec_fn=limit)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 1
    assert err.count("\n") == 1
    assert "data: File too large; put it right and run the same command again" in err
    prepare(options(source, tmp_path / "data"), load=load_stub)
    assert snapshot(tmp_path / "data") == expected
    assert verify(tmp_path / "data").problems == ()
