"""A look at a source checkpoint before anything is trained: what it is, and what it predicts.

Most weights that load without an error and still predict nonsense were given images of another
channel order, range or normalisation than they were trained on. That shows here at once.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from sfss_ray.config import Config
from sfss_ray.data.class_sets import ClassSet
from sfss_ray.data.folders import ImageFile, LabelledImage
from sfss_ray.data.image_folder import open_images
from sfss_ray.errors import DataError
from sfss_ray.inputs.check import labelled_images
from sfss_ray.models.card import Card, CardLike
from sfss_ray.models.source import SourceLike, open_source
from sfss_ray.runtime import cluster
from sfss_ray.runtime.progress import Progress, ProgressSink, print_line

if TYPE_CHECKING:
    from sfss_ray.models.load_report import LoadReport
    from sfss_ray.models.segmenter import Segmenter

ONE_CLASS = 0.9
"""A prediction that gives more of all pixels than this to one class gets a warning."""


@dataclass(frozen=True)
class VerifyResult:
    """What a source checkpoint is, and what it predicts before any adaptation."""

    family: str
    network: str
    class_set: str
    classes: tuple[str, ...]
    card: Card
    """The card in use."""
    load_report: LoadReport | None
    """What became of every tensor; None for a model that was given in memory."""
    images: int
    entropy: float
    """Mean entropy of the predicted probabilities, in nats; at most log(classes)."""
    predicted: dict[str, float]
    """Share of the predicted pixels by class, percent."""
    miou: float = float("nan")
    """Source-only mIoU in percent; NaN without labels."""
    per_class: dict[str, float] | None = None
    """IoU in percent by class, with labels."""
    warnings: tuple[str, ...] = ()
    """What looks wrong."""

    def lines(self) -> list[str]:
        """The result for people."""
        shown = [f"family: {self.family}", f"network: {self.network}"]
        shown.append(f"classes: {self.class_set} ({len(self.classes)}: {', '.join(self.classes)})")
        if self.load_report is not None:
            shown[-1] += f", told by {self.load_report.classes_from}"
            shown.append(f"weights: {self.load_report.summary()}")
            shown += [f"note: {note}" for note in self.load_report.notes]
        card = {k: v for k, v in self.card.to_dict().items() if k != "classes"}
        shown.append("card: " + ", ".join(f"{name} {value}" for name, value in card.items()))
        shown.append(f"images: {self.images}, mean entropy {self.entropy:.3f} nats")
        if self.per_class is not None:
            shown.append(f"source-only mIoU: {self.miou:.2f} %")
            shown += [f"  {name}: {iou:.2f}" for name, iou in self.per_class.items()]
        shown.append("predicted pixels, percent:")
        shares = sorted(self.predicted.items(), key=lambda item: -item[1])
        shown += [f"  {name}: {share:.2f}" for name, share in shares]
        return shown + [f"WARNING: {warning}" for warning in self.warnings]


def verify_source(
    source_model: SourceLike,
    images: Path | str,
    labels: Path | str | None = None,
    *,
    card: CardLike | None = None,
    config: Config | None = None,
    progress: ProgressSink = print_line,
) -> VerifyResult:
    """Say what a source checkpoint is and what it predicts, before anything is trained.

    Args:
        source_model: A checkpoint of any known family, or a model file; in Python also a source model
            in memory.
        images: Folder of images, of the source's or of the target's domain.
        labels: Their label maps of train ids; without them the score is the entropy alone.
        card: Entries that replace what the checkpoint's family says of its images (mean, std,
            channel_order, value_range, align_corners, classes): JSON file, mapping or Card.
        config: `evaluation` and `compute.device` are used.
        progress: Called with a line of text as work goes on.

    Returns:
        Family, classes, card, load report, source-only mIoU (with labels), mean entropy, the histogram
        of predicted classes, and a warning when nearly all pixels get one class.

    Raises:
        CheckpointError: see `load_source_model`. DataError: no image, none readable, labels that do
        not pair up or hold ids that the model's classes have not.
    """
    config = config or Config()
    source = open_source(source_model, card, config.source_weights)
    if labels is None:
        pairs = ()
        files, notes = open_images(images, config, source.white_level, "images")
        for note in notes:
            progress(note)
    else:
        files = pairs = labelled_images(
            images, labels, source.classes, config, progress, source.white_level
        )
    model = source.load(cluster.local_device(config.compute))
    seen = _look(model.network, files, source.classes, config, progress)
    report = model.load_report
    return VerifyResult(
        family=report.family if report else "a module of your own",
        network=source.network,
        class_set=source.classes.name,
        classes=source.classes.classes,
        card=source.card,
        load_report=report,
        images=seen.images,
        entropy=seen.entropy,
        predicted=dict(zip(source.classes.classes, map(float, seen.shares), strict=True)),
        miou=seen.miou,
        per_class=seen.per_class if pairs else None,
        warnings=_warnings(seen, source.classes),
    )


@dataclass(frozen=True)
class _Seen:
    images: int
    entropy: float
    shares: np.ndarray
    miou: float
    per_class: dict[str, float]


def _look(
    network: Segmenter,
    files: Sequence[ImageFile] | Sequence[LabelledImage],
    classes: ClassSet,
    config: Config,
    progress: ProgressSink,
) -> _Seen:
    """Predict every image once; unreadable ones are passed over, unless none is left."""
    from sfss_ray.evaluation.confusion_matrix import ConfusionMatrix
    from sfss_ray.evaluation.examination import predict_probabilities

    matrix, histogram = ConfusionMatrix(len(classes)), np.zeros(len(classes))
    uncertainty: list[float] = []
    bar, reason = Progress("looked at", len(files), progress), ""
    for file in files:
        try:
            image = file.read()
        except DataError as error:
            reason = str(error)
            bar.advance(1)
            continue
        probabilities = predict_probabilities(network, image, config.evaluation)
        predictions = probabilities.argmax(0)
        histogram += np.bincount(predictions.ravel(), minlength=len(histogram))
        uncertainty.append(float(-(probabilities * np.log(probabilities + 1e-12)).sum(0).mean()))
        if isinstance(file, LabelledImage):
            matrix.add(_labels_like(predictions, file), predictions)
        bar.advance(1)
    if not uncertainty:
        raise DataError(f"none of the {len(files)} images can be read: {reason}")
    shares = 100 * histogram / histogram.sum()
    ious = dict(zip(classes.classes, map(float, matrix.iou()), strict=True))
    return _Seen(len(uncertainty), float(np.mean(uncertainty)), shares, matrix.miou(), ious)


def _labels_like(predictions: np.ndarray, file: LabelledImage) -> np.ndarray:
    labels = file.labels()
    if labels.shape != predictions.shape:
        raise DataError(
            f"labels {str(file.label_path)!r} are {labels.shape[1]}x{labels.shape[0]}, their image"
            f" {predictions.shape[1]}x{predictions.shape[0]}: give pairs of one size"
        )
    return labels


def _warnings(seen: _Seen, classes: ClassSet) -> tuple[str, ...]:
    """What looks wrong: a network that sees one class everywhere, or numbers that are none."""
    if not np.isfinite(seen.entropy):
        return ("the network returns NaN or Inf: its weights are damaged",)
    top = int(seen.shares.argmax())
    if seen.shares[top] <= 100 * ONE_CLASS:
        return ()
    return (
        f"{seen.shares[top]:.1f} % of all pixels are predicted as {classes.classes[top]!r}: the card"
        " (channel_order, value_range, mean, std) is probably not the one these weights were trained"
        " with, or the weights are not those of a trained network; adapting this model would fail",
    )
