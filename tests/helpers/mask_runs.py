"""Mask runs without a cluster, on folders of noise."""

from __future__ import annotations

import contextlib
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
from PIL import Image

from sfss_ray.masks import generate
from sfss_ray.masks.bank.schema import shard_paths
from sfss_ray.masks.bank.store import MaskStore
from sfss_ray.masks.generate import generate_masks
from sfss_ray.masks.summary import MaskSummary
from sfss_ray.runtime.cluster import Resources


def run_pools_in_process(monkeypatch) -> None:
    """Run stage 1 with one actor in this process and two images in a shard."""

    def results(pool, items, spec):
        actor = pool.actor(spec | {"threads": 1, "pool": 1})
        for item in items:
            counts = actor({"shard": [item["shard"]]})
            yield {name: numbers[0] for name, numbers in counts.items()}

    @contextlib.contextmanager
    def running(pool, items, spec):
        yield results(pool, items, spec)

    monkeypatch.setattr(generate.Pool, "results", running)
    monkeypatch.setattr(generate, "_images_per_shard", lambda num_images, pool, config: 2)
    monkeypatch.setattr(
        generate.cluster, "connected", lambda compute: contextlib.nullcontext(Resources(1, 0))
    )


def put_noise(folder: Path, *names: str, size: tuple[int, int] = (24, 40), seed: int = 0) -> Path:
    """Write images of noise, of (height, width); return the folder."""
    rng = np.random.default_rng(seed)
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 256, (*size, 3), dtype=np.uint8)).save(folder / name)
    return folder


def make_masks(images: Path, folder: Path) -> MaskSummary:
    """Make masks with the default config, without progress lines."""
    return generate_masks(images, folder, progress=str)


def stored_ids(folder: Path) -> list[str]:
    """Return the image ids of all rows, sorted."""
    return sorted(
        image_id
        for path in shard_paths(folder)
        for image_id in pq.read_table(path)["image_id"].to_pylist()
    )


def stored_counts(folder: Path, image_id: str) -> list[str]:
    """Return the run lengths of an image's masks."""
    return [mask["counts"] for mask in MaskStore(folder).load(image_id)["masks"]]


def put_foreign_files(folder: Path) -> list[Path]:
    """Write tables of a user (one has a name like a shard), files that are not Parquet, and a folder."""
    import pandas

    folder.mkdir(exist_ok=True)
    names = ("masks-train.parquet", "other.parquet", f"masks-{'0' * 16}.parquet")
    for name in names:
        pandas.DataFrame({"image_id": ["a"], "x": [1]}).to_parquet(folder / name)
    (folder / "junk.parquet").write_bytes(b"no table")
    (folder / "masks-half.parquet").write_bytes(b"PAR1")
    (folder / "folder.parquet").mkdir()
    return sorted(p for p in folder.iterdir() if p.name.endswith(".parquet"))
