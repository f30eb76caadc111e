"""The lock of a folder of masks: one run at a time, released with its process."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from sfss_ray.errors import DataError, ResumeError
from sfss_ray.masks.bank.claims import LOCK_FILE, claim_folder, is_claimed_by, require_claim

HOLDER = """
import sys, time
from pathlib import Path
from sfss_ray.masks.bank.claims import claim_folder
with claim_folder(Path(sys.argv[1])):
    print("locked", flush=True)
    time.sleep(300)
"""


def test_the_lock_is_released_with_a_killed_process(tmp_path: Path):
    command = [sys.executable, "-c", HOLDER, tmp_path]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as holder:
        assert holder.stdout
        assert holder.stdout.readline() == b"locked\n"
        with pytest.raises(ResumeError, match="another run"), claim_folder(tmp_path):
            pass
        holder.kill()
    with claim_folder(tmp_path):
        pass


def test_a_claimed_folder_is_created_and_refused_to_others(tmp_path: Path):
    folder = tmp_path / "runs" / "masks"
    with claim_folder(folder) as claim:
        assert (folder / LOCK_FILE).read_text() == claim != ""
        refused = pytest.raises(ResumeError, match=r"another run is making masks in .*its end")
        with refused, claim_folder(folder):
            pass
        assert is_claimed_by(folder, claim), "a refused run does not change the claim"
    with claim_folder(folder) as later:
        assert later != claim


def test_a_later_claim_ends_the_former(tmp_path: Path):
    with claim_folder(tmp_path) as former:
        require_claim(tmp_path, former)
    assert is_claimed_by(tmp_path, former), "no other run has begun yet"
    with claim_folder(tmp_path) as present:
        assert is_claimed_by(tmp_path, present)
        assert not is_claimed_by(tmp_path, former)
        with pytest.raises(ResumeError, match=r"another run has begun .*run again"):
            require_claim(tmp_path, former)


def test_without_a_lock_file_every_claim_counts(tmp_path: Path):
    assert is_claimed_by(tmp_path, "any")
    with claim_folder(tmp_path):
        assert is_claimed_by(tmp_path, ""), "a run without a lock has no name"


def test_a_folder_that_cannot_be_opened_is_claimed_without_a_name(tmp_path: Path):
    (tmp_path / LOCK_FILE).mkdir()
    with claim_folder(tmp_path) as claim:
        assert claim == ""


def test_a_file_in_place_of_the_folder_is_refused(tmp_path: Path):
    (tmp_path / "file").touch()
    for folder in (tmp_path / "file", tmp_path / "file" / "below"):
        refused = pytest.raises(DataError, match=r"output folder .*a folder that you may write")
        with refused, claim_folder(folder):
            pass
