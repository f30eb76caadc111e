"""Stage 2: training on Ray Train, from a source model to student.pt, and of a source model itself."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from sfss_ray.config import Config, flatten
from sfss_ray.config.consistency import check_stage
from sfss_ray.data.labelled import load_labelled
from sfss_ray.inputs.check import (
    Request,
    check_cluster,
    check_inputs,
    claim_inputs,
    labelled_images,
)
from sfss_ray.inputs.record import claim_run, hash_of_ids, labelled_files
from sfss_ray.models.card import CardLike
from sfss_ray.models.source import SourceLike
from sfss_ray.runtime.progress import ProgressSink, print_line
from sfss_ray.runtime.run_folder import refuse_other_run, write_json
from sfss_ray.storage.files import require_lasting
from sfss_ray.tracking.run_tracking import track_run
from sfss_ray.tracking.tracker import TrackerLike, check_trackers
from sfss_ray.train.progress_tail import RecordSink
from sfss_ray.train.trainer import fit
from sfss_ray.train.training_inputs import Prepared, prepare_training

STUDENT_FILE = "student.pt"


@dataclass(frozen=True)
class TrainResult:
    """A trained model and how it got there."""

    model: Path
    """The model file: student.pt, or the pretrained source model."""
    curve: list[dict[str, Any]] = field(default_factory=list)
    """Metrics by step: losses, and what the watch saw."""
    seconds: float = 0.0


def train_student(
    source_model: SourceLike,
    target_images: Path | str,
    masks: Path | str,
    output_dir: Path | str,
    *,
    card: CardLike | None = None,
    val_images: Path | str | None = None,
    val_labels: Path | str | None = None,
    config: Config | None = None,
    trackers: Sequence[TrackerLike] = (),
    progress: ProgressSink = print_line,
) -> TrainResult:
    """Adapt a source model to unlabelled target images with their masks.

    Args:
        source_model: A checkpoint of any known family, or a model file; in Python also a source model
            in memory (`load_source_model`, `wrap_model`).
        target_images: Folder of unlabelled images.
        masks: Folder of masks of these images, made by `generate_masks` or `import_masks`.
        output_dir: The run's folder; run again with the same arguments to go on.
        card: Entries that replace what the checkpoint's family says of its images (mean, std,
            channel_order, value_range, align_corners, classes): JSON file, mapping or Card.
        val_images: Labelled images to report mIoU on; never learnt or chosen from.
        val_labels: Their label maps of train ids.
        config: The whole config; `train`, `evaluation` and `compute` are used.
        trackers: Experiment trackers that receive metrics: tensorboard, mlflow, wandb; see `adapt`.
        progress: Called with a line of text as work goes on.

    Returns:
        The student of the last step as a model file, and the curves.

    Raises:
        DataError, CheckpointError, ConfigError, ResumeError, ClusterError: before a cluster starts.
        TrainingError: the loss became NaN or Inf, or workers kept dying.
    """
    config = config or Config()
    request = Request(
        "train",
        source_model,
        target_images,
        output_dir,
        config,
        card=card,
        masks=masks,
        val_images=val_images,
        val_labels=val_labels,
    )
    check_trackers(trackers)
    inputs = check_inputs(request)
    for note in inputs.notes:
        progress(note)
    assert inputs.masks is not None
    prepared = prepare_training(inputs, inputs.masks, config)
    folder = claim_inputs(request, inputs, progress)
    with track_run(trackers, folder, config, progress) as tracking:
        return run_training(prepared, folder, config, progress, tracking.log_record)


def run_training(
    prepared: Prepared,
    folder: Path,
    config: Config,
    progress: ProgressSink,
    on_record: RecordSink | None = None,
) -> TrainResult:
    """Train on Ray in a claimed folder and write student.pt."""
    from sfss_ray.train.adaptation import adapt_student
    from sfss_ray.train.run_state import read_progress

    started = time.monotonic()
    student = folder / STUDENT_FILE
    log = folder / "train"
    prepared = prepared.placed(folder)
    if not student.exists():
        task, watch = prepared.task(config), prepared.examination(config)
        state = fit(adapt_student, task, watch, folder, config, progress, on_record=on_record)
        save_student(state, prepared, config, student)
    return TrainResult(student, read_progress(log), time.monotonic() - started)


def save_student(state: dict[str, Any], prepared: Prepared, config: Config, path: Path) -> None:
    """Write the student of a training state as a model file with its facts."""
    from sfss_ray.models.model_file import save_model

    model = prepared.source.load()
    prefix = "segmenter."
    weights = {
        k.removeprefix(prefix): v for k, v in state["student"].items() if k.startswith(prefix)
    }
    model.network.load_state_dict(weights)
    white = next((image.white for image in prepared.training if image.white), None)
    model.facts = {
        "made_by": "sfss_ray.train_student",
        "network_kept": "student, last step",
        "steps": state["step"],
        "seed": config.seed,
        "source": Path(prepared.source.origin).name,
        "source_sha256": prepared.source.sha256,
    } | ({"white_level": white.value} if white else {})
    save_model(path, model)


def pretrain_source(
    images: Path | str,
    labels: Path | str,
    output_dir: Path | str,
    *,
    classes: str = "cityscapes-19",
    val_images: Path | str | None = None,
    val_labels: Path | str | None = None,
    config: Config | None = None,
    trackers: Sequence[TrackerLike] = (),
    progress: ProgressSink = print_line,
) -> TrainResult:
    """Train a source model on labelled images, for people who have none yet.

    Args:
        images: Folder of labelled images.
        labels: Their label maps, same names: train ids (255 ignored), or those of Cityscapes, GTA5,
            SYNTHIA, IDD or CamVid (see `config.labels_format`). Pairs whose sizes differ are left out,
            and their number is told.
        output_dir: The run's folder; run again with the same arguments to go on.
        classes: What the model learns: cityscapes-19, synthia-16, camvid-11 or class names separated
            by commas.
        val_images: Labelled images to report mIoU on.
        val_labels: Their label maps.
        config: The whole config; `pretrain`, `evaluation` and `compute` are used.
        trackers: Experiment trackers that receive metrics: tensorboard, mlflow, wandb; see `adapt`.
        progress: Called with a line of text as work goes on.

    Returns:
        The model file `source.pt` of the last step, and the curve.

    Raises:
        DataError, ConfigError, ResumeError, ClusterError: before a cluster starts.
        TrainingError: the loss became NaN or Inf, or workers kept dying.
    """
    from sfss_ray.data.class_sets import parse_classes
    from sfss_ray.evaluation.examination import Examination
    from sfss_ray.models.architectures.catalogue import build_network
    from sfss_ray.models.model_file import SourceModel, save_model
    from sfss_ray.train.pretraining import PretrainingTask, pretrain
    from sfss_ray.train.run_state import read_progress

    check_trackers(trackers)
    config = config or Config()
    started = time.monotonic()
    class_set = parse_classes(classes)
    training = load_labelled(
        images, labels, class_set, config, what="training", skip_unequal=True, progress=progress
    )
    for line in training.describe(class_set):
        progress(line)
    pairs = training.pairs
    # A named encoding is that of the training labels; those of others are recognised.
    auto = dataclasses.replace(config, labels_format="auto", labels_classes="")
    white = next((pair.white.value for pair in pairs if pair.white), None)
    labelled = labelled_images(val_images, val_labels, class_set, auto, progress, white)
    check_stage(config.pretrain, config.compute)
    network = build_network(config.pretrain.network, len(class_set))
    record = flatten(config.pretrain, "pretrain.") | {
        "seed": config.seed,
        "inputs.classes": list(class_set.classes),
        "inputs.labels_format": training.format,
        "inputs.images": len(pairs),
        "inputs.image_ids_sha256": hash_of_ids(pairs),
    }
    refuse_other_run(require_lasting(output_dir), record)
    device, resources = check_cluster(config)
    progress(f"device: {device} ({resources.describe()})")
    files = labelled_files("training", pairs) | labelled_files("val", labelled)
    folder = claim_run(output_dir, record, files, progress=progress)
    model = folder / "source.pt"
    if not model.exists():
        watch = Examination(class_set, labelled, config=config.evaluation) if labelled else None
        task = PretrainingTask(pairs, class_set, config)
        with track_run(trackers, folder, config, progress) as tracking:
            on_record = tracking.log_record
            state = fit(pretrain, task, watch, folder, config, progress, on_record=on_record)
        network.load_state_dict(state["student"])
        facts = {"made_by": "sfss_ray.pretrain_source", "steps": state["step"]}
        facts |= {"images": len(pairs), "seed": config.seed}
        facts |= {"white_level": white} if white else {}
        save_model(model, SourceModel(network, config.pretrain.network, class_set, facts))
    curve = read_progress(folder / "train")
    write_json(folder / "curve.json", curve)
    return TrainResult(model, curve, time.monotonic() - started)
