"""Evaluation of a finished model on labelled images: mIoU, table and confusion picture."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from sfss_ray.config import Config, flatten
from sfss_ray.data.class_sets import (
    joined_in,
    joined_line,
    matched_names,
    synonyms_in,
    synonyms_line,
)
from sfss_ray.data.group_files import ClassGroupsLike
from sfss_ray.data.labelled import LabelledFolder, PairOptions, load_labelled
from sfss_ray.errors import OutputError
from sfss_ray.evaluation.confusion_matrix import ConfusionMatrix
from sfss_ray.evaluation.unmatched import unmatched_note
from sfss_ray.models.card import CardLike
from sfss_ray.models.source import Source, SourceLike, open_source
from sfss_ray.runtime import cluster
from sfss_ray.runtime.progress import ProgressSink, print_line
from sfss_ray.runtime.run_folder import refuse_inside, write_json
from sfss_ray.storage.files import lasting_place, try_writing, write_text
from sfss_ray.storage.places import Place, parsed


@dataclass(frozen=True)
class EvaluationResult:
    """mIoU of a model over a named class set, from one confusion matrix."""

    class_set: str
    """Name of the model's class set."""
    classes: tuple[str, ...]
    miou: float
    """Percent, mean over the model's classes that are in the labels."""
    pixel_accuracy: float
    """Percent of the pixels whose label is a class of the model."""
    per_class: dict[str, float]
    """IoU in percent by class; NaN for a class that is absent from the labels."""
    images: int
    official_miou: float = float("nan")
    """Percent, as cityscapesScripts counts: a class that is predicted but absent from the labels has
    IoU 0. Classes that labels of this format cannot contain do not count."""
    only_predicted: tuple[str, ...] = ()
    """Classes that have IoU 0 in the official mIoU because only predictions contain them."""
    named: dict[str, float] = field(default_factory=dict)
    """mIoU-19, mIoU-16, mIoU-13, mIoU-11, for class sets that model and labels both contain whole."""
    named_official: dict[str, float] = field(default_factory=dict)
    """The same class sets, counted like `official_miou`."""
    named_lines: tuple[str, ...] = ()
    """A printed line per class set of `named`."""
    recall: dict[str, float] = field(default_factory=dict)
    """Percent of each class's labelled pixels that are correct."""
    label_share: dict[str, float] = field(default_factory=dict)
    """Percent of the scored pixels that are labelled with each class."""
    labels_format: str = "train_ids"
    label_class_set: str = ""
    lacking: tuple[str, ...] = ()
    """Classes of the labels that the model does not have; their pixels are left out."""
    synonyms: dict[str, str] = field(default_factory=dict)
    """Class of the labels -> class of the model, where their names differ."""
    joined: dict[str, str] = field(default_factory=dict)
    """Class of the labels -> group of the model that it is a member of."""
    groups: tuple[str, ...] = ()
    """'building = building + wall' for each class of a model with class groups, and the dropped ones."""
    unmatched: str = ""
    """A line on classes that are predicted and have no counterpart in the labels."""
    inference: str = ""
    """How images were predicted."""
    confusion: np.ndarray = field(default_factory=lambda: np.zeros((0, 0), np.int64), compare=False)
    """(C, C) pixels, [label, prediction]."""
    files: tuple[Place, ...] = ()
    """Files that were written."""

    def lines(self) -> list[str]:
        """Return the printed result, with the class set and how it was measured."""
        absent = [name for name, value in self.per_class.items() if np.isnan(value)]
        lines = [
            f"class_set: {self.class_set}",
            f"labels: {self.labels_format}, {self.label_class_set}; images: {self.images}",
            f"inference: {self.inference}; labels at their own size, one confusion matrix",
        ]
        if self.groups:
            lines.insert(1, f"class groups: {'; '.join(self.groups)}")
        if self.synonyms:
            lines.append(synonyms_line(self.synonyms))
        if self.joined:
            lines.append(joined_line(self.joined))
        if self.lacking:
            lines.append(
                f"left out, because the model lacks these classes: {', '.join(self.lacking)}"
            )
        lines += ["", f"{'class':16}{'IoU %':>8}{'recall %':>10}{'pixels %':>10}"]
        lines += [self._row(name) for name in self.classes]
        lines += ["", f"miou: {self.miou:.2f}"]
        lines.append(
            f"  mean of the {len(self.classes) - len(absent)} of {len(self.classes)} classes of"
            f" {self.class_set} that are in the labels"
            + (f"; absent: {', '.join(absent)}" if absent else "")
        )
        if self.only_predicted:
            lines.append(f"official_miou: {self.official_miou:.2f}")
            lines.append(
                "  as Cityscapes' official scorer counts: IoU 0 for absent classes that are predicted:"
                f" {', '.join(self.only_predicted)}"
            )
        lines += [*self.named_lines, f"pixel_accuracy: {self.pixel_accuracy:.2f}"]
        if self.unmatched:
            lines.append(f"WARNING: {self.unmatched}")
        return lines + [f"written: {path}" for path in self.files]

    def _row(self, name: str) -> str:
        if np.isnan(self.per_class[name]):
            return f"{name:16}{'absent':>8}"
        iou, recall, share = self.per_class[name], self.recall[name], self.label_share[name]
        return f"{name:16}{iou:>8.2f}{recall:>10.2f}{share:>10.2f}"

    def as_dict(self) -> dict[str, Any]:
        """Return plain values for JSON, NaN as None."""
        plain = asdict(self) | {"confusion": self.confusion.tolist()}
        plain["files"] = [path.name for path in self.files]
        return _without_nan(plain)


def _without_nan(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _without_nan(item) for key, item in value.items()}
    return None if isinstance(value, float) and np.isnan(value) else value


def evaluate_model(
    model: SourceLike,
    images: Place | str,
    labels: Place | str,
    *,
    card: CardLike | None = None,
    class_groups: ClassGroupsLike | None = None,
    output_dir: Place | str | None = None,
    config: Config | None = None,
    progress: ProgressSink = print_line,
) -> EvaluationResult:
    """Score a model on labelled images, labels at their own size; by default single scale, no flip.

    Args:
        model: A model file (student.pt, source.pt) or a checkpoint of any known family. In Python also
            a model in memory.
        images: Folder of images; a path, or an address such as s3://bucket/images.
        labels: Folder of their label maps: train ids, or those of Cityscapes, GTA5, SYNTHIA, IDD,
            Mapillary or CamVid (see `config.labels_format`). Classes are matched by name, and members
            of a group are scored as the group.
        card: Entries that replace the preprocessing known for the checkpoint's family: JSON file,
            mapping or Card.
        class_groups: Groups of outputs, such as camvid-11; or a JSON or YAML file, or a mapping.
        output_dir: Folder or address for evaluation.json, per_class.csv and confusion.png.
        config: `evaluation`, `labels_format`, `labels_classes` and `compute.device` are used.
        progress: Called with a line of text as the work proceeds.

    Raises:
        CheckpointError: the model cannot be read.
        DataError: images and labels do not pair up, differ in size, or labels contain ids that are
            not in their format; or `output_dir` lies in the images or in the labels.
        OutputError: `output_dir` cannot be written. After the evaluation, the scores are printed first.
    """
    config = config or Config()
    images, labels = parsed(images), parsed(labels)
    output = None if output_dir is None else _checked_output(output_dir, (images, labels))
    source = open_source(model, card, config.source_weights, class_groups)
    if source.mark:
        progress(f"WARNING: {source.mark}")
    options = PairOptions(model_white=source.white_level)
    folder = load_labelled(images, labels, source.classes, config, options, progress)
    for line in folder.describe(source.classes):
        progress(line)

    from sfss_ray.evaluation.examination import Examination

    network = source.load(cluster.local_device(config.compute)).network
    examination = Examination(source.classes, folder.pairs, config=config.evaluation)
    matrix = examination.matrix(network, progress)
    result = _result(matrix, source, folder, config)
    if output is None:
        return result
    with _printed_if_lost(result, progress):
        return _write(result, source, output, config)


@contextlib.contextmanager
def _printed_if_lost(result: EvaluationResult, progress: ProgressSink) -> Iterator[None]:
    """Print a result if it cannot be written, because the evaluation may have taken hours."""
    try:
        yield
    except OutputError:
        for line in result.lines():
            progress(line)
        raise


def _checked_output(output_dir: Place | str, inputs: Sequence[Place | str]) -> Place:
    """Return the place of the files to write, after every check that needs no evaluation."""
    folder = lasting_place(output_dir)
    for input_folder in inputs:
        refuse_inside(folder, input_folder)
    if isinstance(folder, Path):
        try_writing(folder)
    return folder


def _result(
    matrix: ConfusionMatrix, source: Source, folder: LabelledFolder, config: Config
) -> EvaluationResult:
    from sfss_ray.evaluation.class_set_miou import named_mious
    from sfss_ray.evaluation.inference import describe_views

    classes = source.classes
    named = named_mious(matrix, classes, folder.label_classes)
    matched = matched_names(folder.label_classes, classes)
    # Labels of another format may not contain all of the model's classes at all.
    countable = np.isin(classes.classes, list(matched.values()))
    only_predicted = countable & np.isnan(matrix.iou()) & np.isfinite(matrix.official_iou())

    def by_class(values: np.ndarray) -> dict[str, float]:
        return dict(zip(classes.classes, map(float, values), strict=True))

    return EvaluationResult(
        class_set=classes.name,
        classes=classes.classes,
        miou=matrix.miou(),
        pixel_accuracy=matrix.pixel_accuracy(),
        per_class=by_class(matrix.iou()),
        images=len(folder.pairs),
        official_miou=matrix.official_miou(countable),
        only_predicted=tuple(np.array(classes.classes)[only_predicted].tolist()),
        named={entry.name: entry.miou for entry in named},
        named_official={entry.name: entry.official for entry in named},
        named_lines=tuple(entry.line() for entry in named),
        recall=by_class(matrix.recall()),
        label_share=by_class(matrix.label_share()),
        labels_format=folder.format,
        label_class_set=folder.label_classes.name,
        lacking=tuple(c for c in folder.label_classes.classes if c not in matched),
        synonyms=synonyms_in(matched, classes),
        joined=joined_in(matched, classes),
        groups=tuple(source.class_groups.lines()) if source.class_groups else (),
        unmatched=unmatched_note(classes, folder.label_classes, matrix.predicted_share().tolist()),
        inference=describe_views(config.evaluation),
        confusion=matrix.counts,
    )


def _write(
    result: EvaluationResult, source: Source, folder: Place, config: Config
) -> EvaluationResult:
    from dataclasses import replace

    from sfss_ray.report.confusion_picture import draw_confusion
    from sfss_ray.report.pictures import save_png

    names = ("evaluation.json", "per_class.csv", "confusion.png")
    result = replace(result, files=tuple(folder / name for name in names))
    title = f"mIoU {result.miou:.1f} % over {result.class_set}, {result.images} images"
    picture = draw_confusion(result.confusion, result.classes, result.classes, title)
    save_png(folder / "confusion.png", picture)
    write_text(folder / "per_class.csv", _csv(result))
    facts = {"model": {"origin": str(source.origin), "sha256": source.sha256}}
    write_json(
        folder / "evaluation.json",
        facts | result.as_dict() | {"config": flatten(config.evaluation, "evaluation.")},
    )
    return result


def _csv(result: EvaluationResult) -> str:
    rows = ["class,iou_percent,recall_percent,label_pixels_percent"]
    for name in result.classes:
        percents = result.per_class[name], result.recall[name], result.label_share[name]
        rows.append(",".join([f'"{name}"', *("" if np.isnan(p) else f"{p:.4f}" for p in percents)]))
    return "\n".join(rows) + "\n"
