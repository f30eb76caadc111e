"""The prototypes that the anchors of a step are contrasted with, sorted for drawing."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from torch import Tensor

from sfss_ray.method.sorting import stable_order
from sfss_ray.method.transfer import send_arrays


@dataclass(frozen=True)
class PrototypePool:
    """Prototypes of R reliable masks, sorted by class, then image.

    Keys identify masks as those of `MaskOrigins` do. Entries of the prototype bank have key -1.
    """

    vectors: Tensor  # (R, D), on the networks' device
    classes: np.ndarray  # (R,)
    images: np.ndarray  # (R,) image numbers
    keys: np.ndarray  # (R,)
    sort_keys: np.ndarray  # (R,) of class and image, rising
    class_start: np.ndarray  # (C,)
    class_count: np.ndarray  # (C,)

    @staticmethod
    def build(
        vectors: Tensor,
        classes: np.ndarray,
        images: np.ndarray,
        keys: np.ndarray,
        num_classes: int,
    ) -> PrototypePool:
        """Sort entries by class, then image, then key. Ties keep their order."""
        sort_keys = sort_key(classes, images)
        order = stable_order(keys + 1)
        order = order[stable_order(sort_keys[order])]
        count = np.bincount(classes, minlength=num_classes)
        (order_on_device,) = send_arrays([order], vectors.device)
        return PrototypePool(
            vectors.index_select(0, order_on_device),
            classes[order],
            images[order],
            keys[order],
            sort_keys[order],
            count.cumsum() - count,
            count,
        )

    def positions_of(self, keys: np.ndarray) -> np.ndarray:
        """Return the pool entry (K,) of each mask key (K,), -1 for masks that are not in the pool."""
        fresh = np.flatnonzero(self.keys >= 0)
        if not len(fresh):
            return np.full_like(keys, -1)
        fresh = fresh[self.keys[fresh].argsort()]
        ordered = self.keys[fresh]
        index = np.searchsorted(ordered, keys).clip(max=len(ordered) - 1)
        return np.where(ordered[index] == keys, fresh[index], -1)


def sort_key(classes: np.ndarray, images: np.ndarray) -> np.ndarray:
    """Pack class and image into one integer that rises with the class, then the image."""
    return (classes << 32) + images
