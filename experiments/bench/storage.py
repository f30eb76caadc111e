"""Compare images and masks in object storage with a local disk: mask generation and training steps.

    OMP_NUM_THREADS=1 python experiments/bench/storage.py

The storage is moto's S3 server, a process on this machine. The images are drawn streets. Masks are
Felzenszwalb regions by one actor. A training step is that of `adapt` with the embedded model. Images and
masks that the process would hold in its memory are read again at every step here, as those of a larger
data set are. Local and remote runs take turns. The script writes results/storage_cpu.md and .json.
"""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from statistics import median
from typing import Any
from unittest.mock import patch

import pyarrow.fs
import torch
from records import RESULTS, keep, machine, markdown

from sfss_ray.config import Config, override
from sfss_ray.data.folders import list_images
from sfss_ray.masks.actor import MaskActor, actor_spec
from sfss_ray.masks.bank.claims import claim_folder
from sfss_ray.masks.bank.store import PAINTED
from sfss_ray.masks.regions import make_recipe
from sfss_ray.storage.object_cache import FOLDER_VARIABLE
from sfss_ray.storage.places import ObjectPath, Place, address_of, to_place, to_text
from sfss_ray.streets.default import SOURCE_MODEL
from sfss_ray.streets.scenes import write_streets
from sfss_ray.train import samples
from sfss_ray.train.adaptation import AdaptationTask, adapt_student

SIZE = (256, 512)
CROP = (128, 256)
IMAGES = 8
STEPS = 6
TURNS = 3
BUCKET = "bench"


@contextmanager
def s3_server() -> Iterator[ObjectPath]:
    """Start an S3 server and yield a folder in its bucket."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)]
    server = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        address = f"s3://user:secret@{BUCKET}/data?endpoint_override=127.0.0.1:{port}&scheme=http"
        filesystem, _ = pyarrow.fs.FileSystem.from_uri(f"{address}&allow_bucket_creation=true")
        filesystem.create_dir(BUCKET)
        folder = to_place(address)
        assert isinstance(folder, ObjectPath)
        yield folder
    finally:
        server.terminate()
        server.wait()


def make_masks(images: Place, folder: Place) -> float:
    """Make masks of all images with one actor; return images per second of wall time."""
    config = Config()
    recipe, _ = make_recipe(config.masks, None)
    with claim_folder(folder) as claim:
        spec = actor_spec(recipe, None, folder, config.masks, claim=claim)
        actor = MaskActor(spec | {"threads": 1, "pool": 1})
        start = time.perf_counter()
        files = list_images(images)
        for first in range(0, len(files), 8):
            part = [(file.image_id, to_text(file.path)) for file in files[first : first + 8]]
            actor({"shard": [json.dumps(part)]})
        return len(files) / (time.perf_counter() - start)


class Clock:
    """A run that records the time of its steps and keeps nothing."""

    def __init__(self) -> None:
        self.rank, self.world, self.device = 0, 1, torch.device("cpu")
        self.started = (0.0, 0.0)
        self.rates: list[tuple[float, float]] = []

    def resume_state(self) -> dict[str, Any] | None:
        """Start the clock: the networks are built."""
        self.started = time.perf_counter(), time.process_time()
        return None

    def report(self, metrics: dict[str, Any], state: Callable[[], dict[str, Any]]) -> None:
        """Record the steps per second of wall and of processor time."""
        wall, processor = self.started
        self.rates.append(
            (STEPS / (time.perf_counter() - wall), STEPS / (time.process_time() - processor))
        )

    def is_preempted(self) -> bool:
        """Return False."""
        return False

    def log(self, record: dict[str, Any]) -> None:
        """Drop the record."""

    def save(self, name: str, content: dict[str, Any]) -> None:
        """Drop the file."""


def train(images: Place, masks: Place) -> tuple[float, float]:
    """Return the steps per second of wall and of processor time, evaluation left out."""
    config = override(
        Config(),
        {
            "train.num_steps": STEPS,
            "train.evaluate_every": STEPS,
            "train.statistics_images": 0,
            "train.batch_size": 2,
            "train.augment.crop_size": list(CROP),
        },
    )
    clock = Clock()
    # Nothing is held in memory, so that every step reads its images and masks.
    with (
        patch.object(samples._ArrayCache, "get", lambda self, index, read: read()),
        patch.object(PAINTED, "max_bytes", 0),
    ):
        files = tuple(list_images(images))
        adapt_student(AdaptationTask(SOURCE_MODEL, files, address_of(masks), config, None), clock)
    return clock.rates[0]


def main() -> None:
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as path, s3_server() as bucket:
        root = Path(path)
        os.environ[FOLDER_VARIABLE] = str(root / "copies")
        write_streets(root / "streets", "camera", 1, IMAGES, SIZE, with_labels=False)
        images = root / "streets" / "images"
        for file in sorted(images.iterdir()):
            (bucket / "images" / file.name).upload(file)
        rates = {
            "masks, disk": make_masks(images, root / "masks"),
            "masks, S3": make_masks(bucket / "images", bucket / "masks"),
        }
        os.environ[FOLDER_VARIABLE] = str(root / "other copies")
        train(images, root / "masks")  # warms up
        cold = train(bucket / "images", bucket / "masks")
        turns = [
            (train(images, root / "masks"), train(bucket / "images", bucket / "masks"))
            for _ in range(TURNS)
        ]
    _write(rates, cold, turns)


def _write(rates: dict[str, float], cold: tuple[float, float], turns: list[Any]) -> None:
    disk = [median(local[clock] for local, _ in turns) for clock in (0, 1)]
    warm = [median(remote[clock] for _, remote in turns) for clock in (0, 1)]
    ratio = [median(remote[c] / local[c] for local, remote in turns) for c in (0, 1)]
    row = {
        "masks_disk_per_s": rates["masks, disk"],
        "masks_s3_per_s": rates["masks, S3"],
        "steps_disk_per_s": disk[0],
        "steps_cold_per_s": cold[0],
        "steps_warm_per_s": warm[0],
        "warm_share_of_disk": ratio[0],
        "warm_share_of_disk_processor_time": ratio[1],
        "machine": machine(),
    }
    keep("storage_cpu", {"storage": row})
    m = row["machine"]
    lines = [
        f"# Images and masks in object storage beside a local disk: {IMAGES} images of"
        f" {SIZE[1]}x{SIZE[0]}",
        "",
        "S3: moto's server, a process of this machine. Masks: Felzenszwalb regions, one actor, wall",
        "time. Steps: `adapt` with the embedded model,"
        f" two crops of {CROP[1]}x{CROP[0]}, {STEPS} steps a",
        f"turn, {TURNS} turns each, medians. Every step reads its images and masks. Cold: the node",
        "has no copies. Warm: it has all of them. Share: median of the ratios of neighbouring turns.",
        "",
        *markdown(
            ["", "disk", "S3, cold", "S3, warm", "warm / disk", "in processor time"],
            [
                [
                    "masks, images/s",
                    f"{row['masks_disk_per_s']:.2f}",
                    f"{row['masks_s3_per_s']:.2f}",
                    "",
                    "",
                    "",
                ],
                [
                    "training, steps/s",
                    f"{disk[0]:.2f}",
                    f"{cold[0]:.2f}",
                    f"{warm[0]:.2f}",
                    f"{100 * ratio[0]:.0f} %",
                    f"{100 * ratio[1]:.0f} %",
                ],
            ],
        ),
        f"- {m['device']}, {m['threads']} thread, torch {m['torch']}, load {m['load']};"
        " `python experiments/bench/storage.py`",
    ]
    (RESULTS / "storage_cpu.md").write_text("\n".join(lines) + "\n")
    print("\n".join(lines))


if __name__ == "__main__":
    main()
