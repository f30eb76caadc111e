"""A cluster whose GPUs the driver's machine lacks, and pools whose first run prints no warning."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

pytestmark = pytest.mark.ray

NICENESS = """
import os
from sfss_ray.config import ComputeConfig
from sfss_ray.runtime import cluster

def niceness():
    return os.getpriority(os.PRIO_PROCESS, 0)

os.nice(3)
with cluster.connected(ComputeConfig(address="local", device="cpu")):
    import ray
    print(niceness(), ray.get(ray.remote(niceness).remote()))
"""


def test_workers_of_a_local_cluster_have_the_drivers_niceness(tmp_path):
    environment = {k: v for k, v in os.environ.items() if not k.lower().startswith("ray_")}
    started = subprocess.run(
        [sys.executable, "-c", NICENESS],
        env=environment,
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=180,
    )
    assert started.returncode == 0, started.stderr
    driver, worker = map(int, started.stdout.split())
    assert worker == driver > 0


GPU_CLUSTER = '''
import json, os, sys, time
from pathlib import Path
from ray.cluster_utils import Cluster

nodes = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "num_gpus": 0})
for _ in range(2):
    nodes.add_node(num_cpus=3, num_gpus=2)
os.environ["RAY_ADDRESS"] = nodes.address

from sfss_ray.runtime import cluster
from sfss_ray.config import ComputeConfig, Config, override
from sfss_ray.errors import ClusterError
from sfss_ray.masks import generate
from sfss_ray.masks.stages import StagedMaskActor
from sfss_ray.masks.regions import build_region_source, make_recipe
from sfss_ray.runtime.resources import training_demand

found = {}
compute = ComputeConfig()
found["local"] = cluster.local_device(compute)
found["workers"] = cluster.resolve_device(compute)
resources = cluster.capacity(compute)
found["gpus"] = resources.gpus
found["described"] = resources.describe()
found["holds"] = [resources.holds(*needs) for needs in ((1, 1), (2, 1), (3.5, 0), (0, 2))]
try:
    training_demand(ComputeConfig(num_workers=5), "cuda").require(resources)
except ClusterError as error:
    found["refused"] = str(error)

folder = Path(sys.argv[1])

class Actor(StagedMaskActor):
    """Records which GPU Ray assigned, and finds regions without one."""

    def _load_source(self):
        import ray

        (folder / f"gpu-{os.getpid()}").write_text(json.dumps(
            [self.spec["device"], ray.get_gpu_ids(), ray.get_runtime_context().get_node_id()]
        ))
        return build_region_source(make_recipe(Config().masks, None)[0], None, 64, "cpu")

    def __call__(self, batch):
        """Work begins once all actors are there: the first ones would leave the others none."""
        end = time.monotonic() + 90
        while len(list(folder.glob("gpu-*"))) < 4 and time.monotonic() < end:
            time.sleep(0.2)
        return super().__call__(batch)

generate.StagedMaskActor = Actor
config = override(Config(), {"masks.regions": "small_sam"})
lines = []
generate.generate_masks(
    sys.argv[2], folder / "masks", config=config, progress=lines.append
)
found["lines"] = lines
found["actors"] = [json.loads(p.read_text()) for p in sorted(folder.glob("gpu-*"))]
print("FOUND " + json.dumps(found), flush=True)
nodes.shutdown()
'''


@pytest.fixture
def images(tmp_path: Path) -> Path:
    folder = tmp_path / "images"
    folder.mkdir()
    rng = np.random.default_rng(0)
    for k in range(16):
        pixels = rng.integers(0, 256, (24, 40, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"{k:02}.png")
    return folder


def run(code: str, *words: object) -> subprocess.CompletedProcess[str]:
    environment = {k: v for k, v in os.environ.items() if k != "RAY_ADDRESS"}
    done = subprocess.run(
        [sys.executable, "-c", code, *map(str, words)],
        capture_output=True,
        text=True,
        env=environment | {"RAY_USAGE_STATS_ENABLED": "0"},
        timeout=300,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return done


def test_a_driver_without_a_gpu_uses_all_gpus_of_its_cluster(images: Path, tmp_path: Path):
    (tmp_path / "out").mkdir()
    done = run(GPU_CLUSTER, tmp_path / "out", images)
    line = next(line for line in done.stdout.splitlines() if line.startswith("FOUND "))
    found = json.loads(line.removeprefix("FOUND "))
    assert (found["local"], found["workers"], found["gpus"]) == ("cpu", "cuda", 4)
    assert found["described"] == "7 CPUs and 4 GPUs on 3 nodes"
    assert found["holds"] == [4, 2, 0, 2]
    assert "5 training workers of 1 CPU and 1 GPU each" in found["refused"]
    assert "the cluster holds 4 (7 CPUs and 4 GPUs on 3 nodes)" in found["refused"]
    assert "device: cuda (7 CPUs and 4 GPUs on 3 nodes)" in found["lines"]
    assert len(found["actors"]) == 4
    assert {device for device, _, _ in found["actors"]} == {"cuda"}
    gpus = {(node, gpu) for _, ids, node in found["actors"] for gpu in ids}
    assert len(gpus) == 4, "each actor has a GPU of its own"


FIRST_RUN = """
import sys
import sfss_ray
sfss_ray.generate_masks(sys.argv[1], sys.argv[2])
"""


def test_a_first_run_prints_no_warning_of_ray(images: Path, tmp_path: Path):
    done = run(FIRST_RUN, images, tmp_path / "masks")
    assert "masks 16/16" in done.stdout
    assert done.stderr == ""


def test_masks_on_a_full_disk_are_one_line_and_resume(images: Path, small_disk):
    """Shards are written by actors, whose errors come back through Ray."""
    disk = small_disk(16)
    done = run_verb("masks", "--target-images", images, "--output-dir", disk / "masks")
    assert done.returncode == 2
    (line,) = done.stderr.splitlines()
    assert line.startswith("error: the pool of masks stopped: ")
    assert "No space left on device" in line
    assert ".parquet' cannot be written" in line
    assert "free some space" in line
    small_disk.grow(8192)
    done = run_verb("masks", "--target-images", images, "--output-dir", disk / "masks")
    assert done.returncode == 0, done.stderr
    assert "images: 16" in done.stdout


def run_verb(*words: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "sfss_ray.cli", *map(str, words)]
    environment = {k: v for k, v in os.environ.items() if k != "RAY_ADDRESS"}
    return subprocess.run(command, capture_output=True, text=True, env=environment, timeout=300)


@pytest.fixture
def small_disk(tmp_path: Path):
    """Mounts a real file system of some KiB, and lets it grow."""
    folder = tmp_path / "disk"
    folder.mkdir()

    def mount(kib: int) -> Path:
        words = ["mount", "-t", "tmpfs", "-o", f"size={kib}k", "tmpfs", str(folder)]
        try:
            subprocess.run(words, check=True, capture_output=True)
        except (OSError, subprocess.CalledProcessError):
            pytest.skip("mounting a small disk needs root")
        return folder

    def grow(kib: int) -> None:
        subprocess.run(["mount", "-o", f"remount,size={kib}k", str(folder)], check=True)

    mount.grow = grow
    yield mount
    subprocess.run(["umount", "-l", str(folder)], check=False, capture_output=True)
