"""Measure before any training whether masks bring news: what the teacher's own labels do not say.

    python experiments/studies/pair_news.py --pair streets --regions small_sam
    python experiments/studies/pair_news.py --pair cityscapes2camvid_dusk --data DIR \
        --source-model espnet_p_2_q_8.pth

The source model is the teacher. First, masks are labelled by their own evidence (the vote), and by the
evidence corrected by their neighbours in several spaces. Labels of the target score both. Random masks
as neighbours are the control. Second, the gradient of each extra loss is compared with that of the
pseudo-labels at the backbone: a cosine near 1 repeats them, one below .2 brings news. The script writes
pair_news_PAIR_REGIONS.json and .md.
"""

from __future__ import annotations

import argparse
import copy
import itertools
import sys
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from ablation import add_pair_options, make_pair
from ablation_rows import STATISTICS, VOTE
from ablation_run import Job, with_target_statistics
from domain_pairs import REGIONS, DomainPair
from study_record import write_record
from torch import Tensor
from torch.nn import functional as F

from sfss_ray.cli import run_guarded
from sfss_ray.config import TrainConfig, override
from sfss_ray.data.folders import evenly_spread
from sfss_ray.evaluation.inference import predict_probabilities
from sfss_ray.masks.bank.store import MaskStore
from sfss_ray.method.contrast_net import ContrastNet
from sfss_ray.method.mask_evidence import Evidence, MaskPixels
from sfss_ray.method.mask_neighbours import NEIGHBOUR_FLOOR, MaskNeighbours
from sfss_ray.method.memory import Memory
from sfss_ray.method.step import StepInfo, TeacherStudent, adaptation_losses
from sfss_ray.method.teacher import frozen_copy
from sfss_ray.models.segmenter import Segmenter
from sfss_ray.train.adaptation import build_student
from sfss_ray.train.batch_norm import set_batch_norm
from sfss_ray.train.samples import TargetSamples, step_loader

VOID = 255
WEIGHTS = (0.5, 1.0, 2.0)
"""Weights of the neighbours' opinion against a mask's own evidence."""
SIZES = (64, 256, 1024)
"""Limits of the size classes of masks, in pixels."""
CONTRAST = {"contrast_weight": 0.03}
EXTRA_LOSSES = {
    "L_ins": CONTRAST | {"instance_share": 1.0},
    "L_cls": CONTRAST | {"instance_share": 0.0},
    "L_ins, no projection head": CONTRAST | {"instance_share": 1.0, "projection": "none"},
    "L_cls, no projection head": CONTRAST | {"instance_share": 0.0, "projection": "none"},
    "rule-out by mask": {"rule_out_weight": 1.0},
    "rule-out by pixel (control)": {"rule_out_weight": 1.0, "rule_out_by": "pixel"},
    "contrast of outputs": {"output_weight": 0.1},
    "contrast at boundaries": {"ring_weight": 0.1},
    "contrast at boundaries, no projection head": {"ring_weight": 0.1, "projection": "none"},
    "neighbours": {"neighbour_weight": 1.0},
    "neighbours by features": {"neighbour_weight": 1.0, "neighbour_space": "features"},
    "learned space": {"neighbour_weight": 1.0, "neighbour_space": "learned"},
}
"""Name of a loss -> settings of `train.loss` that add it to self-training with the vote."""


@dataclass(frozen=True)
class LabelledMasks:
    """The K masks of some target images, with the teacher's evidence and the true labels."""

    evidence: Tensor
    """(K, C) corrected for the prior, in nats."""
    spaces: dict[str, tuple[Tensor, ...]]
    """Name of a space -> blocks (K, D) that describe each mask in it."""
    images: Tensor
    """(K,) number of the image."""
    truth: Tensor
    """(K, C) labelled pixels of each class."""

    @property
    def pixels(self) -> Tensor:
        return self.truth.sum(1)

    def score(self, labels: Tensor, masks: Tensor | None = None) -> dict[str, float]:
        """Score labels (K,) in percent: mIoU over pixels, accuracy over masks, and their class mean."""
        masks = self.pixels > 0 if masks is None else masks & (self.pixels > 0)
        truth, labels = self.truth[masks], labels[masks]
        matrix = torch.zeros(truth.shape[1], truth.shape[1]).index_add_(0, labels, truth)
        right, occurs = matrix.diag(), matrix.sum(0) > 0
        union = matrix.sum(0) + matrix.sum(1) - right
        majority = truth.argmax(1)
        hits = (labels == majority).float()
        of_classes = [hits[majority == c].mean() for c in majority.unique()]
        return {
            "miou": 100 * float((right / union)[occurs].mean()),
            "accuracy": 100 * float(hits.mean()),
            "class_accuracy": 100 * float(torch.stack(of_classes).mean()),
        }


@torch.no_grad()
def label_masks(pair: DomainPair, network: Segmenter, regions: str, count: int) -> LabelledMasks:
    """Describe the masks of evenly spread labelled target images."""
    store, classes = MaskStore(pair.masks(regions)), len(pair.classes)
    scores, features, geometry, images, truths = [], [], [], [], []
    prior = torch.zeros(classes)
    uniform = torch.ones(classes) / classes
    for number, item in enumerate(evenly_spread(list(pair.labelled_target()), count)):
        pixels = torch.from_numpy(item.read()).permute(2, 0, 1)[None] / 255
        q = torch.from_numpy(predict_probabilities(network, item.read(), pair.config.evaluation))
        q = q[None]
        prior += q.sum((0, 2, 3))
        ids = torch.from_numpy(store.id_map(item.image_id).astype(np.int64))[None]
        evidence = Evidence.gather(q, ids, uniform, power=0.0)
        masks = evidence.masks
        present = masks.present()
        scores.append(evidence.of_masks[present])
        padded = network.pad(pixels)
        grid, _ = network(padded)
        spread = F.interpolate(grid.float(), padded.shape[-2:])[..., : ids.shape[1], : ids.shape[2]]
        features.append(masks.mean(spread.permute(0, 2, 3, 1).flatten(0, 2))[present])
        geometry.append(torch.from_numpy(store.geometry(item.image_id))[present])
        images.append(torch.full_like(present, number))
        truths.append(_true_pixels(item.labels(), masks, classes)[present])
    prior = (prior / prior.sum()).clamp(min=1e-4)
    v = F.normalize(torch.cat(features), dim=1)
    g = torch.cat(geometry)
    return LabelledMasks(
        torch.cat(scores) - pair_power(pair) * prior.log(),
        {"features": (v,), "geometry": (g,), "both": (v, g)},
        torch.cat(images),
        torch.cat(truths),
    )


def pair_power(pair: DomainPair) -> float:
    """Return the power of the class prior in the rows with a vote."""
    return override(pair.config, VOTE).train.loss.prior_power


def _true_pixels(labels: np.ndarray, masks: MaskPixels, classes: int) -> Tensor:
    """Return (M, C) labelled pixels of each mask number and class."""
    truth = torch.from_numpy(labels.astype(np.int64)).flatten()
    labelled = truth != VOID
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


def label_rows(masks: LabelledMasks) -> list[dict[str, Any]]:
    """Return a row for the vote, and one for each space and weight."""
    rows = [{"labels": "vote"} | masks.score(masks.evidence.argmax(1)) | by_size(masks, None)]
    for space, shuffle in (*((name, False) for name in masks.spaces), ("geometry", True)):
        opinions = opinions_in(masks, space, shuffle)
        for weight in WEIGHTS:
            labels = ((masks.evidence + weight * opinions) / (1 + weight)).argmax(1)
            name = "random masks (control)" if shuffle else space
            sizes = by_size(masks, labels)
            rows.append({"labels": name, "weight": weight} | masks.score(labels) | sizes)
    best = masks.truth.argmax(1)
    return [*rows, {"labels": "true majority"} | masks.score(best) | by_size(masks, best)]


def by_size(masks: LabelledMasks, labels: Tensor | None) -> dict[str, float]:
    """Return the accuracy over masks of each size class, in percent."""
    labels = masks.evidence.argmax(1) if labels is None else labels
    limits = (0, *SIZES, 1 << 60)
    accuracies = {}
    for low, high in itertools.pairwise(limits):
        chosen = (masks.pixels > low) & (masks.pixels <= high)
        name = f"accuracy up to {high} px" if high in SIZES else f"accuracy above {low} px"
        if chosen.any():
            accuracies[name] = masks.score(labels, chosen)["accuracy"]
    return accuracies


def plausible_rows(masks: LabelledMasks) -> list[dict[str, Any]]:
    """Return how often the true class of a mask is among its likeliest, over masks and over pixels."""
    labelled = masks.pixels > 0
    majority, pixels = masks.truth.argmax(1)[labelled], masks.pixels[labelled]
    rows = []
    for count in (1, 2, 3):
        likeliest = masks.evidence[labelled].topk(count, dim=1).indices
        hits = (likeliest == majority[:, None]).any(1).float()
        area = (hits * pixels).sum() / pixels.sum()
        rows.append(
            {"classes": count, "masks": 100 * float(hits.mean()), "area": 100 * float(area)}
        )
    return rows


def gradient_rows(
    pair: DomainPair, network: Segmenter, regions: str, batches: int, warm_up: int
) -> list[dict[str, Any]]:
    """Return cosine and relative norm of each extra loss's gradient against that of the labels.

    The losses are those of a training step after the ramp. `warm_up` batches fill the memory first.
    """
    similar: dict[str, list[tuple[float, float]]] = {name: [] for name in EXTRA_LOSSES}
    masks = pair.masks(regions)
    plain = _Step(pair, network, masks, {}, warm_up)
    steps = {
        name: _Step(pair, network, masks, knobs, warm_up) for name, knobs in EXTRA_LOSSES.items()
    }
    for index in range(batches):
        of_labels = plain.gradient(index)
        for name, step in steps.items():
            extra = step.gradient(index) - of_labels
            cosine = F.cosine_similarity(extra, of_labels, dim=0)
            similar[name].append((float(cosine), float(extra.norm() / of_labels.norm())))
    rows = []
    for name, pairs in similar.items():
        cosines, norms = zip(*pairs, strict=True)
        rows.append(
            {
                "loss": name,
                "cosine": float(np.mean(cosines)),
                "cosine_deviation": float(np.std(cosines)),
                "norm": float(np.mean(norms)),
            }
        )
    return rows


class _Step:
    """Gradients of a training step with some losses, always from the source model's weights."""

    def __init__(
        self, pair: DomainPair, network: Segmenter, masks: Any, knobs: dict[str, Any], warm_up: int
    ):
        torch.manual_seed(0)
        off = {"train.loss.contrast_weight": 0.0, "train.num_steps": 1000}
        named = {f"train.loss.{name}": value for name, value in knobs.items()}
        config = override(pair.config, VOTE | off | named)
        self.config: TrainConfig = config.train
        self.student = build_student(copy.deepcopy(network), config, torch.device("cpu"))
        set_batch_norm(self.student, self.config.batch_norm)
        self.teacher: ContrastNet = frozen_copy(self.student)
        memory = Memory.empty(len(pair.classes), self.student.embedding_dim, self.config)
        needs_geometry = self.config.loss.neighbour_weight > 0
        samples = TargetSamples(
            pair.images, masks, self.config.augment, config.seed, with_geometry=needs_geometry
        )
        loader = step_loader(samples, 0, 1000, self.config.batch_size)
        self.batches = iter(loader)
        self.memory = memory
        for _ in range(warm_up):
            with torch.no_grad():
                self._loss(next(self.batches))

    def _loss(self, batch: dict[str, Tensor]) -> Tensor:
        batch = batch | {name: batch[name].float() / 255 for name in ("weak", "strong")}
        networks = TeacherStudent(self.student, self.teacher, self.memory)
        return adaptation_losses(networks, batch, self.config, StepInfo(1000, 0))[0]

    def gradient(self, index: int) -> Tensor:
        """Return the gradient of the backbone's weights for the next batch, as one vector."""
        self.student.zero_grad(set_to_none=True)
        self._loss(next(self.batches)).backward()
        body = self.student.segmenter.body.parameters()
        return torch.cat([p.grad.flatten() for p in body if p.grad is not None])


def as_markdown(title: str, command: str, tables: dict[str, list[dict[str, Any]]]) -> str:
    """Return all tables."""
    lines = [f"# {title}", "", f"`{command}`", ""]
    for name, rows in tables.items():
        columns = list(dict.fromkeys(column for row in rows for column in row))
        lines += [f"## {name}", "", "| " + " | ".join(columns) + " |", "|---" * len(columns) + "|"]
        lines += ["| " + " | ".join(_cell(row.get(c)) for c in columns) + " |" for row in rows]
        lines.append("")
    return "\n".join(lines)


def _cell(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.1f}" if abs(value) >= 3 else f"{value:.2f}"
    return "" if value is None else str(value)


def run(arguments: argparse.Namespace) -> None:
    """Measure one pair and write its tables."""
    torch.set_num_threads(1)
    pair = make_pair(arguments)
    network = with_target_statistics(Job(pair, STATISTICS, 0, "cpu"))
    masks = label_masks(pair, network, arguments.regions, arguments.judged)
    tables = {
        "Labels of masks, percent": label_rows(masks),
        "True class among the likeliest, percent": plausible_rows(masks),
        "Gradients at the backbone, against the pseudo-labels": gradient_rows(
            pair, network, arguments.regions, arguments.batches, arguments.warm_up
        ),
    }
    command = (
        f"python experiments/studies/pair_news.py {pair.options} --regions {arguments.regions}"
    )
    arguments.results.mkdir(parents=True, exist_ok=True)
    stem = arguments.results / f"pair_news_{pair.name}_{arguments.regions}"
    rows = [{"table": name} | row for name, rows in tables.items() for row in rows]
    write_record(stem.with_suffix(".json"), command, "cpu", rows)
    title = f"{pair.name}, {arguments.regions} regions: {len(masks.images)} masks"
    stem.with_suffix(".md").write_text(as_markdown(title, command, tables))
    print(stem.with_suffix(".md").read_text())


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add_pair_options(parser)
    parser.add_argument("--regions", choices=REGIONS, default="felzenszwalb")
    parser.add_argument("--judged", type=int, default=60, help="images whose masks are labelled")
    parser.add_argument("--batches", type=int, default=8, help="batches of gradients")
    parser.add_argument(
        "--warm-up", type=int, default=20, help="batches that fill the memory first"
    )
    sys.exit(run_guarded(lambda: run(parser.parse_args())))
