"""Compare the positives and negatives of the contrast with ground truth.

    python experiments/studies/pair_quality.py --pair streets
    python experiments/studies/pair_quality.py --pair camvid_day2dusk --data DIR

The source model is the teacher. For each source of regions the script measures the share of masks that
are reliable, merged or unlabelled, the share of positives that have the true class of their anchor, the
share of negatives that have it too (false negatives), and the mIoU of the pseudo-labels before and after
the vote. It writes pair_quality_PAIR.json and .md.
"""

from __future__ import annotations

import argparse
import sys
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from ablation import add_pair_options, make_pair
from ablation_rows import VOTE
from domain_pairs import DomainPair
from study_record import write_record
from study_regions import REGIONS
from torch.nn import functional as F

from sfss_ray.cli import run_guarded
from sfss_ray.config import override
from sfss_ray.evaluation.confusion_matrix import ConfusionMatrix

VOID = 255


@dataclass
class Tally:
    """Counts of right and of all cases by name, summed over images."""

    counts: dict[str, float] = field(default_factory=dict)

    def add(self, name: str, right: Any, total: Any) -> None:
        """Add the right cases and all cases of one image."""
        for part, value in ((f"{name}+", right), (f"{name}/", total)):
            self.counts[part] = self.counts.get(part, 0.0) + float(value)

    def share(self, name: str) -> float | None:
        """Return the right cases in percent, or None without any case."""
        total = self.counts.get(f"{name}/", 0.0)
        return 100 * self.counts[f"{name}+"] / total if total else None


def measure(pair: DomainPair, regions: str, images: int, batch: int = 8) -> dict[str, Any]:
    """Return the shares in percent for one source of regions, over `images` target images."""
    from sfss_ray.data.decoding import read_image
    from sfss_ray.masks.bank.store import MaskStore
    from sfss_ray.method.contrast_net import ContrastNet
    from sfss_ray.method.mask_evidence import Evidence
    from sfss_ray.method.mask_vote import ClassPrior, relabel
    from sfss_ray.method.pseudo_labels import ClassThresholds
    from sfss_ray.models.model_file import load_model

    config = override(pair.config, VOTE).train
    classes, store = len(pair.classes), MaskStore(pair.masks(regions))
    torch.manual_seed(0)  # the projection head starts from random weights
    teacher = ContrastNet(load_model(pair.source_model).network, config).eval()
    thresholds, prior = ClassThresholds(classes), ClassPrior(classes)
    tally = Tally()
    argmax_matrix, voted_matrix = ConfusionMatrix(classes), ConfusionMatrix(classes)
    labelled = pair.labelled_target()
    chosen = labelled[:: max(1, len(labelled) // images)][:images]
    for start in range(0, len(chosen), batch):
        views, ids, truths, probabilities = [], [], [], []
        for item in chosen[start : start + batch]:
            views.append(torch.from_numpy(read_image(item.path)).permute(2, 0, 1)[None] / 255)
            ids.append(torch.from_numpy(store.id_map(item.image_id).astype(np.int64))[None])
            truths.append(torch.from_numpy(item.labels().astype(np.int64))[None])
        with torch.no_grad():
            outputs = [teacher(view) for view in views]
        for (logits, _), view in zip(outputs, views, strict=True):
            probabilities.append(teacher.segmenter.upsample(logits, view.shape[-2:]).softmax(1))
            prior.update(probabilities[-1].sum((0, 2, 3)))
            confidence, label = probabilities[-1].max(1)
            thresholds.update(thresholds.count(label, confidence))
        for q, mask_ids, truth in zip(probabilities, ids, truths, strict=True):
            power = config.loss.prior_power
            evidence = Evidence.gather(q, mask_ids, prior.share(), power)
            label, _ = relabel(evidence, config.loss)
            argmax_matrix.add(truth[0].numpy(), q.argmax(1)[0].numpy())
            voted_matrix.add(truth[0].numpy(), label[0].numpy())
        bound = thresholds.thresholds(config.loss.class_quantile, config.loss.confidence_cap)
        judge(tally, outputs, ids, truths, bound, config, classes)
    return {
        "regions": regions,
        "images": len(chosen),
        "masks per image": tally.counts["reliable masks/"] / len(chosen),
        **{name: tally.share(name) for name in SHARES},
        "pseudo-label mIoU": argmax_matrix.miou(),
        "pseudo-label mIoU after the vote": voted_matrix.miou(),
        "masks of a class that are reliable": {
            name: tally.share(f"kept {k}") for k, name in enumerate(pair.classes.classes)
        },
    }


SHARES = (
    "reliable masks",
    "merged masks",
    "reliable masks whose class is right",
    "true purity of masks",
    "instance positives of the anchor's class",
    "class positives of the anchor's class",
    "negatives of the anchor's class (false)",
)


def judge(tally, outputs, ids, truths, bound, config, classes) -> None:
    """Sample the pairs of a batch as a training step does, and compare them with ground truth."""
    from sfss_ray.method.anchors import ImageAnchors, draw_anchors
    from sfss_ray.method.cell_grid import cell_mask_ids
    from sfss_ray.method.mask_table import CellPredictions, MaskOrigins, describe_masks
    from sfss_ray.method.pairs import sample_pairs
    from sfss_ray.method.prototype_pool import PrototypePool

    tables, cell_truths = [], []
    for (logits, embeddings), mask_ids, truth in zip(outputs, ids, truths, strict=True):
        grid = tuple(embeddings.shape[-2:])
        cells = cell_mask_ids(mask_ids, grid, config.pairs.cell_share)
        vectors = embeddings.flatten(2).transpose(1, 2)
        predictions = CellPredictions.of(logits.softmax(1))
        tables += describe_masks(cells, predictions, vectors, bound, config.pairs)
        cell_truths.append(majority_of_cells(truth, grid, classes))
    mask_truths = [true_class(t, c, classes) for t, c in zip(tables, cell_truths, strict=True)]
    for table, (truth, purity) in zip(tables, mask_truths, strict=True):
        labelled = truth != VOID
        tally.add("reliable masks", table.reliable.sum(), len(table))
        tally.add("merged masks", table.merged.sum(), len(table))
        counted = table.reliable & labelled
        tally.add(
            "reliable masks whose class is right",
            (table.label == truth)[counted].sum(),
            counted.sum(),
        )
        tally.add(
            "true purity of masks",
            (purity * table.count)[labelled].sum(),
            table.count[labelled].sum(),
        )
        for k in range(classes):
            tally.add(f"kept {k}", (table.reliable & (truth == k)).sum(), (truth == k).sum())
    truths = zip(mask_truths, tables, strict=True)
    pool_truth = np.concatenate([truth[m.reliable] for (truth, _), m in truths])
    classes_of = np.concatenate([m.label[m.reliable] for m in tables])
    images = np.concatenate([np.full(m.reliable.sum(), b) for b, m in enumerate(tables)])
    keys = np.concatenate([(b << 20) + np.flatnonzero(m.reliable) for b, m in enumerate(tables)])
    vectors = torch.cat([m.prototype[torch.from_numpy(m.reliable)] for m in tables])
    pool = PrototypePool.build(vectors, classes_of, images, keys, classes)
    truth_of = dict(zip(keys.tolist(), pool_truth.tolist(), strict=True))
    in_pool = torch.tensor([truth_of[key] for key in pool.keys.tolist()])
    for b, (table, cells) in enumerate(zip(tables, cell_truths, strict=True)):
        z = outputs[b][1][0].flatten(1).T
        label = outputs[b][0].argmax(1).flatten()
        generator = torch.Generator().manual_seed(b)
        origins = MaskOrigins.unmixed(table, b, b << 20)
        anchors = draw_anchors(table, label, bound, config.pairs, generator)
        image = ImageAnchors(table, origins, anchors, generator)
        pairs = sample_pairs([image], pool, z[image.cells], len(z), config.pairs)
        anchor = cells.flatten()[pairs.anchors][:, None]
        compare(tally, SHARES[4], anchor, cells.flatten()[pairs.instance_positives], None)
        if len(in_pool):
            compare(tally, SHARES[5], anchor, in_pool[pairs.class_positives], pairs.class_valid)
            compare(tally, SHARES[6], anchor, in_pool[pairs.negatives], pairs.negative_valid)


def compare(tally: Tally, name: str, anchor, other, valid) -> None:
    """Count how often an anchor and its partner have the same true class."""
    counted = (anchor != VOID) & (other != VOID)
    counted = counted if valid is None else counted & valid
    tally.add(name, ((anchor == other) & counted).sum(), counted.sum())


def majority_of_cells(truth, grid: tuple[int, ...], classes: int):
    """Return the most frequent true class of each cell (h, w), 255 where most pixels are void."""
    hot = F.one_hot(torch.where(truth == VOID, classes, truth), classes + 1)
    share = F.adaptive_avg_pool2d(hot.permute(0, 3, 1, 2).float(), (grid[0], grid[1]))[0]
    best = share.argmax(0)
    return torch.where(best == classes, VOID, best)


def true_class(table, cells, classes: int):
    """Return the most frequent true class of each mask (K,), and the share of its cells that have it."""
    truth = cells.flatten()[table.cells].numpy()
    labelled = truth != VOID
    pairs = table.owner[labelled] * classes + truth[labelled]
    counts = np.bincount(pairs, minlength=len(table) * classes).reshape(-1, classes)
    most, label = counts.max(1), counts.argmax(1)
    return np.where(most > 0, label, VOID), most / counts.sum(1).clip(min=1)


def as_markdown(pair: DomainPair, table: list[dict[str, Any]]) -> str:
    """Return the table with one column for each source of regions."""
    names = ["masks per image", *SHARES, "pseudo-label mIoU", "pseudo-label mIoU after the vote"]
    lines = [f"# {pair.name}: pairs against ground truth, source model as teacher", ""]
    lines += ["| percent | " + " | ".join(entry["regions"] for entry in table) + " |"]
    lines += ["|---" * (1 + len(table)) + "|"]
    for name in names:
        lines.append(f"| {name} | " + " | ".join(_cell(entry[name]) for entry in table) + " |")
    lines += ["", "Reliable among the masks of each true class:", ""]
    lines += ["| percent | " + " | ".join(entry["regions"] for entry in table) + " |"]
    lines += ["|---" * (1 + len(table)) + "|"]
    for name in pair.classes.classes:
        shares = [entry["masks of a class that are reliable"][name] for entry in table]
        lines.append(f"| {name} | " + " | ".join(map(_cell, shares)) + " |")
    return "\n".join([*lines, ""])


def _cell(value: float | None) -> str:
    return "" if value is None else f"{value:.1f}"


def run(arguments: argparse.Namespace) -> None:
    """Measure each source of regions and write the table."""
    pair = make_pair(arguments)
    table = []
    for regions in arguments.regions:
        print(f"pairs of {regions} regions", flush=True)
        table.append(measure(pair, regions, arguments.judged))
    arguments.results.mkdir(parents=True, exist_ok=True)
    stem = arguments.results / f"pair_quality_{pair.name}"
    command = f"python experiments/studies/pair_quality.py --pair {pair.name}"
    write_record(stem.with_suffix(".json"), command, "cpu", table)
    stem.with_suffix(".md").write_text(as_markdown(pair, table))
    print(as_markdown(pair, table))


if __name__ == "__main__":
    torch.set_num_threads(1)
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add_pair_options(parser)
    parser.add_argument("--regions", nargs="*", choices=REGIONS, default=list(REGIONS))
    parser.add_argument("--judged", type=int, default=60, help="number of images")
    arguments = parser.parse_args()
    sys.exit(run_guarded(lambda: run(arguments)))
