"""Using a finished model: predicting a folder of images."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from sfss_ray import cluster
from sfss_ray.config import Config
from sfss_ray.data.folders import list_images
from sfss_ray.errors import DataError
from sfss_ray.models.card import CardLike
from sfss_ray.models.source import SourceLike, open_source
from sfss_ray.progress import Progress, ProgressSink, print_line


@dataclass(frozen=True)
class PredictionResult:
    """What was predicted and where it lies."""

    output_dir: Path
    images: int
    errors: dict[str, str] = field(default_factory=dict)
    """image_id -> why it could not be predicted."""


def predict(
    model: SourceLike,
    images: Path | str,
    output_dir: Path | str,
    *,
    card: CardLike | None = None,
    config: Config | None = None,
    progress: ProgressSink = print_line,
) -> PredictionResult:
    """Predict every image below a folder: train ids, colours, and an overlay for the eye.

    Writes train_ids/ID.png (8 bit), colour/ID.png and overlay/ID.png below `output_dir`. Images whose
    train ids are there are skipped, so an interrupted call can be repeated.

    Raises:
        CheckpointError: no model file. DataError: no such folder, no image, or none readable.
    """
    config = config or Config()
    source = open_source(model, card)
    classes = source.classes
    files = list_images(images, "images")
    network = source.load(cluster.resolve_device(config.compute)).network
    folder, errors = Path(output_dir), {}
    bar = Progress("predicted", len(files), progress)
    for file in files:
        try:
            if not (folder / "train_ids" / f"{file.image_id}.png").exists():
                _predict_one(network, file, folder, classes, config)
        except DataError as error:
            errors[file.image_id] = str(error)
        bar.advance(1, f", {len(errors)} unreadable" if errors else "")
    if len(errors) == len(files):
        raise DataError(
            f"none of the {len(files)} images can be read: {next(iter(errors.values()))}"
        )
    return PredictionResult(folder, len(files) - len(errors), errors)


def _predict_one(network: Any, file: Any, folder: Path, classes: Any, config: Config) -> None:
    from PIL import Image

    from sfss_ray.data.folders import read_image
    from sfss_ray.evaluation.evaluate import predict_probabilities
    from sfss_ray.report.pictures import save_png

    image = read_image(file.path)
    ids = predict_probabilities(network, image, config.evaluation).argmax(0).astype("uint8")
    colours = classes.colour(ids)
    blend = (0.5 * image + 0.5 * colours).astype("uint8")
    save_png(folder / "colour" / f"{file.image_id}.png", colours)
    save_png(folder / "overlay" / f"{file.image_id}.png", blend)
    # Train ids come last: their file says that the image is done.
    done = folder / "train_ids" / f"{file.image_id}.png"
    done.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(ids).save(done)
