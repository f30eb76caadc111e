"""What a training step sees of the disk: crops, as a pure function of (seed, sample number).

Samples are numbered through the whole run: step t of batch size b uses numbers (t - 1) * b to
t * b - 1, whatever the number of workers, and a run that is resumed goes on with the number that
comes next. So neither world size nor an interruption changes what is learnt from.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler

from sfss_ray.config import AugmentConfig
from sfss_ray.data.augment import draw_geometry, strong_view
from sfss_ray.data.folders import ImageFile, LabelledImage
from sfss_ray.errors import DataError
from sfss_ray.masks.bank.store import MaskStore


def image_of_sample(seed: int, number: int, images: int) -> int:
    """Index of the image that sample `number` shows: every image once per epoch, shuffled."""
    epoch, place = divmod(number, images)
    return int(_epoch_order(seed, epoch, images)[place])


@lru_cache(maxsize=8)
def _epoch_order(seed: int, epoch: int, images: int) -> np.ndarray:
    return np.random.default_rng([seed, 1, epoch]).permutation(images)


def _sample_rng(seed: int, number: int) -> np.random.Generator:
    return np.random.default_rng([seed, 2, number])


def _tensor(image: np.ndarray) -> Tensor:
    return torch.from_numpy(np.ascontiguousarray(image)).permute(2, 0, 1)


class _Held:
    """What was read of a data set small enough to stay in memory; of a larger one, nothing.

    Kept until the end, not by last use: in a shuffled epoch a part that fits is rarely asked for again.
    """

    def __init__(self, number: int, most_bytes: int = 256 * 2**20):
        self.most_bytes_each = most_bytes // max(number, 1)
        self._held: dict[int, tuple[np.ndarray, ...]] = {}

    def get(self, index: int, read: Callable[[], tuple[np.ndarray, ...]]) -> tuple[np.ndarray, ...]:
        """Arrays of an image, not to be written to."""
        if index in self._held:
            return self._held[index]
        arrays = read()
        if sum(array.nbytes for array in arrays) <= self.most_bytes_each:
            self._held[index] = arrays
        return arrays


class TargetSamples(Dataset):
    """Unlabelled crops: weak and strong view (3, H, W) uint8 and mask ids (H, W), one geometry.

    Without a mask folder all mask ids are 0.
    """

    def __init__(
        self,
        images: Sequence[ImageFile],
        masks: Path | str | None,
        augment: AugmentConfig,
        seed: int,
    ):
        self.images, self.augment, self.seed = list(images), augment, seed
        self.store = MaskStore(masks) if masks else None
        self._held = _Held(len(self.images))

    def __getitem__(self, number: int) -> dict[str, Any]:
        rng = _sample_rng(self.seed, number)
        index = image_of_sample(self.seed, number, len(self.images))
        file = self.images[index]
        # The masks have seen it, so its size is allowed.
        (image,) = self._held.get(index, lambda: (file.read(max_pixels=None),))
        geometry = draw_geometry(self.augment, image.shape[:2], rng)
        weak = geometry.apply_to_image(image)
        strong = strong_view(weak, self.augment, rng)
        ids = self._mask_ids(file.image_id, geometry, image.shape[:2])
        return {
            "weak": _tensor(weak),
            "strong": _tensor(strong),
            "mask_ids": torch.from_numpy(ids.astype(np.int64)),
            "image": index,
            "number": number,
        }

    def _mask_ids(self, image_id: str, geometry, size: tuple[int, int]) -> np.ndarray:
        if self.store is None:
            return np.zeros(geometry.size, np.int32)
        return self.store.id_crop(image_id, *geometry.nearest_pixels(size))


class LabelledSamples(Dataset):
    """Labelled crops for training a source model: image (3, H, W) uint8, labels (H, W) int64."""

    def __init__(self, images: Sequence[LabelledImage], augment: AugmentConfig, seed: int):
        self.images, self.augment, self.seed = list(images), augment, seed
        self._held = _Held(len(self.images))

    def __getitem__(self, number: int) -> dict[str, Any]:
        rng = _sample_rng(self.seed, number)
        index = image_of_sample(self.seed, number, len(self.images))
        file = self.images[index]
        image, labels = self._held.get(index, lambda: (file.read(), file.labels()))
        if image.shape[:2] != labels.shape:
            raise DataError(
                f"labels {str(file.label_path)!r} are {labels.shape[1]}x{labels.shape[0]} but their"
                f" image is {image.shape[1]}x{image.shape[0]}: give pairs of one size"
            )
        geometry = draw_geometry(self.augment, labels.shape, rng)
        crop = strong_view(geometry.apply_to_image(image), self.augment, rng)
        cut = geometry.apply_to_ids(labels, labels.shape)
        return {"image": _tensor(crop), "labels": torch.from_numpy(cut.astype(np.int64))}


@dataclass(frozen=True)
class Share:
    """What one of several workers sees of each batch.

    A batch that is worked through in `parts` is cut into these first, and each part into the workers'
    shares: so a part holds the same samples whatever the number of workers.
    """

    rank: int = 0
    world: int = 1
    parts: int = 1

    def of_step(self, step: int, batch_size: int) -> list[int]:
        """Sample numbers of this worker in step `step` (from 0 on), part by part."""
        part = batch_size // self.parts
        mine = part // self.world
        starts = (step * batch_size + k * part + self.rank * mine for k in range(self.parts))
        return [number for start in starts for number in range(start, start + mine)]


WHOLE = Share()
"""Of a worker that is alone."""


class _StepBatches(Sampler[list[int]]):
    """Sample numbers of this worker's share of each step after `start`."""

    def __init__(self, start: int, num_steps: int, batch_size: int, share: Share):
        self.steps = range(start, num_steps)
        self.batch_size, self.share = batch_size, share

    def __iter__(self) -> Iterator[list[int]]:
        for step in self.steps:
            yield self.share.of_step(step, self.batch_size)

    def __len__(self) -> int:
        return len(self.steps)


def step_loader(
    samples: Dataset,
    start: int,
    num_steps: int,
    batch_size: int,
    share: Share = WHOLE,
    processes: int = 0,
) -> DataLoader:
    """Batches of this worker for steps start + 1 to num_steps, in order."""
    return DataLoader(
        samples,
        batch_sampler=_StepBatches(start, num_steps, batch_size, share),
        num_workers=processes,
        persistent_workers=processes > 0,
    )
