"""Failed allocations of every library become one line; other errors stay as they are."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from sfss_ray.errors import ConfigError, DataError
from sfss_ray.runtime.out_of_memory import enough_memory, is_out_of_memory

_HUGE = 2**56


def allocate_with_numpy() -> None:
    np.empty(_HUGE, np.uint8)


def allocate_with_torch() -> None:
    torch.empty(_HUGE)


@pytest.mark.parametrize("allocate", [allocate_with_numpy, allocate_with_torch])
def test_a_failed_allocation_is_one_line(allocate):
    with (
        pytest.raises(DataError, match=r"^9x9 pixels are too many for the memory: shrink it$"),
        enough_memory("9x9 pixels", "shrink it"),
    ):
        allocate()


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB"),
        RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory"),
        RuntimeError("cuDNN error: CUDNN_STATUS_ALLOC_FAILED"),
        Exception("OpenCV(4.1) alloc.cpp:73: error: (-4:Insufficient memory) Failed"),
    ],
)
def test_libraries_have_words_of_their_own(error):
    assert is_out_of_memory(error)


@pytest.mark.parametrize(
    "error",
    [
        RuntimeError("CUDA error: an illegal memory access was encountered"),
        RuntimeError("required rank 4 tensor to use channels_last memory_format"),
        ConfigError("the module fails (RuntimeError: can't allocate memory): use windows"),
        KeyboardInterrupt(),
    ],
)
def test_other_errors_stay(error):
    with pytest.raises(type(error)) as raised, enough_memory("9x9 pixels", "shrink it"):
        raise error
    assert raised.value is error
