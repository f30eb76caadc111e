"""Fixtures that the tests of inspection share."""

from __future__ import annotations

from pathlib import Path

import pytest
from rectangle_masks import write_rectangles

from sfss_ray.streets.scenes import write_streets


@pytest.fixture
def mask_folder(tmp_path: Path) -> Path:
    """Masks of three images that lie in images/, and of one that could not be read."""
    return write_rectangles(tmp_path)


@pytest.fixture(scope="package")
def streets(tmp_path_factory) -> Path:
    """Eight target images and two labelled images of drawn streets."""
    root = tmp_path_factory.mktemp("streets")
    write_streets(root / "target", "camera", 5, 8, (64, 128), with_labels=False)
    write_streets(root / "val", "camera", 6, 2, (64, 128))
    return root
