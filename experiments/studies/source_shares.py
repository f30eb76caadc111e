"""Compare shares of the source model in the student of the result (`train.source_share`).

    python experiments/studies/source_shares.py --pair streets --regions small_sam
    python experiments/studies/source_shares.py --pair cityscapes2camvid_day --data DIR \
        --source-model espnetv2_s_1.0_city_1024x512.pth

Each seed is trained once with the full method and the default `train.batch_norm auto`. The share changes
no training, only the student that is delivered, so all shares are scored on the same runs. Finished runs
are not repeated. The script writes source_shares_PAIR_REGIONS.json and .md.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import sys
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from ablation import add_pair_options, make_pair, with_steps
from ablation_rows import CONTRAST, VOTE, Row
from ablation_run import Job, examination, source_network, train_networks, use_one_thread
from class_losses import FOUND_AT, worst_class
from domain_pairs import DomainPair
from study_record import write_record
from study_regions import REGIONS

from sfss_ray.cli import run_guarded
from sfss_ray.storage.files import write_torch
from sfss_ray.train.weight_average import average_weights

SHARES = (0.0, 0.1, 0.25, 0.4, 0.5, 0.75)
DEFAULTS = {"train.batch_norm": "auto"}
"""Settings that the pairs of our own networks change."""


@dataclass(frozen=True)
class ShareJob(Job):
    """A training of the full method with one seed, whose networks are kept."""

    @property
    def folder(self) -> Path:
        return self.pair.folder / "shares" / self.row.regions / f"seed{self.seed}"


def share_pair(arguments: argparse.Namespace) -> DomainPair:
    """Return the pair that the options name, with their number of steps."""
    pair = make_pair(arguments)
    return with_steps(pair, arguments.steps) if arguments.steps else pair


def share_jobs(pair: DomainPair, arguments: argparse.Namespace) -> list[ShareJob]:
    """Return the trainings that the options name, one for each seed, and make their masks."""
    regions = arguments.regions
    row = Row(f"full_{regions}", "full method", regions, CONTRAST | VOTE | DEFAULTS)
    pair.masks(regions)
    return [ShareJob(pair, row, seed, "cpu") for seed in range(arguments.seeds)]


def add_share_options(parser: argparse.ArgumentParser) -> None:
    """Add the options of `share_pair` and `share_jobs`."""
    add_pair_options(parser)
    parser.add_argument("--regions", choices=REGIONS, default="felzenszwalb")
    parser.add_argument("--seeds", type=int, default=3, help="number of seeds, from 0 on")
    parser.add_argument("--steps", type=int, help="steps of every run, for a quick trial")


def score_shares(job: ShareJob) -> list[dict[str, Any]]:
    """Return a row for the source model, the teacher, and each share of one seed."""
    use_one_thread()
    networks = trained(job)
    network = source_network(job)
    source = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    exam = examination(job)

    def row(name: str, weights: dict[str, Any], **facts: Any) -> dict[str, Any]:
        network.load_state_dict(weights)
        score = exam.score(network.eval())
        values = {"miou": score.miou, "per_class": score.as_dict()["per_class"]}
        return {"network": name, "seed": job.seed, **facts, **values}

    rows = [row("source-only", source), row("teacher", networks["teacher"])]
    for share in SHARES:
        weights = average_weights(networks["student"], source, share)
        rows.append(row("student", weights, share=share))
    return rows


def trained(job: ShareJob) -> dict[str, dict[str, Any]]:
    """Return weights of student and teacher at the last step, trained if they are missing."""
    path = job.folder / "networks.pt"
    if path.exists():
        stored = torch.load(path, weights_only=True)
        current = _plain(job.identity)
        # Settings that did not exist when the networks were stored are not compared.
        if all(current.get(name) == value for name, value in stored["identity"].items()):
            return stored["networks"]
    networks, _ = train_networks(job)
    write_torch(path, {"identity": _plain(job.identity), "networks": networks})
    return networks


def _plain(identity: dict[str, Any]) -> dict[str, str]:
    """Return what decides a training, as text; the share does not."""
    return {k: repr(v) for k, v in identity.items() if k != "train.source_share"}


def as_markdown(pair: DomainPair, regions: str, rows: list[dict[str, Any]], command: str) -> str:
    """Return a line for each network, with means over the seeds, and the classes that lose most."""
    seeds = sorted({row["seed"] for row in rows})
    lines = [
        f"# {pair.name}, {regions} regions: shares of the source model in the student",
        "",
        f"`{command}`",
        "",
        f"Last step, seeds {', '.join(map(str, seeds))}. The last column is the class that loses most,"
        f" relative to its IoU, in the worst seed. Classes below {FOUND_AT:.0f} % are left out.",
        "",
        "| network | source share | mIoU % | gain | class that loses most |",
        "|---|---|---|---|---|",
    ]
    source = next(row for row in rows if row["network"] == "source-only")
    keys = list(dict.fromkeys((row["network"], row.get("share")) for row in rows))
    for name, share in keys:
        chosen = [row for row in rows if (row["network"], row.get("share")) == (name, share)]
        mious = [row["miou"] for row in chosen]
        spread = f" ± {np.std(mious, ddof=1):.1f}" if len(mious) > 1 else ""
        gain = np.mean(mious) - source["miou"]
        lines.append(
            f"| {name} | {'' if share is None else f'{share:.2f}'} | {np.mean(mious):.1f}{spread}"
            f" | {gain:+.1f} | {worst_class(chosen, source, pair.classes.classes)} |"
        )
    return "\n".join(lines) + "\n"


def run(arguments: argparse.Namespace) -> None:
    """Train and score the missing seeds of one pair, and write its table after each."""
    pair, regions = share_pair(arguments), arguments.regions
    jobs = share_jobs(pair, arguments)
    command = f"python experiments/studies/source_shares.py {pair.options} --regions {regions}"
    stem = arguments.results / f"source_shares_{pair.name}_{regions}"
    arguments.results.mkdir(parents=True, exist_ok=True)
    rows: list[dict[str, Any]] = []
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(arguments.jobs, mp_context=context) as pool:
        for scored in pool.map(score_shares, jobs):
            rows += scored
            write_record(stem.with_suffix(".json"), command, "cpu", rows)
            stem.with_suffix(".md").write_text(as_markdown(pair, regions, rows, command))
            print(stem.with_suffix(".md").read_text(), flush=True)


if __name__ == "__main__":
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add_share_options(parser)
    parser.add_argument("--jobs", type=int, default=os.cpu_count(), help="runs at the same time")
    sys.exit(run_guarded(lambda: run(parser.parse_args())))
