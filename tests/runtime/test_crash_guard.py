"""Crashes of processes are counted: images and networks that cause too many are given up."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from sfss_ray.runtime.crash_guard import (
    CRASH_REASON,
    MAX_CRASHES,
    Attempts,
    forget_crashes,
    killed_its_process,
    loading_network,
    writing_item,
)


def files(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_an_image_is_refused_after_its_last_crash(tmp_path: Path):
    for _ in range(MAX_CRASHES):
        attempts = Attempts(tmp_path, ["a", "b"])  # a new process begins the item anew
        assert attempts.begin("a")
        attempts.end("a")
        assert attempts.begin("b")
    attempts = Attempts(tmp_path, ["a", "b"])
    assert attempts.begin("a"), "a was finished each time"
    assert not attempts.begin("b")
    assert len(files(tmp_path)) == 1
    attempts.forget()
    assert files(tmp_path) == []


def test_items_are_counted_apart(tmp_path: Path):
    for _ in range(MAX_CRASHES):
        Attempts(tmp_path, ["a"]).begin("a")
    assert Attempts(tmp_path, ["a", "b"]).begin("a")
    assert not Attempts(tmp_path, ["a"]).begin("a")


def test_stages_of_an_item_are_counted_apart(tmp_path: Path):
    for _ in range(MAX_CRASHES):
        assert Attempts(tmp_path, ["a"], "decode").begin("a")
    assert Attempts(tmp_path, ["a"], "network").begin("a")
    assert not Attempts(tmp_path, ["a"], "decode").begin("a")
    forget_crashes(tmp_path)
    assert files(tmp_path) == []


def test_an_item_that_kills_its_writers_raises(tmp_path: Path):
    for _ in range(MAX_CRASHES):
        with pytest.raises(KeyboardInterrupt), writing_item(tmp_path, ["a", "b"]):
            raise KeyboardInterrupt
    with (
        pytest.raises(RuntimeError, match="wrote the results of 'a' and the 1 images after it"),
        writing_item(tmp_path, ["a", "b"]),
    ):
        pass
    forget_crashes(tmp_path)
    with writing_item(tmp_path, ["a", "b"]):
        assert len(files(tmp_path)) == 1
    assert files(tmp_path) == []


@pytest.mark.parametrize("content", ["", "{", '{"a": '])
def test_a_count_that_was_cut_short_starts_again(content, tmp_path: Path):
    Attempts(tmp_path, ["a"]).begin("a")
    (name,) = files(tmp_path)
    (tmp_path / name).write_text(content)
    assert Attempts(tmp_path, ["a"]).begin("a")
    assert json.loads((tmp_path / name).read_text()) == {"a": 1}


LOAD_AND_CRASH = """
import os, signal, sys
from pathlib import Path
from sfss_ray.runtime.crash_guard import loading_network
with loading_network(Path(sys.argv[1]), 2):
    os.kill(os.getpid(), signal.SIGKILL)
"""


def test_a_network_whose_loading_kills_processes_is_refused(tmp_path: Path):
    """With a pool of two, the file of the process beside this one is no crash."""
    for _ in range(MAX_CRASHES):
        with loading_network(tmp_path, 2):
            pass
        words = [sys.executable, "-c", LOAD_AND_CRASH, str(tmp_path)]
        assert subprocess.run(words, env=os.environ).returncode == -signal.SIGKILL
    with loading_network(tmp_path, 2):
        assert len(files(tmp_path)) == MAX_CRASHES + 1
    (tmp_path / ".start-0").touch()
    with (
        pytest.raises(RuntimeError, match=r"3 processes died .*compute\.predict_actors"),
        loading_network(tmp_path, 2),
    ):
        pass
    forget_crashes(tmp_path)
    assert files(tmp_path) == []


def test_an_exception_while_loading_is_no_crash(tmp_path: Path):
    def fail() -> None:
        with loading_network(tmp_path, 1):
            assert len(files(tmp_path)) == 1
            raise KeyError("no such layer")

    with pytest.raises(KeyError):
        fail()
    assert files(tmp_path) == []


def test_other_files_of_the_stage_stay(tmp_path: Path):
    (tmp_path / "masks-0.parquet").touch()
    (tmp_path / ".begun-0").touch()
    forget_crashes(tmp_path)
    assert files(tmp_path) == ["masks-0.parquet"]


def test_a_folder_that_cannot_be_written_stops_nothing(tmp_path: Path):
    """The work itself reports it, when it writes its results."""
    missing = tmp_path / "missing"
    attempts = Attempts(missing, ["a"])
    assert attempts.begin("a")
    attempts.end("a")
    attempts.forget()
    with loading_network(missing, 1):
        pass


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (CRASH_REASON, True),
        ("its process died 5 times: the text of another release", True),
        ("the file is empty (0 bytes)", False),
        (None, False),
    ],
)
def test_a_stored_error_tells_a_crash(error, expected):
    assert killed_its_process(error) is expected
