"""One process of the pool: it holds the network and turns images into shards. No Ray here."""

from __future__ import annotations

import json
from functools import partial
from typing import Any

import numpy as np

from sfss_ray.config import MaskConfig
from sfss_ray.data.decoded_items import DecodedImage
from sfss_ray.data.file_names import printable
from sfss_ray.data.folders import ImageFile
from sfss_ray.errors import DataError
from sfss_ray.masks.bank.claims import is_claimed_by
from sfss_ray.masks.bank.schema import content_columns, shard_name, write_shard
from sfss_ray.masks.regions import RegionRecipe, RegionSource, build_region_source
from sfss_ray.runtime.crash_guard import CRASH_REASON, Attempts, loading_network
from sfss_ray.runtime.devices import worker_device
from sfss_ray.runtime.threads import use_threads
from sfss_ray.storage.places import Place, address_of, from_text, to_place

_MAX_REASON_LENGTH = 300
CRASHED = f"{CRASH_REASON} (it is tried again once its file is newer than its masks)"


def actor_spec(
    recipe: RegionRecipe,
    checkpoint: Place | str | None,
    folder: Place,
    masks: MaskConfig,
    device: str = "cpu",
    claim: str = "",
) -> dict[str, Any]:
    """Return the arguments of a MaskActor, except `threads` and `pool`, which the pool adds.

    Args:
        recipe: of the masks.
        checkpoint: SAM weights, or None for a recipe without a network.
        folder: of the shards.
        masks: for the settings that do not change masks.
        device: of the network.
        claim: of the run that owns the folder.
    """
    return {
        "recipe": recipe.as_dict(),
        "checkpoint": address_of(to_place(checkpoint)) if checkpoint else "",
        "folder": address_of(folder),
        "points_per_batch": masks.points_per_batch,
        "max_pixels": masks.max_pixels,
        "device": device,
        "claim": claim,
    }


class MaskActor:
    """Holds the network and turns the images of a shard into rows.

    Args:
        spec: from actor_spec, with `threads` of this process and `pool`, the number of actors.
    """

    encodes_strings = True
    """Whether this process also writes run lengths as strings; otherwise they are int32 arrays."""

    def __init__(self, spec: dict[str, Any]):
        self.spec = spec
        self.recipe = RegionRecipe(**spec["recipe"])
        if self.recipe.is_network:  # importing torch takes seconds
            use_threads(spec["threads"])
        with loading_network(to_place(spec["folder"]), spec["pool"]):
            self.find_regions = self._load_source()

    def _load_source(self) -> RegionSource:
        checkpoint = to_place(self.spec["checkpoint"]) if self.spec["checkpoint"] else None
        device = worker_device(self.spec["device"])
        batch = self.spec["points_per_batch"]
        return build_region_source(self.recipe, checkpoint, batch, device, self.encodes_strings)

    def __call__(self, batch: dict[str, Any]) -> dict[str, Any]:
        """Make the shards of a batch; return counts for each shard, which drive the progress line.

        Args:
            batch: "shard" is a list of JSON texts, each a list of (image_id, text of `to_text`).

        Returns:
            "images", "masks" and "errors", a list of numbers each.
        """
        shards = [self._make_shard(json.loads(str(shard))) for shard in batch["shard"]]
        counts = [counts_of(rows) for rows in shards]
        return {name: [shard[name] for shard in counts] for name in ("images", "masks", "errors")}

    def _make_shard(self, images: list[tuple[str, str]]) -> list[dict[str, Any]]:
        """Make and write a shard of images (image_id, path); return its rows."""
        folder, image_ids = to_place(self.spec["folder"]), [image_id for image_id, _ in images]
        attempts, rows = Attempts(folder, image_ids), []
        for image_id, text in images:
            path = from_text(text)
            make = partial(self._make_row, image_id, path)
            skip = partial(failed_row, ImageFile(image_id, path), CRASHED)
            rows.append(attempts.guard(image_id, make, skip))
        commit_shard(rows, self.spec)
        attempts.forget()
        return rows

    def _make_row(self, image_id: str, path: Place) -> dict[str, Any]:
        return self._row_of(DecodedImage(ImageFile(image_id, path, self.recipe.white)))

    def _row_of(self, image: DecodedImage) -> dict[str, Any]:
        """Return the row of an image, which is decoded first where that was not done."""
        if image.is_pending:
            image = image.decode(self.spec["max_pixels"], explain)
        reason, columns = image.error, content_columns(image.content)
        if image.pixels is not None:
            try:
                masks = self._find_masks(image.pixels)
            except Exception as error:  # only this image fails, whatever the source raises
                reason = reason_of(error)
            else:
                height, width = image.pixels.shape[:2]
                row = {"image_id": image.file.image_id, "path": printable(image.file.path)}
                return (
                    row
                    | columns
                    | {"error": None, "height": height, "width": width, "masks": masks}
                )
        assert reason is not None, "an image without pixels says why"
        return failed_row(image.file, reason) | columns

    def _find_masks(self, image: np.ndarray) -> list[dict[str, Any]]:
        """Return the masks of an image; try once more with an empty cache if GPU memory is full."""
        if not self.recipe.is_network:
            return self.find_regions(image)
        import torch

        try:
            return self.find_regions(image)
        except torch.OutOfMemoryError:
            pass  # the error refers to the tensors of its frames, which are released here
        torch.cuda.empty_cache()
        return self.find_regions(image)


def commit_shard(rows: list[dict[str, Any]], spec: dict[str, Any]) -> None:
    """Write rows as a shard under the name of their images, if the folder still belongs to this run.

    Processes of the pool outlive a killed driver, and another run may have claimed the folder.
    """
    folder = to_place(spec["folder"])
    path = folder / shard_name([row["image_id"] for row in rows])
    write_shard(path, rows, spec["recipe"], lambda: is_claimed_by(folder, spec["claim"]))


def failed_row(file: ImageFile, reason: str) -> dict[str, Any]:
    """Return the row of an image without masks."""
    row = {"image_id": file.image_id, "path": printable(file.path), "error": reason}
    return row | {"height": 0, "width": 0, "masks": []}


def counts_of(rows: list[dict[str, Any]]) -> dict[str, int]:
    """Return the counts of a shard that drive the progress line."""
    return {
        "images": len(rows),
        "masks": sum(len(row["masks"]) for row in rows),
        "errors": sum(row["error"] is not None for row in rows),
    }


def explain(_: ImageFile, error: Exception) -> str:
    """Return why an image cannot be decoded; see `DecodedImage.decode`."""
    return reason_of(error)


def reason_of(error: Exception) -> str:
    """Return one line for the error column: the text, with the type for unexpected errors."""
    text = " ".join(str(error).split())
    if not isinstance(error, DataError | OSError):
        text = f"{type(error).__name__}: {text}" if text else type(error).__name__
    return text[:_MAX_REASON_LENGTH]
