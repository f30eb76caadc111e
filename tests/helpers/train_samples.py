"""Builders for the tests of training: drawn images, masks, networks and random scenes."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
import pyarrow.parquet as pq
import torch
from torch import nn
from torch.nn import functional as F

from sfss_ray.config import Config, PairConfig, override
from sfss_ray.data.class_sets import class_set_of
from sfss_ray.data.folders import LabelledImage, list_images
from sfss_ray.data.pairing import pair_labels
from sfss_ray.masks.bank.run_lengths import area, encode_masks, to_coco_strings
from sfss_ray.masks.bank.schema import write_shard
from sfss_ray.method.mask_table import CellPredictions, MaskTable, describe_masks
from sfss_ray.method.prototype_pool import PrototypePool
from sfss_ray.models.architectures.catalogue import build_network
from sfss_ray.models.card import Card
from sfss_ray.models.model_file import SourceModel, save_model
from sfss_ray.models.segmenter import Segmenter
from sfss_ray.train.adaptation import AdaptationTask
from sfss_ray.train.batch_norm import estimate_statistics
from sfss_ray.train.run_state import load_state

CLASSES = ("red", "green", "blue", "yellow", "grey")
COLOURS = np.uint8([[220, 40, 40], [40, 200, 60], [40, 60, 220], [220, 210, 50], [120, 120, 120]])
SIZE = 64
TILE = 16


def tile_labels(index: int) -> np.ndarray:
    """Return (64, 64) uint8: 16 tiles, each of a random class."""
    rng = np.random.default_rng([7, index])
    tiles = rng.integers(0, len(CLASSES), (SIZE // TILE, SIZE // TILE))
    return np.kron(tiles, np.ones((TILE, TILE), np.int64)).astype(np.uint8)


def drawn_image(index: int) -> np.ndarray:
    """Return (64, 64, 3) uint8: the tiles in their colours, with noise."""
    noise = np.random.default_rng([8, index]).normal(0, 12, (SIZE, SIZE, 3))
    return np.clip(COLOURS[tile_labels(index)] + noise, 0, 255).astype(np.uint8)


def tile_masks() -> list[np.ndarray]:
    """Return a boolean (64, 64) mask per tile."""
    masks = []
    for top in range(0, SIZE, TILE):
        for left in range(0, SIZE, TILE):
            mask = np.zeros((SIZE, SIZE), bool)
            mask[top : top + TILE, left : left + TILE] = True
            masks.append(mask)
    return masks


def mask_rows(masks: list[np.ndarray]) -> list[dict]:
    """Return masks as the rows of a shard."""
    counts = encode_masks(masks)
    rows = []
    for mask, count, text in zip(masks, counts, to_coco_strings(counts), strict=True):
        ys, xs = mask.nonzero()
        box = [int(v) for v in (xs.min(), ys.min(), np.ptp(xs) + 1, np.ptp(ys) + 1)]
        rows.append(
            {
                "counts": text,
                "area": area(count),
                "bbox": box,
                "predicted_iou": 0.9,
                "stability_score": 0.9,
                "point": [float(xs[0]), float(ys[0])],
                "crop_box": [0, 0, mask.shape[1], mask.shape[0]],
            }
        )
    return rows


def write_masks(folder: Path, masks_of: dict[str, list[np.ndarray]], size=(SIZE, SIZE)) -> Path:
    """Write a folder with one shard of the masks by image id."""
    folder.mkdir(parents=True, exist_ok=True)
    rows = [
        {
            "image_id": image_id,
            "path": image_id,
            "height": size[0],
            "width": size[1],
            "masks": mask_rows(masks),
            "error": None,
        }
        for image_id, masks in masks_of.items()
    ]
    write_shard(folder / "masks-0.parquet", rows, {"source": "drawn"})
    return folder


def embed_masks(folder: Path, width: int = 12) -> None:
    """Rewrite a folder of `write_masks` with a random embedding of each mask."""
    rng = np.random.default_rng(0)
    rows = pq.read_table(folder / "masks-0.parquet").to_pylist()
    for row in rows:
        for mask in row["masks"]:
            mask["embedding"] = rng.normal(size=width).astype(np.float16).tolist()
    write_shard(folder / "masks-0.parquet", rows, {"source": "drawn", "embeddings": True})


def equal(first: dict, second: dict) -> bool:
    """Return whether two samples or batches have the same names and values."""
    return first.keys() == second.keys() and all(
        torch.equal(torch.as_tensor(first[k]), torch.as_tensor(second[k])) for k in first
    )


def assert_rows_of_masks(batch: dict, key: str, stored: Callable[[int], np.ndarray]) -> None:
    """Assert that the rows of a batch's visible masks are stored ones, and that zeros pad them.

    `stored` returns the rows of an image by its number.
    """
    for ids, rows, image in zip(
        batch["mask_ids"], batch[key], batch["image"].tolist(), strict=True
    ):
        expected, visible = stored(image).tolist(), int(ids.max())
        assert all(row in expected for row in rows[: visible + 1].tolist())
        assert not rows[visible + 1 :].any()


def write_image(path: Path, pixels: np.ndarray) -> None:
    """Write an RGB or one-channel image as PNG."""
    path.parent.mkdir(parents=True, exist_ok=True)
    assert cv2.imwrite(str(path), pixels[..., ::-1] if pixels.ndim == 3 else pixels)


def write_dataset(root: Path, count: int = 6, without_masks: tuple[int, ...] = ()) -> Path:
    """Write images/, labels/ and masks/ of drawn images; some images may have no masks at all."""
    for index in range(count):
        write_image(root / "images" / f"{index}.png", drawn_image(index))
        write_image(root / "labels" / f"{index}.png", tile_labels(index))
    masks = {str(i): [] if i in without_masks else tile_masks() for i in range(count)}
    write_masks(root / "masks", masks)
    return root


def labelled(root: Path) -> tuple[LabelledImage, ...]:
    """Return the pairs of a written data set."""
    return tuple(pair_labels(root / "images", root / "labels"))


def sharp_source(
    path: Path, spoil: bool = False, name: str = "compact", options: dict | None = None
) -> Path:
    """Save a random network with statistics of the drawn images and a confident classifier.

    `spoil` puts a NaN into its weights; `name` and `options` are those of `build_network`.
    """
    torch.manual_seed(0)
    network = build_network(name, len(CLASSES), options)
    estimate_statistics(network.train(), [drawn_batch([0, 1, 2])["weak"]])
    with torch.no_grad():
        network.classifier.weight *= 12
        if spoil:
            network.classifier.weight[0, 0] = torch.nan
    return save_model(path, SourceModel(network, name, class_set_of(CLASSES)))


SMALL = {
    "train.num_steps": 6,
    "train.batch_size": 2,
    "train.evaluate_every": 3,
    "train.statistics_images": 12,
    "train.batch_norm": "adapt",
    "train.augment.crop_size": [48, 48],
    "train.augment.scale_range": [1.0, 1.2],
    "train.optim.learning_rate": 1e-4,
    "train.pairs.negatives": 32,
    "train.pairs.bank_size": 16,
    "train.loss.ramp": [0.0, 0.2],
    "train.loss.contrast_weight": 0.5,
    "train.loss.embedding_dim": 16,
    "train.loss.mask_vote": "none",
    "train.loss.prior_power": 0.0,
}


KEEPS_ALL = {
    "loss__contrast_weight": 0.0,
    "loss__class_quantile": 1.0,
    "loss__mask_vote": "none",
    "loss__prior_power": 0.0,
}
"""Plain self-training on every pixel: the loss is one mean, however the batch is split."""


def small_config(**changes) -> Config:
    """Return a config that trains in seconds; `loss__x` sets train.loss.x."""
    named = {f"train.{name.replace('__', '.')}": value for name, value in changes.items()}
    return override(Config(seed=3), SMALL | named)


def adaptation_task(root: Path, source: Path, config: Config) -> AdaptationTask:
    """Return the task of a written data set."""
    return AdaptationTask(source, tuple(list_images(root / "images")), root / "masks", config)


def flat_state(state: dict, prefix: str = "") -> dict[str, torch.Tensor]:
    """Return all tensors of a checkpoint by dotted name."""
    flat = {}
    for name, value in state.items():
        if isinstance(value, (list, tuple)):
            value = {str(index): entry for index, entry in enumerate(value)}
        if isinstance(value, dict):
            flat |= flat_state(value, f"{prefix}{name}.")
        elif isinstance(value, torch.Tensor):
            flat[f"{prefix}{name}"] = value
    return flat


def assert_states_close(folder: Path, other_folder: Path, tolerance: float = 0.0) -> None:
    """Assert that two run folders have the same step, weights, teacher, optimiser and memory.

    `tolerance` is relative to a tensor's largest entry, or to 1 if that is less. With a tolerance, a
    few pixels may be counted in the neighbouring bin of the thresholds' histogram.
    """
    first, second = load_state(folder), load_state(other_folder)
    assert first["step"] == second["step"]
    first, second = flat_state(first), flat_state(second)
    assert first.keys() == second.keys()
    if tolerance and "thresholds" in first:  # pretraining has none
        histogram, other_histogram = (flat.pop("thresholds") for flat in (first, second))
        assert (histogram - other_histogram).abs().sum() <= 1e-3 * histogram.sum()
    for name, value in first.items():
        largest = float(value.abs().max()) if value.numel() else 0.0
        atol = tolerance * max(largest, 1.0)
        torch.testing.assert_close(
            second[name], value, rtol=0, atol=atol, msg=lambda text, n=name: f"{n}: {text}"
        )


def colour_segmenter() -> Segmenter:
    """Return a network of stride 4 that predicts the class of the nearest colour, confidently."""
    body = nn.Conv2d(3, 3, 4, stride=4)
    classifier = nn.Conv2d(3, len(CLASSES), 1)
    colours = torch.from_numpy(COLOURS).float() / 255
    with torch.no_grad():
        body.weight.copy_(torch.eye(3)[:, :, None, None].expand(3, 3, 4, 4) / 16)
        body.bias.zero_()
        classifier.weight.copy_(60 * colours[:, :, None, None])
        classifier.bias.copy_(-30 * colours.square().sum(1))
    return Segmenter(body, classifier, Card(mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0)))


def drawn_batch(indices: list[int]) -> dict[str, torch.Tensor]:
    """Return a batch without augmentation; sample number and image number are the index."""
    pixels = torch.from_numpy(np.stack([drawn_image(i) for i in indices]))
    images = pixels.permute(0, 3, 1, 2).float() / 255
    ids = sum((k + 1) * mask.astype(np.int64) for k, mask in enumerate(tile_masks()))
    return {
        "weak": images,
        "strong": (images * 0.9).contiguous(),
        "mask_ids": torch.from_numpy(ids).expand(len(indices), -1, -1).contiguous(),
        "image": torch.tensor(indices),
        "number": torch.tensor(indices),
    }


@dataclass
class RandomScene:
    """Random masks of one image with random predictions of a teacher."""

    ids: torch.Tensor  # (h, w)
    probabilities: torch.Tensor  # (C, h, w)
    embeddings: torch.Tensor  # (D, h, w)
    thresholds: torch.Tensor  # (C,)
    student_labels: torch.Tensor  # (h * w,)

    def table(self, config: PairConfig) -> MaskTable:
        predictions = CellPredictions.of(self.probabilities[None])
        cells = self.embeddings.flatten(1).T[None]
        return describe_masks(self.ids[None], predictions, cells, self.thresholds, config)[0]

    def student(self) -> torch.Tensor:
        """Return (h * w, D) embeddings of a student that has drifted a little."""
        cells = self.embeddings.flatten(1).T
        return F.normalize(cells + 0.1 * cells.roll(1, 0), dim=1)


def random_scene(
    seed: int, classes: int = 6, masks: int = 8, grid: tuple[int, int] = (12, 14), dim: int = 5
) -> RandomScene:
    """Return masks around random centres: pure, mixed, or joining two classes; some cells have none."""
    rng = np.random.default_rng(seed)
    rows, columns = np.mgrid[: grid[0], : grid[1]]
    centres = rng.uniform(0, 1, (masks, 2)) * grid
    distance = (rows[..., None] - centres[:, 0]) ** 2 + (columns[..., None] - centres[:, 1]) ** 2
    mask_ids = np.sort(rng.choice(np.arange(1, 1000), masks, replace=False))
    nearest = distance.argmin(-1)
    ids = np.where(rng.random(grid) < 0.85, mask_ids[nearest], 0)
    main, second = (rng.integers(0, classes, masks)[nearest] for _ in range(2))
    mixed = rng.choice([0.0, 0.1, 0.5], masks)[nearest]
    truth = np.where(rng.random(grid) < mixed, second, main)
    sharpness = rng.choice([1.0, 4.0, 8.0], masks)[nearest]
    logits = rng.normal(0, 1, (classes, *grid))
    logits[truth, rows, columns] += sharpness
    embeddings = F.normalize(torch.from_numpy(rng.normal(0, 1, (dim, *grid))).float(), dim=0)
    student_labels = np.where(rng.random(grid) < 0.3, rng.integers(0, classes, grid), truth)
    return RandomScene(
        torch.from_numpy(ids),
        torch.from_numpy(logits).float().softmax(0),
        embeddings,
        torch.from_numpy(rng.uniform(0.2, 0.9, classes)).float(),
        torch.from_numpy(student_labels).flatten(),
    )


KEY_STEP = 1000


def pool_of(tables: list[MaskTable], bank: int, classes: int, seed: int = 0) -> PrototypePool:
    """Pool the reliable masks of images 0, 1, .. with random bank entries.

    The key of a mask is image * KEY_STEP + mask.
    """
    rng = np.random.default_rng(seed)
    vectors, facts = [], []
    for image, table in enumerate(tables):
        for mask in np.flatnonzero(table.reliable).tolist():
            vectors.append(table.prototype[mask])
            facts.append((int(table.label[mask]), image, image * KEY_STEP + mask))
    dim = tables[0].prototype.shape[1]
    for _ in range(bank):
        vectors.append(F.normalize(torch.from_numpy(rng.normal(0, 1, dim)).float(), dim=0))
        facts.append((int(rng.integers(0, classes)), int(rng.integers(0, len(tables) + 3)), -1))
    columns = np.array(facts, np.int64).reshape(-1, 3).T
    stacked = torch.stack(vectors) if vectors else torch.zeros(0, dim)
    return PrototypePool.build(stacked, *columns, classes)
