"""The version of the package."""

from __future__ import annotations

import tomllib
from pathlib import Path

from packaging.version import Version

import sfss_ray
from sfss_ray import version

ROOT = Path(__file__).parents[1]


def test_the_version_is_public_and_valid():
    assert sfss_ray.__version__ == version.__version__
    assert str(Version(version.__version__)) == version.__version__


def test_the_package_metadata_has_the_same_version():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    if "version" in project["project"]:
        assert project["project"]["version"] == version.__version__
    else:
        assert project["tool"]["setuptools"]["dynamic"]["version"] == {
            "attr": "sfss_ray.version.__version__"
        }
