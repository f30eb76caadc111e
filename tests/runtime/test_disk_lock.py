"""Lock files: one process at a time, released with it."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from pathlib import Path

from sfss_ray.runtime import disk_lock as module
from sfss_ray.runtime.disk_lock import hold_lock

HOLDER = """
import sys, time
from pathlib import Path
from sfss_ray.runtime.disk_lock import hold_lock
with hold_lock(Path(sys.argv[1])) as is_locked:
    print(is_locked, flush=True)
    time.sleep(300)
"""


def test_the_lock_of_a_killed_process_is_free(tmp_path: Path):
    file = tmp_path / "lock"
    with subprocess.Popen([sys.executable, "-c", HOLDER, file], stdout=subprocess.PIPE) as holder:
        assert holder.stdout
        assert holder.stdout.readline() == b"True\n"
        with hold_lock(file) as is_locked:
            assert not is_locked
        holder.kill()
    assert file.exists(), "a killed process removes nothing"
    with hold_lock(file) as is_locked:
        assert is_locked
    assert not file.exists()


def test_a_lock_on_a_file_that_was_removed_does_not_count(tmp_path: Path, monkeypatch):
    """The former owner may remove its file after another process has opened it."""
    file, opened, real = tmp_path / "lock", [], os.open

    def open_then_remove(*arguments):
        handle = real(*arguments)
        opened.append(handle)
        if len(opened) == 1:
            file.unlink()
        return handle

    monkeypatch.setattr(module.os, "open", open_then_remove)
    with hold_lock(file) as is_locked:
        assert is_locked
        assert len(opened) == 2
        assert file.exists()


def test_of_many_threads_one_at_a_time_has_the_lock(tmp_path: Path):
    inside, most, entered = 0, 0, 0

    def work():
        nonlocal inside, most, entered
        while entered < 50:
            with hold_lock(tmp_path / "lock") as is_locked:
                if is_locked:
                    inside += 1
                    most = max(most, inside)
                    entered += 1
                    inside -= 1

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert most == 1


def test_a_folder_that_cannot_be_written_is_not_locked(tmp_path: Path):
    with hold_lock(tmp_path / "missing" / "lock") as is_locked:
        assert is_locked
