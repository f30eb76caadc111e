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
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import concept_row
from ablation_rows import (
    BASELINE,
    CEILING,
    CONTRAST_KNOBS,
    STATISTICS,
    TABLES,
    USER_REGIONS,
    Row,
)
from ablation_table import identity_in_record, knobs_of, recorded_seeds, write_results
from chosen_statistics import statistics_knobs
from domain_pairs import DomainPair, camvid_day2dusk, camvid_source, cityscapes2camvid, streets

from sfss_ray.cli import run_guarded
from sfss_ray.config import Config, flatten, override
from sfss_ray.errors import ConfigError
from sfss_ray.masks.sam.networks import shipped_small_sam
from sfss_ray.runtime.run_folder import write_json

FOREIGN = "cityscapes2camvid_"
"""Pairs whose source model is a checkpoint of others."""
FASTER = {"train.channels_last": True}
"""A training takes a quarter less time on a CPU. Only the rounding differs."""
PAIRS = ("streets", "camvid_day2dusk", f"{FOREIGN}dusk", f"{FOREIGN}day")


@dataclass(frozen=True)
class Job:
    """One row of the table with one seed."""

    pair: DomainPair
    row: Row
    seed: int
    device: str

    @property
    def folder(self) -> Path:
        return self.pair.folder / "runs" / self.row.key / f"seed{self.seed}"

    @property
    def config(self) -> Config:
        return override(self.pair.config, {"seed": self.seed, **knobs_of(self.row, self.pair)})

    @property
    def identity(self) -> dict[str, Any]:
        """Everything that decides the result. A finished run with another identity is run again."""
        from sfss_ray.models.reading import file_sha256

        source = file_sha256(self.pair.source_model)
        facts = {
            "regions": self.row.regions,
            "source": source,
            "images": len(self.pair.images),
            "seed": self.seed,
        }
        if self.row.regions == "small_sam":
            facts["small_sam"] = file_sha256(shipped_small_sam())
        if self.row.external:
            facts["concepts"] = concept_row.stored_recipe(self.pair)
        return facts | {k: v for k, v in flatten(self.config).items() if self.depends_on(k)}

    def depends_on(self, knob: str) -> bool:
        """Return whether a knob can change this result."""
        if knob.startswith("masks.felzenszwalb"):
            return self.row.regions == USER_REGIONS
        if knob == concept_row.WEIGHT:
            return self.row.external
        if knob.startswith(CONTRAST_KNOBS):
            return self.config.train.loss.contrast_weight > 0
        return knob.startswith("pretrain." if self.row == CEILING else "train.")


def run_job(job: Job) -> dict[str, Any]:
    """Adapt and score. Return the values that the table needs from this seed."""
    use_one_thread()
    result = finished_result(job)
    if result:
        return result
    if job.row == BASELINE:
        networks, curve = {"student": source_network(job)}, []
    elif job.row == STATISTICS:
        networks, curve = {"student": with_target_statistics(job)}, []
    elif job.row == CEILING:
        return save_result(job, ceiling(job))
    else:
        networks, curve = adapted(job)
    return save_result(job, scores(job, networks, curve))


def use_one_thread() -> None:
    """Use one thread: runs share the cores of the machine."""
    import cv2

    from sfss_ray.runtime.threads import use_threads

    use_threads(1)
    cv2.setNumThreads(1)


def finished_result(job: Job) -> dict[str, Any] | None:
    """Return the stored result of a job, or None where there is none with the same identity."""
    import json

    path = job.folder / "result.json"
    if not path.exists():
        return None
    result = json.loads(path.read_text())
    stored = result["identity"]
    same = all(stored.get(name) == value for name, value in _as_json(job.identity).items())
    return result if same else None


def recorded_result(job: Job, recorded: dict[str, Any]) -> dict[str, Any] | None:
    """Return the result of a job from the record of its table, or None if other settings made it.

    Settings that did not exist when the record was made are not compared.
    """
    stored = recorded["identity"]
    current = identity_in_record(job.identity)
    same = all(current.get(name) == value for name, value in stored.items())
    return recorded | {"identity": job.identity} if same else None


def _as_json(values: dict[str, Any]) -> dict[str, Any]:
    import json

    return json.loads(json.dumps(values))


def save_result(job: Job, result: dict[str, Any]) -> dict[str, Any]:
    """Store the result of a job with its identity."""
    result = {"seed": job.seed, **result, "identity": job.identity}
    write_json(job.folder / "result.json", result)
    return result


def examination(job: Job) -> Any:
    """Return the scorer for the labelled images of the pair."""
    from sfss_ray.evaluation.examination import Examination

    return Examination(job.pair.classes, job.pair.val, config=job.config.evaluation)


def scores(job: Job, networks: dict[str, Any], curve: list[dict[str, Any]]) -> dict[str, Any]:
    """Score student and teacher at the last step, and the student at its best step."""
    exam = examination(job)
    student = exam.score(networks["student"])
    teacher = exam.score(networks["teacher"]).miou if "teacher" in networks else None
    mious = [point["val_miou"] for point in curve if "val_miou" in point]
    return {
        "student_last": student.miou,
        "student_best": max([*mious, student.miou]),
        "teacher_last": teacher,
        "per_class": student.as_dict()["per_class"],
        "steps": job.config.train.num_steps if curve else 0,
    }


def source_network(job: Job) -> Any:
    """Load the source model of the pair."""
    import torch

    from sfss_ray.models.model_file import load_model

    network = load_model(job.pair.source_model, job.device).network
    return network.to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]


def with_target_statistics(job: Job) -> Any:
    """Return the source model with the BatchNorm statistics that a training would start from."""
    from sfss_ray.train.norm_choice import StatisticsImages, set_initial_statistics

    network = source_network(job)
    config = override(job.config, statistics_knobs(job.pair, job.config))
    set_initial_statistics(network, StatisticsImages(job.pair.images), config)
    return network.eval()


def adapted(job: Job) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Return student and teacher of the last step, and the curve of the student."""
    from sfss_ray.train.weight_average import average_weights

    weights, curve = train_networks(job)
    networks = {name: source_network(job) for name in weights}
    for name, network in networks.items():
        share = job.config.train.source_share if name == "student" else 0.0
        average = average_weights(weights[name], network.state_dict(), share)
        network.load_state_dict(average)
    return networks, curve


def train_networks(job: Job) -> tuple[dict[str, dict[str, Any]], list[dict[str, Any]]]:
    """Return the weights of student and teacher at the last step, and the curve of the student."""
    from sfss_ray.train.adaptation import AdaptationTask, adapt_student
    from sfss_ray.train.run_state import LocalRun, load_state, read_progress

    masks = job.pair.masks(job.row.regions or "felzenszwalb")
    concepts = str(concept_row.concept_folder(job.pair)) if job.row.external else ""
    config = override(job.config, FASTER | statistics_knobs(job.pair, job.config))
    task = AdaptationTask(job.pair.source_model, job.pair.images, masks, config, concepts=concepts)
    forget_other_runs(job)
    adapt_student(task, LocalRun(job.folder, job.device), examination(job))
    state, prefix = load_state(job.folder), "segmenter."
    networks = {
        name: {k.removeprefix(prefix): v for k, v in state[name].items() if k.startswith(prefix)}
        for name in ("student", "teacher")
    }
    return networks, read_progress(job.folder)


def forget_other_runs(job: Job) -> None:
    """Remove the files of a run with another identity, so that it is not resumed."""
    import json
    import shutil

    note = job.folder / "identity.json"
    if job.folder.exists() and not (
        note.exists() and json.loads(note.read_text()) == _as_json(job.identity)
    ):
        shutil.rmtree(job.folder)
    write_json(note, job.identity)


def ceiling(job: Job) -> dict[str, Any]:
    """Train the source model further on target labels of images that are not scored.

    Where the scored images are the target images themselves, the two halves of the video are swapped:
    each half is scored by a model trained on the other.
    """
    import numpy as np

    from sfss_ray.evaluation.confusion_matrix import ConfusionMatrix
    from sfss_ray.evaluation.examination import Examination
    from sfss_ray.train.pretraining import PretrainingTask, pretrain
    from sfss_ray.train.run_state import LocalRun, load_state

    total = ConfusionMatrix(len(job.pair.classes))
    forget_other_runs(job)
    for number, (train, val) in enumerate(job.pair.labelled_folds()):
        folder = job.folder / f"fold{number}"
        task = PretrainingTask(train, job.pair.classes, job.config, start=job.pair.source_model)
        pretrain(task, LocalRun(folder, job.device))
        network = source_network(job)
        network.load_state_dict(load_state(folder)["student"])
        exam = Examination(job.pair.classes, val, config=job.config.evaluation)
        total.counts += exam.matrix(network.eval()).counts
    per_class = [None if np.isnan(v) else float(v) for v in total.iou()]
    miou = total.miou()
    return {
        "student_last": miou,
        "student_best": miou,
        "teacher_last": None,
        "per_class": per_class,
        "steps": job.config.pretrain.num_steps,
    }


def make_pair(arguments: argparse.Namespace, device: str = "cpu", processes: int = 0) -> DomainPair:
    """Return the pair that the options name.

    A source model that is missing is trained on `device` with `processes` loader processes.
    """
    folder = arguments.work / arguments.pair
    if arguments.pair == "streets":
        return streets(folder, arguments.images)
    if arguments.data is None:
        raise ConfigError(
            f"pair {arguments.pair} needs --data: the folder of CamVid's images/ and labels/"
        )
    if arguments.pair.startswith(FOREIGN):
        if arguments.source_model is None:
            raise ConfigError(
                f"pair {arguments.pair} needs --source-model: a checkpoint trained on Cityscapes"
            )
        light = arguments.pair.removeprefix(FOREIGN)
        folder = folder / arguments.source_model.stem
        return cityscapes2camvid(folder, arguments.data, arguments.source_model, light)
    source = arguments.source_model or camvid_source(folder, arguments.data, device, processes)
    return camvid_day2dusk(folder, arguments.data, source)


def with_steps(pair: DomainPair, steps: int) -> DomainPair:
    """Return the pair with another number of steps for every run."""
    lengths = {
        "train.num_steps": steps,
        "train.evaluate_every": max(steps // 2, 1),
        "pretrain.num_steps": steps,
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
    parser.add_argument("--data", type=Path, help="CamVid: folder of images/ and labels/")
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
