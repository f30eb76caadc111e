"""Meters of time, peak memory and threads."""

from __future__ import annotations

import mmap
import time

import numpy as np
import pytest
import torch

from sfss_ray.inspection.cost_meter import MB, PeakMemory, limited_threads, timed


def test_the_peak_is_that_of_the_block_and_not_of_its_end():
    with PeakMemory("cpu") as before:
        pass
    size = int(200 * MB)
    # A mapping of its own: an array might reuse memory that the process has freed before.
    with PeakMemory("cpu") as peak, mmap.mmap(-1, size) as mapping:
        np.copyto(np.frombuffer(mapping, np.uint8), 1, where=True)
        time.sleep(0.2)  # memory is sampled
    assert 150 < peak.mb - before.mb < 400


def test_the_peak_of_a_short_block_is_measured_too():
    with PeakMemory("cpu") as peak:
        pass
    assert peak.mb > 20, "this process has loaded torch"


def test_memory_is_measured_although_the_block_raises():
    peak = PeakMemory("cpu")

    def fail() -> None:
        with peak:
            raise KeyError("stop")

    with pytest.raises(KeyError):
        fail()
    assert peak.mb > 20
    assert not peak._thread.is_alive()


@pytest.mark.parametrize(("count", "threads"), [(3, 3), (1, 1), (0, 1)])
def test_threads_are_limited_inside_the_block_only(count, threads):
    before = torch.get_num_threads()
    with limited_threads(count):
        assert torch.get_num_threads() == threads
    assert torch.get_num_threads() == before


def test_work_is_timed_and_its_result_returned():
    seconds, result = timed(lambda: time.sleep(0.05) or "done")
    assert result == "done"
    assert 0.05 <= seconds < 1
