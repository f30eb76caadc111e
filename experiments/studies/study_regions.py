"""Regions of the studies, with embeddings of the small SAM's image encoder for all of them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch

from sfss_ray.config import Config, override
from sfss_ray.data.decoding import read_image
from sfss_ray.data.folders import ImageFile, read_labels
from sfss_ray.masks.regions import build_region_source, make_recipe, region_records
from sfss_ray.streets.default import TARGET_SEED

REGIONS = ("felzenszwalb", "small_sam", "random", "ground_truth")
RANDOM_REGIONS = 60  # per image, about as many as Felzenszwalb's

MaskFinder = Callable[[ImageFile, np.ndarray], list[dict[str, Any]]]
"""Returns the masks of a file, given also its image (H, W, 3)."""


def mask_finder(
    regions: str, config: Config, instances: Callable[[ImageFile], np.ndarray]
) -> tuple[MaskFinder, dict[str, Any]]:
    """Return what finds the masks of an image, and its recipe.

    Args:
        regions: One of REGIONS.
        config: Settings of masks.
        instances: Returns the true regions of an image, (H, W) ids, 0 = none.
    """
    if regions == "small_sam":
        settings = {"masks.regions": regions, "masks.embeddings": True}
        masks = override(config, settings).masks
        recipe, checkpoint = make_recipe(masks, None)
        segment = build_region_source(recipe, checkpoint, masks.points_per_batch, "cpu")
        return lambda _, image: segment(image), recipe.as_dict()
    if regions == "felzenszwalb":
        masks = override(config, {"masks.regions": regions}).masks
        recipe, _ = make_recipe(masks, None)
        segment = build_region_source(recipe, None, masks.points_per_batch, "cpu")
        return _embedded(lambda _, image: segment(image), recipe.as_dict())
    recipe = {"source": regions, "sam_type": "", "sam_sha256": "", "knobs": {}}
    if regions == "random":
        return _embedded(lambda file, image: region_records(random_regions(file, image)), recipe)
    return _embedded(lambda file, _: region_records(instances(file)), recipe)


def _embedded(find_masks: MaskFinder, recipe: dict[str, Any]) -> tuple[MaskFinder, dict[str, Any]]:
    """Return a finder whose masks have embeddings, and the recipe with them."""
    from segment_anything import SamPredictor
    from segment_anything.modeling import Sam

    from sfss_ray.masks.sam.loading import load_promptable
    from sfss_ray.masks.sam.mask_embeddings import add_embeddings
    from sfss_ray.masks.sam.networks import shipped_small_sam
    from sfss_ray.masks.sam.resize import PillowResize
    from sfss_ray.masks.sam.segment_anything_model import SegmentAnythingModel

    network = cast(Sam, load_promptable(shipped_small_sam()))
    encoder = SegmentAnythingModel(SamPredictor(network), PillowResize())

    def find(file: ImageFile, image: np.ndarray) -> list[dict[str, Any]]:
        with torch.no_grad():
            encoded = encoder.encode(image, torch.float32)
        return add_embeddings(find_masks(file, image), encoded, (image.shape[0], image.shape[1]))

    return find, recipe | {"embeddings": True}


def row_of(file: ImageFile, find_masks: MaskFinder) -> dict[str, Any]:
    """Return the row of an image in a shard of masks."""
    image = read_image(file.path)
    row = {"image_id": file.image_id, "path": str(file.path), "error": None}
    return row | {
        "height": image.shape[0],
        "width": image.shape[1],
        "masks": find_masks(file, image),
    }


def random_regions(file: ImageFile, image: np.ndarray) -> np.ndarray:
    """Return ids 1..60 (H, W): each pixel belongs to the nearest of 60 random points."""
    from scipy.spatial import KDTree

    height, width = image.shape[:2]
    seed = [ord(letter) for letter in file.image_id]
    points = np.random.default_rng(seed).uniform(0, (height, width), (RANDOM_REGIONS, 2))
    pixels = np.indices((height, width)).reshape(2, -1).T
    return KDTree(points).query(pixels)[1].reshape(height, width) + 1


def drawn_instances(file: ImageFile, domain: str = "camera") -> np.ndarray:
    """Draw a target scene again and return its instance map."""
    from sfss_ray.streets.scenes import render_scene

    return render_scene(domain, TARGET_SEED, int(file.image_id)).instances


def labelled_regions(labels: Path, file: ImageFile) -> np.ndarray:
    """Return the connected components of the label map of an image."""
    return connected_regions(read_labels(labels / f"{file.image_id}.png"))


def connected_regions(labels: np.ndarray) -> np.ndarray:
    """Return ids (H, W) of the connected components of each class, 0 without a class."""
    from skimage.measure import label

    components = np.asarray(label(labels, background=255, connectivity=1))
    return components.astype(np.int32)
