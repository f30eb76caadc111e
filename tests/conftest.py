"""What all tests share: one compute thread, and real images where the machine has them."""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Callable
from pathlib import Path

import cv2
import pytest
import torch

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="session", autouse=True)
def one_thread() -> None:
    """Tests run beside each other: none takes the cores of another."""
    torch.set_num_threads(1)
    cv2.setNumThreads(1)


@pytest.fixture(scope="session")
def shared_data() -> Callable[[str], Path]:
    """A folder of real images by name; the test is skipped where it is absent.

    Folders are looked for in SFSS_TEST_DATA, else in shared/data beside the repository.
    """
    root = Path(os.environ.get("SFSS_TEST_DATA", ROOT.parent / "shared" / "data"))

    def find(name: str) -> Path:
        if not (root / name).is_dir():
            pytest.skip(
                f"no real images: {root / name} is absent (SFSS_TEST_DATA names its parent)"
            )
        return root / name

    return find


@pytest.fixture
def experiment(monkeypatch):
    """Imports a script of experiments/ by name; forgets all of them after the test."""
    folders = [ROOT / "experiments", *sorted((ROOT / "experiments").glob("*/"))]
    for folder in folders:
        monkeypatch.syspath_prepend(str(folder))
    yield importlib.import_module
    for name, module in list(sys.modules.items()):
        if Path(getattr(module, "__file__", None) or "/").parent in folders:
            del sys.modules[name]
