"""Licence, notice and citation are complete, and the wheel runs the demo from an empty folder."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import sysconfig
import tomllib
import zipfile
from pathlib import Path

import pytest
import yaml

from sfss_ray.streets.default import WEIGHTS
from sfss_ray.version import __version__

ROOT = Path(__file__).resolve().parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
DEMO = """
from pathlib import Path
import sfss_ray
from sfss_ray.streets.default import SOURCE_MODEL, embedded_config
from sfss_ray.streets.scenes import write_streets

if __name__ == "__main__":
    write_streets(Path("target"), "camera", seed=101, count=8, with_labels=False)
    write_streets(Path("val"), "camera", seed=102, count=2)
    steps = {"train.num_steps": 4, "train.evaluate_every": 2, "evaluation.pictures": 1}
    result = sfss_ray.adapt(
        SOURCE_MODEL, "target/images", "run", val_images="val/images", val_labels="val/labels",
        config=sfss_ray.override(embedded_config(), steps),
    )
    print(sfss_ray.__file__)
    print(sorted(result.metrics))
"""


def test_the_licence_is_apache():
    text = (ROOT / "LICENSE").read_text()
    assert text.split()[:4] == ["Apache", "License", "Version", "2.0,"]
    assert "END OF TERMS AND CONDITIONS" in text
    assert PROJECT["license"] == "Apache-2.0"
    assert not [line for line in PROJECT["classifiers"] if line.startswith("License")], (
        "an expression and a classifier exclude each other"
    )


def test_the_notice_names_every_file_of_weights():
    notice = (ROOT / "NOTICE").read_text()
    files = sorted(WEIGHTS.glob("*.pt"))
    assert len(files) == 2
    for file in files:
        assert file.name in notice
        assert json.loads(file.with_suffix(".json").read_text())["sha256"]


def test_the_citation_can_be_read():
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    for key in ("cff-version", "message", "title", "authors"):
        assert citation[key]
    assert citation["license"] == PROJECT["license"]
    assert citation["references"][0]["journal"] == "Multimedia Systems"


def test_each_entry_of_the_changelog_is_one_line_and_breaking_ones_come_first():
    _, _, releases = (ROOT / "CHANGELOG.md").read_text().partition("\n## ")
    lines = [line for line in releases.splitlines()[1:] if line]
    assert all(line.startswith(("- ", "#")) for line in lines)
    assert lines[0] == "### Breaking"


@pytest.fixture(scope="module")
def wheel(tmp_path_factory) -> Path:
    """Build sdist and wheel from a copy of the checkout, as `python -m build` does."""
    folder = tmp_path_factory.mktemp("wheel")
    checkout = folder / "checkout"
    shutil.copytree(
        ROOT / "sfss_ray", checkout / "sfss_ray", ignore=shutil.ignore_patterns("__pycache__")
    )
    for name in ("pyproject.toml", "README.md", "LICENSE", "NOTICE"):
        shutil.copy(ROOT / name, checkout)
    run([sys.executable, "-m", "build", "--outdir", str(folder / "dist"), str(checkout)])
    (file,) = (folder / "dist").glob("*.whl")
    return file


def run(words: list[str], cwd: Path | None = None, timeout: float = 600) -> str:
    """Run a program outside this checkout and return what it printed; its failure fails the test."""
    done = subprocess.run(
        words,
        cwd=cwd,
        capture_output=True,
        text=True,
        timeout=timeout,
        check=False,
        env={name: value for name, value in os.environ.items() if name != "PYTHONPATH"},
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    return done.stdout


@pytest.mark.slow
def test_the_wheel_is_complete_and_passes_twine(wheel):
    names = zipfile.ZipFile(wheel).namelist()
    for name in ("py.typed", "report/page.html", "streets/weights/source.pt"):
        assert f"sfss_ray/{name}" in names
    assert [name for name in names if name.endswith("licenses/NOTICE")]
    assert not [name for name in names if name.startswith(("tests", "experiments", "docs"))]
    files = [str(file) for file in wheel.parent.iterdir()]
    assert len(files) == 2
    run([sys.executable, "-m", "twine", "check", "--strict", *files])


@pytest.mark.slow
@pytest.mark.ray
def test_the_wheel_runs_the_demo_from_an_empty_folder(wheel, tmp_path):
    """A fresh environment with the wheel; what it depends on is borrowed from this one."""
    run([sys.executable, "-m", "venv", str(tmp_path / "venv")])
    python = tmp_path / "venv" / "bin" / "python"
    run([str(python), "-m", "pip", "install", "-q", "--no-deps", str(wheel)])
    packages = run([str(python), "-c", "import sysconfig; print(sysconfig.get_path('purelib'))"])
    # A plain path, so that links to checkouts in the borrowed environment are not followed.
    borrowed = Path(packages.strip()) / "borrowed.pth"
    borrowed.write_text(sysconfig.get_path("purelib") + "\n")
    folder = tmp_path / "empty"
    folder.mkdir()
    script = tmp_path / "venv" / "bin" / "sfss-ray"
    assert run([str(script), "--version"], folder) == f"sfss-ray {__version__}\n"
    (folder / "demo.py").write_text(DEMO)
    *_, module, rows = run([str(python), "demo.py"], folder).splitlines()
    assert Path(module).is_relative_to(tmp_path / "venv")
    assert rows == "['BatchNorm-only', 'adapted', 'source-only', 'teacher']"
    for name in ("student.pt", "report.html", "report.json"):
        assert (folder / "run" / name).is_file()
