"""`python -m sfss_ray.cli` is the same command, in terminals of any encoding."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

import sfss_ray
from sfss_ray.streets.default import SOURCE_MODEL
from sfss_ray.streets.scenes import write_streets


def test_the_module_is_the_command():
    words = [sys.executable, "-m", "sfss_ray.cli", "--version"]
    process = subprocess.run(words, capture_output=True, text=True, check=True)
    assert process.stdout == f"sfss-ray {sfss_ray.__version__}\n"


@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "cp1252"])
def test_a_terminal_that_lacks_a_character_is_no_error(encoding, tmp_path: Path):
    """Names that cannot be shown are printed with escapes, and the work is done."""
    images = tmp_path / "東京"
    write_streets(tmp_path / "drawn", "camera", 0, 1, (32, 64), with_labels=False)
    (tmp_path / "drawn" / "images").rename(images)
    (images / "broken-夜.png").write_bytes(b"")
    words = ["predict", str(SOURCE_MODEL), str(images), str(tmp_path / "out-東")]
    process = subprocess.run(
        [sys.executable, "-m", "sfss_ray.cli", *words, "--compute.device", "cpu"],
        env=os.environ | {"PYTHONIOENCODING": encoding, "PYTHONUTF8": "0"},
        capture_output=True,
    )
    assert process.returncode == 0, process.stderr.decode()
    assert process.stderr == b""
    page = process.stdout.decode(encoding)
    assert r"broken-\u591c" in page
    assert r"out-\u6771" in page


@pytest.mark.parametrize("words", [["--help"], ["--version"], ["masks", "--help"], ["data"]])
def test_pages_for_a_closed_pipe_or_a_full_disk_are_no_traceback(words):
    command = [sys.executable, "-m", "sfss_ray.cli", *words]
    reader, writer = os.pipe()
    os.close(reader)
    closed = subprocess.run(command, stdout=writer, stderr=subprocess.PIPE, text=True)
    os.close(writer)
    assert (closed.returncode, closed.stderr) == (0, "")
    if not Path("/dev/full").exists():
        return
    with open("/dev/full", "w") as file:
        full = subprocess.run(command, stdout=file, stderr=subprocess.PIPE, text=True)
    assert full.returncode == 2
    assert full.stderr.startswith("error: the disk is full ([Errno 28] No space left on device)")
    assert full.stderr.count("\n") == 1
