"""What Ray itself prints: nothing by default, its logs and its bars on request."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.ray

LOGS = """
import json, sys, time
from sfss_ray.config import ComputeConfig
from sfss_ray.runtime import cluster

with cluster.connected(ComputeConfig(**json.loads(sys.argv[1]))):
    import ray

    def work():
        print("a line of a worker", flush=True)

    ray.get(ray.remote(work).remote())
    time.sleep(4)  # Ray forwards lines twice a second
"""
BARS = """
import json, sys
import sfss_ray

values = {f"compute.{k}": v for k, v in json.loads(sys.argv[1]).items()}
config = sfss_ray.override(sfss_ray.Config(), values)
sfss_ray.generate_masks(sys.argv[2], sys.argv[3], config=config)
"""


def output_of(code: str, compute: dict, *words: object) -> str:
    """Everything that a driver prints on a cluster of its own."""
    environment = {k: v for k, v in os.environ.items() if not k.lower().startswith("ray_")}
    settings = json.dumps({"address": "local", "device": "cpu"} | compute)
    done = subprocess.run(
        [sys.executable, "-c", code, settings, *map(str, words)],
        capture_output=True,
        text=True,
        env=environment,
        timeout=240,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout + done.stderr


def test_lines_of_workers_are_shown_on_request():
    assert output_of(LOGS, {}) == ""
    output = output_of(LOGS, {"ray_logs": True})
    (line,) = (line for line in output.splitlines() if "a line of a worker" in line)
    assert "pid=" in line, "Ray names the process"


def test_rays_own_progress_is_shown_on_request(streets: Path, tmp_path: Path):
    images = streets / "target" / "images"
    silent = output_of(BARS, {}, images, tmp_path / "silent")
    assert "masks 12/12" in silent
    assert "MapBatches(MaskActor)" not in silent
    shown = output_of(BARS, {"ray_progress": True}, images, tmp_path / "shown")
    assert "masks 12/12" in shown
    assert "MapBatches(MaskActor)" in shown
