"""The content of the page's sections: badges, score cards, all rows, and classes."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

from sfss_ray.report.comparison import class_changes, class_scores
from sfss_ray.report.formatting import difference, format_change, format_number, is_number
from sfss_ray.report.report_record import IMPROVED, WORSE, RunRecord, ScoreRow


@dataclass(frozen=True)
class Metric:
    """A score of the rows: how to write it and what it means."""

    name: str
    """Attribute of a row."""
    title: str
    digits: int
    unit: str
    needs_labels: bool
    meaning: str
    better: Literal["higher", "lower"] = "higher"
    """Which direction is better."""

    def of(self, row: ScoreRow | None) -> Any:
        """Return the score of a row, or None."""
        return getattr(row, self.name) if row else None


METRICS = (
    Metric("miou", "mIoU", 1, "%", True, "mean IoU of the classes that the labels contain"),
    Metric(
        "pixel_accuracy",
        "pixel accuracy",
        1,
        "%",
        True,
        "share of labelled pixels that are predicted correctly",
    ),
    Metric(
        "mask_information",
        "mask_information",
        3,
        "",
        False,
        "how much a pixel's mask tells about its predicted class: high when predictions agree"
        " inside masks and differ between them",
    ),
    Metric(
        "balanced_mask_information",
        "balanced_mask_information",
        3,
        "",
        False,
        "mask_information with more weight on rare classes, as in mIoU",
    ),
    Metric(
        "anchored_information",
        "anchored_information",
        3,
        "",
        False,
        "mask_information of a model that predicts mirrored and zoomed images alike, and much as the"
        " source model does",
    ),
    Metric(
        "agreement",
        "agreement",
        3,
        "",
        False,
        "mean IoU between the predictions of student and teacher, 0 to 1",
    ),
    Metric(
        "neighbourhood_density",
        "neighbourhood_density",
        3,
        "",
        False,
        "how dense the groups of similar predictions are; highest when one class is everywhere",
    ),
    Metric(
        "entropy",
        "entropy",
        3,
        "",
        False,
        "uncertainty of the predictions; also low when one class is predicted everywhere",
        better="lower",
    ),
)


@dataclass(frozen=True)
class ChangeCell:
    """A signed change and its CSS class: better, worse or neutral."""

    text: str
    verdict: str


@dataclass(frozen=True)
class ScoreCard:
    """One score at the top of the page, before and after."""

    metric: Metric
    before: str
    after: str
    change: ChangeCell


@dataclass(frozen=True)
class RowLine:
    """A row's scores, each with its change from source-only."""

    name: str
    cells: list[tuple[str, ChangeCell]]


@dataclass(frozen=True)
class ClassLine:
    """The IoU of one class in every row, and its change from source-only to the answer."""

    name: str
    ious: list[float | None]
    change: ChangeCell


@dataclass(frozen=True)
class Badge:
    """A short fact for the top of the page."""

    text: str
    is_warning: bool = False


@dataclass(frozen=True)
class VerdictBanner:
    """The verdict as the first line of the page, and its CSS class: better, worse or neutral."""

    title: str
    reason: str
    kind: str


def verdict_banner(record: RunRecord) -> VerdictBanner | None:
    """Return the verdict for the top of the page; None for a record without one."""
    verdict = record.verdict
    if verdict is None:
        return None
    kind = {IMPROVED: "better", WORSE: "worse"}.get(verdict.word, "neutral")
    title = verdict.word[:1].upper() + verdict.word[1:]
    return VerdictBanner(title, verdict.reason, kind)


def measured_metrics(record: RunRecord) -> list[Metric]:
    """Return the metrics that at least one row has."""
    return [m for m in METRICS if any(is_number(m.of(row)) for row in record.rows)]


def score_cards(record: RunRecord) -> list[ScoreCard]:
    """Return a card per metric that compares source-only and the answer."""
    return [_card(metric, record) for metric in measured_metrics(record)]


def _card(metric: Metric, record: RunRecord) -> ScoreCard:
    before, after = metric.of(record.baseline), metric.of(record.answer)
    return ScoreCard(
        metric,
        format_number(before, metric.digits),
        format_number(after, metric.digits),
        _change_cell(before, after, metric),
    )


def row_lines(record: RunRecord) -> list[RowLine]:
    """Return a line per row with all its scores."""
    metrics = measured_metrics(record)
    return [RowLine(row.name, [_row_cell(record, row, m) for m in metrics]) for row in record.rows]


def _row_cell(record: RunRecord, row: ScoreRow, metric: Metric) -> tuple[str, ChangeCell]:
    before = None if row is record.baseline else metric.of(record.baseline)
    score = metric.of(row)
    return format_number(score, metric.digits), _change_cell(before, score, metric)


def _change_cell(before: Any, after: Any, metric: Metric) -> ChangeCell:
    """A change is coloured only with labels, because label-free scores prove nothing."""
    change = difference(before, after)
    text = format_change(change, metric.digits) if change is not None else ""
    return ChangeCell(text, _verdict(change) if metric.needs_labels else "neutral")


def _verdict(change: float | None) -> str:
    if change is None or round(change, 1) == 0:
        return "neutral"
    return "better" if change > 0 else "worse"


def class_lines(record: RunRecord) -> list[ClassLine]:
    """Return a line per class; empty when no row has an IoU per class."""
    classes = record.class_set.classes
    if not any(row.per_class for row in record.rows):
        return []
    columns = [class_scores(row, len(classes)) for row in record.rows]
    cells = [ChangeCell(format_change(c), _verdict(c)) for c in class_changes(record)]
    return [
        ClassLine(name, [column[index] for column in columns], cells[index])
        for index, name in enumerate(classes)
    ]


def class_summary(record: RunRecord) -> str:
    """Say how many classes improved and which changed most either way; empty without IoUs."""
    pairs = zip(class_changes(record), record.class_set.classes, strict=True)
    changes = sorted((change, name) for change, name in pairs if change is not None)
    if not changes:
        return ""
    improved = sum(_verdict(change) == "better" for change, _ in changes)
    parts = [f"{improved} of {len(changes)} classes improved"]
    for rank, (change, name) in (("most", changes[-1]), ("least", changes[0])):
        parts.append(f"{rank}: {name} {format_change(change)}")
    return ", ".join(parts)


def badges(record: RunRecord) -> list[Badge]:
    """Return short facts for the top of the page, an oracle warning first."""
    facts = [
        ("classes", record.class_set.name),
        ("network", record.network_scored),
        ("step", record.step_scored),
        ("seeds" if record.seeds else "seed", record.seeds or record.seed),
    ]
    result = [Badge(f"{name}: {show_value(fact)}") for name, fact in facts if fact is not None]
    if record.regions and record.regions.source:
        result.append(_mask_badge(record.regions.source))
    if record.external_knowledge is not None:
        result.insert(0, Badge(record.external_knowledge.line(), is_warning=True))
    if record.used_oracle:
        result.insert(0, Badge("oracle: chosen with target labels", is_warning=True))
    return result


def _mask_badge(source: str) -> Badge:
    """A region source that is not SAM is a warning."""
    if "sam" in source.lower() or source == "imported":
        return Badge(f"masks: {source}")
    return Badge(f"masks: {source} (not SAM)", is_warning=True)


def show_value(value: Any) -> str:
    """Write a config value or fact for people: lists without brackets, short numbers."""
    if isinstance(value, Sequence) and not isinstance(value, str):
        return ", ".join(show_value(element) for element in value)
    if isinstance(value, float):
        return f"{value:.6g}"
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def breakable(name: str) -> str:
    """Return a name that a narrow column may break after its underscores."""
    return name.replace("_", "_\u200b")
