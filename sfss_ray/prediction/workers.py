"""Work of predicting images: in this process, or over a pool of actors on Ray Data.

Where the network runs on a GPU, the pool has three stages: a task decodes the images of an item, an
actor predicts them, and a task encodes and writes their files.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa

from sfss_ray.config import Config
from sfss_ray.data.class_sets import ClassSet, class_set_of
from sfss_ray.data.decoded_items import (
    DecodedImage,
    decode_images,
    images_that_fit,
    run_network,
)
from sfss_ray.data.decoding import MAX_PIXELS
from sfss_ray.data.folders import ImageFile
from sfss_ray.errors import DataError
from sfss_ray.models.source import Source
from sfss_ray.prediction.outputs import (
    PredictionFolder,
    explain_unreadable,
    predict_file,
    predict_pixels,
)
from sfss_ray.runtime import cluster
from sfss_ray.runtime.crash_guard import CRASH_REASON, Attempts, loading_network, writing_item
from sfss_ray.runtime.devices import worker_device
from sfss_ray.runtime.item_table import pack_item, unpack_item
from sfss_ray.runtime.pool import Pool, Stages
from sfss_ray.runtime.pool_plan import ITEM_BYTES, make_plan
from sfss_ray.runtime.progress import Progress, ProgressSink
from sfss_ray.runtime.resources import Resources, actor_demand, actor_gpus
from sfss_ray.runtime.threads import use_threads
from sfss_ray.storage.places import address_of, from_text, to_place, to_text

if TYPE_CHECKING:
    from sfss_ray.models.segmenter import Segmenter

MAX_IMAGES_PER_ITEM = 8
"""Most images in one item of work; progress advances by items."""


@dataclass(frozen=True)
class PredictionJob:
    """Images to predict, with which model, and where to."""

    source: Source
    files: Sequence[ImageFile]
    folder: PredictionFolder
    config: Config


def predict_locally(job: PredictionJob, progress: ProgressSink) -> dict[str, str]:
    """Predict all images in this process; returns image_id -> why it could not be predicted."""
    network = job.source.load(cluster.local_device(job.config.compute)).network
    errors: dict[str, str] = {}
    with Progress("predicted", len(job.files), progress) as bar:
        for file in job.files:
            if error := _predict_or_explain(network, file, job.folder, job.config):
                errors[file.image_id] = error
            bar.advance(1, _unreadable_note(errors))
    return errors


def predict_on_ray(job: PredictionJob, progress: ProgressSink) -> dict[str, str]:
    """Predict all images over a pool of actors; returns as `predict_locally` does.

    Raises:
        ClusterError: the cluster cannot be reached, or the pool was lost.
    """
    spec = {
        "source": job.source.placed(job.folder.root),
        "folder": address_of(job.folder.root),
        "config": job.config,
        "white": next((file.white for file in job.files if file.white), None),
    }
    errors: dict[str, str] = {}
    compute = job.config.compute
    with cluster.connected(compute) as resources:
        spec["device"] = cluster.resolve_device(compute)
        gpus = actor_gpus(compute, spec["device"])
        demand = actor_demand("predict", compute.predict_actors, gpus)
        resources = cluster.wait_for_nodes(compute, demand, resources, progress)
        pool, items = _make_pool(job, gpus, resources)
        with (
            Progress("predicted", len(job.files), progress) as bar,
            pool.results(items, spec) as results,
        ):
            for result in results:
                errors |= json.loads(str(result["errors"]))
                bar.advance(int(result["images"]), _unreadable_note(errors))
    return errors


def _unreadable_note(errors: dict[str, str]) -> str:
    return f", {len(errors)} unreadable" if errors else ""


def _make_pool(
    job: PredictionJob, gpus: float, resources: Resources
) -> tuple[Pool, list[dict[str, str]]]:
    """Return the pool for a job, and the items of work for it."""
    plan = make_plan(job.config.compute.predict_actors, resources, gpus)
    # Short items for few images: every actor gets work, and progress advances.
    images_per_item = min(MAX_IMAGES_PER_ITEM, len(job.files) // (4 * plan.actors.largest))
    if plan.staged:
        images_per_item = min(images_per_item, images_that_fit(job.files, ITEM_BYTES))
    items = list(_items(job.files, max(1, images_per_item)))
    compute, stages = job.config.compute, Stages(decode_item, StagedPredictionActor, write_item)
    pool = Pool("predictions", job.folder.root, PredictionActor, plan, compute, stages)
    return pool, items


def _items(files: Sequence[ImageFile], images_per_item: int) -> Iterator[dict[str, str]]:
    """Yield items of work as JSON strings: Ray would turn lists of lists into tensors."""
    for start in range(0, len(files), images_per_item):
        part = files[start : start + images_per_item]
        yield {"item": json.dumps([(f.image_id, to_text(f.path.absolute())) for f in part])}


class PredictionActor:
    """A process of the pool: it holds the network, and writes the predictions of items of images."""

    def __init__(self, spec: dict[str, Any]):
        """
        Args:
            spec: source, folder, config, white level and device of the job, threads of this process,
                and size of the pool.
        """
        use_threads(spec["threads"])
        self.spec = spec
        self.config: Config = spec["config"]
        source: Source = spec["source"]
        with loading_network(to_place(spec["folder"]), spec["pool"]):
            self.network = source.load(worker_device(spec["device"])).network
        self.folder = _folder_of(spec)

    def __call__(self, batch: dict[str, Any]) -> dict[str, Any]:
        """Predict the images of a batch of items; returns counts, and errors as JSON, per item."""
        results: dict[str, list] = {"images": [], "errors": []}
        for item in batch["item"]:
            files = _files_of(str(item), self.spec)
            results["images"].append(len(files))
            results["errors"].append(json.dumps(self._predict(files)))
        return results

    def _predict(self, files: Sequence[ImageFile]) -> dict[str, str]:
        """Write the predictions of an item; returns image_id -> why it could not be predicted."""
        attempts = Attempts(self.folder.root, [file.image_id for file in files])
        errors = {}
        for file in files:
            predict = partial(_predict_or_explain, self.network, file, self.folder, self.config)
            error = attempts.guard(file.image_id, predict, lambda: CRASH_REASON)
            if error:
                errors[file.image_id] = error
        attempts.forget()
        return errors


def _folder_of(spec: dict[str, Any]) -> PredictionFolder:
    classes: ClassSet = spec["source"].classes
    return PredictionFolder(to_place(spec["folder"]), class_set_of(classes.classes, classes.name))


def _files_of(item: str, spec: dict[str, Any]) -> list[ImageFile]:
    return [
        ImageFile(image_id, from_text(path), spec["white"]) for image_id, path in json.loads(item)
    ]


def _predict_or_explain(
    network: Segmenter, file: ImageFile, folder: PredictionFolder, config: Config
) -> str:
    """Write the predictions of an image; returns why it has none, or an empty string."""
    try:
        predict_file(network, file, folder, config.evaluation)
    except DataError as error:
        return str(error)
    return ""


def decode_item(batch: pa.Table, spec: dict[str, Any]) -> pa.Table:
    """Read and decode the images of an item: the first of three stages.

    Args:
        batch: "item" holds one JSON text, as `_items` makes it.
        spec: as for PredictionActor.
    """
    files = _files_of(batch["item"][0].as_py(), spec)
    attempts = Attempts(to_place(spec["folder"]), [file.image_id for file in files], "decode")
    return pack_item(decode_images(files, attempts, ITEM_BYTES, _decode))


def _decode(image: DecodedImage) -> DecodedImage:
    return image.decode(MAX_PIXELS, explain_unreadable)


class StagedPredictionActor(PredictionActor):
    """A process of the pool that runs the network alone, the second of three stages."""

    def __call__(self, batch: pa.Table) -> pa.Table:
        """Return an item of (image, train ids or None), given one of `decode_item`."""
        images: list[DecodedImage] = unpack_item(batch)
        predictions = run_network(
            images,
            self.folder.root,
            self._predict_image,
            lambda image: _without_prediction(image.file, CRASH_REASON),
        )
        return pack_item(predictions)

    def _predict_image(self, image: DecodedImage) -> tuple[DecodedImage, np.ndarray | None]:
        image = _decode(image) if image.is_pending else image
        if image.pixels is None:
            return image, None
        # Views of the object store are read-only, and torch warns about these.
        pixels = image.pixels if image.pixels.flags.writeable else image.pixels.copy()
        try:
            return image, predict_pixels(self.network, image.file, pixels, self.config.evaluation)
        except DataError as error:
            return _without_prediction(image.file, str(error))


def _without_prediction(file: ImageFile, error: str) -> tuple[DecodedImage, None]:
    return DecodedImage(file, error=error), None


def write_item(batch: pa.Table, spec: dict[str, Any]) -> dict[str, list]:
    """Write the files of the predictions of an item, the last of three stages; returns its result."""
    predictions: list[tuple[DecodedImage, np.ndarray | None]] = unpack_item(batch)
    folder = _folder_of(spec)
    with writing_item(folder.root, [image.file.image_id for image, _ in predictions]):
        for image, train_ids in predictions:
            if train_ids is not None:
                assert image.pixels is not None
                assert image.content is not None
                folder.write(image.file.image_id, image.pixels, train_ids, image.content)
    errors = {image.file.image_id: image.error for image, _ in predictions if image.error}
    return {"images": [len(predictions)], "errors": [json.dumps(errors)]}
