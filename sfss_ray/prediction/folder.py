"""Predicting a folder of images, the door: few images in this process, many over Ray Data's actors."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sfss_ray.config import ComputeConfig, Config, flatten
from sfss_ray.data.class_sets import class_set_of
from sfss_ray.data.depth import White
from sfss_ray.data.folders import ImageFile
from sfss_ray.data.image_folder import open_images
from sfss_ray.errors import DataError
from sfss_ray.models.card import CardLike
from sfss_ray.models.source import Source, SourceLike, open_source
from sfss_ray.models.user_code.carried_module import check_travels
from sfss_ray.prediction.outputs import (
    LABEL_IDS,
    PredictionFolder,
    predict_file,
)
from sfss_ray.runtime import cluster
from sfss_ray.runtime.crash_guard import DIED, Attempts, started
from sfss_ray.runtime.pool import Pool, pool_size
from sfss_ray.runtime.progress import Progress, ProgressSink, print_line
from sfss_ray.runtime.run_folder import claim, refuse_other_run
from sfss_ray.runtime.threads import use_threads
from sfss_ray.storage.files import require_lasting

if TYPE_CHECKING:
    from sfss_ray.models.segmenter import Segmenter

IMAGES_PER_ITEM = 8
"""Most images of one item of the data set: also what progress is told by."""


@dataclass(frozen=True)
class PredictionResult:
    """What was predicted and where it lies."""

    output_dir: Path
    images: int
    """Images that are predicted there now."""
    made: int
    """Of them, those that this call predicted; the rest were predicted before."""
    kinds: tuple[str, ...]
    """Folders below `output_dir`, a PNG per image in each."""
    seconds: float = 0.0
    errors: dict[str, str] = field(default_factory=dict)
    """image_id -> why it could not be predicted."""
    changed: int = 0
    """Images predicted again because their files were changed since."""

    def lines(self) -> list[str]:
        """The result for people."""
        there = self.images - self.made
        shown = [
            f"predictions: {self.output_dir}",
            f"images: {self.images}"
            + (f" ({there} were predicted before)" if there else "")
            + (f" ({self.changed} changed since and predicted again)" if self.changed else ""),
            f"each as: {', '.join(f'{kind}/ID.png' for kind in self.kinds)}",
        ]
        if LABEL_IDS not in self.kinds:
            shown.append("no label_ids: the model has classes that Cityscapes has no labelId for")
        if self.errors:
            shown.append(f"{len(self.errors)} images could not be predicted:")
            shown += [f"  {image_id}: {reason}" for image_id, reason in self.errors.items()]
        return shown


class PredictionActor:
    """One process of the pool: holds the network, writes the predictions of an item's images."""

    def __init__(self, spec: dict[str, Any]):
        use_threads(spec["threads"])
        self.config: Config = spec["config"]
        source: Source = spec["source"]
        self.white: White | None = spec["white"]
        with started(Path(spec["folder"]), spec["pool"]):
            self.network = source.load(spec["device"]).network
        classes = class_set_of(source.classes.classes, source.classes.name)
        self.folder = PredictionFolder(Path(spec["folder"]), classes)

    def __call__(self, batch: dict[str, Any]) -> dict[str, Any]:
        """Predict the images of a batch of items; returns counts, and what went wrong as JSON."""
        facts: dict[str, list] = {"images": [], "errors": []}
        for item in batch["item"]:
            files = [
                ImageFile(image_id, Path(path), self.white)
                for image_id, path in json.loads(str(item))
            ]
            facts["images"].append(len(files))
            facts["errors"].append(json.dumps(self._predict(files)))
        return facts

    def _predict(self, files: Sequence[ImageFile]) -> dict[str, str]:
        """Write the predictions of an item; returns why images have none, by their ids."""
        attempts = Attempts(self.folder.root, [file.image_id for file in files])
        errors = {}
        for file in files:
            if not attempts.begin(file.image_id):
                errors[file.image_id] = DIED
                continue
            error = _error_of(self.network, file, self.folder, self.config)
            attempts.end(file.image_id)
            if error:
                errors[file.image_id] = error
        attempts.forget()
        return errors


def _error_of(network: Segmenter, file: ImageFile, folder: PredictionFolder, config: Config) -> str:
    """Write the predictions of an image; returns why it has none, empty where it has."""
    try:
        predict_file(network, file, folder, config.evaluation)
    except DataError as error:
        return str(error)
    return ""


def predict(
    model: SourceLike,
    images: Path | str,
    output_dir: Path | str,
    *,
    card: CardLike | None = None,
    config: Config | None = None,
    progress: ProgressSink = print_line,
) -> PredictionResult:
    """Predict every image below a folder.

    Writes PNGs of the image's own size below `output_dir`: train_ids/ID.png (8 bit, the index of the
    class), colour/ID.png, overlay/ID.png (half image, half colours), and, where every class is one of
    Cityscapes', label_ids/ID.png with its labelIds, as its benchmark takes them. ID is the image's path
    below its folder, without suffix.

    Images that are done are skipped, so an interrupted call can be repeated. From
    `config.compute.predict_on_ray_from` images on, a pool of Ray actors does the work (one per GPU, or
    one per CPU; `config.compute.predict_actors`).

    Args:
        model: A model file (student.pt, source.pt) or a checkpoint of any known family; in Python also
            a model in memory.
        images: Folder of images; its folders are searched too.
        output_dir: Folder of the predictions: a new one, or one of the same model's predictions.
        card: Entries that replace what the checkpoint's family says of its images: JSON file, mapping
            or Card.
        config: `evaluation` and `compute` are used.
        progress: Called with a line of text as work goes on.

    Returns:
        Counts, and the images that could not be read with the reason; they stop nothing.

    Raises:
        CheckpointError: no model file. DataError: no such folder, no image, none readable, or an output
            folder inside that of the images.
        ResumeError: the folder holds predictions of another model, or something else.
        ClusterError: the cluster cannot be reached.
    """
    config = config or Config()
    started = time.monotonic()
    source = open_source(model, card, config.source_weights)
    files, notes = open_images(images, config, source.white_level, "images")
    for note in notes:
        progress(note)
    cluster.check_address(config.compute)
    cluster.local_device(config.compute)
    _refuse_inside(output_dir, images)
    root, record = require_lasting(output_dir), _record(source, config, files)
    refuse_other_run(root, record)
    folder = PredictionFolder(root, source.classes)
    missing, altered = folder.remaining(files)
    if altered:
        progress(f"{len(altered)} images were changed since they were predicted: predicted again")
    on_ray = len(missing) >= config.compute.predict_on_ray_from
    if on_ray:
        _check_pool(config.compute)
        check_travels(source)
    claim(root, record)
    _remove_leftovers(root)
    work = _over_actors if on_ray else _in_this_process
    errors = work(source, missing, folder, config, progress) if missing else {}
    if len(errors) == len(files):
        raise DataError(
            f"none of the {len(files)} images can be read: {next(iter(errors.values()))}"
        )
    return PredictionResult(
        root,
        len(files) - len(errors),
        len(missing) - len(errors),
        folder.kinds,
        time.monotonic() - started,
        errors,
        len(altered),
    )


def _check_pool(compute: ComputeConfig) -> None:
    """ClusterError, before anything starts, for a pool that the cluster can never hold."""
    resources = cluster.capacity(compute)
    device = cluster.choose_device(compute, resources)
    cluster.actor_demand("predict", compute.predict_actors, device).require(resources)


def _refuse_inside(output_dir: Path | str, images: Path | str) -> None:
    """A repeated call would take the predictions for images."""
    if Path(output_dir).resolve().is_relative_to(Path(images).resolve()):
        raise DataError(
            f"output folder {str(output_dir)!r} lies in the folder of images {str(images)!r}: give one"
            " beside it"
        )


def _record(source: Source, config: Config, files: Sequence[ImageFile]) -> dict[str, Any]:
    """What decides the predictions: the model, its card, and how images are given to it."""
    knobs = flatten(config.evaluation, "evaluation.")
    return {
        "kind": "predict",
        "inputs.model_sha256": source.sha256,
        "inputs.card": source.card.to_dict(),
        "source_weights": config.source_weights,
        "inputs.white_level": next((file.white.value for file in files if file.white), None),
    } | {name: value for name, value in knobs.items() if name not in _OF_SCORING}


_OF_SCORING = {
    f"evaluation.{name}" for name in ("batch_size", "held_out_share", "held_out_max", "pictures")
}
"""Knobs that no prediction depends on."""


def _remove_leftovers(root: Path) -> None:
    """Half-written files of calls that were killed."""
    for leftover in root.rglob(".*.png.*"):
        leftover.unlink(missing_ok=True)


def _in_this_process(
    source: Source,
    files: Sequence[ImageFile],
    folder: PredictionFolder,
    config: Config,
    progress: ProgressSink,
) -> dict[str, str]:
    network = source.load(cluster.local_device(config.compute)).network
    errors: dict[str, str] = {}
    bar = Progress("predicted", len(files), progress)
    for file in files:
        if error := _error_of(network, file, folder, config):
            errors[file.image_id] = error
        bar.advance(1, _unreadable(errors))
    return errors


def _over_actors(
    source: Source,
    files: Sequence[ImageFile],
    folder: PredictionFolder,
    config: Config,
    progress: ProgressSink,
) -> dict[str, str]:
    spec = {
        "source": source.placed(folder.root),
        "folder": str(folder.root),
        "config": config,
        "white": next((file.white for file in files if file.white), None),
    }
    errors: dict[str, str] = {}
    bar = Progress("predicted", len(files), progress)
    with cluster.connected(config.compute) as resources:
        spec["device"] = cluster.resolve_device(config.compute)
        for facts in _pool_results(files, spec, config.compute, resources):
            errors |= json.loads(str(facts["errors"]))
            bar.advance(int(facts["images"]), _unreadable(errors))
    return errors


def _unreadable(errors: dict[str, str]) -> str:
    return f", {len(errors)} unreadable" if errors else ""


def _pool_results(
    files: Sequence[ImageFile],
    spec: dict[str, Any],
    compute: ComputeConfig,
    resources: cluster.Resources,
) -> Iterator[dict[str, Any]]:
    on_gpu = spec["device"] == "cuda"
    size = pool_size(compute.predict_actors, resources, on_gpu)
    items = list(_items(files, max(1, min(IMAGES_PER_ITEM, len(files) // (4 * size)))))
    pool = Pool("predictions", Path(spec["folder"]), PredictionActor, size, on_gpu, resources)
    yield from pool.results(items, spec)


def _items(files: Sequence[ImageFile], length: int) -> Iterator[dict[str, str]]:
    """An item is JSON text: Ray would turn lists of lists into tensors."""
    for start in range(0, len(files), length):
        part = files[start : start + length]
        yield {"item": json.dumps([(f.image_id, str(f.path.absolute())) for f in part])}
