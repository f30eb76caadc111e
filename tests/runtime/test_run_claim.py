"""Claims on addresses: two drivers at once never mix, and a killed driver's claim is taken over."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading

import pytest
from object_storage import bucket_address, s3_options  # noqa: F401

from sfss_ray.errors import OutputError, ResumeError
from sfss_ray.runtime import run_claim
from sfss_ray.runtime.run_claim import CLAIM_FILE, claimed
from sfss_ray.runtime.run_folder import claim, refuse_other_run
from sfss_ray.storage.files import write_text
from sfss_ray.storage.places import to_place


@pytest.fixture
def folder(bucket_address):  # noqa: F811
    return to_place(bucket_address.format("run"))


@pytest.fixture
def hurried(monkeypatch):
    monkeypatch.setattr(run_claim, "RENEW_SECONDS", 0.1)
    monkeypatch.setattr(run_claim, "_SETTLE_SECONDS", 0.2)
    monkeypatch.setattr(run_claim, "_LEFT_AFTER", 1.0)


def foreign_claim(renewals: int = 1, **changes) -> str:
    owner = {"token": "other", "renewals": renewals, "pid": 7, "host": "another", "boot": "b"}
    return json.dumps(owner | changes)


def test_a_folder_on_a_disk_is_locked_and_left_as_it_was(tmp_path):
    folder = tmp_path / "runs" / "night"
    with claimed(folder) as run:
        run.require()
        assert not refuse_other_run(folder, {"seed": 0})
        refusal = r"another process writes to '.*night': wait for its"
        with pytest.raises(ResumeError, match=refusal), claimed(folder):
            pytest.fail("two drivers write to the folder")
    assert list(folder.iterdir()) == []
    with claimed(folder):
        pass


def test_a_folder_that_cannot_be_locked_is_left_to_the_checks_of_the_run(tmp_path):
    file = tmp_path / "note.txt"
    file.write_text("a file")
    with claimed(file), pytest.raises(ResumeError, match="holds files of something else"):
        claim(file, {"seed": 0})
    assert file.read_text() == "a file"


def test_a_claim_is_gone_after_the_run(folder, hurried):
    with claimed(folder) as run:
        assert json.loads((folder / CLAIM_FILE).read_text())["pid"] == os.getpid()
        run.require()
        assert not refuse_other_run(folder, {"seed": 0})
        claim(folder, {"seed": 0})
    assert [file.name for file in folder.iterdir()] == ["config.json"]


def test_a_second_driver_is_refused_while_the_first_renews_its_claim(folder, hurried):
    lines: list[str] = []
    refusal = r"another run writes to 's3://fleet/.*/run' \(process \d+ on '.*'\): wait for its end"
    with claimed(folder), pytest.raises(ResumeError, match=refusal), claimed(folder, lines.append):
        pytest.fail("two drivers have the claim")
    (line,) = lines
    assert "waiting up to 1 s to see if it still runs" in line
    with claimed(folder):
        pass


def test_a_claim_that_nobody_renews_is_taken_over(folder, hurried):
    write_text(folder / CLAIM_FILE, foreign_claim())
    with claimed(folder) as run:
        run.require()


def test_a_claim_of_a_killed_process_of_this_machine_is_taken_over_at_once(folder, monkeypatch):
    """Without the wait for a renewal, which is 45 s here."""
    monkeypatch.setattr(run_claim, "_SETTLE_SECONDS", 0.1)
    code = "import os, sys; from sfss_ray.runtime.run_claim import claimed\n"
    code += "from sfss_ray.storage.places import to_place\n"
    code += "with claimed(to_place(sys.argv[1])): os.kill(os.getpid(), 9)"
    done = subprocess.run([sys.executable, "-c", code, folder.address], timeout=60)
    assert done.returncode == -9
    assert (folder / CLAIM_FILE).exists()
    lines: list[str] = []
    with claimed(folder, lines.append):
        assert lines == []


def test_of_two_drivers_at_once_one_gets_the_claim(folder, monkeypatch):
    monkeypatch.setattr(run_claim, "_SETTLE_SECONDS", 0.5)
    start, outcomes = threading.Barrier(2), []

    def drive() -> None:
        start.wait()
        try:
            with claimed(folder):
                done.wait(5)
                outcomes.append("claimed")
        except ResumeError:
            outcomes.append("refused")
            done.set()

    done = threading.Event()
    drivers = [threading.Thread(target=drive) for _ in range(2)]
    for driver in drivers:
        driver.start()
    for driver in drivers:
        driver.join()
    assert sorted(outcomes) == ["claimed", "refused"]


def test_a_driver_that_lost_its_claim_stops_and_leaves_the_other_one(folder, hurried, monkeypatch):
    monkeypatch.setattr(run_claim, "RENEW_SECONDS", 60.0)  # away for longer than the test
    with claimed(folder) as run:
        write_text(folder / CLAIM_FILE, foreign_claim())
        with pytest.raises(ResumeError, match="another run has claimed"):
            run.require()
    assert json.loads((folder / CLAIM_FILE).read_text())["token"] == "other"


def test_an_address_that_cannot_be_written_is_refused_in_one_line(s3_options):  # noqa: F811
    nowhere = to_place(f"s3://user:secret@absent/run?{s3_options}")
    with pytest.raises(OutputError) as refused, claimed(nowhere):
        pytest.fail("a bucket that does not exist was claimed")
    assert "'s3://absent/run" in str(refused.value)
    assert "secret" not in str(refused.value)
    assert "\n" not in str(refused.value)
