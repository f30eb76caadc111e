"""Find where a class is lost: on the images that a model is adapted to, or only on others.

    python experiments/studies/lost_class.py --pair cityscapes2camvid_day --data DIR \
        --source-model espnet_p_2_q_8.pth --class-name fence

The class is scored on the target images and on the scored images of a pair. The networks are the source
model, the source model with the BatchNorm statistics that a training starts from, and the student of
each seed at its last step. The students are those of source_shares.py, trained if they are missing. The
script writes lost_class_PAIR_CLASS.json and .md.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from ablation_run import (
    examination,
    source_network,
    use_one_thread,
    with_target_statistics,
)
from domain_pairs import DomainPair
from source_shares import ShareJob, add_share_options, share_jobs, share_pair, trained
from study_record import write_record

from sfss_ray.cli import run_guarded
from sfss_ray.data.folders import evenly_spread
from sfss_ray.errors import ConfigError
from sfss_ray.evaluation.confusion_matrix import ConfusionMatrix
from sfss_ray.evaluation.examination import Examination
from sfss_ray.models.segmenter import Segmenter
from sfss_ray.train.weight_average import average_weights

NUM_TARGET_IMAGES = 60
"""Labelled target images that are scored, evenly spread."""
NUM_CONFUSIONS = 2


def networks(jobs: Sequence[ShareJob]) -> Iterator[tuple[str, Segmenter]]:
    """Yield each network of a pair with its name, in eval mode."""
    yield "source-only", source_network(jobs[0])
    yield "BatchNorm statistics only", with_target_statistics(jobs[0])
    for job in jobs:
        network = source_network(job)
        weights = trained(job)["student"]
        share = job.config.train.share_of_source(len(job.pair.images))
        network.load_state_dict(average_weights(weights, network.state_dict(), share))
        yield f"student, seed {job.seed}", network.eval()


def score_class(matrix: ConfusionMatrix, class_id: int, names: Sequence[str]) -> dict[str, Any]:
    """Return mIoU, and IoU, recall and precision of a class, in percent.

    Args:
        matrix: Of C classes.
        class_id: Of a class that occurs in the labels.
        names: Of all C classes.

    Returns:
        Also `predicted_as`: the classes that most of its missed pixels are predicted as, with their
        shares of its pixels. Precision is None if the class is never predicted.
    """
    of_class, predicted = matrix.counts[class_id], matrix.counts[:, class_id].sum()
    missed = [k for k in np.argsort(-of_class, kind="stable") if k != class_id and of_class[k]]
    return {
        "miou": matrix.miou(),
        "iou": float(matrix.iou()[class_id]),
        "recall": float(matrix.recall()[class_id]),
        "precision": 100 * float(of_class[class_id] / predicted) if predicted else None,
        "predicted_as": {
            names[k]: 100 * float(of_class[k] / of_class.sum()) for k in missed[:NUM_CONFUSIONS]
        },
    }


def measure(jobs: Sequence[ShareJob], class_id: int) -> list[dict[str, Any]]:
    """Return a row for each network and set of images.

    Raises:
        ConfigError: no labelled image has a pixel of the class.
    """
    pair = jobs[0].pair
    target = evenly_spread(list(pair.labelled_target()), NUM_TARGET_IMAGES)
    exams = {
        "target": Examination(pair.classes, tuple(target), config=jobs[0].config.evaluation),
        "scored": examination(jobs[0]),
    }
    rows = []
    for name, network in networks(jobs):
        for images, exam in exams.items():
            matrix = exam.matrix(network)
            if not matrix.counts[class_id].sum():
                raise ConfigError(
                    f"no {images} image has a pixel of {pair.classes.classes[class_id]!r}"
                )
            rows.append(
                {"network": name, "images": images}
                | score_class(matrix, class_id, pair.classes.classes)
            )
            print(rows[-1], flush=True)
    return rows


def as_markdown(pair: DomainPair, name: str, rows: list[dict[str, Any]], command: str) -> str:
    """Return the table: the target images first, then the scored ones."""
    lines = [
        f"# {pair.name}: {name} on the target images and on the scored images",
        "",
        f"`{command}`",
        "",
        f"In percent. Up to {NUM_TARGET_IMAGES} target images, {len(pair.val)} scored. The last column"
        f" says what {name} is predicted as where it is missed, in percent of its pixels.",
        "",
        f"| images | network | mIoU | {name} IoU | recall | precision | predicted as |",
        "|---|---|---|---|---|---|---|",
    ]
    for images in ("target", "scored"):
        for row in rows:
            if row["images"] == images:
                precision = "" if row["precision"] is None else f"{row['precision']:.0f}"
                confusions = ", ".join(f"{k} {v:.0f}" for k, v in row["predicted_as"].items())
                lines.append(
                    f"| {images} | {row['network']} | {row['miou']:.1f} | {row['iou']:.1f}"
                    f" | {row['recall']:.0f} | {precision} | {confusions} |"
                )
    return "\n".join(lines) + "\n"


def class_number(pair: DomainPair, name: str) -> int:
    """Return the number of a class.

    Raises:
        ConfigError: the pair has no such class.
    """
    if name not in pair.classes.classes:
        raise ConfigError(
            f"pair {pair.name} has no class {name!r}: choose from {', '.join(pair.classes.classes)}"
        )
    return pair.classes.classes.index(name)


def run(arguments: argparse.Namespace) -> None:
    """Measure one class of one pair and write its table."""
    use_one_thread()
    pair = share_pair(arguments)
    class_id = class_number(
        pair, arguments.class_name
    )  # an unknown name ends here, before the work
    rows = measure(share_jobs(pair, arguments), class_id)
    name = arguments.class_name
    command = (
        f"python experiments/studies/lost_class.py {pair.options} --regions {arguments.regions}"
        f" --class-name {name!r}"
    )
    stem: Path = arguments.results / f"lost_class_{pair.name}_{name.replace(' ', '_')}"
    arguments.results.mkdir(parents=True, exist_ok=True)
    write_record(stem.with_suffix(".json"), command, "cpu", rows)
    stem.with_suffix(".md").write_text(as_markdown(pair, name, rows, command))
    print(stem.with_suffix(".md").read_text())


if __name__ == "__main__":
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add_share_options(parser)
    parser.add_argument("--class-name", required=True, help="name of the class, such as fence")
    sys.exit(run_guarded(lambda: run(parser.parse_args())))
