"""Python projects of users on disk, outside the installed packages."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

FILES = {
    "model.py": """
from torch import nn
from utilities import Conv, enlarge
import helpers.blocks


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.encoder = nn.Sequential(Conv(3, 8), nn.BatchNorm2d(8))
        self.classifier = nn.Conv2d(8, 19, 1)

    def forward(self, x):
        if self.training:
            from late import noise
            x = noise(x)
        x = helpers.blocks.double(self.encoder(x))
        return enlarge(self.classifier(x), 4)
""",
    "utilities.py": """
import functools
from torch import nn


@functools.lru_cache
def stride():
    return 4


class Conv(nn.Conv2d):
    def __init__(self, a, b):
        super().__init__(a, b, 3, stride(), 1)


@functools.lru_cache
def factor(times):
    return float(times)


def enlarge(x, times):
    return nn.functional.interpolate(x, scale_factor=factor(times))
""",
    "helpers/__init__.py": "",
    "helpers/blocks.py": "from .numbers_of import TWO\n\n\ndef double(x):\n    return x * TWO\n",
    "helpers/numbers_of.py": "TWO = 2.0\n",
    "late.py": "import torch\n\n\ndef noise(x):\n    return x + 0.1 * torch.rand_like(x)\n",
    "unused.py": "raise RuntimeError('nothing imports this')\n",
}
"""A network whose code is in several top-level modules. Only training mode imports `late`."""


def write_files(root: Path, files: dict[str, str]) -> Path:
    """Write files, given by their relative paths, into a folder and return the folder."""
    for name, content in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content)
    return root


@pytest.fixture
def on_path(monkeypatch) -> Iterator[Callable[[Path], None]]:
    """Add folders to the search path; modules imported from them are forgotten after the test."""
    folders: list[Path] = []

    def add(folder: Path) -> None:
        folders.append(folder)
        monkeypatch.syspath_prepend(str(folder))

    yield add
    # All names first: the path of a namespace package needs its parent.
    for name in [name for name, module in list(sys.modules.items()) if _is_in(module, folders)]:
        del sys.modules[name]


def _is_in(module: object, folders: list[Path]) -> bool:
    file = getattr(module, "__file__", None) or next(iter(getattr(module, "__path__", [])), "/")
    return any(Path(file).is_relative_to(folder) for folder in folders)
