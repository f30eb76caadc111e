"""Draw the pictures of the README and the site from a finished run of the embedded default.

    python experiments/adapt_gta2cs.py
    python docs/site/figures.py runs/adapt_gta2cs docs/images

Writes before-after.png, vote.png, pairs.png and stages.svg.
"""

from __future__ import annotations

import sys
from pathlib import Path

import matplotlib
import numpy as np
import torch
from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.colors import to_rgba
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import FancyArrowPatch, FancyBboxPatch, Patch
from PIL import Image

import sfss_ray
from sfss_ray.report.pictures import draw_masks
from sfss_ray.streets.default import SOURCE_MODEL

FIRST, SECOND = "00003", "00030"
"""Ids of the two scenes shown."""
PRIOR_POWER, VOTE_WEIGHT, PROBABILITY_FLOOR = 0.25, 0.5, 1e-4
"""The defaults of `train.loss` and the floor of the vote's logarithms."""
ANCHOR_COLOUR, POSITIVE_COLOUR, NEGATIVE_COLOUR = "#f2b705", "#1f9d55", "#d64545"


class Scenes:
    """Images, labels, masks and the two networks of a finished run."""

    def __init__(self, root: Path):
        self.images = root / "data" / "val" / "images"
        self.labels = root / "data" / "val" / "labels"
        self.masks = sfss_ray.MaskStore(root / "run" / "masks_of_pictures")
        self.source = sfss_ray.load_model(SOURCE_MODEL)
        self.student = sfss_ray.load_model(root / "run" / "student.pt")
        self.classes = self.source.classes

    def image(self, image_id: str) -> np.ndarray:
        return np.asarray(Image.open(self.images / f"{image_id}.png").convert("RGB"))

    def label(self, image_id: str) -> np.ndarray:
        return np.asarray(Image.open(self.labels / f"{image_id}.png"))

    @torch.no_grad()
    def probabilities(self, model: sfss_ray.SourceModel, image_id: str) -> np.ndarray:
        """Return class probabilities (C, H, W) of one image."""
        image = torch.from_numpy(self.image(image_id).copy()).permute(2, 0, 1)[None] / 255
        return model.network.logits(image).softmax(1)[0].numpy()


def draw_before_after(scenes: Scenes, path: Path) -> None:
    """Show image, masks, both predictions and the label of two scenes."""
    titles = ("image", "masks", "source-only", "adapted", "label")
    figure, axes = plt.subplots(2, 5, figsize=(10, 2.24))
    for row, image_id in zip(axes, (FIRST, SECOND), strict=True):
        image, mask_ids = scenes.image(image_id), scenes.masks.id_map(image_id)
        predictions = [
            scenes.probabilities(model, image_id).argmax(0)
            for model in (scenes.source, scenes.student)
        ]
        coloured = [scenes.classes.colour(ids) for ids in (*predictions, scenes.label(image_id))]
        for axis, picture in zip(row, (image, draw_masks(image, mask_ids), *coloured), strict=True):
            _show(axis, picture)
    for axis, title in zip(axes[0], titles, strict=True):
        axis.set_title(title, fontsize=9)
    _save(figure, path)


def draw_vote(scenes: Scenes, path: Path) -> None:
    """Show pseudo-labels before and after the pooled vote of the masks."""
    image, mask_ids = scenes.image(SECOND), scenes.masks.id_map(SECOND)
    probabilities = scenes.probabilities(scenes.source, SECOND)
    voted = pooled_vote(probabilities, mask_ids)
    pictures = {
        "masks": draw_masks(image, mask_ids),
        "teacher's pixels": scenes.classes.colour(probabilities.argmax(0)),
        "after the pooled vote": scenes.classes.colour(voted),
        "label (never used)": scenes.classes.colour(scenes.label(SECOND)),
    }
    figure, axes = plt.subplots(1, 4, figsize=(10, 1.39))
    for axis, (title, picture) in zip(axes, pictures.items(), strict=True):
        _show(axis, picture)
        axis.set_title(title, fontsize=9)
    _save(figure, path)


def pooled_vote(probabilities: np.ndarray, mask_ids: np.ndarray) -> np.ndarray:
    """Return labels (H, W) after prior correction and the pooled vote, written from the formula."""
    logs = np.log(np.maximum(probabilities, PROBABILITY_FLOOR))
    prior = np.maximum(probabilities.mean((1, 2)), PROBABILITY_FLOOR)
    scores = logs - PRIOR_POWER * np.log(prior)[:, None, None]
    pooled = scores.copy()
    for mask_id in np.unique(mask_ids[mask_ids > 0]):
        inside = mask_ids == mask_id
        mean = scores[:, inside].mean(1, keepdims=True)
        pooled[:, inside] = (1 - VOTE_WEIGHT) * scores[:, inside] + VOTE_WEIGHT * mean
    return pooled.argmax(0)


def draw_pairs(scenes: Scenes, path: Path) -> None:
    """Show one anchor with its positives and negatives in its own image and in another one."""
    figure, axes = plt.subplots(1, 2, figsize=(10, 3.2))
    anchor_class = scenes.classes.classes.index("car")
    for axis, image_id in zip(axes, (FIRST, SECOND), strict=True):
        own_image = image_id == FIRST
        image, mask_ids = scenes.image(image_id), scenes.masks.id_map(image_id)
        _show(axis, (image * 0.55 + 255 * 0.45).astype(np.uint8))
        owner = _largest_mask(mask_ids, scenes.label(image_id), anchor_class) if own_image else 0
        for mask_id in np.unique(mask_ids[mask_ids > 0]):
            region = mask_ids == mask_id
            label, purity = _majority(scenes.label(image_id)[region])
            if mask_id == owner:
                _draw_anchor(axis, region)
            elif purity < 0.8:
                _outline(axis, region, "#777777", "--")
            else:
                same = label == anchor_class
                _draw_prototype(axis, region, POSITIVE_COLOUR if same else NEGATIVE_COLOUR)
        axis.set_title("the anchor's image" if own_image else "another image", fontsize=9)
    figure.legend(
        handles=[
            Line2D([], [], color=ANCHOR_COLOUR, marker="*", ms=11, ls="", label="anchor (student)"),
            Line2D([], [], color=ANCHOR_COLOUR, marker="o", ms=5, ls="", label="same mask: L_ins"),
            Patch(color=POSITIVE_COLOUR, label="other mask, same class: L_cls"),
            Patch(color=NEGATIVE_COLOUR, label="other class: negative"),
            Line2D([], [], color="#777777", ls="--", label="unreliable: no class prototype"),
        ],
        loc="lower center",
        ncols=5,
        fontsize=8,
        frameon=False,
    )
    _save(figure, path)


def _majority(labels: np.ndarray) -> tuple[int, float]:
    """Return the most frequent class of a mask and its share of the pixels."""
    counts = np.bincount(labels[labels != 255], minlength=1)
    return int(counts.argmax()), float(counts.max() / labels.size)


def _largest_mask(mask_ids: np.ndarray, labels: np.ndarray, label: int) -> int:
    ids, areas = np.unique(mask_ids[(mask_ids > 0) & (labels == label)], return_counts=True)
    return int(ids[areas.argmax()])


def _draw_anchor(axis: Axes, region: np.ndarray) -> None:
    _tint(axis, region, ANCHOR_COLOUR)
    _outline(axis, region, ANCHOR_COLOUR)
    rows, columns = np.nonzero(region)
    picks = np.random.default_rng(2).choice(len(rows), 9, replace=False)
    axis.plot(columns[picks[1:]], rows[picks[1:]], "o", color=ANCHOR_COLOUR, ms=5, mec="black")
    axis.plot(columns[picks[0]], rows[picks[0]], "*", color=ANCHOR_COLOUR, ms=16, mec="black")


def _draw_prototype(axis: Axes, region: np.ndarray, colour: str) -> None:
    _tint(axis, region, colour)
    _outline(axis, region, colour)


def _tint(axis: Axes, region: np.ndarray, colour: str) -> None:
    layer = np.zeros((*region.shape, 4))
    layer[region] = to_rgba(colour, 0.4)
    axis.imshow(layer)


def _outline(axis: Axes, region: np.ndarray, colour: str, style: str = "-") -> None:
    axis.contour(region.astype(float), [0.5], colors=colour, linewidths=1.2, linestyles=style)


def draw_stages(path: Path) -> None:
    """Draw the three stages and what they hand over."""
    figure, axis = plt.subplots(figsize=(9, 2.7))
    axis.set_xlim(0, 90)
    axis.set_ylim(0, 27)
    axis.axis("off")
    _box(axis, 0, 16, 17, 8, "target images", "no labels", "#ffffff")
    _box(axis, 0, 3, 17, 8, "source model", "a checkpoint", "#ffffff")
    _box(axis, 25, 16, 17, 8, "masks", "Ray Data + SAM", "#dbeafe")
    _box(axis, 49, 9.5, 17, 8, "train", "Ray Train", "#dbeafe")
    _box(axis, 49, 20, 17, 6.4, "tune", "Ray Tune, trials", "#ede9fe")
    _box(axis, 73, 16, 17, 8, "student.pt", "the adapted model", "#dcfce7")
    _box(axis, 73, 3, 17, 8, "report.html", "before and after", "#dcfce7")
    for start, end in (
        ((17, 20), (25, 20)),
        ((42, 18.5), (49, 15.5)),
        ((17, 7), (49, 11.5)),
        ((66, 15.5), (73, 18.5)),
        ((66, 11.5), (73, 8)),
    ):
        _arrow(axis, start, end)
    _arrow(axis, (57.5, 20), (57.5, 17.5))
    axis.text(45.5, 20.4, "Parquet", fontsize=7, ha="center", color="#475569")
    figure.savefig(path, bbox_inches="tight", facecolor="white", metadata={"Date": None})
    plt.close(figure)


def _box(axis: Axes, x: float, y: float, width: float, height: float, *lines: str) -> None:
    title, detail, colour = lines
    axis.add_patch(
        FancyBboxPatch(
            (x, y), width, height, boxstyle="round,pad=0,rounding_size=1", fc=colour, ec="#334155"
        )
    )
    axis.text(x + width / 2, y + height * 0.63, title, ha="center", va="center", fontsize=10)
    axis.text(x + width / 2, y + height * 0.28, detail, ha="center", va="center", fontsize=7.5)


def _arrow(axis: Axes, start: tuple[float, float], end: tuple[float, float]) -> None:
    axis.add_patch(
        FancyArrowPatch(start, end, arrowstyle="-|>", mutation_scale=11, color="#334155")
    )


def _show(axis: Axes, picture: np.ndarray) -> None:
    axis.imshow(picture, interpolation="nearest")
    axis.axis("off")


def _save(figure: Figure, path: Path) -> None:
    """Save as a PNG of 255 colours, which is a third of the size."""
    bottom = 0.12 if figure.legends else 0
    figure.subplots_adjust(left=0, right=1, bottom=bottom, top=0.9, wspace=0.02, hspace=0.04)
    figure.savefig(path, dpi=150, bbox_inches="tight", pad_inches=0.03, facecolor="white")
    plt.close(figure)
    picture = Image.open(path).convert("RGB")
    picture.quantize(255, dither=Image.Dither.NONE).save(path, optimize=True)


def main(root: Path, output: Path) -> None:
    """Draw all figures of one run."""
    matplotlib.use("Agg")
    matplotlib.rcParams["svg.hashsalt"] = "sfss_ray"  # equal runs give equal files
    output.mkdir(parents=True, exist_ok=True)
    scenes = Scenes(root)
    draw_before_after(scenes, output / "before-after.png")
    draw_vote(scenes, output / "vote.png")
    draw_pairs(scenes, output / "pairs.png")
    draw_stages(output / "stages.svg")


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
