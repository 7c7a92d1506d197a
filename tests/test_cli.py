"""The `lcm` command: help for everything, one line for every mistake, results on stdout."""

import errno
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from lcm import doctor
from lcm.cli import COMMANDS, main, run_command
from lcm.errors import MachineError
from lcm.trials import TRIALS, reason_not_to_run


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_explains_itself(command, capsys):
    with pytest.raises(SystemExit) as exit_:
        main([command, "--help"])
    assert exit_.value.code == 0
    assert "--" in capsys.readouterr().out


def test_help_names_every_command(capsys):
    assert main(["--help"]) == 0
    out = capsys.readouterr().out
    assert all(command in out for command in COMMANDS)
    assert main([]) == 2


def test_help_and_version_import_no_torch():
    code = "import sys; from lcm.cli import main; main(sys.argv[1:]); assert not {'torch', 'numpy'} & set(sys.modules)"
    for word in ("--help", "--version"):
        subprocess.run([sys.executable, "-c", code, word], check=True, stdout=subprocess.DEVNULL)


def test_an_unknown_command_is_one_line(capsys):
    assert main(["trian"]) == 1
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.count("\n") == 1
    assert "lcm trian: no such command" in captured.err
    assert "train" in captured.err


def test_options_are_not_abbreviated(capsys):
    with pytest.raises(SystemExit) as exit_:
        main(["encode", "--inp", "in.txt", "--output", "out.npy"])
    assert exit_.value.code == 2
    assert "--input" in capsys.readouterr().err


def test_an_interrupt_is_one_line_and_status_130(monkeypatch, capsys):
    def interrupted(args):
        raise KeyboardInterrupt

    monkeypatch.setattr(doctor, "run", interrupted)
    assert main(["doctor"]) == 130
    assert capsys.readouterr().err == "lcm doctor: interrupted\n"


def test_sentences_go_to_vectors_and_back(tmp_path, capsys):
    (tmp_path / "in.txt").write_text("The sea was calm.\nHe was born in London.\n")
    assert main(["encode", "--input", str(tmp_path / "in.txt"), "--output", str(tmp_path / "v.npy")]) == 0
    assert json.loads(capsys.readouterr().out)["sentences"] == 2
    assert np.load(tmp_path / "v.npy").shape == (2, 512)
    assert main(["decode", "--input", str(tmp_path / "v.npy")]) == 0
    assert capsys.readouterr().out == "The sea was calm.\nHe was born in London.\n"
    assert main(["decode", "--input", str(tmp_path / "v.npy"), "--output", str(tmp_path / "out.txt")]) == 0
    assert (tmp_path / "out.txt").read_text() == (tmp_path / "in.txt").read_text()


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (None, "no such file"),
        (b"", "empty"),
        (b"\xff\xfe\x00", "not UTF-8"),
    ],
)
def test_unusable_text_is_one_line(content, expected, tmp_path, capsys):
    if content is not None:
        (tmp_path / "in.txt").write_bytes(content)
    assert main(["encode", "--input", str(tmp_path / "in.txt"), "--output", str(tmp_path / "v.npy")]) == 1
    err = capsys.readouterr().err
    assert expected in err
    assert err.count("\n") == 1


@pytest.mark.parametrize("command", ["encode", "decode"])
def test_a_full_disk_leaves_the_earlier_result(command, tmp_path, monkeypatch, capsys):
    (tmp_path / "encode").write_text("One.")
    np.save(tmp_path / "v.npy", np.zeros((1, 512), np.float32))
    (tmp_path / "v.npy").rename(tmp_path / "decode")
    (tmp_path / "out").write_text("earlier")

    def full(file, *_, **__):
        Path(file if isinstance(file, Path) else file.name).write_bytes(b"half")
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(np, "save", full)
    monkeypatch.setattr(Path, "write_text", full)
    words = [command, "--input", str(tmp_path / command), "--output", str(tmp_path / "out")]
    assert main(words) == 1
    assert f"{tmp_path / 'out'}: No space left on device" in capsys.readouterr().err
    assert (tmp_path / "out").read_text() == "earlier"
    assert len(list(tmp_path.iterdir())) == 3


def test_only_a_line_feed_ends_a_line(tmp_path, capsys):
    """Five lines for wc, whatever else str.splitlines would cut at."""
    text = "One.\x0bTwo.\nA\u2028B.\r\nC\x85D.\nE\x0cF.\nG."
    (tmp_path / "in.txt").write_bytes(b"\xef\xbb\xbf" + text.encode())
    assert main(["encode", "--input", str(tmp_path / "in.txt"), "--output", str(tmp_path / "v.npy")]) == 0
    assert json.loads(capsys.readouterr().out)["sentences"] == 5


def test_an_archive_of_arrays_is_no_array(tmp_path, capsys):
    np.savez(tmp_path / "v.npz", a=np.zeros((1, 512)))
    assert main(["decode", "--input", str(tmp_path / "v.npz")]) == 1
    assert "an .npz archive of several arrays; expected a .npy file of one" in capsys.readouterr().err


@pytest.mark.parametrize("words", [["encode", "--input", "one.txt"], ["decode", "--input", "v.npy"]])
def test_an_output_that_is_a_folder_is_one_line_before_the_work(words, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("lcm.codec.command.load_codec", None)
    (tmp_path / "one.txt").write_text("One.")
    np.save(tmp_path / "v.npy", np.zeros((1, 512), np.float32))
    assert main([*words, "--output", str(tmp_path)]) == 1
    assert capsys.readouterr().err == f"lcm {words[0]}: --output={tmp_path}: is a folder; expected the name of a file\n"


@pytest.mark.parametrize("array", [np.zeros(512), np.zeros((3, 7)), np.array(["text"])])
def test_unusable_vectors_are_one_line(array, tmp_path, capsys):
    np.save(tmp_path / "v.npy", array)
    assert main(["decode", "--input", str(tmp_path / "v.npy")]) == 1
    assert capsys.readouterr().err.count("\n") == 1


def test_a_pickle_named_npy_is_not_opened(tmp_path, capsys):
    np.save(tmp_path / "v.npy", np.array([object], dtype=object), allow_pickle=True)
    assert main(["decode", "--input", str(tmp_path / "v.npy")]) == 1
    assert "not a .npy file of numbers" in capsys.readouterr().err


@pytest.mark.parametrize("command", ["encode", "decode"])
def test_a_missing_output_folder_is_one_line_before_the_work(command, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("lcm.codec.load_codec", None)
    (tmp_path / "encode").write_text("One.")
    with (tmp_path / "decode").open("wb") as file:
        np.save(file, np.zeros((1, 512), dtype=np.float32))
    words = ["--input", str(tmp_path / command), "--output", str(tmp_path / "no" / "out")]
    assert main([command, *words]) == 1
    assert "its folder does not exist" in capsys.readouterr().err


@pytest.fixture
def untried(monkeypatch):
    """No trials of the extras, each of which imports for seconds."""
    monkeypatch.setattr(doctor, "reason_not_to_run", lambda extra: None)


def test_the_doctor_reports_the_codec_working(untried, capsys):
    assert main(["doctor", "--json"]) == 0
    findings = {f["name"]: f for f in json.loads(capsys.readouterr().out)}
    assert findings["torch"]["state"] == "ok"
    assert findings["codec mini"]["state"] == "ok"
    assert "The sea was calm." in findings["codec mini"]["value"]


def test_the_doctor_names_what_is_missing_and_the_command_that_fixes_it(untried, monkeypatch, capsys):
    real = doctor._version
    monkeypatch.setattr(doctor, "_version", lambda name: {"lcm": "0.4.1", "nupunkt": None}.get(name, real(name)))
    assert main(["doctor"]) == 1
    out = capsys.readouterr().out
    assert "another distribution named 'lcm' (0.4.1)" in out
    assert "pip uninstall -y lcm" in out
    assert "pip install nupunkt" in out


def test_the_doctor_tries_each_extra_that_is_installed(monkeypatch, capsys):
    monkeypatch.setattr(doctor, "_version", lambda name: None if name in ("lcm", "wandb") else "1.0")
    monkeypatch.setattr(doctor, "reason_not_to_run", {"sat": "TypeError: an argument too many"}.get)
    assert main(["doctor", "--json"]) == 1
    findings = {f["name"]: f for f in json.loads(capsys.readouterr().out)}
    assert findings["[sat]"]["state"] == "broken"
    assert findings["[sat]"]["value"].endswith("does not run: TypeError: an argument too many")
    assert findings["[sat]"]["fix"] == 'pip install -e ".[sat]"'
    assert (findings["[eval]"]["state"], findings["[wandb]"]["state"]) == ("ok", "absent")
    assert set(TRIALS) == set(doctor.EXTRAS)


def test_a_trial_is_a_process_whose_reason_is_one_line(monkeypatch):
    def ran(*_, **__):
        said = "noise\nlcm.trials: the library refuses\nnoise of its end\n"
        return subprocess.CompletedProcess([], 1, "", said)

    monkeypatch.setattr(subprocess, "run", ran)
    assert reason_not_to_run("sat") == "the library refuses"


@pytest.mark.slow
@pytest.mark.parametrize("extra", TRIALS)
def test_every_extra_runs(extra):
    needs = [name for name in doctor.EXTRAS[extra] if doctor._version(name) is None]
    assert needs or reason_not_to_run(extra) is None


def test_what_the_machine_ended_has_a_status_of_its_own(capsys):
    def lost():
        raise MachineError("rank 1 is gone")

    assert run_command("lcm train", lost) == 75
    assert capsys.readouterr().err == "lcm train: rank 1 is gone\n"
