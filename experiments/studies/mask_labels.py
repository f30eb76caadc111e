"""Labels of masks before any training: by their own evidence, and corrected by their neighbours."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from sfss_ray.config import EvaluationConfig, LossConfig
from sfss_ray.data.class_sets import IGNORE_INDEX
from sfss_ray.data.folders import LabelledImage
from sfss_ray.evaluation.inference import predict_probabilities
from sfss_ray.masks.bank.store import MaskStore
from sfss_ray.method.contrast_net import ContrastNet
from sfss_ray.method.mask_evidence import FLOOR, Evidence, MaskPixels
from sfss_ray.method.mask_neighbours import NEIGHBOUR_FLOOR, MaskNeighbours
from sfss_ray.method.mask_space import MASK_GEOMETRY, describe_masks
from sfss_ray.method.pseudo_labels import ClassThresholds
from sfss_ray.models.segmenter import Segmenter

WEIGHTS = (0.5, 1.0, 2.0)
"""Weights of the neighbours' opinion against a mask's own evidence."""
ALONE = "alone"
"""Stands for the weight where neighbours decide without the mask's own evidence."""
SIZES = (64, 256, 1024)
"""Limits of the size classes of masks, in pixels."""
CONTROL = "random masks (control)"


@dataclass(frozen=True)
class LabelledMasks:
    """The K masks of some target images, with the teacher's evidence and the true labels."""

    evidence: Tensor
    """(K, C) in nats."""
    spaces: dict[str, tuple[Tensor, ...]]
    """Name of a space -> blocks (K, D) that describe each mask in it."""
    images: Tensor
    """(K,) number of the image."""
    truth: Tensor
    """(K, C) labelled pixels of each class."""

    @property
    def pixels(self) -> Tensor:
        """Labelled pixels of each mask, (K,)."""
        return self.truth.sum(1)

    def corrected_for(self, prior: Tensor, power: float) -> LabelledMasks:
        """Return the masks with evidence divided by a power of the class shares (C,)."""
        return replace(self, evidence=self.evidence - power * prior.clamp(min=FLOOR).log())

    def score(self, labels: Tensor, masks: Tensor | None = None) -> dict[str, float]:
        """Score labels (K,) in percent.

        Returns:
            mIoU over pixels, the same where each mask is all of the class that most of its pixels have,
            accuracy over masks, and its mean over classes.
        """
        masks = self.pixels > 0 if masks is None else masks & (self.pixels > 0)
        truth, labels = self.truth[masks], labels[masks]
        majority = truth.argmax(1)
        of_majority = F.one_hot(majority, truth.shape[1]) * truth.sum(1, keepdim=True)
        hits = (labels == majority).float()
        of_classes = [hits[majority == c].mean() for c in majority.unique()]
        return {
            "miou": 100 * float(np.nanmean(class_ious(truth, labels))),
            "miou_of_majority": 100 * float(np.nanmean(class_ious(of_majority, labels))),
            "accuracy": 100 * float(hits.mean()),
            "class_accuracy": 100 * float(torch.stack(of_classes).mean()),
        }


def class_ious(truth: Tensor, labels: Tensor) -> list[float]:
    """Return the IoU over pixels of each class in [0, 1], NaN where a class does not occur.

    Args:
        truth: (K, C) labelled pixels of each mask and class.
        labels: (K,) of the masks.
    """
    matrix = torch.zeros(truth.shape[1], truth.shape[1]).index_add_(0, labels, truth)
    right, occurs = matrix.diag(), matrix.sum(0) > 0
    union = matrix.sum(0) + matrix.sum(1) - right
    return torch.where(occurs, right / union, torch.nan).tolist()


@torch.no_grad()
def label_masks(
    items: Sequence[LabelledImage],
    store: MaskStore,
    network: Segmenter,
    evaluation: EvaluationConfig,
    learned: ContrastNet | None = None,
) -> tuple[LabelledMasks, Tensor]:
    """Describe the masks of labelled target images. The evidence is not corrected for the prior yet.

    Args:
        items: Images with labels.
        store: Their masks. Where it has SAM's embeddings, these are a space too.
        network: The teacher, in eval mode.
        evaluation: How it predicts.
        learned: A network with a learned space of masks, if that is to be measured.

    Returns:
        The masks, and the share of each class (C,) in the teacher's probabilities.
    """
    columns: dict[str, list[Tensor]] = {}
    shares = []
    for number, item in enumerate(items):
        image = item.read()
        q = torch.from_numpy(predict_probabilities(network, image, evaluation))[None]
        shares.append(q.mean((0, 2, 3)))
        ids = torch.from_numpy(store.id_map(item.image_id).astype(np.int64))[None]
        evidence = Evidence.gather(q, ids, torch.ones(q.shape[1]), power=0.0)
        masks = evidence.masks
        present = masks.present()
        geometry = torch.from_numpy(store.geometry(item.image_id))
        padded = network.pad(torch.from_numpy(image).permute(2, 0, 1)[None] / 255)
        described = {
            "evidence": evidence.of_masks[present],
            "features": _mean_features(network, padded, masks, ids)[present],
            "geometry": geometry[present],
            "images": torch.full_like(present, number),
            "truth": _true_pixels(item.labels(), masks, q.shape[1])[present],
        }
        if store.has_embeddings:
            described["sam"] = torch.from_numpy(store.embeddings(item.image_id))[present]
        if learned is not None:
            described["learned"] = _learned_embeddings(learned, padded, ids, geometry)
        for name, values in described.items():
            columns.setdefault(name, []).append(values)
    table = {name: torch.cat(values) for name, values in columns.items()}
    v, g = F.normalize(table["features"], dim=1), table["geometry"]
    spaces = {"features": (v,), "geometry": (g,), "both": (v, g)}
    spaces |= {name: (table[name],) for name in ("learned", "sam") if name in table}
    if "sam" in table:
        spaces["sam and geometry"] = (table["sam"], g)
    masks_of_all = LabelledMasks(table["evidence"], spaces, table["images"], table["truth"])
    return masks_of_all, torch.stack(shares).mean(0)


def _mean_features(network: Segmenter, padded: Tensor, masks: MaskPixels, ids: Tensor) -> Tensor:
    """Return (M, D): features scaled up to pixels and averaged over each mask."""
    grid, _ = network(padded)
    height, width = ids.shape[1:]
    spread = F.interpolate(grid.float(), padded.shape[-2:])[..., :height, :width]
    return masks.mean(spread.permute(0, 2, 3, 1).flatten(0, 2))


def _learned_embeddings(
    learned: ContrastNet, padded: Tensor, ids: Tensor, geometry: Tensor
) -> Tensor:
    """Return the embeddings (K, W) of the masks that have a pixel, in the order of their numbers."""
    bottom, right = (
        after - before for after, before in zip(padded.shape[-2:], ids.shape[1:], strict=True)
    )
    batch = {
        "mask_ids": F.pad(ids, (0, right, 0, bottom)),
        "image": torch.zeros(1, dtype=torch.long),
        MASK_GEOMETRY: geometry[None],
    }
    features = learned(padded).mask_features
    masks = MaskPixels(batch["mask_ids"])
    (embeddings,) = describe_masks(masks, batch, learned.mask_space, features).blocks
    return embeddings


def _true_pixels(labels: np.ndarray, masks: MaskPixels, classes: int) -> Tensor:
    """Return (M, C) labelled pixels of each mask number and class."""
    truth = torch.from_numpy(labels.astype(np.int64)).flatten()
    labelled = truth != IGNORE_INDEX
    index = masks.owner[labelled] * classes + truth[labelled]
    counts = torch.bincount(index, minlength=masks.num_masks * classes)
    return counts.view(-1, classes).float()


def opinions_in(masks: LabelledMasks, space: str, shuffle: bool = False) -> Tensor:
    """Return the log opinion (K, C) of each mask's neighbours in a space.

    With `shuffle` every mask asks the neighbours of another one, as a control.
    """
    blocks = masks.spaces[space]
    ring = MaskNeighbours(masks.evidence.shape[1], len(masks.images))
    ring.write(blocks, masks.images, masks.evidence.softmax(1))
    if shuffle:
        order = torch.randperm(len(masks.images), generator=torch.Generator().manual_seed(0))
        blocks = tuple(block[order] for block in blocks)
    opinions = ring.opinions(blocks, masks.images)
    assert opinions is not None
    return (opinions + NEIGHBOUR_FLOOR).log()


Key = tuple[str, float | str | None]
"""What labels masks: a name, and the weight of neighbours."""


def all_labels(masks: LabelledMasks) -> dict[Key, Tensor]:
    """Return what labels masks -> labels (K,) of the masks."""
    labels: dict[Key, Tensor] = {("vote", None): masks.evidence.argmax(1)}
    labels["nearest class prototype", None] = nearest_prototypes(masks)
    for space, name in (*((space, space) for space in masks.spaces), ("geometry", CONTROL)):
        opinions = opinions_in(masks, space, shuffle=name == CONTROL)
        for weight in WEIGHTS:
            corrected = (masks.evidence + weight * opinions) / (1 + weight)
            labels[name, weight] = corrected.argmax(1)
        labels[name, ALONE] = opinions.argmax(1)
    labels["true majority", None] = masks.truth.argmax(1)
    return labels


def nearest_prototypes(masks: LabelledMasks) -> Tensor:
    """Return the class (K,) whose masks have the nearest mean feature.

    A mask belongs to the class that it votes for, and counts by its labelled pixels.
    """
    (features,) = masks.spaces["features"]
    voted = F.one_hot(masks.evidence.argmax(1), masks.evidence.shape[1]).float()
    prototypes = F.normalize((voted * masks.pixels[:, None]).T @ features, dim=1)
    similarity = features @ prototypes.T
    return similarity.masked_fill(~voted.any(0), -torch.inf).argmax(1)


def label_rows(masks: LabelledMasks, labels_of: dict[Key, Tensor]) -> list[dict[str, Any]]:
    """Return a row of scores for each of `all_labels`."""
    return [
        {"labels": name}
        | ({} if weight is None else {"weight": weight})
        | masks.score(labels)
        | by_size(masks, labels)
        for (name, weight), labels in labels_of.items()
    ]


def class_rows(
    masks: LabelledMasks, labels_of: dict[Key, Tensor], classes: Sequence[str]
) -> list[dict[str, Any]]:
    """Return rows of the IoU of each class in percent, with neighbours of weight 1."""
    return [
        {"class_iou": name}
        | {
            name_of_class: 100 * iou
            for name_of_class, iou in zip(classes, class_ious(masks.truth, labels), strict=True)
            if not np.isnan(iou)
        }
        for (name, weight), labels in labels_of.items()
        if weight in (None, 1.0)
    ]


def by_size(masks: LabelledMasks, labels: Tensor) -> dict[str, float]:
    """Return the mIoU over the pixels of the masks of each size class, in percent."""
    limits = (0, *SIZES, 1 << 60)
    mious = {}
    for low, high in itertools.pairwise(limits):
        chosen = (masks.pixels > low) & (masks.pixels <= high)
        name = f"mIoU up to {high} px" if high in SIZES else f"mIoU above {low} px"
        if chosen.any():
            mious[name] = masks.score(labels, chosen)["miou"]
    return mious


def left_out(masks: LabelledMasks) -> Tensor:
    """Return (K,) bool: masks below the threshold of the class that they vote for, by default settings.

    A mask counts by its labelled pixels, which are nearly all.
    """
    confidence, labels = masks.evidence.softmax(1).max(1)
    running = ClassThresholds(masks.evidence.shape[1])
    classes, bins = running.histogram.shape
    index = labels * bins + (confidence * bins).long().clamp(max=bins - 1)
    counts = torch.zeros(classes * bins).index_add_(0, index, masks.pixels)
    running.update(counts.view(classes, bins).double())
    loss = LossConfig()
    return confidence < running.thresholds(loss.class_quantile, loss.confidence_cap)[labels]


def plausible_rows(masks: LabelledMasks) -> list[dict[str, Any]]:
    """Return how often the true class of a mask is among its likeliest, over masks and over pixels.

    Once for all masks and once for those that are left out, with their share of the area.
    """
    labelled = masks.pixels > 0
    rows = []
    for name, chosen in (("all", labelled), ("left out", labelled & left_out(masks))):
        majority, pixels = masks.truth.argmax(1)[chosen], masks.pixels[chosen]
        share = 100 * float(pixels.sum() / masks.pixels.sum())
        for count in (1, 2, 3) if chosen.any() else ():
            likeliest = masks.evidence[chosen].topk(count, dim=1).indices
            hits = (likeliest == majority[:, None]).any(1).float()
            area = 100 * float((hits * pixels).sum() / pixels.sum())
            row = {"likeliest": count, "of": name, "share of the area": share}
            rows.append(row | {"masks": 100 * float(hits.mean()), "area": area})
    return rows
