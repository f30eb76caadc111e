"""`sfss-ray verify`: the family of a source checkpoint and its predictions, before any training.

Weights may load without an error and still predict nonsense. Most often the images have another channel
order, value range or normalisation than the weights were trained with. Likely cards are therefore
compared on the images, see card_check.py.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from sfss_ray.config import Config
from sfss_ray.data.class_groups import ClassGroups
from sfss_ray.data.class_sets import ClassSet
from sfss_ray.data.folders import ImageFile, LabelledImage
from sfss_ray.data.group_files import ClassGroupsLike
from sfss_ray.data.image_folder import open_images
from sfss_ray.errors import DataError
from sfss_ray.evaluation.unmatched import unmatched_note
from sfss_ray.inputs.labels import labelled_images
from sfss_ray.models.card import Card, CardLike
from sfss_ray.models.source import Source, SourceLike, open_source
from sfss_ray.runtime import cluster
from sfss_ray.runtime.progress import Progress, ProgressSink, print_line
from sfss_ray.storage.places import Place, parsed

if TYPE_CHECKING:
    from sfss_ray.inspection.card_check import CardCheck
    from sfss_ray.models.load_report import LoadReport
    from sfss_ray.models.segmenter import Segmenter

ONE_CLASS = 0.9
"""Share of all pixels in one class above which a warning is given."""


@dataclass(frozen=True)
class VerifyResult:
    """Properties of a source checkpoint, and its predictions before any adaptation."""

    family: str
    network: str
    class_set: str
    classes: tuple[str, ...]
    card: Card
    """The card in use."""
    load_report: LoadReport | None
    """Tensors that matched or not; None for a model in memory."""
    images: int
    """Images that were predicted."""
    entropy: float
    """Mean entropy of the predicted probabilities, in nats; at most log(classes)."""
    predicted: dict[str, float]
    """Class -> percent of the predicted pixels."""
    miou: float = float("nan")
    """Source-only mIoU in percent; NaN without labels."""
    per_class: dict[str, float] | None = None
    """Class -> IoU in percent; None without labels."""
    warnings: tuple[str, ...] = ()
    """Signs that the model or its card is wrong, or that scores compare other class sets."""
    class_groups: ClassGroups | None = None
    """The groups of outputs that the classes are, if any."""
    card_check: CardCheck | None = None
    """Comparison of likely cards."""

    def lines(self) -> list[str]:
        """Return the result for people."""
        lines = [f"family: {self.family}", f"network: {self.network}"]
        lines.append(f"classes: {self.class_set} ({len(self.classes)}: {', '.join(self.classes)})")
        if self.class_groups is not None:
            lines[-1] += f", groups of the {len(self.card.classes)} outputs"
            lines += [f"  {line}" for line in self.class_groups.lines()]
        if self.load_report is not None:
            lines[2] += f", from {self.load_report.classes_from}"
            lines.append(f"weights: {self.load_report.summary()}")
            lines += [f"note: {note}" for note in self.load_report.notes]
        card = {k: v for k, v in self.card.to_dict().items() if k != "classes"}
        lines.append("card: " + ", ".join(f"{name} {value}" for name, value in card.items()))
        if self.card_check is not None:
            lines.append(self.card_check.line())
        lines.append(f"images: {self.images}, mean entropy {self.entropy:.3f} nats")
        if self.per_class is not None:
            lines.append(f"source-only mIoU: {self.miou:.2f} %")
            lines += [f"  {name}: {iou:.2f}" for name, iou in self.per_class.items()]
        lines.append("predicted pixels, percent:")
        shares = sorted(self.predicted.items(), key=lambda item: -item[1])
        lines += [f"  {name}: {share:.2f}" for name, share in shares]
        return lines + [f"WARNING: {warning}" for warning in self.warnings]


def verify_source(
    source_model: SourceLike,
    images: Place | str,
    labels: Place | str | None = None,
    *,
    card: CardLike | None = None,
    class_groups: ClassGroupsLike | None = None,
    config: Config | None = None,
    progress: ProgressSink = print_line,
) -> VerifyResult:
    """Report what a source checkpoint is and what it predicts, before anything is trained.

    Args:
        source_model: A checkpoint of any known family, or a model file; in Python also a model.
        images: Folder of images of the source or of the target domain.
        labels: Their label maps of train ids; without them the score is the entropy alone.
        card: Entries that replace what the checkpoint's family says of its images (mean, std,
            channel_order, value_range, align_corners, classes): JSON file, mapping or Card.
        class_groups: Groups of outputs, such as camvid-11; or a JSON or YAML file, or a mapping.
        config: `evaluation` and `compute.device` are used.
        progress: Called with a line of text as work goes on.

    Returns:
        Family, classes, card, load report, source-only mIoU (with labels), mean entropy, the histogram
        of predicted classes, and warnings: one class nearly everywhere, or a card that suits better.

    Raises:
        CheckpointError: see `load_source_model`.
        DataError: no image, none that can be read, labels that do not pair up, or labels with ids that
            are not classes of the model.
    """
    from sfss_ray.inspection.card_check import check_card

    config = config or Config()
    images, labels = parsed(images), parsed(labels)
    source = open_source(source_model, card, config.source_weights, class_groups)
    for note in source.notes:
        progress(note)
    files = _open_files(images, labels, source, config, progress)
    model = source.load(cluster.local_device(config.compute))
    predictions = _predict_all(model.network, files, source.classes, config, progress)
    stated_card = _stated_card(source_model, source, card, config)
    check = check_card(model.network, files, stated_card, progress)
    report = model.load_report
    return VerifyResult(
        family=report.family if report else "a module of your own",
        network=source.network,
        class_set=source.classes.name,
        classes=source.classes.classes,
        card=source.card,
        load_report=report,
        images=predictions.images,
        entropy=predictions.entropy,
        predicted=dict(zip(source.classes.classes, map(float, predictions.shares), strict=True)),
        miou=predictions.miou,
        per_class=predictions.per_class if labels is not None else None,
        warnings=(*check.warnings, *_warnings(predictions, source, files[0])),
        class_groups=source.class_groups,
        card_check=check,
    )


def _open_files(
    images: Place | str,
    labels: Place | str | None,
    source: Source,
    config: Config,
    progress: ProgressSink,
) -> Sequence[ImageFile] | Sequence[LabelledImage]:
    white = source.white_level
    if labels is not None:
        return labelled_images(images, labels, source.classes, config, progress, white)
    files, notes = open_images(images, config, white, "images")
    for note in notes:
        progress(note)
    return files


def _stated_card(
    source_model: SourceLike, source: Source, card: CardLike | None, config: Config
) -> Card | None:
    """Return the card that the checkpoint has without the user's entries.

    A module of the user's own has none: its card is what the user said of it.
    """
    if source.carried is not None:
        return None
    if card is None:
        return source.card
    return open_source(source_model, None, config.source_weights).card


@dataclass(frozen=True)
class _Predictions:
    """Statistics of the predictions of all images that could be read."""

    images: int
    """Images that were predicted."""
    entropy: float
    """Mean over the images, in nats."""
    shares: np.ndarray
    """(C,) percent of the pixels by class."""
    miou: float
    per_class: dict[str, float]


def _predict_all(
    network: Segmenter,
    files: Sequence[ImageFile] | Sequence[LabelledImage],
    classes: ClassSet,
    config: Config,
    progress: ProgressSink,
) -> _Predictions:
    """Predict every image once. Images that cannot be read are skipped.

    Raises:
        DataError: no image can be read, one is too large for the memory, or labels differ in size
            from their image.
    """
    from sfss_ray.evaluation.confusion_matrix import ConfusionMatrix
    from sfss_ray.evaluation.inference import image_memory, predict_file_probabilities

    matrix, histogram = ConfusionMatrix(len(classes)), np.zeros(len(classes))
    entropies: list[float] = []
    reason = ""
    with Progress("predicted", len(files), progress) as bar:
        for file in files:
            try:
                image = file.read()
            except DataError as error:
                reason = str(error)
            else:
                probabilities = predict_file_probabilities(network, file, image, config.evaluation)
                train_ids = probabilities.argmax(0)
                histogram += np.bincount(train_ids.ravel(), minlength=len(histogram))
                with image_memory(image):
                    entropy = -(probabilities * np.log(probabilities + 1e-12)).sum(0)
                entropies.append(float(entropy.mean()))
                if isinstance(file, LabelledImage):
                    matrix.add(_labels_of_size(file, train_ids.shape), train_ids)
            bar.advance(1)
    if not entropies:
        raise DataError(f"none of the {len(files)} images can be read: {reason}")
    shares = 100 * histogram / histogram.sum()
    ious = dict(zip(classes.classes, map(float, matrix.iou()), strict=True))
    return _Predictions(len(entropies), float(np.mean(entropies)), shares, matrix.miou(), ious)


def _labels_of_size(file: LabelledImage, size: tuple[int, ...]) -> np.ndarray:
    """Read labels; DataError where their size is not `size`, (height, width)."""
    labels = file.labels()
    if labels.shape != size:
        raise DataError(
            f"labels {str(file.label_path)!r} are {labels.shape[1]}x{labels.shape[0]}, their image"
            f" {size[1]}x{size[0]}: give pairs of one size"
        )
    return labels


def _warnings(
    predictions: _Predictions, source: Source, file: ImageFile | LabelledImage
) -> tuple[str, ...]:
    """Warn of NaN, of one class nearly everywhere, of classes without labels, of a marked student."""
    mark = [source.mark] if source.mark else []
    if not np.isfinite(predictions.entropy):
        return ("the network returns NaN or Inf: its weights are damaged", *mark)
    warnings, classes = [], source.classes
    top = int(predictions.shares.argmax())
    if predictions.shares[top] > 100 * ONE_CLASS:
        warnings.append(
            f"{predictions.shares[top]:.1f} % of all pixels are predicted as {classes.classes[top]!r}:"
            " the card (channel_order, value_range, mean, std) is probably not the one these weights"
            " were trained with, or the weights are not those of a trained network; adapting this model"
            " would fail"
        )
    decoding = file.decoding if isinstance(file, LabelledImage) else None
    if decoding is not None:
        percents = predictions.shares.tolist()
        warnings.append(unmatched_note(classes, decoding.label_classes, percents))
    return tuple(warning for warning in [*warnings, *mark] if warning)
