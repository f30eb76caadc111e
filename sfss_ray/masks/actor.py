"""What a process of the pool does: it holds the network and turns images into shards. No Ray here."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np

from sfss_ray.config import MaskConfig
from sfss_ray.data.content import read_with_content
from sfss_ray.data.decoding import decode_image
from sfss_ray.data.file_names import printable
from sfss_ray.errors import DataError
from sfss_ray.masks.bank.claims import is_claimed_by
from sfss_ray.masks.bank.schema import content_columns, shard_name, write_shard
from sfss_ray.masks.regions import RegionRecipe, RegionSource, build_region_source
from sfss_ray.runtime.crash_guard import CRASH_REASON, Attempts, loading_network
from sfss_ray.runtime.threads import use_threads

_REASON_LENGTH = 300
_DIED = f"{CRASH_REASON} (it is tried again once its file is newer than its masks)"


def actor_spec(
    recipe: RegionRecipe,
    checkpoint: Path | str | None,
    folder: Path,
    masks: MaskConfig,
    device: str = "cpu",
    claim: str = "",
) -> dict[str, Any]:
    """What a MaskActor is made of, but for `threads` and `pool`, which the pool adds.

    Args:
        recipe: of the masks.
        checkpoint: SAM weights, where the recipe has some.
        folder: of the shards.
        masks: for knobs that change no mask.
        device: of the network.
        claim: the run that the folder belongs to.
    """
    return {
        "recipe": recipe.as_dict(),
        "checkpoint": str(Path(checkpoint).absolute()) if checkpoint else "",
        "folder": str(folder),
        "points_per_batch": masks.points_per_batch,
        "max_pixels": masks.max_pixels,
        "device": device,
        "claim": claim,
    }


class MaskActor:
    """One process of the pool: holds the network, turns a shard's images into rows.

    Args:
        spec: of actor_spec, with `threads` of this process and `pool`, the number of actors.
    """

    def __init__(self, spec: dict[str, Any]):
        self.spec = spec
        self.recipe = RegionRecipe(**spec["recipe"])
        if self.recipe.is_network:  # torch takes seconds to start
            use_threads(spec["threads"])
        with loading_network(Path(spec["folder"]), spec["pool"]):
            self.find_regions = self._source()

    def _source(self) -> RegionSource:
        checkpoint = Path(self.spec["checkpoint"]) if self.spec["checkpoint"] else None
        return build_region_source(
            self.recipe, checkpoint, self.spec["points_per_batch"], self.spec["device"]
        )

    def __call__(self, batch: dict[str, Any]) -> dict[str, Any]:
        """Make the shards of a batch; returns a line of facts for each, which drives progress."""
        facts: dict[str, list] = {"images": [], "masks": [], "errors": []}
        for shard in batch["shard"]:
            images = json.loads(str(shard))
            rows = self._write(images)
            facts["images"].append(len(rows))
            facts["masks"].append(sum(len(r["masks"]) for r in rows))
            facts["errors"].append(sum(r["error"] is not None for r in rows))
        return facts

    def _write(self, images: list[tuple[str, str]]) -> list[dict[str, Any]]:
        """Make and write a shard; returns its rows."""
        folder, ids = Path(self.spec["folder"]), [image_id for image_id, _ in images]
        attempts, rows = Attempts(folder, ids), []
        for image_id, path in images:
            if attempts.begin(image_id):
                rows.append(self._row(image_id, path))
                attempts.end(image_id)
            else:
                rows.append(_failed_row(image_id, path, _DIED))
        write_shard(folder / shard_name(ids), rows, self.recipe.as_dict(), self._is_wanted)
        attempts.forget()
        return rows

    def _is_wanted(self) -> bool:
        """Whether the folder is still this run's; an actor outlives a driver that was killed."""
        return is_claimed_by(Path(self.spec["folder"]), self.spec["claim"])

    def _row(self, image_id: str, path: str) -> dict[str, Any]:
        content = None
        try:
            data, content = read_with_content(path)
            image = decode_image(data, self.spec["max_pixels"], self.recipe.white)
            masks = self._regions(image)
        except Exception as error:  # whatever one image does to a source, the others go on
            return _failed_row(image_id, path, reason_of(error)) | content_columns(content)
        row = {"image_id": image_id, "path": printable(path), "error": None}
        row |= content_columns(content)
        return row | {"height": image.shape[0], "width": image.shape[1], "masks": masks}

    def _regions(self, image: np.ndarray) -> list[dict[str, Any]]:
        """Masks of an image; where the GPU's memory is full, once more after a clean-up."""
        if not self.recipe.is_network:
            return self.find_regions(image)
        import torch

        try:
            return self.find_regions(image)
        except torch.OutOfMemoryError:
            pass  # the error holds the tensors of its frames, which are free from here on
        torch.cuda.empty_cache()
        return self.find_regions(image)


def _failed_row(image_id: str, path: str, reason: str) -> dict[str, Any]:
    row = {"image_id": image_id, "path": printable(path), "error": reason}
    return row | {"height": 0, "width": 0, "masks": []}


def reason_of(error: Exception) -> str:
    """One line for the error column: what a user is told, or an error's type and text."""
    text = " ".join(str(error).split())
    if not isinstance(error, DataError | OSError):
        text = f"{type(error).__name__}: {text}" if text else type(error).__name__
    return text[:_REASON_LENGTH]
