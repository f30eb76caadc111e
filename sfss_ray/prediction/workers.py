"""Work of predicting images: in this process, or over a pool of actors on Ray Data."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from sfss_ray.config import Config
from sfss_ray.data.class_sets import class_set_of
from sfss_ray.data.depth import White
from sfss_ray.data.folders import ImageFile
from sfss_ray.errors import DataError
from sfss_ray.models.source import Source
from sfss_ray.prediction.outputs import PredictionFolder, predict_file
from sfss_ray.runtime import cluster
from sfss_ray.runtime.crash_guard import CRASH_REASON, Attempts, loading_network
from sfss_ray.runtime.devices import worker_device
from sfss_ray.runtime.pool import Pool, pool_size
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
    size = pool_size(job.config.compute.predict_actors, resources, gpus)
    # Short items for few images: every actor gets work, and progress advances.
    images_per_item = max(1, min(MAX_IMAGES_PER_ITEM, len(job.files) // (4 * size)))
    items = list(_items(job.files, images_per_item))
    compute = job.config.compute
    pool = Pool("predictions", job.folder.root, PredictionActor, size, gpus, resources, compute)
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
        self.config: Config = spec["config"]
        source: Source = spec["source"]
        self.white: White | None = spec["white"]
        with loading_network(to_place(spec["folder"]), spec["pool"]):
            self.network = source.load(worker_device(spec["device"])).network
        classes = class_set_of(source.classes.classes, source.classes.name)
        self.folder = PredictionFolder(to_place(spec["folder"]), classes)

    def __call__(self, batch: dict[str, Any]) -> dict[str, Any]:
        """Predict the images of a batch of items; returns counts, and errors as JSON, per item."""
        results: dict[str, list] = {"images": [], "errors": []}
        for item in batch["item"]:
            files = [
                ImageFile(image_id, from_text(path), self.white)
                for image_id, path in json.loads(str(item))
            ]
            results["images"].append(len(files))
            results["errors"].append(json.dumps(self._predict(files)))
        return results

    def _predict(self, files: Sequence[ImageFile]) -> dict[str, str]:
        """Write the predictions of an item; returns image_id -> why it could not be predicted."""
        attempts = Attempts(self.folder.root, [file.image_id for file in files])
        errors = {}
        for file in files:
            if not attempts.begin(file.image_id):
                errors[file.image_id] = CRASH_REASON
                continue
            error = _predict_or_explain(self.network, file, self.folder, self.config)
            attempts.end(file.image_id)
            if error:
                errors[file.image_id] = error
        attempts.forget()
        return errors


def _predict_or_explain(
    network: Segmenter, file: ImageFile, folder: PredictionFolder, config: Config
) -> str:
    """Write the predictions of an image; returns why it has none, or an empty string."""
    try:
        predict_file(network, file, folder, config.evaluation)
    except DataError as error:
        return str(error)
    return ""
