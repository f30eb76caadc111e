"""Training samples: crops that are a pure function of (seed, sample number).

Samples are numbered through the whole run. Step t of batch size b uses numbers (t - 1) * b to t * b - 1,
whatever the number of workers, and a resumed run continues with the next number. So neither the number
of workers nor an interruption changes the training data.
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
from torch.nn.utils.rnn import pad_sequence
from torch.utils.data import DataLoader, Dataset, Sampler, default_collate

from sfss_ray.config import AugmentConfig
from sfss_ray.config.worker_shares import share_sizes
from sfss_ray.data.augment import Geometry, draw_geometry, strong_view
from sfss_ray.data.folders import ImageFile, LabelledImage
from sfss_ray.errors import DataError
from sfss_ray.masks.bank.geometry import GEOMETRY_WIDTH
from sfss_ray.masks.bank.store import MaskStore
from sfss_ray.masks.concepts.score_maps import ConceptScores
from sfss_ray.method.concept_evidence import CONCEPT_SCORES
from sfss_ray.method.mask_space import MASK_EMBEDDING, MASK_GEOMETRY


def image_of_sample(seed: int, number: int, num_images: int) -> int:
    """Return the index of the image of a sample: every image once per epoch, shuffled."""
    epoch, position = divmod(number, num_images)
    return int(_epoch_order(seed, epoch, num_images)[position])


@lru_cache(maxsize=8)
def _epoch_order(seed: int, epoch: int, num_images: int) -> np.ndarray:
    return np.random.default_rng([seed, 1, epoch]).permutation(num_images)


def _sample_rng(seed: int, number: int) -> np.random.Generator:
    return np.random.default_rng([seed, 2, number])


def _image_tensor(image: np.ndarray) -> Tensor:
    return torch.from_numpy(np.ascontiguousarray(image)).permute(2, 0, 1)


class _ArrayCache:
    """Decoded images of a data set that is small enough for memory.

    Each image may take an equal part of the limit. Nothing is evicted: in a shuffled epoch, recently
    used images are the least likely to be needed soon.
    """

    def __init__(self, num_images: int, max_bytes: int = 256 * 2**20):
        self.max_bytes_per_image = max_bytes // max(num_images, 1)
        self._arrays: dict[int, tuple[np.ndarray, ...]] = {}

    def get(self, index: int, read: Callable[[], tuple[np.ndarray, ...]]) -> tuple[np.ndarray, ...]:
        """Return the arrays of an image, reading them if they are not cached. Do not write to them."""
        if index in self._arrays:
            return self._arrays[index]
        arrays = read()
        if sum(array.nbytes for array in arrays) <= self.max_bytes_per_image:
            self._arrays[index] = arrays
        return arrays


class TargetSamples(Dataset):
    """Unlabelled crops: weak and strong view (3, H, W) uint8 and mask ids (H, W), one geometry.

    The K masks of a crop have the ids 1 .. K, in the order of their first pixels, so that nothing
    depends on their order in a file. Without a mask folder all ids are 0. With `with_geometry` a sample
    also has `mask_geometry`, the place and size (K + 1, 4) of the masks in the whole image, see
    `MaskStore.geometry`; with `with_embeddings` also `mask_embedding` (K + 1, C). Row 0 is no mask.

    Attributes:
        concepts: Scores of masks with classes. If set, a sample has `concept_scores` (C, H, W) uint8,
            see `ConceptScores.crop`.
    """

    def __init__(
        self,
        images: Sequence[ImageFile],
        masks: Path | str | None,
        augment: AugmentConfig,
        seed: int,
        with_geometry: bool = False,
        with_embeddings: bool = False,
    ):
        self.images, self.augment, self.seed = list(images), augment, seed
        self.store = MaskStore(masks) if masks else None
        self.with_geometry, self.with_embeddings = with_geometry, with_embeddings
        self.concepts: ConceptScores | None = None
        self._cache = _ArrayCache(len(self.images))
        self._geometry_cache = _ArrayCache(len(self.images))
        self._embedding_cache = _ArrayCache(len(self.images))

    def __getitem__(self, number: int) -> dict[str, Any]:
        rng = _sample_rng(self.seed, number)
        index = image_of_sample(self.seed, number, len(self.images))
        file = self.images[index]
        # Mask generation has read the image already, so its size was accepted there.
        (image,) = self._cache.get(index, lambda: (file.read(max_pixels=None),))
        geometry = draw_geometry(self.augment, image.shape[:2], rng)
        weak = geometry.apply_to_image(image)
        strong = strong_view(weak, self.augment, rng)
        stored_ids = self._mask_ids(file.image_id, geometry, image.shape[:2])
        mask_ids, rows = number_by_first_pixel(stored_ids)
        sample = {
            "weak": _image_tensor(weak),
            "strong": _image_tensor(strong),
            "mask_ids": torch.from_numpy(mask_ids.astype(np.int64)),
            "image": index,
            "number": number,
        }
        if self.concepts is not None:
            pixels = geometry.nearest_pixels(image.shape[:2])
            scores = self.concepts.crop(file.image_id, *pixels)
            sample[CONCEPT_SCORES] = torch.from_numpy(scores)
        if self.with_geometry:
            sample[MASK_GEOMETRY] = torch.from_numpy(self._mask_geometry(index)[rows])
        if self.with_embeddings and self.store is not None:
            embeddings = self._mask_embedding(index, self.store)
            sample[MASK_EMBEDDING] = torch.from_numpy(embeddings[rows])
        return sample

    def _mask_geometry(self, index: int) -> np.ndarray:
        if self.store is None:
            return np.zeros((1, GEOMETRY_WIDTH), np.float32)
        store, image_id = self.store, self.images[index].image_id
        (rows,) = self._geometry_cache.get(index, lambda: (store.geometry(image_id),))
        return rows

    def _mask_embedding(self, index: int, store: MaskStore) -> np.ndarray:
        image_id = self.images[index].image_id
        (rows,) = self._embedding_cache.get(index, lambda: (store.embeddings(image_id),))
        return rows

    def _mask_ids(self, image_id: str, geometry: Geometry, size: tuple[int, int]) -> np.ndarray:
        if self.store is None:
            return np.zeros(geometry.size, np.int32)
        return self.store.id_crop(image_id, *geometry.nearest_pixels(size))


def number_by_first_pixel(ids: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Number the masks of a map in the order of their first pixels, row by row.

    Args:
        ids: (H, W) mask ids, 0 = no mask.

    Returns:
        The map (H, W) with ids from 1, and the former id of each new one, (K + 1,) with 0 first.
    """
    flat = ids.ravel()
    first = np.full(int(flat.max(initial=0)) + 1, flat.size)
    first[flat[::-1]] = np.arange(flat.size)[
        ::-1
    ]  # of several pixels the last written is the first
    first[0] = -1
    former = np.argsort(first, kind="stable")[: np.count_nonzero(first < flat.size)]
    numbers = np.zeros(len(first), ids.dtype)
    numbers[former] = np.arange(len(former))
    return numbers[ids], former


class LabelledSamples(Dataset):
    """Labelled crops for training a source model: image (3, H, W) uint8, labels (H, W) int64."""

    def __init__(self, images: Sequence[LabelledImage], augment: AugmentConfig, seed: int):
        self.images, self.augment, self.seed = list(images), augment, seed
        self._cache = _ArrayCache(len(self.images))

    def __getitem__(self, number: int) -> dict[str, Any]:
        rng = _sample_rng(self.seed, number)
        index = image_of_sample(self.seed, number, len(self.images))
        file = self.images[index]
        image, labels = self._cache.get(index, lambda: (file.read(), file.labels()))
        if image.shape[:2] != labels.shape:
            raise DataError(
                f"labels {str(file.label_path)!r} are {labels.shape[1]}x{labels.shape[0]} but their"
                f" image is {image.shape[1]}x{image.shape[0]}: give pairs of one size"
            )
        geometry = draw_geometry(self.augment, labels.shape, rng)
        image_crop = strong_view(geometry.apply_to_image(image), self.augment, rng)
        label_crop = geometry.apply_to_ids(labels, labels.shape)
        return {
            "image": _image_tensor(image_crop),
            "labels": torch.from_numpy(label_crop.astype(np.int64)),
        }


@dataclass(frozen=True)
class Share:
    """One worker's share of each batch.

    An accumulated batch is split into `parts` first, and each part into the workers' shares. So a part
    contains the same samples whatever the number of workers. Shares that cannot be equal differ by one
    unit, and losses weigh each sample alike whatever its worker's share.
    """

    rank: int = 0
    world: int = 1
    parts: int = 1
    unit: int = 1
    """Samples that stay together on a worker."""

    def of_step(self, step: int, batch_size: int) -> list[int]:
        """Return this worker's sample numbers of a step (from 0), part by part."""
        part_size = batch_size // self.parts
        sizes = share_sizes(part_size, self.world, self.unit)
        first = step * batch_size + sum(sizes[: self.rank])
        starts = (first + part * part_size for part in range(self.parts))
        return [number for start in starts for number in range(start, start + sizes[self.rank])]


WHOLE = Share()
"""The share of a single worker."""


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
    """Return a loader of this worker's batches of steps start + 1 to num_steps, in order.

    Args:
        samples: Indexed by sample number.
        start: Steps taken before, 0 for a new run.
        num_steps: Steps of the whole run.
        batch_size: Samples per step over all workers.
        share: This worker's share of a batch.
        processes: Loader processes. 0 loads in this process.
    """
    return DataLoader(
        samples,
        batch_sampler=_StepBatches(start, num_steps, batch_size, share),
        collate_fn=_collate,
        num_workers=processes,
        persistent_workers=processes > 0,
    )


def _collate(samples: list[dict[str, Any]]) -> dict[str, Any]:
    """Stack samples, after padding what describes masks to the largest number of masks."""
    by_mask = [name for name in (MASK_GEOMETRY, MASK_EMBEDDING) if name in samples[0]]
    padded = {
        name: pad_sequence([sample[name] for sample in samples], batch_first=True)
        for name in by_mask
    }
    rest = [{k: v for k, v in sample.items() if k not in by_mask} for sample in samples]
    return default_collate(rest) | padded
