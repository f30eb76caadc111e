"""The networks of a finished run: loaded, scored, and shown on some images, in whatever process."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from sfss_ray.config import Config
from sfss_ray.data.folders import ImageFile
from sfss_ray.runtime.devices import worker_device
from sfss_ray.storage.places import Place
from sfss_ray.train.training_inputs import Prepared

if TYPE_CHECKING:
    import numpy as np

    from sfss_ray.evaluation.examination import Examination, Score
    from sfss_ray.models.segmenter import Segmenter

SOURCE_ONLY, BATCH_NORM_ONLY = "source-only", "BatchNorm-only"
ADAPTED, TEACHER = "adapted", "teacher"
"""Rows of the report, in this order; baselines follow. The adapted network is the student."""


@dataclass(frozen=True)
class RunNetworks:
    """The networks to examine, and on what. It is pickled and sent to a worker."""

    prepared: Prepared
    config: Config
    statistics: Place | None
    """BatchNorm statistics of the BatchNorm-only row; None leaves the row out."""
    models: Mapping[str, Place]
    """Model files by row name, in the order of the rows after the source model's."""
    images: Sequence[ImageFile]
    """Images that source-only and adapted are shown on."""


@dataclass(frozen=True)
class Examined:
    """What the networks of a run predict."""

    scores: dict[str, Score]
    """Scores by row name, source-only first."""
    predictions: list[dict[str, np.ndarray]]
    """For each image the (H, W) classes, uint8, of source-only and adapted."""


def examine_networks(task: RunNetworks, device: str) -> Iterator[str | Examined]:
    """Score all networks of a run, and predict the images to draw.

    Args:
        task: The networks.
        device: 'cpu' or 'cuda'.

    Yields:
        Lines for people, then one `Examined`.

    Raises:
        ClusterError: Ray assigned a GPU that torch cannot use.
    """
    networks = load_networks(task, worker_device(device))
    scores: dict[str, Score] = {}
    yield from score_networks(networks, task.prepared.examination(task.config), scores)
    drawn = {name: networks[name] for name in (SOURCE_ONLY, ADAPTED)}
    predictions = [predict_classes(file, drawn, task.config) for file in task.images]
    yield Examined(scores, predictions)


def load_networks(task: RunNetworks, device: str) -> dict[str, Segmenter]:
    """Load the networks of a run by row name, in the order of the rows."""
    from sfss_ray.models.model_file import load_model
    from sfss_ray.train.batch_norm import with_statistics

    source = task.prepared.source
    source_only = source.load(device).network
    networks = {SOURCE_ONLY: source_only}
    if task.statistics is not None:
        networks[BATCH_NORM_ONLY] = with_statistics(source_only, task.statistics)
    for name, path in task.models.items():
        networks[name] = load_model(path, device, module=source.architecture).network
    return networks


def score_networks(
    networks: dict[str, Segmenter], examination: Examination, scores: dict[str, Score]
) -> Iterator[str]:
    """Score source-only, then the other networks, into `scores`; yields a line before each."""
    source = networks[SOURCE_ONLY]
    yield f"evaluating {SOURCE_ONLY}"
    examination = examination.with_source(source)
    scores[SOURCE_ONLY] = examination.score(source)
    for name, network in networks.items():
        if network is source:  # with its own BatchNorm statistics
            scores[name] = scores[SOURCE_ONLY]
        else:
            yield f"evaluating {name}"
            scores[name] = examination.score(network)


def predict_classes(
    file: ImageFile, networks: dict[str, Segmenter], config: Config
) -> dict[str, np.ndarray]:
    """Return the (H, W) classes, uint8, that each network predicts for an image."""
    from sfss_ray.evaluation.inference import predict_file_probabilities

    image = file.read()
    classes = {}
    for name, network in networks.items():
        probabilities = predict_file_probabilities(network, file, image, config.evaluation)
        classes[name] = probabilities.argmax(0).astype("uint8")
    return classes
