"""Measure before any training whether masks bring news: what the teacher's own labels do not say.

    python experiments/studies/pair_news.py --pair streets --regions small_sam
    python experiments/studies/pair_news.py --pair cityscapes2camvid_dusk --data DIR \
        --source-model espnet_p_2_q_8.pth

The source model is the teacher. First, masks are labelled by their own evidence (the vote), and by the
evidence corrected by their neighbours in several spaces: geometry, the teacher's features, both, an
embedding learned without class labels on the images that are not labelled here, and SAM's embedding
(small SAM). Labels of the target score all of them. Random masks as neighbours are the control.
Second, the gradient of each extra loss is compared with that of the pseudo-labels at the backbone: a
cosine near 1 repeats them, one below .2 brings news. The script writes pair_news_PAIR_REGIONS.json
and .md.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch
from ablation import add_pair_options, make_pair
from ablation_rows import STATISTICS, VOTE
from ablation_run import Job, with_target_statistics
from domain_pairs import DomainPair
from learned_space import LEARNED, learn_space
from mask_labels import (
    LabelledMasks,
    all_labels,
    class_rows,
    label_masks,
    label_rows,
    plausible_rows,
)
from study_record import write_record
from study_regions import REGIONS
from study_step import StudyStep
from torch.nn import functional as F

from sfss_ray.cli import run_guarded
from sfss_ray.config import override
from sfss_ray.data.folders import evenly_spread
from sfss_ray.errors import ConfigError
from sfss_ray.masks.bank.store import MaskStore
from sfss_ray.models.segmenter import Segmenter

LABELS = "Labels of masks, percent"
GRADIENTS = "Gradients at the backbone, against the pseudo-labels"
CONTRAST = {"contrast_weight": 0.03}
NEIGHBOURS = {
    "neighbour_weight": 1.0,
    "neighbour_space": "geometry",
    "neighbour_pooling": "mean",
}
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
    "neighbours": NEIGHBOURS,
    "neighbours by features": NEIGHBOURS | {"neighbour_space": "features"},
    "neighbours by chance (control)": NEIGHBOURS | {"neighbour_space": "random"},
    "neighbours in a learned space, and its metric": NEIGHBOURS | LEARNED,
}
"""Name of a loss -> settings of `train.loss` that add it to self-training with the vote."""
BY_SAM = {"neighbours by SAM's embedding": NEIGHBOURS | {"neighbour_space": "sam"}}
"""The same, for masks that have embeddings."""


def labelled_masks(
    pair: DomainPair, network: Segmenter, regions: str, judged: int, steps: int
) -> LabelledMasks:
    """Return the masks of evenly spread target images with their labels.

    Args:
        pair: Source model and target.
        network: The teacher.
        regions: Source of the masks.
        judged: Images at most. At least half of the target's are left to learn a space from.
        steps: Of learning that space.
    """
    folder, labelled = pair.masks(regions), list(pair.labelled_target())
    items = evenly_spread(labelled, min(judged, len(labelled) // 2))
    judged_ids = {item.image_id for item in items}
    unlabelled = [file for file in pair.images if file.image_id not in judged_ids]
    if not items or not unlabelled:
        raise ConfigError(f"{pair.name} has {len(labelled)} labelled images: give at least 2")
    learned = learn_space(pair, network, regions, unlabelled, steps) if steps else None
    evaluation = pair.config.evaluation
    masks, prior = label_masks(items, MaskStore(folder), network, evaluation, learned)
    vote = override(pair.config, {**VOTE, **pair.votes.get(regions, {})}).train.loss
    return masks.corrected_for(prior, vote.prior_power)


def gradient_rows(
    pair: DomainPair, network: Segmenter, regions: str, batches: int, warm_up: int
) -> list[dict[str, Any]]:
    """Return cosine and relative norm of each extra loss's gradient against that of the labels.

    The losses are those of a training step after the ramp. `warm_up` batches fill the memory first.
    """
    by_sam = BY_SAM if MaskStore(pair.masks(regions)).has_embeddings else {}
    losses = EXTRA_LOSSES | by_sam
    plain = StudyStep(pair, network, regions, {})
    steps = {name: StudyStep(pair, network, regions, knobs) for name, knobs in losses.items()}
    for step in (plain, *steps.values()):
        step.fill_memory(warm_up)
    similar: dict[str, list[tuple[float, float]]] = {name: [] for name in losses}
    for _ in range(batches):
        of_labels = plain.gradient()
        for name, step in steps.items():
            extra = step.gradient() - of_labels
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


def write_tables(path: Path, command: str, tables: dict[str, list[dict[str, Any]]]) -> None:
    """Write the record: a line for each label and each loss, and one line for each other table."""
    in_rows = (LABELS, GRADIENTS)
    rows = [{"table": name} | row for name in in_rows for row in tables.get(name, ())]
    facts = {name: table for name, table in tables.items() if name not in in_rows}
    write_record(path, command, "cpu", rows, facts)


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
    masks = labelled_masks(
        pair, network, arguments.regions, arguments.judged, arguments.metric_steps
    )
    labels_of = all_labels(masks)
    tables = {
        LABELS: label_rows(masks, labels_of),
        "IoU of each class, neighbours of weight 1, percent": class_rows(
            masks, labels_of, pair.classes.classes
        ),
        "True class among the likeliest, percent": plausible_rows(masks),
    }
    if arguments.batches:
        tables[GRADIENTS] = gradient_rows(
            pair, network, arguments.regions, arguments.batches, arguments.warm_up
        )
    sizes = ("judged", "batches", "warm_up", "metric_steps")
    options = [f"--{name.replace('_', '-')} {getattr(arguments, name)}" for name in sizes]
    study = "python experiments/studies/pair_news.py"
    command = " ".join([study, pair.options, f"--regions {arguments.regions}", *options])
    arguments.results.mkdir(parents=True, exist_ok=True)
    stem = arguments.results / f"pair_news_{pair.name}_{arguments.regions}"
    write_tables(stem.with_suffix(".json"), command, tables)
    title = f"{pair.name}, {arguments.regions} regions: {len(masks.images)} masks"
    stem.with_suffix(".md").write_text(as_markdown(title, command, tables))
    print(stem.with_suffix(".md").read_text())


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add_pair_options(parser)
    parser.add_argument("--regions", choices=REGIONS, default="felzenszwalb")
    parser.add_argument(
        "--judged",
        type=int,
        default=60,
        help="images whose masks are labelled, at most half of the target's",
    )
    parser.add_argument("--batches", type=int, default=8, help="batches of gradients (0: none)")
    parser.add_argument(
        "--warm-up", type=int, default=20, help="batches that fill the memory first"
    )
    parser.add_argument(
        "--metric-steps", type=int, default=200, help="steps that learn a space (0: none)"
    )
    sys.exit(run_guarded(lambda: run(parser.parse_args())))
