"""Stage 2, the door: training on Ray Train, from a source model to student.pt."""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sfss_ray import cluster
from sfss_ray.config import ComputeConfig, Config, flatten
from sfss_ray.data.class_sets import ClassSet
from sfss_ray.data.folders import (
    ImageFile,
    LabelledImage,
    list_images,
    split_held_out,
)
from sfss_ray.data.labelled import load_labelled
from sfss_ray.errors import ConfigError, DataError, TrainingError
from sfss_ray.masks.store import MaskStore
from sfss_ray.models.card import CardLike
from sfss_ray.models.source import Source, SourceLike, open_source
from sfss_ray.progress import ProgressSink, print_line, silent
from sfss_ray.run_folder import claim, write_json
from sfss_ray.train.follow import following

if TYPE_CHECKING:
    from sfss_ray.train.adaptation import AdaptationTask

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
    progress: ProgressSink = print_line,
) -> TrainResult:
    """Adapt a source model to unlabelled target images with their masks.

    Args:
        source_model: A checkpoint of any known family, or a model file; in Python also a source model
            in memory (`load_source_model`, `wrap_model`).
        target_images: Folder of unlabelled images.
        masks: Folder of masks made by `generate_masks` from these images.
        output_dir: The run's folder; run again with the same arguments to go on.
        card: Entries that replace what the checkpoint's family says of its images (mean, std,
            channel_order, value_range, align_corners, classes): JSON file, mapping or Card.
        val_images: Labelled images to report mIoU on; never learnt or chosen from.
        val_labels: Their label maps of train ids.
        config: The whole config; `train`, `evaluation` and `compute` are used.
        progress: Called with a line of text as work goes on.

    Returns:
        The student of the last step as a model file, and the curves.

    Raises:
        DataError, CheckpointError, ConfigError, ResumeError, ClusterError: before a cluster starts.
        TrainingError: the loss became NaN or Inf, or workers kept dying.
    """
    config = config or Config()
    source = open_source(source_model, card, config.source_weights)
    prepared = prepare_training(source, target_images, masks, val_images, val_labels, config)
    images = list(prepared.training + prepared.held_out)
    record = {"kind": "train"} | run_record(config, source, images, prepared.labelled)
    return run_training(prepared, claim(output_dir, record), config, progress)


def run_record(
    config: Config,
    source: Source,
    images: list[ImageFile],
    labelled: tuple[LabelledImage, ...],
) -> dict[str, Any]:
    """What decides the result of a run: config without `compute`, source model, images."""
    science = {k: v for k, v in flatten(config).items() if not k.startswith("compute.")}
    return science | {
        "inputs.source_sha256": source.sha256,
        "inputs.card": source.card.to_dict(),
        "inputs.images": len(images),
        "inputs.image_ids_sha256": _hash_of_ids(images),
        "inputs.labelled_images": len(labelled),
    }


def _hash_of_ids(images: Sequence[ImageFile | LabelledImage]) -> str:
    return hashlib.sha256("\n".join(sorted(i.image_id for i in images)).encode()).hexdigest()


@dataclass(frozen=True)
class Prepared:
    """Checked inputs of an adaptation."""

    source: Source
    training: tuple[ImageFile, ...]
    held_out: tuple[ImageFile, ...]
    labelled: tuple[LabelledImage, ...]
    masks: Path

    @property
    def classes(self) -> ClassSet:
        """The source model's."""
        return self.source.classes

    def placed(self, folder: Path) -> Prepared:
        """With a source model that workers can read, in the run's folder if need be."""
        return dataclasses.replace(self, source=self.source.placed(folder))

    def task(self, config: Config) -> AdaptationTask:
        """What a training is given."""
        from sfss_ray.train.adaptation import AdaptationTask

        source = self.source
        return AdaptationTask(source.path, self.training, self.masks, config, source.architecture)

    def examination(self, config: Config):
        """What students of this adaptation are scored on."""
        from sfss_ray.evaluation.evaluate import Examination

        store = MaskStore(self.masks)
        return Examination(
            self.classes, self.labelled, self.held_out, store.id_map, config.evaluation
        )


def prepare_training(
    source: Source,
    target_images: Path | str,
    masks: Path | str,
    val_images: Path | str | None,
    val_labels: Path | str | None,
    config: Config,
) -> Prepared:
    """Check everything that can be checked before a cluster starts."""
    labelled = labelled_images(val_images, val_labels, source.classes, config)
    check_workers(config.train.batch_size, config.compute)
    images = list_images(target_images)
    store = MaskStore(masks)
    absent = [image.image_id for image in images if image.image_id not in store]
    if absent:
        raise DataError(
            f"{len(absent)} images have no masks in {str(masks)!r} (first: {absent[0]!r}): run"
            " `sfss-ray masks` on this folder again"
        )
    usable = [image for image in images if image.image_id not in store.errors]
    training, held_out = split_held_out(
        usable, config.evaluation.held_out_share, config.evaluation.held_out_max
    )
    if not training:
        raise DataError(f"no readable image in {str(target_images)!r}: give images to adapt to")
    return Prepared(
        source,
        tuple(training),
        tuple(held_out),
        labelled,
        Path(masks).absolute(),
    )


def labelled_images(
    images: Path | str | None,
    labels: Path | str | None,
    classes: ClassSet,
    config: Config | None = None,
    progress: ProgressSink | None = None,
) -> tuple[LabelledImage, ...]:
    """Pairs to score on; empty without labels. DataError when only one folder is given, or for
    labels that `load_labelled` refuses."""
    if images is None and labels is None:
        return ()
    if images is None or labels is None:
        given, missing = ("labels", "images") if images is None else ("images", "labels")
        raise DataError(f"val_{given} were given without val_{missing}: give both, or neither")
    folder = load_labelled(images, labels, classes, config, progress=progress)
    for line in folder.describe(classes):
        (progress or silent)(line)
    return folder.pairs


def check_workers(batch_size: int, compute: ComputeConfig) -> None:
    """ConfigError when the batch cannot be shared out evenly."""
    if batch_size % compute.num_workers:
        raise ConfigError(
            f"batch_size is {batch_size} but there are {compute.num_workers} workers: choose a"
            " multiple of the number of workers"
        )


def run_training(
    prepared: Prepared, folder: Path, config: Config, progress: ProgressSink
) -> TrainResult:
    """Train on Ray in a claimed folder and write student.pt."""
    from sfss_ray.train.adaptation import adapt_student
    from sfss_ray.train.run import read_progress

    started = time.monotonic()
    student = folder / STUDENT_FILE
    log = folder / "train"
    prepared = prepared.placed(folder)
    if not student.exists():
        task, watch = prepared.task(config), prepared.examination(config)
        with carried_code(prepared.source):
            state = fit(adapt_student, task, watch, folder, config, progress)
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
    model.facts = {
        "made_by": "sfss_ray.train_student",
        "network_kept": "student, last step",
        "steps": state["step"],
        "seed": config.seed,
        "source": Path(prepared.source.origin).name,
        "source_sha256": prepared.source.sha256,
    }
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
    progress: ProgressSink = print_line,
) -> TrainResult:
    """Train a source model on labelled images, for people who have none yet.

    Args:
        images: Folder of labelled images.
        labels: Their label maps, same names: train ids (255 ignored), or those of Cityscapes, GTA5,
            SYNTHIA or CamVid (see `config.labels_format`). Pairs whose sizes differ are left out, and
            their number is told.
        output_dir: The run's folder; run again with the same arguments to go on.
        classes: What the model learns: cityscapes-19, synthia-16, camvid-11 or class names separated
            by commas.
        val_images: Labelled images to report mIoU on.
        val_labels: Their label maps.
        config: The whole config; `pretrain`, `evaluation` and `compute` are used.
        progress: Called with a line of text as work goes on.

    Returns:
        The model file `source.pt` of the last step, and the curve.

    Raises:
        DataError, ConfigError, ResumeError, ClusterError: before a cluster starts.
        TrainingError: the loss became NaN or Inf, or workers kept dying.
    """
    from sfss_ray.data.class_sets import parse_classes
    from sfss_ray.evaluation.evaluate import Examination
    from sfss_ray.models.build import SourceModel, build_network, save_model
    from sfss_ray.train.pretraining import PretrainingTask, pretrain
    from sfss_ray.train.run import read_progress

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
    labelled = labelled_images(val_images, val_labels, class_set, auto, progress)
    check_workers(config.pretrain.batch_size, config.compute)
    network = build_network(config.pretrain.network, len(class_set))
    record = flatten(config.pretrain, "pretrain.") | {
        "seed": config.seed,
        "inputs.classes": list(class_set.classes),
        "inputs.labels_format": training.format,
        "inputs.images": len(pairs),
        "inputs.image_ids_sha256": _hash_of_ids(pairs),
    }
    folder = claim(output_dir, record)
    model = folder / "source.pt"
    if not model.exists():
        watch = Examination(class_set, labelled, config=config.evaluation) if labelled else None
        task = PretrainingTask(pairs, class_set, config)
        state = fit(pretrain, task, watch, folder, config, progress)
        network.load_state_dict(state["student"])
        facts = {"made_by": "sfss_ray.pretrain_source", "steps": state["step"]}
        facts |= {"images": len(pairs), "seed": config.seed}
        save_model(model, SourceModel(network, config.pretrain.network, class_set, facts))
    curve = read_progress(folder / "train")
    write_json(folder / "curve.json", curve)
    return TrainResult(model, curve, time.monotonic() - started)


def fit(
    loop: Callable[..., None],
    task: Any,
    watch: Any,
    folder: Path,
    config: Config,
    progress: ProgressSink = print_line,
    callbacks: list[Any] | None = None,
) -> dict[str, Any]:
    """Run a training loop on Ray Train workers; returns the state of the last step.

    Checkpoints lie in `folder`/train. The same folder goes on from its newest checkpoint.
    """
    device = cluster.resolve_device(config.compute)
    with cluster.connected(config.compute), following(lambda: [folder / "train"], progress):
        import ray.train
        import ray.train.torch

        from sfss_ray.train.run import load_state
        from sfss_ray.train.worker import train_on_worker

        compute = config.compute
        payload = {"loop": loop, "task": task, "watch": watch}
        payload |= {"folder": str(folder / "train"), "threads": compute.cpus_per_worker}
        trainer = ray.train.torch.TorchTrainer(
            train_on_worker,
            train_loop_config=payload,
            scaling_config=ray.train.ScalingConfig(
                num_workers=compute.num_workers,
                use_gpu=device == "cuda",
                resources_per_worker=_worker_resources(compute, device),
            ),
            run_config=ray.train.RunConfig(
                name="train",
                storage_path=str(folder),
                failure_config=ray.train.FailureConfig(max_failures=compute.max_failures),
                checkpoint_config=ray.train.CheckpointConfig(num_to_keep=2),
                callbacks=callbacks,
            ),
        )
        checkpoint = _fit_or_explain(trainer).checkpoint
        assert checkpoint is not None, "a loop of one step or more saves a checkpoint"
        with checkpoint.as_directory() as saved:
            return load_state(Path(saved))


@contextlib.contextmanager
def carried_code(source: Source) -> Iterator[None]:
    """While the block runs, the code of a user's own module travels to workers with it.

    Ray sends classes of importable files by name, and other machines have not these files.
    """
    import ray.cloudpickle

    if source.architecture is None:
        yield
        return
    from sfss_ray.models.custom import own_packages

    packages = own_packages(source.architecture)
    for package in packages:
        ray.cloudpickle.register_pickle_by_value(package)
    try:
        yield
    finally:
        for package in packages:
            ray.cloudpickle.unregister_pickle_by_value(package)


def _worker_resources(compute: ComputeConfig, device: str) -> dict[str, float]:
    gpus = {"GPU": 1.0} if device == "cuda" else {}
    return {"CPU": compute.cpus_per_worker} | gpus


def _fit_or_explain(trainer: Any):
    import ray.train

    try:
        return trainer.fit()
    except ray.train.TrainingFailedError as error:
        reasons = list(getattr(error, "worker_failures", {}).values()) or [error]
        cause = reasons[0]
        while getattr(cause, "cause", None) or cause.__cause__:
            cause = getattr(cause, "cause", None) or cause.__cause__
        text = str(cause).strip().splitlines()[-1] if str(cause).strip() else repr(cause)
        raise TrainingError(f"training stopped: {text}") from error
