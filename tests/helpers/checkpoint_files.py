"""Checkpoint files for tests, and the errors they cause."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from sfss_ray import load_source_model
from sfss_ray.errors import SfssError


def write(path: Path, content: Any) -> Path:
    """Save a checkpoint with torch.save and return its path."""
    torch.save(content, path)
    return path


def refusal(path: Path, **options: Any) -> str:
    """Return the error that `load_source_model` raises for a file; it must be a single line."""
    with pytest.raises(SfssError) as error:
        load_source_model(path, **options)
    assert "\n" not in str(error.value)
    return str(error.value)


def random_images(size: tuple[int, int], count: int = 1, seed: int = 7) -> torch.Tensor:
    """Return RGB images (count, 3, *size) in [0, 1]."""
    return torch.rand(count, 3, *size, generator=torch.Generator().manual_seed(seed))


def assert_close(actual: torch.Tensor, expected: torch.Tensor, tolerance: float = 2e-4) -> None:
    """Check that logits differ by at most a share of the largest one, and are not trivial."""
    largest = expected.abs().max().item()
    assert 0.1 < largest < 1e4
    assert (actual - expected).abs().max().item() < tolerance * largest
