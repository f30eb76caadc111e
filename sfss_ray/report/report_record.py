"""The typed content of report.json: what was run, on which inputs, and how it scored.

Attribute names are the keys of the file. A part that a run does not have is None and is left out
of the file. A score that was not computed is None and is written as null.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

from sfss_ray.errors import DataError
from sfss_ray.report.json_records import decode, to_plain

SCHEMA_VERSION = 2
"""Version of the layout that this package writes. Files without a version are read as version 0; up to
version 1 there was no verdict."""

IMPROVED = "improved"
NO_EVIDENCE = "no evidence of improvement"
WORSE = "worse: keep the source model"


@dataclass(frozen=True)
class GroupFacts:
    """A class that is a group of the model's outputs."""

    name: str
    members: tuple[str, ...]


@dataclass(frozen=True)
class ClassSetFacts:
    """The class set of every score in the record."""

    name: str | None = None
    classes: tuple[str, ...] = ()
    """Class names in the order of the train ids."""
    groups: tuple[GroupFacts, ...] | None = None
    """The outputs of the model in each class, where they are grouped."""
    dropped: tuple[str, ...] | None = None
    """Outputs of the model that are in no group, where they are grouped."""


@dataclass(frozen=True)
class SourceModelFacts:
    """The source checkpoint."""

    path: str = ""
    sha256: str = ""
    network: str = ""
    card: dict[str, Any] | None = None
    """Normalisation, channel order and classes of the network, see `sfss_ray.Card`."""


@dataclass(frozen=True)
class MaskFacts:
    """The masks of the target images."""

    source: str = ""
    """Region source: sam, small_sam, felzenszwalb or imported."""
    note: str = ""
    images: int | None = None
    masks: int | None = None
    masks_per_image: float | None = None
    folder: str | None = None
    """Folder of masks that the user gave; None where the run made its own."""


@dataclass(frozen=True)
class ExternalFacts:
    """Knowledge from outside source model, target images and class-agnostic masks."""

    name: str = ""
    """Such as SAM 3 prompted with class names."""
    path: str = ""
    """Of its weights."""
    sha256: str = ""
    prompts: dict[str, Any] = field(default_factory=dict)
    """Class -> its prompts."""
    score_thresh: float | None = None
    weight: float | None = None
    """In the vote, `train.loss.concept_weight`."""
    images: int | None = None
    masks: int | None = None
    """Masks with classes."""

    def line(self) -> str:
        """Return the sentence that reports and tables show."""
        return f"external knowledge: {self.name} voted on the pseudo-labels"


@dataclass(frozen=True)
class TargetFacts:
    """The unlabelled target images."""

    folder: str | None = None
    images: int | None = None
    held_out: int | None = None
    """Images kept out of training for label-free scores."""


@dataclass(frozen=True)
class LabelFacts:
    """The target labels, and what they were used for."""

    given: bool = False
    images: int | None = None
    used_for: str = ""
    note: str | None = None
    """A line on predicted classes that the labels cannot show."""


@dataclass(frozen=True)
class ImageError:
    """A target image that was skipped."""

    image: str
    reason: str


@dataclass(frozen=True)
class ClassLoss:
    """A class that lost more than half of its IoU, or without labels of its predicted pixels."""

    name: str
    before: float
    """Of the source model, in percent."""
    after: float
    """Of the student, in percent."""


@dataclass(frozen=True)
class Verdict:
    """Whether the student is better than its source model, see `sfss_ray.evaluation.verdict`."""

    word: str
    """improved, no evidence of improvement, or worse: keep the source model."""
    reason: str
    """One sentence."""
    losses: tuple[ClassLoss, ...] = ()
    score_name: str = ""
    """The score that decided; empty where there was none."""
    used_labels: bool = False
    """True when mIoU over target labels decided."""

    @property
    def is_worse(self) -> bool:
        """Whether the source model should be kept."""
        return self.word == WORSE

    def line(self) -> str:
        """Return the verdict as the line that a command prints last."""
        return f"verdict: {self.word}. {self.reason}"


@dataclass(frozen=True)
class ScoreRow:
    """The scores of one network. Percent for mIoU, accuracy and IoU; see `Score` for the others."""

    WRITES_NULL: ClassVar[bool] = True

    name: str
    miou: float | None = None
    pixel_accuracy: float | None = None
    per_class: tuple[float | None, ...] | None = None
    """IoU by class; None for a class that is absent from the labels."""
    mask_information: float | None = None
    balanced_mask_information: float | None = None
    anchored_information: float | None = None
    entropy: float | None = None
    agreement: float | None = None
    neighbourhood_density: float | None = None
    predicted_classes: float | None = None
    class_entropy: float | None = None
    class_share: tuple[float, ...] | None = None
    labelled_share: tuple[float, ...] | None = None
    labelled_images: int | None = None
    held_out_images: int | None = None
    collapsed: bool | None = None
    """Whether the student lost classes that the source model predicts; None where not judged."""


@dataclass(frozen=True)
class TrialRow:
    """One trial of a search: its hyperparameters and the scores of its last evaluation."""

    WRITES_NULL: ClassVar[bool] = True

    name: str
    values: dict[str, Any] = field(default_factory=dict)
    """The searched settings by dotted name."""
    steps: int | None = None
    status: str = ""
    """finished, stopped early or failed."""
    miou: float | None = None
    mask_information: float | None = None
    balanced_mask_information: float | None = None
    anchored_information: float | None = None
    agreement: float | None = None
    entropy: float | None = None
    neighbourhood_density: float | None = None
    predicted_classes: float | None = None
    class_entropy: float | None = None
    collapsed: bool | None = None
    score: float | None = None
    """The value that trials are compared by; higher is better."""
    error: str = ""


@dataclass(frozen=True)
class Curve:
    """Quantities logged during one training."""

    name: str
    points: tuple[dict[str, Any], ...] = ()
    """By step, ascending: each point has `step` and the quantities logged at that step."""


@dataclass(frozen=True)
class RunRecord:
    """Everything that report.json states about a run. Every part may be missing."""

    schema_version: int = SCHEMA_VERSION
    verdict: Verdict | None = None
    """Of the student against its source model; None for a comparison of several runs."""
    title: str = "Report"
    kind: str = ""
    """adapt, tune or comparison."""
    created: str | None = None
    """UTC time in ISO 8601."""
    version: str | None = None
    """Version of sfss_ray."""
    class_set: ClassSetFacts = field(default_factory=ClassSetFacts)
    network_scored: str | None = None
    step_scored: str | None = None
    seed: int | None = None
    seeds: tuple[int, ...] | None = None
    """All seeds, where the rows are means over several runs."""
    source_model: SourceModelFacts | None = None
    regions: MaskFacts | None = None
    external_knowledge: ExternalFacts | None = None
    """What voted on the pseudo-labels besides source model and masks; None where nothing did."""
    target: TargetFacts | None = None
    labels: LabelFacts = field(default_factory=LabelFacts)
    rows: tuple[ScoreRow, ...] = ()
    """Networks scored, the source-only baseline first."""
    trials: tuple[TrialRow, ...] = ()
    best_trial: int | None = None
    """Index of the chosen trial."""
    score_name: str | None = None
    """The score that trials were compared by."""
    oracle: bool = False
    """True when target labels chose the best trial."""
    curves: tuple[Curve, ...] = ()
    errors: tuple[ImageError, ...] = ()
    seconds: dict[str, float] = field(default_factory=dict)
    """Wall time by stage."""
    config: dict[str, Any] = field(default_factory=dict)
    """Every knob by dotted name."""

    @property
    def baseline(self) -> ScoreRow | None:
        """The first row, which is source-only."""
        return self.rows[0] if self.rows else None

    @property
    def answer(self) -> ScoreRow | None:
        """The row that the report is about, see `answer_name`."""
        name = answer_name([row.name for row in self.rows])
        return next((row for row in self.rows[1:] if row.name == name), None)

    @property
    def best(self) -> TrialRow | None:
        """The trial that the search chose, or None when it names none."""
        index = self.best_trial
        return self.trials[index] if index is not None and 0 <= index < len(self.trials) else None

    @property
    def used_oracle(self) -> bool:
        """True when target labels took part in choosing, which source-free adaptation forbids."""
        return self.oracle or "oracle" in self.labels.used_for

    def to_json(self) -> dict[str, Any]:
        """Return strict JSON values: NaN and Inf become None, numpy values Python, paths text."""
        values = to_plain(self)
        return values | {"config": dict(sorted(values["config"].items()))}

    @classmethod
    def from_json(cls, values: Any, origin: str = "report.json") -> RunRecord:
        """Build a record from parsed JSON of this or an older schema version.

        Unknown keys are ignored.

        Args:
            values: The parsed content of a report.json.
            origin: Name of the file, for errors.

        Raises:
            DataError: the file has a newer schema, or a value of the wrong type.
        """
        version = values.get("schema_version", 0) if isinstance(values, dict) else 0
        if isinstance(version, int) and version > SCHEMA_VERSION:
            raise DataError(
                f"{origin} has schema version {version}, this version of sfss_ray reads up to"
                f" {SCHEMA_VERSION}: read it with the sfss_ray that wrote it, or a newer one"
            )
        record = decode(cls, _with_trial_values(values), origin)
        return dataclasses.replace(record, schema_version=SCHEMA_VERSION)


_FORMER_TRIAL_VALUES = {
    "temperature": "train.loss.temperature",
    "contrast_weight": "train.loss.contrast_weight",
    "ema_momentum": "train.ema_momentum",
}
"""Fields of a trial in former files, and the settings that they hold."""


def _with_trial_values(values: Any) -> Any:
    """Return the content of a file whose trials have `values`, as former ones had a field for each."""
    trials = values.get("trials") if isinstance(values, dict) else None
    if not isinstance(trials, list):
        return values
    return values | {"trials": [_trial_with_values(trial) for trial in trials]}


def _trial_with_values(trial: Any) -> Any:
    if not isinstance(trial, dict) or "values" in trial:
        return trial
    named = {name: trial.get(field) for field, name in _FORMER_TRIAL_VALUES.items()}
    return trial | {"values": {name: value for name, value in named.items() if value is not None}}


def read_record(path: Path | str) -> RunRecord:
    """Read a report.json.

    Raises:
        DataError: the file is missing, is no JSON, or cannot be read as a record.
    """
    path = Path(path)
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise DataError(f"{str(path)!r} does not exist: give the report.json of a run") from error
    except (OSError, ValueError) as error:
        raise DataError(f"{str(path)!r} cannot be read as JSON ({error}): run again") from error
    return RunRecord.from_json(values, origin=repr(str(path)))


def answer_name(names: Sequence[str]) -> str | None:
    """Return the row a report is about: "adapted" if present, else the last one after the first."""
    if "adapted" in names[1:]:
        return "adapted"
    return names[-1] if len(names) > 1 else None
