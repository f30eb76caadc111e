"""The masks of all classes in an image, as records of a shard."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sfss_ray.masks.bank.run_lengths import encode_masks, to_coco_strings
from sfss_ray.masks.concepts.sam3_concepts import Instance, Sam3Concepts


def class_mask_source(
    model: Sam3Concepts,
    classes: Sequence[str],
    prompts: Mapping[str, Sequence[str]],
    score_thresh: float,
) -> Callable[[NDArray[np.uint8]], list[dict[str, Any]]]:
    """Return a function that finds the masks of all classes in an image (H, W, 3).

    Args:
        model: The network.
        classes: Names in the order of their numbers.
        prompts: Class -> its prompts.
        score_thresh: Masks need a higher score.

    Returns:
        Records by class, higher scores first. The order of the prompts does not change them.
    """
    listed = sorted((classes.index(name), text) for name in prompts for text in prompts[name])
    encoded = model.encode_prompts([text for _, text in listed])

    def find_masks(image: NDArray[np.uint8]) -> list[dict[str, Any]]:
        by_prompt = model.find(image, encoded, score_thresh)
        masks = [
            (class_id, instance)
            for (class_id, _), instances in zip(listed, by_prompt, strict=True)
            for instance in instances
            if instance.mask.any()
        ]
        masks.sort(key=lambda mask: (mask[0], -mask[1].score))  # stable: prompts stay in order
        return [_record(class_id, instance) for class_id, instance in masks]

    return find_masks


def _record(class_id: int, instance: Instance) -> dict[str, Any]:
    height, width = instance.mask.shape
    (y0, y1), (x0, x1) = (
        np.flatnonzero(instance.mask.any(axis))[[0, -1]].tolist() for axis in (1, 0)
    )
    region = instance.mask[y0 : y1 + 1, x0 : x1 + 1]
    (counts,) = to_coco_strings(encode_masks([region], [(y0, x0)], (height, width)))
    nan = float("nan")
    return {
        "counts": counts,
        "area": int(region.sum()),
        "bbox": [x0, y0, x1 - x0 + 1, y1 - y0 + 1],
        "predicted_iou": instance.score,
        "stability_score": nan,
        "point": [nan, nan],
        "crop_box": [0, 0, width, height],
        "class_id": class_id,
    }
