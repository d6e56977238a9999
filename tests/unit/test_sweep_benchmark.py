"""The benchmark of the sweep runs on shapes that take no time, and says what it is asked for."""

import re
import subprocess
import sys

import pytest

from small_study import ROOT


@pytest.mark.slow
def test_the_benchmark_of_the_sweep_says_rate_memory_noise_and_growth():
    command = [sys.executable, "benchmarks/skip_sweep.py", "--smoke", "--repeats", "1", "--proteins", "2"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    said = re.findall(r"sweep: (\d+) residues a second .*, peak memory ([\d.]+) GB; noise floor: ", done.stdout)
    assert len(said) == 2, "both shapes"
    assert all(int(rate) > 0 and 0.05 < float(peak) < 20 for rate, peak in said)
    for words in ("time for two models, over twice", "share of the product rate", "peak memory, sweep over hooks"):
        assert words in done.stdout
