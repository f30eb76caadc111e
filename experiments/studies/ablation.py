r"""Compare every method of the ablation on one pair of domains, with several seeds.

    python experiments/studies/ablation.py --pair streets --seeds 3
    python experiments/studies/ablation.py --pair camvid_day2dusk --data DIR --seeds 3
    python experiments/studies/ablation.py --pair cityscapes2camvid_dusk --data DIR \
        --source-model espnet_p_2_q_8.pth --seeds 3

All rows start from the same source model and use the same images. They differ only in their knobs.
Students are scored at their LAST step, with labels that are used for nothing else. Finished runs are not
repeated, and interrupted runs resume. The script writes ablation_PAIR.json, .md and .png. `--table
remedies` runs the attempts to gain more from masks, and writes remedies_PAIR.*. With `--steps N` the
files end in _N_steps. `--concepts FOLDER` adds rows of external knowledge, in which SAM 3 prompted with
class names votes.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import sys
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import replace
from pathlib import Path
from typing import Any

import concept_row
from ablation_rows import TABLES, Row
from ablation_run import Job, finished_result, recorded_result, run_job
from ablation_table import recorded_seeds, write_results
from domain_pairs import (
    DomainPair,
    camvid_day2dusk,
    camvid_source,
    cityscapes,
    cityscapes2camvid,
    streets,
    streets_itself,
)

from sfss_ray.cli import run_guarded
from sfss_ray.config import override
from sfss_ray.errors import ConfigError

FOREIGN = "cityscapes2camvid_"
"""Pairs whose source model is a checkpoint of others."""
PAIRS = (
    "streets",
    "camvid_day2dusk",
    f"{FOREIGN}dusk",
    f"{FOREIGN}day",
    "cityscapes",
    "streets_itself",
)


def make_pair(arguments: argparse.Namespace, device: str = "cpu", processes: int = 0) -> DomainPair:
    """Return the pair that the options name.

    A source model that is missing is trained on `device` with `processes` loader processes.
    """
    folder = arguments.work / arguments.pair
    if arguments.pair == "streets":
        return streets(folder, arguments.images)
    if arguments.pair == "streets_itself":
        return streets_itself(folder, arguments.images)
    if arguments.data is None:
        folders = (
            "Cityscapes' leftImg8bit/ and gtFine/"
            if arguments.pair == "cityscapes"
            else "CamVid's images/ and labels/"
        )
        raise ConfigError(f"pair {arguments.pair} needs --data: the folder of {folders}")
    if arguments.pair == "cityscapes" or arguments.pair.startswith(FOREIGN):
        return _foreign_pair(arguments, folder)
    source = arguments.source_model or camvid_source(folder, arguments.data, device, processes)
    return camvid_day2dusk(folder, arguments.data, source)


def _foreign_pair(arguments: argparse.Namespace, folder: Path) -> DomainPair:
    """Return the pair of a checkpoint that its authors trained on Cityscapes."""
    checkpoint = arguments.source_model
    if checkpoint is None:
        raise ConfigError(
            f"pair {arguments.pair} needs --source-model: a checkpoint trained on Cityscapes"
        )
    folder = folder / checkpoint.stem
    if arguments.pair == "cityscapes":
        return cityscapes(folder, arguments.data, checkpoint)
    light = arguments.pair.removeprefix(FOREIGN)
    return cityscapes2camvid(folder, arguments.data, checkpoint, light)


def with_steps(pair: DomainPair, steps: int) -> DomainPair:
    """Return the pair with another number of steps. The ceiling keeps its multiple of them."""
    multiple = pair.config.pretrain.num_steps // pair.config.train.num_steps
    lengths = {
        "train.num_steps": steps,
        "train.evaluate_every": max(steps // 2, 1),
        "pretrain.num_steps": multiple * steps,
    }
    options = f"{pair.options} --steps {steps}"
    return replace(pair, config=override(pair.config, lengths), options=options)


def run(arguments: argparse.Namespace) -> None:
    """Run the missing jobs of a table, and write the table after every result."""
    pair = make_pair(arguments, arguments.device, arguments.jobs - 1)
    if arguments.steps:
        pair = with_steps(pair, arguments.steps)
    table_rows = TABLES[arguments.table]
    if arguments.concepts:
        pair = concept_row.with_concepts(pair, arguments.concepts, arguments.concept_prompts)
        table_rows = (*table_rows, *concept_row.CONCEPT_ROWS)
    rows = [row for row in table_rows if not arguments.rows or row.key in arguments.rows]
    for regions in {row.regions for row in rows if row.regions}:
        print(f"masks: {regions}", flush=True)
        pair.masks(regions)
    device = arguments.device
    ending = f"_{arguments.steps}_steps" if arguments.steps else ""
    stem = arguments.results / f"{arguments.table}_{pair.name}{ending}"
    results = finished_results(pair, device, table_rows, stem)
    jobs = [
        Job(pair, row, seed, device)
        for seed in range(arguments.seeds)
        for row in rows
        if seed not in results[row.key]
    ]
    if any(results.values()):
        write_results(pair, table_rows, results, stem, device)
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(arguments.jobs, mp_context=context) as pool:
        waiting = {pool.submit(run_job, job): job for job in jobs}
        for number, future in enumerate(as_completed(waiting), start=1):
            if future.exception():  # the pool would first finish all other jobs
                pool.shutdown(wait=False, cancel_futures=True)
            job, result = waiting[future], future.result()
            results[job.row.key][job.seed] = result
            name = f"{job.row.name}, {job.row.regions or 'no'} regions, seed {job.seed}"
            print(f"{number}/{len(jobs)} {name}: student {result['student_last']:.1f}", flush=True)
            write_results(pair, table_rows, results, stem, device)
    print(stem.with_suffix(".md").read_text())


def finished_results(
    pair: DomainPair, device: str, rows: Sequence[Row], stem: Path
) -> dict[str, dict[int, dict[str, Any]]]:
    """Return row -> seed -> result of all finished runs, in the work folder or in the record STEM.json.

    A call for a few rows then keeps the other rows of the table.
    """
    results: dict[str, dict[int, dict[str, Any]]] = {row.key: {} for row in rows}
    recorded = recorded_seeds(stem)
    for row in rows:
        for seed, values in recorded.get(row.key, {}).items():
            if result := recorded_result(Job(pair, row, seed, device), values):
                results[row.key][seed] = result
        for folder in (pair.folder / "runs" / row.key).glob("seed*"):
            job = Job(pair, row, int(folder.name.removeprefix("seed")), device)
            if result := finished_result(job):
                results[row.key][job.seed] = result
    return results


def add_pair_options(parser: argparse.ArgumentParser) -> None:
    """Add the options that name a pair and its folders."""
    parser.add_argument("--pair", choices=PAIRS, default="streets")
    parser.add_argument(
        "--data",
        type=Path,
        help="CamVid: folder of images/ and labels/; Cityscapes: its root",
    )
    parser.add_argument(
        "--source-model",
        type=Path,
        help="a model file or checkpoint (day2dusk: trains one without)",
    )
    parser.add_argument("--images", type=int, default=600, help="streets: scenes to adapt to")
    parser.add_argument("--work", type=Path, default=Path("runs/ablation"))
    parser.add_argument("--results", type=Path, default=Path(__file__).parent / "results")


if __name__ == "__main__":
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add_pair_options(parser)
    parser.add_argument("--seeds", type=int, default=3, help="number of seeds, from 0 on")
    parser.add_argument("--steps", type=int, help="steps of every run, for a quick trial")
    parser.add_argument("--table", choices=list(TABLES), default="ablation")
    keys = list(dict.fromkeys(row.key for rows in TABLES.values() for row in rows))
    keys += concept_row.add_concept_options(parser)
    parser.add_argument("--rows", nargs="*", choices=keys, help="rows to run (default: all)")
    parser.add_argument("--jobs", type=int, default=os.cpu_count(), help="runs at the same time")
    parser.add_argument("--device", default="cpu")
    arguments = parser.parse_args()
    sys.exit(run_guarded(lambda: run(arguments)))
