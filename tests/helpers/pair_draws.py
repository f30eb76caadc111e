"""Drawn pairs of random scenes, with all that is needed to judge them."""

from dataclasses import dataclass, fields
from types import SimpleNamespace
from typing import Any

import torch
from hypothesis import Phase, settings
from hypothesis import strategies as st
from train_samples import KEY_STEP, RandomScene, pool_of, random_scene

from sfss_ray.config import PairConfig
from sfss_ray.method.anchors import ImageAnchors, draw_anchors
from sfss_ray.method.mask_table import MaskOrigins, MaskTable
from sfss_ray.method.pairs import Pairs, sample_pairs
from sfss_ray.method.prototype_pool import PrototypePool

# A smaller seed is no simpler scene, so failures are not shrunk.
many_seeds = settings(
    max_examples=40, deadline=None, derandomize=True, database=None, phases=[Phase.generate]
)
seeds = st.integers(0, 10**6)


def as_tensors(record: Any) -> Any:
    """Return a record with tensors instead of arrays, to be compared with scenes and pairs."""
    tensors = {f.name: torch.as_tensor(getattr(record, f.name)) for f in fields(record)}
    return SimpleNamespace(**tensors)


@dataclass
class Draw:
    """One call of `sample_pairs`, with its inputs."""

    scene: RandomScene
    inputs: tuple[MaskTable, PrototypePool]
    table: Any  # as tensors, like the pool
    pool: Any
    pairs: Pairs
    mask: torch.Tensor  # (A,) mask index of each anchor
    hard: torch.Tensor  # (M,) per cell of the table

    @property
    def first_key(self) -> int:
        """Key of the first mask of image 1."""
        return KEY_STEP


def draw(seed: int, config: PairConfig, bank: int = 10, **shape: Any) -> Draw:
    """Draw pairs of image 1 of three."""
    scenes = [random_scene(seed * 10 + i, **shape) for i in range(3)]
    tables = [scene.table(config) for scene in scenes]
    pool = pool_of(tables, bank, len(scenes[1].thresholds), seed)
    return draw_from(scenes[1], (tables[1], pool), config, seed)


def draw_from(
    scene: RandomScene,
    inputs: tuple[MaskTable, PrototypePool],
    config: PairConfig,
    seed: int,
    image: int = 1,
) -> Draw:
    """Draw pairs of one image."""
    table, pool = inputs
    anchors = image_anchors(scene, table, config, seed, image)
    vectors = scene.student()[anchors.cells]
    pairs = sample_pairs([anchors], pool, vectors, scene.ids.numel(), config)
    position = torch.full((scene.ids.numel(),), -1)
    masks = as_tensors(table)
    position[masks.cells] = torch.arange(len(masks.cells))
    label = masks.label[masks.owner]
    hard = (scene.student_labels[masks.cells] != label) | (
        masks.cell_confidence < scene.thresholds[label]
    )
    mask = masks.owner[position[pairs.anchors]]
    return Draw(scene, inputs, masks, as_tensors(pool), pairs, mask, hard)


def image_anchors(
    scene: RandomScene, table: MaskTable, config: PairConfig, seed: int, image: int
) -> ImageAnchors:
    """Draw the anchors of an image whose masks have the keys of `pool_of`."""
    generator = torch.Generator().manual_seed(seed)
    anchors = draw_anchors(table, scene.student_labels, scene.thresholds, config, generator)
    origins = MaskOrigins.unmixed(table, image, image * KEY_STEP)
    return ImageAnchors(table, origins, anchors, generator)
