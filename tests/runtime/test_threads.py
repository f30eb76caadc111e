"""Processes that compute: their threads, and memory that stays theirs."""

from __future__ import annotations

import platform
import subprocess
import sys

import pytest
import torch

from sfss_ray.runtime.threads import keep_freed_memory, use_threads

TWICE = """
import resource, sys
import numpy as np
from sfss_ray.runtime.threads import keep_freed_memory

if sys.argv[1] == "kept":
    keep_freed_memory()
faults = []
for _ in range(3):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    np.ones(50 << 20, np.uint8).sum()
    faults.append(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
print(*faults)
"""


def faults_of_equal_arrays(kept: str) -> list[int]:
    """Pages that the kernel hands out for 50 MB, made and freed three times."""
    words = [sys.executable, "-c", TWICE, kept]
    done = subprocess.run(words, check=True, capture_output=True, text=True)
    return [int(number) for number in done.stdout.split()]


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="another C library")
def test_an_array_takes_the_memory_of_the_one_before():
    plain, kept = faults_of_equal_arrays("plain"), faults_of_equal_arrays("kept")
    assert kept[1] + kept[2] < 0.1 * kept[0]
    assert kept[1] + kept[2] < 0.1 * (plain[1] + plain[2]), "else it is no gain here"


@pytest.mark.parametrize("system", ["darwin", "win32"])
def test_other_systems_are_left_alone(system, monkeypatch):
    monkeypatch.setattr(sys, "platform", system)
    monkeypatch.setattr("ctypes.CDLL", None)
    keep_freed_memory()


@pytest.mark.parametrize(("asked", "given"), [(0.5, 1), (1, 1), (2.9, 2)])
def test_threads_are_whole_and_one_at_least(asked, given):
    before = torch.get_num_threads()
    try:
        use_threads(asked)
        assert torch.get_num_threads() == given
    finally:
        torch.set_num_threads(before)
