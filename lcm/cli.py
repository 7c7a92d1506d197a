"""The `lcm` command: a command's name, then its own options. Each command imports only what it needs.

Exit status: 0 success · 1 an error that the user can fix, in one line · 2 wrong usage · 75 ended by the machine
· 130 interrupted.
"""

import os
import select
import sys
import threading
from argparse import ArgumentParser, Namespace
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, redirect_stderr, suppress
from typing import Any

from lcm import __version__
from lcm.errors import UserError, report

COMMANDS = {
    "doctor": "what is installed, what works, what to run to fix it",
    "prepare": "text files → sentences → vectors → shards",
    "verify": "check a data set's shards against its manifest",
    "plan": "can a training run fit, and how long does it take? without a GPU",
    "train": "train a concept model from a YAML file",
    "submit": "sbatch for training, with a copy of code and configuration",
    "runs": "a table of training runs: state, step, time left",
    "generate": "continue a text, or answer it",
    "evaluate": "score a model; writes results.json and report.html",
    "compare": "two evaluations of one test set, example by example",
    "encode": "one sentence a line → .npy of vectors",
    "decode": ".npy of vectors → one sentence a line",
    "export": "a training checkpoint → model.safetensors and config.yaml",
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and return its exit status. An error that the user can fix is one line, without a traceback."""
    words = list(sys.argv[1:] if argv is None else argv)
    if not words or words[0] in ("-h", "--help", "--version"):
        return run_command("lcm", lambda: _introduce(words))
    return run_command(f"lcm {words[0]}", lambda: _run(words[0], words[1:]))


def _introduce(words: list[str]) -> int:
    if words == ["--version"]:
        print(__version__)
        return 0
    print("usage: lcm COMMAND [options]        (lcm COMMAND --help lists them)\n")
    for name, summary in COMMANDS.items():
        print(f"  {name:10}{summary}")
    return 0 if words else 2


def run_command(program: str, work: Callable[[], int], interrupted: str = "interrupted") -> int:
    """Run `work` and return its exit status. Whatever ends it is one line on stderr, never a traceback.

    1 for an error, in the words of `lcm.errors.explained` · 75 for a MachineError · 130 for Ctrl-C, with `interrupted`
    as the line. Lines that stderr does not take end no work: `lcm train 2>&1 | head` trains to its end.
    """
    if sys.stdout is None:  # closed by the shell: `>&-`
        sys.stdout = open(os.devnull, "w")  # noqa: SIM115
    log = _Log(sys.stderr or open(os.devnull, "w"))  # noqa: SIM115
    before, threading.excepthook = threading.excepthook, lambda thread: _end_thread(program, thread.exc_value)
    try:
        with redirect_stderr(log):
            return _status_of(program, work, interrupted)
    finally:
        threading.excepthook = before
        log.settle()


def _end_thread(program: str, error: BaseException | None) -> None:
    """Report in one line the error by which a thread ends, such as TensorBoard's on a full disk."""
    if isinstance(error, Exception):
        report(program, error)


def _status_of(program: str, work: Callable[[], int], interrupted: str) -> int:
    try:
        try:
            status = work()
        except SystemExit:  # argparse has printed its help, or the usage
            _flush()
            raise
        _flush()
        return status
    except KeyboardInterrupt:
        print(f"{program}: {interrupted}", file=sys.stderr)
        return 130
    except Exception as error:
        if isinstance(error, BrokenPipeError) and _has_no_reader(sys.stdout):  # `| head`: not an error
            _discard(sys.stdout)
            return 0
        report(program, error)
        try:
            sys.stdout.flush()
        except OSError:
            _discard(sys.stdout)
        return error.status if isinstance(error, UserError) else 1


class _Log:
    """A stderr that loses lines, and raises nothing, where its reader has ended or its disk is full."""

    def __init__(self, stream: Any) -> None:
        self._stream = stream

    def write(self, text: str) -> int:
        with suppress(OSError):
            self._stream.write(text)
        return len(text)

    def flush(self) -> None:
        with suppress(OSError):
            self._stream.flush()

    def settle(self) -> None:
        """Drop what could not be written, which the interpreter would try again at its end."""
        try:
            self._stream.flush()
        except OSError:
            _discard(self._stream)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


def _flush() -> None:
    try:
        sys.stdout.flush()
    except OSError as error:
        error.filename = "stdout"
        raise


def _has_no_reader(stream: Any) -> bool:
    poll = select.poll()
    try:
        poll.register(stream.fileno(), 0)  # errors are always told
    except OSError:  # a notebook's stdout is no file
        return False
    return bool(poll.poll(0))


def _discard(stream: Any) -> None:
    """Let the interpreter's last flush of a stream succeed."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


@contextmanager
def starting(program: str) -> Iterator[None]:
    """Import what a script needs under the last line of defence: Ctrl-C, or a library that does not load, is one line.

    Raises SystemExit with the status of `run_command`.
    """
    try:
        yield
    except (KeyboardInterrupt, Exception) as error:
        caught = error

        def again() -> int:
            raise caught

        sys.exit(run_command(program, again))


def _run(name: str, rest: list[str]) -> int:
    add_arguments: Callable[[ArgumentParser], None]
    run: Callable[[Namespace], int]
    match name:
        case "train":
            from lcm.training.signals import listen

            listen()  # before torch is imported, which takes seconds
            os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")  # or torch prints its stack where a rank is lost
            from lcm.training.run import main as train

            return train(rest)
        case "plan":
            from lcm.plan.command import main as plan

            return plan(rest)
        case "submit":
            from lcm.jobs.submit import main as submit

            return submit(rest)
        case "runs":
            from lcm.jobs.runs import add_arguments, run
        case "compare":
            from lcm.evaluation.compare_report import add_arguments, run
        case "doctor":
            from lcm.doctor import add_arguments, run
        case "prepare":
            from lcm.prepare.command import add_arguments, run
        case "verify":
            from lcm.data.verify import add_arguments, run
        case "generate":
            from lcm.inference.command import add_arguments, run
        case "evaluate":
            from lcm.evaluation.command import add_arguments, run
        case "encode":
            from lcm.codec.command import add_encode_arguments as add_arguments
            from lcm.codec.command import encode as run
        case "decode":
            from lcm.codec.command import add_decode_arguments as add_arguments
            from lcm.codec.command import decode as run
        case "export":
            from lcm.training.checkpoint import add_arguments, run
        case _:
            raise UserError(f"no such command; one of: {', '.join(COMMANDS)}")
    parser = ArgumentParser(prog=f"lcm {name}", description=COMMANDS[name], allow_abbrev=False)
    add_arguments(parser)
    return run(parser.parse_args(rest))


if __name__ == "__main__":
    sys.exit(main())
