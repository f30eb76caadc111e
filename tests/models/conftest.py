"""Fixtures of all model tests."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest


@pytest.fixture(autouse=True)
def remove_files(tmp_path: Path):
    """Remove the files of each test: some have 200 MB, and pytest keeps the folders of its last runs."""
    yield
    shutil.rmtree(tmp_path)
