"""Training batches of the small SAM: windows of rendered scenes with point prompts.

The worker processes of the loader render the scenes during training.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import cv2
import numpy as np
import torch
from measure_small_sam import DOMAINS
from small_sam_learning import PAIRED_TOKENS, PIXELS_PER_LOGIT, SIDE, SMALLEST_TARGET, Batch
from torch import Tensor
from torch.utils.data import IterableDataset, get_worker_info

from sfss_ray.masks.sam.networks import SMALL_PATCH_SIZE
from sfss_ray.streets.scenes import render_scene

RENDER_SIZES = (*((128, 256),) * 5, (192, 256), (192, 256), (256, 512))  # (height, width) in px
POOL_AT_START = 64
POOL_CAPACITY = 2000


@dataclass(frozen=True)
class Stage:
    """A stage of the training: its image sizes, batch and loss."""

    until: float  # share of the training time at which the stage ends
    sizes: tuple[tuple[int, int], ...]  # (height, width) in px, one for each batch
    padded: float  # share of batches padded to the square, as at inference
    images: int
    points: int  # per image
    focal: bool


WIDE_SIZES = ((128, 256), (128, 256), (128, 256), (128, 256), (160, 256), (192, 256), (192, 256))
STAGES = (
    Stage(0.20, ((128, 128),), padded=0.0, images=12, points=6, focal=False),
    Stage(0.30, ((128, 128),), padded=0.0, images=12, points=6, focal=True),
    Stage(0.60, WIDE_SIZES, padded=0.5, images=5, points=8, focal=True),
    Stage(math.inf, (*WIDE_SIZES, (256, 256)), padded=1.0, images=4, points=10, focal=True),
)


CONTINUED_STAGES = (
    Stage(0.40, WIDE_SIZES, padded=0.5, images=5, points=8, focal=True),
    Stage(math.inf, (*WIDE_SIZES, (256, 256)), padded=1.0, images=4, points=10, focal=True),
)


def stage_at(stages: Sequence[Stage], progress: float) -> Stage:
    """Return the stage at a share of the training time."""
    return next(stage for stage in stages if progress < stage.until)


class ScenePool:
    """A pool of rendered scenes of both domains. Each draw renders one new scene, to save time.

    Pool `part` of `parts` renders every parts-th scene of the seed.
    """

    def __init__(self, seed: int, rendered: int = 0, part: int = 0, parts: int = 1) -> None:
        self.seed = seed
        self.next = rendered + part
        self.parts = parts
        self.rng = np.random.default_rng([seed, rendered, part])
        self.scenes: deque[tuple[np.ndarray, ...]] = deque(maxlen=POOL_CAPACITY)
        for _ in range(max(1, POOL_AT_START // parts)):
            self._render_next()

    def _render_next(self) -> None:
        domain = DOMAINS[self.rng.integers(len(DOMAINS))]
        size = RENDER_SIZES[self.rng.integers(len(RENDER_SIZES))]
        scene = render_scene(domain, self.seed, self.next, size)
        self.scenes.append((scene.image, scene.instances, scene.parts))
        self.next += self.parts

    def sample(self, count: int, rng: np.random.Generator) -> list[tuple[np.ndarray, ...]]:
        """Return the newest scene and random others."""
        self._render_next()
        indices = rng.integers(0, len(self.scenes), count - 1)
        return [self.scenes[-1], *(self.scenes[i] for i in indices)]


def cut_window(
    scene: tuple[np.ndarray, ...], size: tuple[int, int], rng: np.random.Generator
) -> tuple[np.ndarray, ...]:
    """Crop a window with the aspect ratio of `size` (H, W), resize it, and flip it at random."""
    height, width = scene[0].shape[:2]
    widest = min(width, height * size[1] / size[0])
    cut_width = widest * (1.0 if rng.random() < 0.5 else rng.uniform(0.55, 1.0))
    cut_height = cut_width * size[0] / size[1]
    x_start = rng.uniform(0, width - cut_width)
    y_start = rng.uniform(0, height - cut_height)
    y0, x0 = int(y_start), int(x_start)
    y1, x1 = y0 + max(8, round(cut_height)), x0 + max(8, round(cut_width))
    step = -1 if rng.random() < 0.5 else 1
    target = (size[1], size[0])
    shrinks = cut_width > size[1]
    modes = (
        cv2.INTER_AREA if shrinks else cv2.INTER_LINEAR,
        cv2.INTER_NEAREST,
        cv2.INTER_NEAREST,
    )
    return tuple(
        np.ascontiguousarray(cv2.resize(plane[y0:y1, x0:x1], target, interpolation=mode)[:, ::step])
        for plane, mode in zip(scene, modes, strict=True)
    )


def vary_appearance(image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Vary light, colour, blur and noise: uint8 HWC to float32 HWC in 0..255."""
    pixels = image.astype(np.float32)
    if rng.random() < 0.15:
        return pixels
    if rng.random() < 0.25:
        pixels = cv2.GaussianBlur(pixels, (0, 0), rng.uniform(0.3, 1.0))
    grey = pixels.mean(axis=2, keepdims=True)
    saturation = 0.0 if rng.random() < 0.05 else rng.uniform(0.5, 1.4)
    pixels = grey + saturation * (pixels - grey)
    gain = rng.uniform(0.85, 1.15, 3) * rng.uniform(0.7, 1.3)
    pixels = (pixels - 128) * gain.astype(np.float32) + 128 + np.float32(rng.uniform(-35, 35))
    pixels = 255 * (np.clip(pixels, 0, 255) / 255) ** np.float32(rng.uniform(0.7, 1.4))
    if rng.random() < 0.4:
        noise = rng.standard_normal(pixels.shape, dtype=np.float32)
        pixels = pixels + np.float32(rng.uniform(0, 12)) * noise
    return np.clip(pixels, 0, 255)


def draw_points(
    instances: np.ndarray, parts: np.ndarray, count: int, rng: np.random.Generator
) -> np.ndarray | None:
    """Return points (count, 2) as (x, y): a third over pixels, objects and parts each.

    Return None where the window shows no object.
    """
    ys, xs = np.nonzero(instances)
    if len(ys) == 0:
        return None
    picked = rng.integers(0, len(ys), count)
    for kind, ids in ((1, instances), (2, parts)):
        flat = ids[ys, xs]
        names, areas = np.unique(flat, return_counts=True)
        names = names[areas >= min(SMALLEST_TARGET, areas.max())]
        for i in range(kind, count, 3):
            members = np.flatnonzero(flat == names[rng.integers(len(names))])
            picked[i] = members[rng.integers(len(members))]
    return np.stack([xs[picked], ys[picked]], axis=1)


def make_batch(pool: ScenePool, stage: Stage, rng: np.random.Generator) -> Batch:
    """Build one batch of a stage."""
    size = stage.sizes[rng.integers(len(stage.sizes))]
    rows: list[tuple[np.ndarray, ...]] = []
    draws = 0
    while len(rows) < stage.images:
        draws += 1
        for scene in pool.sample(stage.images - len(rows), rng):
            image, instances, parts = cut_window(scene, size, rng)
            points = draw_points(instances, parts, stage.points, rng)
            if points is not None:
                ids = np.stack([instances, parts], axis=-1)
                y, x = rng.integers(0, PIXELS_PER_LOGIT, 2)
                small = ids[y::PIXELS_PER_LOGIT, x::PIXELS_PER_LOGIT]
                target_ids = ids[points[:, 1], points[:, 0]]
                middle = SMALL_PATCH_SIZE // 2
                tokens = ids[middle::SMALL_PATCH_SIZE, middle::SMALL_PATCH_SIZE]
                pixels = vary_appearance(image, rng).round().astype(np.uint8)
                rows.append((pixels, points.astype(np.float32), target_ids, small, tokens))
    images, points, target_ids, ids, token_ids = (
        torch.from_numpy(np.stack(column)) for column in zip(*rows, strict=True)
    )
    padded = bool(rng.random() < stage.padded)
    token_shape = [length // SMALL_PATCH_SIZE for length in size]
    # Windows as wide as the square lie at its top, as at inference. Smaller ones lie anywhere.
    anywhere = not padded and token_shape[1] < SIDE
    position = [rng.integers(SIDE - length + 1) if anywhere else 0 for length in token_shape]
    paired = torch.from_numpy(rng.permutation(math.prod(token_shape))[:PAIRED_TOKENS])
    return Batch(
        images,
        points,
        target_ids,
        ids,
        token_ids,
        paired,
        torch.tensor(position),
        padded=padded,
        focal=stage.focal,
        rendered=draws,
    )


class BatchStream(IterableDataset):
    """Endless batches of the current stage. Each worker has a pool of its own."""

    def __init__(
        self, stages: Sequence[Stage], seed: int, step: int, rendered: int, progress: Tensor
    ) -> None:
        """Create a stream that continues after `step` updates and `rendered` scenes.

        `progress` is the elapsed share of the training, a shared tensor that the trainer updates.
        """
        self.seed, self.step, self.rendered = seed, step, rendered
        self.stages, self.progress = stages, progress

    def __iter__(self) -> Iterator[Batch]:
        worker = get_worker_info()
        part, parts = (worker.id, worker.num_workers) if worker else (0, 1)
        torch.set_num_threads(1)
        cv2.setNumThreads(1)
        pool = ScenePool(self.seed, self.rendered, part, parts)
        rng = np.random.default_rng([self.seed, self.step, part])
        while True:
            yield make_batch(pool, stage_at(self.stages, float(self.progress)), rng)
