"""`predict`: predictions of a folder of images, few in this process and many over Ray Data."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from sfss_ray.config import ComputeConfig, Config, flatten
from sfss_ray.data.folders import ImageFile
from sfss_ray.data.group_files import ClassGroupsLike
from sfss_ray.data.image_folder import open_images
from sfss_ray.errors import DataError
from sfss_ray.models.card import CardLike
from sfss_ray.models.source import Source, SourceLike, open_source
from sfss_ray.models.user_code.carried_module import check_travels
from sfss_ray.prediction.annotation_files import (
    FILE_NAMES,
    AnnotationFormat,
    check_formats,
    write_annotations,
)
from sfss_ray.prediction.outputs import PredictionFolder
from sfss_ray.prediction.result import PredictionResult
from sfss_ray.prediction.workers import PredictionJob, predict_locally, predict_on_ray
from sfss_ray.runtime import cluster
from sfss_ray.runtime.devices import choose_device
from sfss_ray.runtime.progress import ProgressSink, print_line
from sfss_ray.runtime.resources import actor_demand, actor_gpus
from sfss_ray.runtime.run_claim import claimed
from sfss_ray.runtime.run_folder import claim, refuse_inside, refuse_other_run
from sfss_ray.storage.files import lasting_place
from sfss_ray.storage.places import ObjectPath, Place, parsed

_SCORING_KNOBS = {f"evaluation.{name}" for name in ("held_out_share", "held_out_max", "pictures")}
"""Knobs of `evaluation` that no prediction depends on."""


def predict(
    model: SourceLike,
    images: Place | str,
    output_dir: Place | str,
    *,
    card: CardLike | None = None,
    class_groups: ClassGroupsLike | None = None,
    formats: Sequence[AnnotationFormat] = (),
    config: Config | None = None,
    progress: ProgressSink = print_line,
) -> PredictionResult:
    """Predict every image below a folder.

    Writes PNGs of the image's own size below `output_dir`: train_ids/ID.png (8 bit, the index of the
    class), colour/ID.png and overlay/ID.png (half image, half colours). Where every class is one of
    Cityscapes', there is also label_ids/ID.png with its labelIds, as its benchmark takes them. ID is
    the image's path below its folder, without suffix.

    Finished images are skipped, so an interrupted call can be repeated. From
    `config.compute.predict_on_ray_from` images on, a pool of Ray actors does the work: one per GPU, or
    one per CPU without GPUs (`config.compute.predict_actors`).

    Args:
        model: A model file (student.pt, source.pt) or a checkpoint of any known family; in Python also
            a model in memory.
        images: Folder of images, or its address; its folders are searched too.
        output_dir: Folder or address of the predictions: a new one, or one of the same model.
        card: Entries that replace what the checkpoint's family says of its images: JSON file, mapping
            or Card.
        class_groups: Groups of outputs, such as camvid-11; or a JSON or YAML file, or a mapping.
        formats: Annotation files to write beside the PNGs, for people who check the predictions: coco
            (coco.json) and cvat (cvat.xml, for images 1.1). They hold a mask per class and image.
        config: `evaluation` and `compute` are used.
        progress: Called with a line of text as work goes on.

    Returns:
        Counts, and the images that could not be read with the reason; they stop nothing.

    Raises:
        CheckpointError: `model` is not a model file or a known checkpoint.
        DataError: no such folder, no image, none that can be read, or an output folder inside that of
            the images.
        ResumeError: another process writes to the folder, or it holds predictions of another model.
        ClusterError: the cluster cannot be reached.
        ConfigError: a format is unknown.
    """
    config, started = config or Config(), time.monotonic()
    formats_to_write = check_formats(formats)
    images, output_dir = parsed(images), parsed(output_dir)
    source = open_source(model, card, config.source_weights, class_groups)
    files = _open_images(images, source, config, progress)
    cluster.check_address(config.compute)
    cluster.local_device(config.compute)
    refuse_inside(output_dir, images)
    folder = PredictionFolder(lasting_place(output_dir), source.classes)
    result = _predict_files(source, files, folder, config, progress)
    predicted = [file for file in files if file.image_id not in result.errors]
    annotations = write_annotations(folder, predicted, formats_to_write, progress)
    return replace(result, annotations=annotations, seconds=time.monotonic() - started)


def _open_images(
    images: Place | str, source: Source, config: Config, progress: ProgressSink
) -> list[ImageFile]:
    """Return the images, after lines on the model and on them."""
    for line in source.opening_lines():
        progress(line)
    files, notes = open_images(images, config, source.white_level, "images")
    for note in notes:
        progress(note)
    return files


def _predict_files(
    source: Source,
    files: Sequence[ImageFile],
    folder: PredictionFolder,
    config: Config,
    progress: ProgressSink,
) -> PredictionResult:
    """Predict the images that have no predictions yet, after the last checks."""
    root, record = folder.root, _record(source, config, files)
    refuse_other_run(root, record)
    remaining, changed = folder.remaining(files)
    if changed:
        progress(f"{len(changed)} images were changed since they were predicted: predicted again")
    on_ray = len(remaining) >= config.compute.predict_on_ray_from
    if on_ray:
        _check_pool(config.compute)
        check_travels(source)

    # Everything that can be refused is refused before the folder is written.
    with claimed(root, progress):
        claim(root, record)
        _remove_leftovers(root)
        errors: dict[str, str] = {}
        if remaining:
            job = PredictionJob(source, remaining, folder, config)
            errors = predict_on_ray(job, progress) if on_ray else predict_locally(job, progress)
    if len(errors) == len(files):
        reason = next(iter(errors.values()))
        raise DataError(f"none of the {len(files)} images can be read: {reason}")
    return PredictionResult(
        output_dir=root,
        images=len(files) - len(errors),
        made=len(remaining) - len(errors),
        kinds=folder.kinds,
        errors=errors,
        changed=len(changed),
    )


def _check_pool(compute: ComputeConfig) -> None:
    """Raise a ClusterError, before anything starts, if the cluster cannot hold the pool."""
    resources = cluster.capacity(compute)
    gpus = actor_gpus(compute, choose_device(compute, resources))
    actor_demand("predict", compute.predict_actors, gpus).require(resources)


def _record(source: Source, config: Config, files: Sequence[ImageFile]) -> dict[str, Any]:
    """Return everything that decides the predictions: model, card, groups, preparation of images."""
    knobs = flatten(config.evaluation, "evaluation.")
    return {
        "kind": "predict",
        "inputs.model_sha256": source.sha256,
        "inputs.card": source.card.to_dict(),
        "inputs.class_groups": source.class_groups.line() if source.class_groups else None,
        "source_weights": config.source_weights,
        "inputs.white_level": next((file.white.value for file in files if file.white), None),
    } | {name: value for name, value in knobs.items() if name not in _SCORING_KNOBS}


def _remove_leftovers(root: Place) -> None:
    """Remove half-written files of calls that were killed. An object is whole or absent."""
    if isinstance(root, ObjectPath):
        return
    annotations = (leftover for name in FILE_NAMES.values() for leftover in root.glob(f".{name}.*"))
    for leftover in (*root.rglob(".*.png.*"), *annotations):
        leftover.unlink(missing_ok=True)
