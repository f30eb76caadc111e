"""Stage 2, on Ray Train: adaptation of a source model, and pretraining of a source model."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from sfss_ray.config import Config
from sfss_ray.data.group_files import ClassGroupsLike
from sfss_ray.inputs.check import check_inputs
from sfss_ray.inputs.cluster_check import check_cluster
from sfss_ray.inputs.record import claim_run, claimed_run
from sfss_ray.inputs.request import Inputs, Request
from sfss_ray.models.card import CardLike
from sfss_ray.models.source import SourceLike
from sfss_ray.runtime.progress import ProgressSink, print_line
from sfss_ray.runtime.run_claim import claimed
from sfss_ray.runtime.run_folder import refuse_other_run, write_json
from sfss_ray.storage.files import lasting_place
from sfss_ray.storage.places import Place
from sfss_ray.tracking.run_tracking import track_run
from sfss_ray.tracking.tracker import TrackerLike, check_trackers
from sfss_ray.train.progress_tail import RecordSink
from sfss_ray.train.student_watch import StudentWatch
from sfss_ray.train.trainer import TrainingJob, fit
from sfss_ray.train.training_inputs import Prepared, prepare_training, provide_concepts

if TYPE_CHECKING:
    from sfss_ray.train.pretraining_inputs import PretrainingInputs

STUDENT_FILE = "student.pt"
TEACHER_FILE = "teacher.pt"
SOURCE_FILE = "source.pt"


NO_VERDICT = (
    "no verdict: the student was not compared with its source model; sfss-ray adapt --masks FOLDER"
    " compares and reports"
)
"""What a training without a report says last."""


@dataclass(frozen=True)
class TrainResult:
    """A trained model and its training curve."""

    model: Place
    """The model file: student.pt, or the pretrained source model."""
    curve: list[dict[str, Any]] = field(default_factory=list)
    """Metrics by step: losses, and the scores of evaluations."""
    seconds: float = 0.0
    step: int | None = None
    """Step that the model was taken from."""
    kept: str = "last"
    """Which step that is: last or best, see `train.keep`."""
    teacher: Place | None = None
    """Model file of the student's teacher at the same step."""
    statistics: Place | None = None
    """BatchNorm statistics of the student before step 1."""


def train_student(
    source_model: SourceLike,
    target_images: Path | str,
    masks: Path | str,
    output_dir: Place | str,
    *,
    card: CardLike | None = None,
    class_groups: ClassGroupsLike | None = None,
    val_images: Path | str | None = None,
    val_labels: Path | str | None = None,
    config: Config | None = None,
    trackers: Sequence[TrackerLike] = (),
    progress: ProgressSink = print_line,
) -> TrainResult:
    """Adapt a source model to unlabelled target images with their masks.

    Args:
        source_model: A checkpoint of any known family, or a model file; in Python also a model.
        target_images: Folder of unlabelled images.
        masks: Folder of masks of these images, made by `generate_masks` or `import_masks`.
        output_dir: The run's folder or address, such as s3://bucket/run. The same call again resumes it.
        card: Entries that override the preprocessing of the checkpoint's family (mean, std,
            channel_order, value_range, align_corners, classes): JSON file, mapping or Card.
        class_groups: Groups of outputs, such as camvid-11; or a JSON or YAML file, or a mapping.
        val_images: Labelled images to report mIoU on, never used for training or model selection.
        val_labels: Their label maps, see `config.labels_format`.
        config: The whole config, of which `train`, `evaluation` and `compute` are used.
        trackers: Experiment trackers that receive metrics: tensorboard, mlflow, wandb; see `adapt`.
        progress: Called with each progress line.

    Returns:
        The student as a model file (of the last step, or as `config.train.keep` says), and the
        training curve.

    Raises:
        DataError, CheckpointError, ConfigError, ResumeError, ClusterError: before a cluster starts.
        TrainingError: the loss became NaN or Inf, or workers died too often.
    """
    request = Request(
        "train",
        source_model,
        target_images,
        output_dir,
        config or Config(),
        card=card,
        class_groups=class_groups,
        masks=masks,
        val_images=val_images,
        val_labels=val_labels,
    )
    check_trackers(trackers)
    return _train_request(request, trackers, progress)


def _train_request(
    request: Request, trackers: Sequence[TrackerLike], progress: ProgressSink
) -> TrainResult:
    """Check the inputs of a request, claim its folder and train."""
    inputs = check_inputs(request)
    prepared, config = _prepare(inputs, progress), inputs.config
    with (
        claimed_run(request, inputs, progress) as run,
        track_run(trackers, run.folder, config, progress) as tracking,
    ):
        prepared = prepared.with_concepts(provide_concepts(inputs, run.folder, progress))
        result = run_training(prepared, run.folder, config, progress, tracking.log_record)
    progress(NO_VERDICT)
    return result


def _prepare(inputs: Inputs, progress: ProgressSink) -> Prepared:
    """Show the notes of checked inputs, and split their images."""
    for note in inputs.notes:
        progress(note)
    assert inputs.masks is not None
    return prepare_training(inputs, inputs.masks, inputs.config)


def run_training(
    prepared: Prepared,
    folder: Place,
    config: Config,
    progress: ProgressSink,
    on_record: RecordSink | None = None,
) -> TrainResult:
    """Train on Ray in a claimed folder and write student.pt, unless it exists already.

    The teacher of the same step is written to train/teacher.pt, for the report.
    """
    from sfss_ray.models.model_mark import read_facts
    from sfss_ray.train.adaptation import adapt_student
    from sfss_ray.train.run_state import STATISTICS_FILE, read_progress

    started = time.monotonic()
    train, student = folder / "train", folder / STUDENT_FILE
    prepared = prepared.placed(folder)
    if not student.exists():
        watch = StudentWatch(prepared.examination(config), prepared.source, train)
        job = TrainingJob(adapt_student, prepared.task(config), watch)
        state = fit(job, folder, config, progress, on_record=on_record)
        save_network(state, "teacher", prepared, config, train / TEACHER_FILE)
        save_network(state, "student", prepared, config, student)  # last: the run is complete
    facts = read_facts(student)
    return TrainResult(
        student,
        [record for record in read_progress(train) if record["step"] > 0],
        time.monotonic() - started,
        step=facts["steps"],
        kept="best" if "best" in facts["network_kept"] else "last",
        teacher=train / TEACHER_FILE,
        statistics=train / STATISTICS_FILE,
    )


def save_network(
    state: dict[str, Any],
    name: Literal["student", "teacher"],
    prepared: Prepared,
    config: Config,
    path: Place,
) -> None:
    """Write the student or teacher of a training as a model file, with the facts of the training.

    The student gets the source model's share (`train.source_share`).

    Args:
        state: The training's last checkpoint. With `train.keep best` it also holds the best networks.
        name: The network to write.
        prepared: The inputs of the training.
        config: Of the training.
        path: The file.
    """
    from sfss_ray.models.model_file import save_model
    from sfss_ray.train.best_student import kept_state
    from sfss_ray.train.weight_average import average_weights

    networks, which = kept_state(state)
    model = prepared.source.load()
    prefix = "segmenter."
    weights = {k.removeprefix(prefix): v for k, v in networks[name].items() if k.startswith(prefix)}
    share = config.train.share_of_source(len(prepared.training)) if name == "student" else 0.0
    weights = average_weights(weights, model.network.state_dict(), share)
    model.network.load_state_dict(weights)
    white = next((image.white for image in prepared.training if image.white), None)
    model.facts = {
        "made_by": "sfss_ray.train_student",
        "network_kept": f"{name}, {which} step",
        "steps": networks["step"],
        "seed": config.seed,
        "source": Path(prepared.source.origin).name,
        "source_sha256": prepared.source.sha256,
    }
    model.facts |= {"source_share": share} if share else {}
    model.facts |= {"white_level": white.value} if white else {}
    if prepared.concepts and config.train.loss.concept_weight > 0:
        model.facts["external_knowledge"] = "SAM 3 prompted with class names"
    save_model(path, model)


def pretrain_source(
    images: Path | str,
    labels: Path | str,
    output_dir: Place | str,
    *,
    classes: str = "cityscapes-19",
    val_images: Path | str | None = None,
    val_labels: Path | str | None = None,
    config: Config | None = None,
    trackers: Sequence[TrackerLike] = (),
    progress: ProgressSink = print_line,
) -> TrainResult:
    """Train a source model on labelled images, if you have none yet.

    Args:
        images: Folder of labelled images.
        labels: Their label maps, same names: train ids (255 ignored), or ids of Cityscapes, GTA5,
            SYNTHIA, IDD, Mapillary or CamVid (see `config.labels_format`). Pairs of different sizes
            are left out and reported.
        output_dir: The run's folder or address, such as s3://bucket/run. The same call again resumes it.
        classes: Class set of the model: cityscapes-19, synthia-16, camvid-11 or class names separated
            by commas.
        val_images: Labelled images to report mIoU on.
        val_labels: Their label maps.
        config: The whole config, of which `pretrain`, `evaluation` and `compute` are used.
        trackers: Experiment trackers that receive metrics: tensorboard, mlflow, wandb; see `adapt`.
        progress: Called with each progress line.

    Returns:
        The model file `source.pt` of the last step, and the training curve.

    Raises:
        DataError, ConfigError, ResumeError, ClusterError: before a cluster starts.
        TrainingError: the loss became NaN or Inf, or workers died too often.
    """
    from sfss_ray.data.class_sets import parse_classes
    from sfss_ray.train.pretraining_inputs import LabelledFolders, check_pretraining
    from sfss_ray.train.run_state import read_progress

    check_trackers(trackers)
    config = config or Config()
    started = time.monotonic()
    folders = LabelledFolders(images, labels, val_images, val_labels)
    inputs = check_pretraining(folders, parse_classes(classes), config, progress)
    config = inputs.config
    record = inputs.record(config)
    refuse_other_run(lasting_place(output_dir), record)
    device, resources = check_cluster(config)
    progress(f"device: {device} ({resources.describe()})")
    with claimed(lasting_place(output_dir), progress):
        folder = claim_run(output_dir, record, inputs.files(), progress=progress)
        model = folder / SOURCE_FILE
        if not model.exists():
            with track_run(trackers, folder, config, progress) as tracking:
                _train_source(inputs, folder, config, progress, tracking.log_record)
        curve = read_progress(folder / "train")
        write_json(folder / "curve.json", curve)
    return TrainResult(model, curve, time.monotonic() - started)


def _train_source(
    inputs: PretrainingInputs,
    folder: Place,
    config: Config,
    progress: ProgressSink,
    on_record: RecordSink,
) -> None:
    """Train on Ray in a claimed folder and write source.pt."""
    from sfss_ray.models.model_file import SourceModel, save_model
    from sfss_ray.train.pretraining import PretrainingTask, pretrain

    task = PretrainingTask(inputs.training, inputs.classes, config)
    job = TrainingJob(pretrain, task, inputs.examination(config))
    state = fit(job, folder, config, progress, on_record=on_record)
    inputs.network.load_state_dict(state["student"])
    facts = {
        "made_by": "sfss_ray.pretrain_source",
        "steps": state["step"],
        "images": len(inputs.training),
        "seed": config.seed,
    } | ({"white_level": inputs.white_level} if inputs.white_level else {})
    name = config.pretrain.network
    save_model(folder / SOURCE_FILE, SourceModel(inputs.network, name, inputs.classes, facts))
