"""Masks in three stages: a task decodes the images of a shard, an actor finds masks, a task writes them.

The network then runs without a pause, because other processes decode the next shards and write the
former ones. No Ray here.
"""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pyarrow as pa

from sfss_ray.data.decoded_items import DecodedImage, decode_images, run_network
from sfss_ray.data.folders import ImageFile
from sfss_ray.masks.actor import (
    CRASHED,
    MaskActor,
    commit_shard,
    counts_of,
    explain,
    failed_row,
)
from sfss_ray.masks.regions import RegionRecipe, encode_counts
from sfss_ray.runtime.crash_guard import Attempts, writing_item
from sfss_ray.runtime.item_table import pack_item, unpack_item
from sfss_ray.runtime.pool_plan import ITEM_BYTES
from sfss_ray.storage.places import from_text, to_place


def decode_shard(batch: pa.Table, spec: dict[str, Any]) -> pa.Table:
    """Read and decode the images of a shard.

    Args:
        batch: "shard" holds one JSON text, a list of (image_id, text of `to_text`).
        spec: from `actor_spec`.

    Returns:
        An item with the images.
    """
    white = RegionRecipe(**spec["recipe"]).white
    files = [
        ImageFile(image_id, from_text(text), white)
        for image_id, text in json.loads(batch["shard"][0].as_py())
    ]
    attempts = Attempts(to_place(spec["folder"]), [file.image_id for file in files], "decode")

    def decode(image: DecodedImage) -> DecodedImage:
        return image.decode(spec["max_pixels"], explain)

    return pack_item(decode_images(files, attempts, ITEM_BYTES, decode, CRASHED))


class StagedMaskActor(MaskActor):
    """A process of the pool that runs the network alone; see `MaskActor`."""

    encodes_strings = False

    def __call__(self, batch: pa.Table) -> pa.Table:
        """Return an item with the rows of a shard, given one of `decode_shard`."""
        images: list[DecodedImage] = unpack_item(batch)
        rows = run_network(
            images,
            to_place(self.spec["folder"]),
            self._row_of,
            lambda image: failed_row(image.file, CRASHED),
        )
        return pack_item(rows)

    def _find_masks(self, image: np.ndarray) -> list[dict[str, Any]]:
        # Views of the object store are read-only, and torch warns about these.
        return super()._find_masks(image if image.flags.writeable else image.copy())


def write_rows(batch: pa.Table, spec: dict[str, Any]) -> dict[str, list[int]]:
    """Encode the run lengths of a shard's masks, and write it; return its counts."""
    rows: list[dict[str, Any]] = unpack_item(batch)
    with writing_item(to_place(spec["folder"]), [row["image_id"] for row in rows]):
        encode_counts(rows)
        commit_shard(rows, spec)
    return {name: [number] for name, number in counts_of(rows).items()}
