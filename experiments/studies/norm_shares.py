"""Compare shares of the target's BatchNorm statistics, and the one that is found without labels.

    python experiments/studies/norm_shares.py --pair streets
    python experiments/studies/norm_shares.py --pair cityscapes2camvid_dusk --data DIR \
        --source-model espnet_p_2_q_8.pth

The source model is not trained. For each share the script measures mIoU with labels, and the consistency
over views without them. `train.batch_norm auto` finds a share by the consistency alone. The last two
rows are the share found on all compared images, and the one that a run finds on its few images. Where
the scored images are of another drive than the target, the compared target images are scored too. The
script writes norm_shares_PAIR.json and .md.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

import chosen_statistics
from ablation import add_pair_options, make_pair
from domain_pairs import DomainPair
from study_record import write_record

from sfss_ray.cli import run_guarded
from sfss_ray.config import override
from sfss_ray.data.folders import evenly_spread
from sfss_ray.errors import ConfigError
from sfss_ray.evaluation.examination import Examination
from sfss_ray.evaluation.view_consistency import ConsistencyProbe, ViewConsistency
from sfss_ray.models.model_file import load_model
from sfss_ray.train.batch_norm import estimate_statistics
from sfss_ray.train.norm_choice import NUM_IMAGES, choose_share, whole_image_batches


def measure(pair: DomainPair, num_images: int) -> list[dict[str, Any]]:
    """Return a row for each share, with mIoU in percent and consistency, and the found shares last.

    Args:
        pair: The source model, its target images and the labelled images.
        num_images: Target images on which the shares are compared without labels.

    Raises:
        ConfigError: the source model has no BatchNorm statistics.
    """
    evaluation = pair.config.evaluation
    network = load_model(pair.source_model).network
    files = evenly_spread(list(pair.images), pair.config.train.statistics_images)
    batches = whole_image_batches(network, files, evaluation)
    mixture = estimate_statistics(network.train(), batches)
    if mixture is None:
        raise ConfigError(f"the source model of pair {pair.name} has no BatchNorm statistics")
    network.eval()
    compared = evenly_spread(list(pair.images), num_images)
    probe = ConsistencyProbe(tuple(file.read(max_pixels=None) for file in compared), evaluation)
    examinations = {"miou": Examination(pair.classes, pair.val, config=evaluation)}
    if pair.labelled:
        of_target = tuple(evenly_spread(list(pair.labelled), num_images))
        examinations["target_miou"] = Examination(pair.classes, of_target, config=evaluation)
    rows: list[dict[str, Any]] = []

    def score_share(share: float) -> ViewConsistency:
        mixture.use(share)
        consistency = probe.score(network)
        mious = {name: one.score(network).miou for name, one in examinations.items()}
        rows.append({"share": share, **mious, "consistency": consistency.value()})
        print(f"share {share:.2f}: {mious}, consistency {rows[-1]['consistency']:.3f}")
        return consistency

    share_of = {len(compared): choose_share(score_share).share}
    of_a_run = override(pair.config, {"train.batch_norm": "auto"})
    share_of[min(NUM_IMAGES, len(pair.images))] = chosen_statistics.choose_share(pair, of_a_run)
    for images, share in share_of.items():
        mixture.use(share)
        mious = {name: one.score(network).miou for name, one in examinations.items()}
        rows.append({"share": share, "found_on": images, **mious})
    return rows


def as_markdown(pair: DomainPair, rows: list[dict[str, Any]], command: str) -> str:
    """Return the table, whose last lines are the shares that were found."""
    has_target = any("target_miou" in row for row in rows)
    columns = ["share of the target's statistics", "mIoU %", "consistency over views"]
    columns += ["mIoU % of the compared target images"] * has_target
    lines = [
        f"# {pair.name}: {len(pair.images)} unlabelled target images, {len(pair.val)} scored",
        "",
        f"`{command}`",
        "",
        f"| {' | '.join(columns)} |",
        "|---" * len(columns) + "|",
    ]
    for row in rows:
        origin = f"found on {row.get('found_on')} images"
        consistency = f"{row['consistency']:.3f}" if "consistency" in row else origin
        cells = [f"{row['share']:.2f}", f"{row['miou']:.1f}", consistency]
        if has_target:
            cells.append(f"{row['target_miou']:.1f}")
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def run(arguments: argparse.Namespace) -> None:
    """Measure one pair and write its table."""
    pair = make_pair(arguments)
    rows = measure(pair, arguments.compared)
    stem = f"norm_shares_{pair.name}"
    command = (
        f"python experiments/studies/norm_shares.py {pair.options} --compared {arguments.compared}"
    )
    arguments.results.mkdir(parents=True, exist_ok=True)
    write_record(arguments.results / f"{stem}.json", command, "cpu", rows)
    table: Path = arguments.results / f"{stem}.md"
    table.write_text(as_markdown(pair, rows, command))
    print(table.read_text())


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add_pair_options(parser)
    parser.add_argument(
        "--compared", type=int, default=60, help="target images compared without labels"
    )
    sys.exit(run_guarded(lambda: run(parser.parse_args())))
