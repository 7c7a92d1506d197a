"""The memory that `lcm prepare` takes does not grow with the corpus."""

import json
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest


def peak_memory(source, output):
    """Most bytes that `lcm prepare` with two workers held at once, all processes together, shared pages once."""
    script = Path(__file__).parents[1] / "stub_codec.py"
    command = [sys.executable, str(script), "--input", str(source), "--output", str(output), "--workers", "2"]
    process = subprocess.Popen(command)
    group = psutil.Process(process.pid)
    peak = 0
    while process.poll() is None:
        total = 0
        for member in [group, *group.children(recursive=True)]:
            try:
                total += member.memory_full_info().uss
            except psutil.NoSuchProcess:
                continue
        peak = max(peak, total)
        time.sleep(0.05)
    assert process.returncode == 0
    return peak


@pytest.mark.slow
def test_four_times_the_text_takes_no_more_memory(tmp_path):
    sentence = "The quick brown fox number {} jumps over the lazy dog, and then it rests for a while in the sun. "
    peaks = []
    for megabytes in (30, 120):
        source = tmp_path / f"{megabytes}.jsonl"
        with source.open("w") as file:
            number = 0
            while file.tell() < megabytes << 20:
                text = "".join(sentence.format(number + i) for i in range(40))
                file.write(json.dumps({"text": text}) + "\n")
                number += 40
        peaks.append(peak_memory(source, tmp_path / str(megabytes)))
    small, large = peaks
    assert large < 1.1 * small, f"{small >> 20} MiB for 30 MB, {large >> 20} MiB for 120 MB"
