"""Threads of a process, and reuse of its freed memory."""

from __future__ import annotations

import os
import platform
import subprocess
import sys

import pytest
import torch

from sfss_ray.runtime.threads import keep_freed_memory, one_numpy_thread, use_threads

ALLOCATIONS = """
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


def page_faults(mode: str) -> list[int]:
    """Pages that the kernel hands out for 50 MB that are allocated and freed three times."""
    words = [sys.executable, "-c", ALLOCATIONS, mode]
    done = subprocess.run(words, check=True, capture_output=True, text=True)
    return [int(number) for number in done.stdout.split()]


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="another C library")
def test_an_array_reuses_the_memory_of_the_one_before():
    plain, kept = page_faults("plain"), page_faults("kept")
    assert kept[1] + kept[2] < 0.1 * kept[0]
    assert kept[1] + kept[2] < 0.1 * (plain[1] + plain[2]), "else it gains nothing here"


@pytest.mark.parametrize("system", ["darwin", "win32"])
def test_other_systems_are_not_changed(system, monkeypatch):
    monkeypatch.setattr(sys, "platform", system)
    monkeypatch.setattr("ctypes.CDLL", None)
    keep_freed_memory()


@pytest.mark.parametrize(("requested", "threads"), [(0.5, 1), (1, 1), (2.9, 2)])
def test_threads_are_rounded_down_to_one_or_more(requested, threads):
    before = torch.get_num_threads()
    try:
        use_threads(requested)
        assert torch.get_num_threads() == threads
    finally:
        torch.set_num_threads(before)


NUMPY_THREADS = """
import numpy
from threadpoolctl import threadpool_info
from sfss_ray.runtime.threads import one_numpy_thread

def threads():
    found = threadpool_info()
    return [library["num_threads"] for library in found if library["internal_api"] == "openblas"]

print(threads())
for _ in range(2):
    with one_numpy_thread():
        print(threads())
    print(threads())
"""


def test_numpy_has_one_thread_inside_the_block():
    environment = os.environ | {"OPENBLAS_NUM_THREADS": "2"}
    environment.pop("OMP_NUM_THREADS", None)
    words = [sys.executable, "-c", NUMPY_THREADS]
    done = subprocess.run(words, check=True, capture_output=True, text=True, env=environment)
    first, *lines = done.stdout.split("\n")[:-1]
    if first == "[]":
        pytest.skip("numpy has another library for matrix products")
    assert first == "[2]"
    assert lines == ["[1]", "[2]"] * 2


def test_torch_keeps_its_threads():
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        with one_numpy_thread():
            assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)
