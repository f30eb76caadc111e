"""The import contracts of pyproject.toml: one arrow, and Ray in the doors only."""

from __future__ import annotations

import shutil
import subprocess
import sysconfig
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]


def linter() -> str:
    """Return the path of this interpreter's lint-imports."""
    scripts = sysconfig.get_path("scripts")
    program = shutil.which("lint-imports", path=scripts) or shutil.which("lint-imports")
    if program is None:
        pytest.skip("import-linter is not installed: pip install 'sfss-ray[test]'")
    return program


def lint(config: Path) -> subprocess.CompletedProcess:
    """Check the package against the contracts of a file."""
    return subprocess.run(
        [linter(), "--config", str(config), "--no-cache"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )


def test_the_package_keeps_the_contracts():
    done = lint(ROOT / "pyproject.toml")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "0 broken" in done.stdout


def test_a_broken_contract_is_reported(tmp_path: Path):
    """Contracts that are upside down are reported, so the test above can fail."""
    contracts = tmp_path / "contracts.toml"
    contracts.write_text(
        '[tool.importlinter]\nroot_packages = ["sfss_ray"]\n'
        '[[tool.importlinter.contracts]]\nname = "upside down"\ntype = "layers"\n'
        'layers = ["sfss_ray.errors", "sfss_ray.config"]\n'
    )
    done = lint(contracts)
    assert done.returncode != 0
    assert "1 broken" in done.stdout
    assert "sfss_ray.config.ranges -> sfss_ray.errors" in done.stdout
