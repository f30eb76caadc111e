"""One run of an ablation: a row of its table with one seed, trained and scored."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import concept_row
from ablation_rows import (
    BASELINE,
    CEILING,
    CONTRAST_KNOBS,
    STATISTICS,
    USER_REGIONS,
    Row,
)
from ablation_table import identity_in_record, knobs_of
from chosen_statistics import statistics_knobs
from domain_pairs import DomainPair

from sfss_ray.config import Config, flatten, override
from sfss_ray.masks.sam.networks import shipped_small_sam
from sfss_ray.runtime.run_folder import write_json

FASTER = {"train.channels_last": True}
"""A training takes a quarter less time on a CPU. Only the rounding differs."""


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
        if self.row == CEILING and self.pair.ceiling_keeps_statistics:
            facts["statistics"] = "as the adaptations"
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

    chosen_share = job.config.train.share_of_source(len(job.pair.images))
    weights, curve = train_networks(job)
    networks = {name: source_network(job) for name in weights}
    for name, network in networks.items():
        share = chosen_share if name == "student" else 0.0
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
    start, keep = ceiling_start(job), job.pair.ceiling_keeps_statistics
    for number, (train, val) in enumerate(job.pair.labelled_folds()):
        folder = job.folder / f"fold{number}"
        task = PretrainingTask(train, job.pair.classes, job.config, start, keep)
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


def ceiling_start(job: Job) -> Path:
    """Return the model file from which the ceiling is trained.

    It is the source model, if need be with the BatchNorm statistics that the adaptations start from.
    """
    from sfss_ray.models.model_file import load_model, save_model

    if not job.pair.ceiling_keeps_statistics:
        return job.pair.source_model
    model, path = load_model(job.pair.source_model), job.folder / "start.pt"
    model.network.load_state_dict(with_target_statistics(job).state_dict())
    save_model(path, model)
    return path
