"""Networks of users in projects on disk, as source models."""

from __future__ import annotations

import importlib
import importlib.machinery
import sys
import textwrap
import types
from pathlib import Path

import torch
from torch import nn

import sfss_ray
from sfss_ray.models.source import Source, open_source


def source_of(module: nn.Module) -> Source:
    """Wrap and open a network of the projects in user_projects."""
    return open_source(sfss_ray.wrap_model(module, classes="cityscapes-19"))


def import_network(name: str = "model") -> nn.Module:
    """Import a module and build its `Net`."""
    torch.manual_seed(0)
    return importlib.import_module(name).Net()


def derive_network(project: Path, name: str, head: str, factor: str = "FACTOR") -> nn.Module:
    """Write and import a subclass of the project's network whose logits are multiplied.

    Args:
        project: The project's folder.
        name: The name of the new Python module.
        head: The first lines of the module.
        factor: A Python expression.
    """
    body = f"""
    from model import Net as Base
    class Net(Base):
        def forward(self, x):
            return super().forward(x) * {factor}
    """
    (project / f"{name}.py").write_text(head + textwrap.dedent(body))
    return import_network(name)


def reading_a_file(project: Path) -> nn.Module:
    """Return a network that reads a file of its package in every pass."""
    (project / "helpers" / "factor.txt").write_text("3")
    head = "from importlib.resources import files\n"
    factor = "int((files('helpers') / 'factor.txt').read_text())"
    return derive_network(project, "reads", head, factor)


def needing_an_extension(project: Path) -> nn.Module:
    """Return a network that needs a loaded module that is not Python source."""
    file = project / f"kernels{importlib.machinery.EXTENSION_SUFFIXES[0]}"
    kernels = types.ModuleType("kernels")
    kernels.__spec__ = importlib.machinery.ModuleSpec("kernels", None, origin=str(file))
    kernels.__spec__.has_location = True
    kernels.__file__ = str(file)
    vars(kernels)["FACTOR"] = 2.0
    sys.modules["kernels"] = kernels
    return derive_network(project, "with_kernels", "import kernels\n", "kernels.FACTOR")


def needing_a_module_without_a_file(project: Path) -> nn.Module:
    """Return a network that needs a module which exists in this process only."""
    sys.modules["made_up"] = types.ModuleType("made_up")
    return derive_network(project, "with_made_up", "", "len(__import__('made_up').__name__)")
