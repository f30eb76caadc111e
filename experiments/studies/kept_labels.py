"""Measure before any training which labels of masks, corrected by neighbours, a training would keep.

    python experiments/studies/kept_labels.py --pair streets
    python experiments/studies/kept_labels.py --pair cityscapes2camvid_dusk --data DIR \
        --source-model espnet_p_2_q_8.pth --judged 30

pair_news.py shows how good all labels are. A training learns from those alone whose confidence passes
the threshold of their class. The source model is the teacher, masks are the small SAM's, and their
neighbours are those by SAM's embedding. Their opinion is added to a mask's own evidence, or averaged
with it (`train.loss.neighbour_pooling`). Neighbours by chance are the control. The script writes
kept_labels_PAIR.json and .md.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from ablation import add_pair_options, make_pair
from ablation_rows import STATISTICS
from ablation_run import Job, with_target_statistics
from mask_labels import LabelledMasks, class_ious, left_out, opinions_in
from pair_news import as_markdown, labelled_masks
from study_record import write_record
from torch import Tensor

from sfss_ray.cli import run_guarded

REGIONS = "small_sam"
WEIGHTS = (1.0, 2.0)


def corrected(masks: LabelledMasks) -> Iterator[tuple[str, Tensor]]:
    """Yield names and evidence (K, C): a mask's own, and its own with the opinion of neighbours."""
    yield "own evidence", masks.evidence
    for name, shuffle in (("SAM's embedding", False), ("chance (control)", True)):
        opinions = opinions_in(masks, "sam", shuffle)
        for weight in WEIGHTS:
            total = masks.evidence + weight * opinions
            if not shuffle:
                yield f"{name}, weight {weight:g}, mean", total / (1 + weight)
            yield f"{name}, weight {weight:g}, sum", total


def kept_row(name: str, masks: LabelledMasks, evidence: Tensor) -> dict[str, Any]:
    """Return what a training would keep of the labels by some evidence (K, C), in percent.

    Areas are shares of the labelled pixels of all masks. `changed` are labels that differ from those by
    the masks' own evidence. `classes` is the kept share of a class's pixels, mean over the classes.
    """
    labels = evidence.argmax(1)
    passes = ~left_out(replace(masks, evidence=evidence))
    changed = labels != masks.evidence.argmax(1)
    classes = masks.truth.sum(0) > 0
    coverage = masks.truth[passes].sum(0)[classes] / masks.truth.sum(0)[classes]
    return {
        "labels": name,
        "mIoU of all": masks.score(labels)["miou"],
        "kept": _area(masks, passes),
        "right": _right(masks, labels, passes),
        "mIoU of kept": 100 * float(np.nanmean(class_ious(masks.truth[passes], labels[passes]))),
        "changed": _area(masks, changed),
        "changed and kept": _area(masks, changed & passes),
        "right of these": _right(masks, labels, changed & passes),
        "classes": 100 * float(coverage.mean()),
    }


def _area(masks: LabelledMasks, chosen: Tensor) -> float:
    return 100 * float(masks.pixels[chosen].sum() / masks.pixels.sum())


def _right(masks: LabelledMasks, labels: Tensor, chosen: Tensor) -> float | None:
    """Return the share of right pixels among the chosen masks; None without any."""
    if not masks.pixels[chosen].sum():
        return None
    hits = masks.truth[chosen].gather(1, labels[chosen, None]).sum()
    return 100 * float(hits / masks.pixels[chosen].sum())


def run(arguments: argparse.Namespace) -> None:
    """Measure one pair and write its table."""
    torch.set_num_threads(1)
    pair = make_pair(arguments)
    network = with_target_statistics(Job(pair, STATISTICS, 0, "cpu"))
    masks = labelled_masks(pair, network, REGIONS, arguments.judged, steps=0)
    rows = [kept_row(name, masks, evidence) for name, evidence in corrected(masks)]
    options = f"{pair.options} --judged {arguments.judged}"
    command = f"python experiments/studies/kept_labels.py {options}"
    arguments.results.mkdir(parents=True, exist_ok=True)
    stem = arguments.results / f"kept_labels_{pair.name}"
    write_record(stem.with_suffix(".json"), command, "cpu", rows)
    title = f"{pair.name}: labels of {len(masks.images)} masks that pass the thresholds, percent"
    stem.with_suffix(".md").write_text(as_markdown(title, command, {"Labels": rows}))
    print(stem.with_suffix(".md").read_text())


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add_pair_options(parser)
    parser.add_argument("--judged", type=int, default=60, help="images whose masks are labelled")
    sys.exit(run_guarded(lambda: run(parser.parse_args())))
