"""The report of a run on disk: report.json for machines, report.html for people, and the pictures.

The page needs nothing but itself: styles, charts and pictures are inside, so it can be mailed.
"""

from __future__ import annotations

import base64
import functools
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jinja2
import numpy as np

from sfss_ray.data.class_sets import ClassSet, class_set_of
from sfss_ray.report import tables
from sfss_ray.report.charts import (
    MOST_POINTS,
    class_chart,
    curve_charts,
    report_colours,
    trial_charts,
)
from sfss_ray.report.pictures import (
    Strip,
    classes_present,
    draw_strip,
    encode,
    save_png,
    strip_panels,
)
from sfss_ray.storage.files import write_text

PICTURE_BYTES = 1_900_000  # of all pictures in the page, before base64 adds a third
PANEL_WIDTHS = (480, 360, 240, 160, 96)  # the first that keeps the pictures within PICTURE_BYTES
FIRST_KEYS = ("title", "kind", "created", "version", "class_set", "network_scored", "step_scored")
LAST_KEYS = ("curves", "errors", "seconds", "config")


@dataclass(frozen=True)
class Metric:
    """A score of the report's rows: its key there, how to write it and what it says."""

    key: str
    name: str
    digits: int
    unit: str
    needs_labels: bool
    meaning: str


METRICS = (
    Metric("miou", "mIoU", 1, "%", True, "mean IoU of the classes that the labels contain"),
    Metric(
        "pixel_accuracy", "pixel accuracy", 1, "%", True, "share of labelled pixels that are right"
    ),
    Metric(
        "mask_information",
        "mask_information",
        3,
        "",
        False,
        "how much a pixel's region tells about its predicted class: high when predictions agree"
        " inside regions and differ between them",
    ),
    Metric(
        "balanced_mask_information",
        "balanced_mask_information",
        3,
        "",
        False,
        "the same with rare classes counting more, as in mIoU",
    ),
    Metric(
        "agreement",
        "agreement",
        3,
        "",
        False,
        "mean IoU of what student and teacher predict, 0 to 1",
    ),
    Metric(
        "neighbourhood_density",
        "neighbourhood_density",
        3,
        "",
        False,
        "how dense the groups of like predictions are; highest when one class is everywhere",
    ),
    Metric("entropy", "entropy", 3, "", False, "how undecided the predictions are; low = decided"),
)


def write_report(output_dir: Path, report: dict, strips: Sequence[Strip] = ()) -> Path:
    """Write report.json, report.html and pictures/*.png into a folder; returns the page's path.

    output_dir is made if needed; files of an earlier report are replaced, each in one go, so that
    a reader never meets half a file. NaN and Inf become null. Parts that `report` lacks are left
    out of the page. Errors: DataError for a strip whose arrays do not fit, OutputError of the disk.
    """
    output_dir = Path(output_dir)
    report = json_ready(report)
    write_text(output_dir / "report.json", json.dumps(report, indent=2, ensure_ascii=False) + "\n")
    class_set = _class_set(report)
    files = [_picture_file(index, strip) for index, strip in enumerate(strips)]
    for file, strip in zip(files, strips, strict=True):
        save_png(output_dir / file, draw_strip(strip, class_set))
    return write_text(output_dir / "report.html", render_page(report, strips, files))


def json_ready(report: Mapping[str, Any]) -> dict:
    """A report as strict JSON values: NaN and Inf -> None, numpy -> Python, paths -> text.

    What names the run comes first, long lists and the config (sorted by name) last.
    """
    plain = _plain(report)
    middle = [key for key in plain if key not in FIRST_KEYS and key not in LAST_KEYS]
    ordered = {key: plain[key] for key in (*FIRST_KEYS, *middle, *LAST_KEYS) if key in plain}
    if isinstance(ordered.get("config"), dict):
        ordered["config"] = dict(sorted(ordered["config"].items()))
    return ordered


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    if isinstance(value, np.ndarray):
        return _plain(value.tolist())
    if isinstance(value, np.generic):
        value = value.item()
    if isinstance(value, float):
        return value if np.isfinite(value) else None
    return value if value is None or isinstance(value, (bool, int, str)) else str(value)


def render_page(report: dict, strips: Sequence[Strip] = (), files: Sequence[str] = ()) -> str:
    """The HTML page of a `json_ready` report; files: where each strip's PNG is, seen from the page."""
    class_set = _class_set(report)
    loader = jinja2.FileSystemLoader(Path(__file__).parent)
    environment = jinja2.Environment(
        loader=loader, autoescape=True, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters.update(number=tables.number, knob=tables.knob, shown=_shown)
    shown = classes_present(strips, class_set)
    return environment.get_template("page.html").render(
        report=report,
        **_comparison(report),
        badges=_badges(report),
        class_rows=_class_rows(report),
        class_summary=_class_summary(report),
        most_points=MOST_POINTS,
        class_chart=class_chart(report),
        curve_charts=curve_charts(report),
        trial_charts=trial_charts(report),
        colours=report_colours(report),
        best_trial=tables.best_trial(report),
        score_name=tables.label_free_score(report),
        score_of=functools.partial(tables.score_of, report),
        rank_correlation=tables.rank_correlation(
            report.get("trials") or [], tables.label_free_score(report)
        ),
        legend=[(class_set.classes[k], bytes(class_set.palette[k]).hex()) for k in shown],
        pictures=_pictures(strips, class_set, files),
    )


def _comparison(report: dict) -> dict[str, Any]:
    """What the top of the page compares: the two rows, a card per score, and all rows with changes."""
    baseline, answer = tables.baseline_and_answer(report)
    rows = report.get("rows") or []
    measured = [
        metric for metric in METRICS if any(tables.is_number(row.get(metric.key)) for row in rows)
    ]
    return {
        "baseline": baseline,
        "answer": answer,
        "metrics": measured,
        "cards": [_card(metric, baseline, answer) for metric in measured],
        "row_lines": [_row_line(row, baseline, measured) for row in rows],
    }


def _card(metric: Metric, baseline: dict | None, answer: dict | None) -> dict[str, Any]:
    before, after = ((row or {}).get(metric.key) for row in (baseline, answer))
    return {
        "metric": metric,
        "before": tables.number(before, metric.digits),
        "after": tables.number(after, metric.digits),
        "change": _change_cell(before, after, metric),
    }


def _row_line(row: dict, baseline: dict | None, metrics: Sequence[Metric]) -> dict[str, Any]:
    cells = [
        (tables.number(row.get(m.key), m.digits), _row_change(row, baseline, m)) for m in metrics
    ]
    return {"name": row["name"], "cells": cells}


def _row_change(row: dict, baseline: dict | None, metric: Metric) -> dict[str, str]:
    before = None if row is baseline else (baseline or {}).get(metric.key)
    return _change_cell(before, row.get(metric.key), metric)


def _change_cell(before: Any, after: Any, metric: Metric) -> dict[str, str]:
    """A signed change and its CSS class; scores without labels are no proof, so they stay grey."""
    value = tables.change(before, after)
    text = tables.signed(value, metric.digits) if value is not None else ""
    return {"text": text, "verdict": _verdict(value) if metric.needs_labels else "neutral"}


def _verdict(value: float | None) -> str:
    if value is None or round(value, 1) == 0:
        return "neutral"
    return "better" if value > 0 else "worse"


def _class_rows(report: dict) -> list[dict[str, Any]]:
    """A line per class: name, IoU of each row, change from source-only to the answer."""
    classes = (report.get("class_set") or {}).get("classes") or []
    rows = report.get("rows") or []
    if not any(row.get("per_class") for row in rows):
        return []
    columns = [tables.class_scores(row, len(classes)) for row in rows]
    changes = tables.class_changes(report)
    return [
        {
            "name": name,
            "values": [column[index] for column in columns],
            "change": tables.signed(changes[index]),
            "verdict": _verdict(changes[index]),
        }
        for index, name in enumerate(classes)
    ]


def _class_summary(report: dict) -> str:
    """How many classes improved, and which changed most either way; empty without such numbers."""
    classes = (report.get("class_set") or {}).get("classes") or []
    pairs = zip(tables.class_changes(report), classes, strict=True)
    changes = sorted((value, name) for value, name in pairs if value is not None)
    if not changes:
        return ""
    improved = sum(_verdict(value) == "better" for value, _ in changes)
    parts = [f"{improved} of {len(changes)} classes improved"]
    for word, (value, name) in (("most", changes[-1]), ("least", changes[0])):
        parts.append(f"{word}: {name} {tables.signed(value)}")
    return ", ".join(parts)


def _badges(report: dict) -> list[tuple[str, str]]:
    """Short facts for the top of the page: (kind, text), kind "warning" or "fact"."""
    facts = [
        ("classes", (report.get("class_set") or {}).get("name")),
        ("network", report.get("network_scored")),
        ("step", report.get("step_scored")),
        ("seeds" if report.get("seeds") else "seed", report.get("seeds") or report.get("seed")),
    ]
    badges = [("fact", f"{name}: {_shown(value)}") for name, value in facts if value is not None]
    source = (report.get("regions") or {}).get("source")
    if source:
        badges.append(_region_badge(source))
    if tables.is_oracle(report):
        badges.insert(0, ("warning", "oracle: chosen with target labels"))
    return badges


def _region_badge(source: str) -> tuple[str, str]:
    if "sam" in source.lower() or source == "imported":
        return "fact", f"regions: {source}"
    return "warning", f"regions: {source} (not SAM)"


def _shown(value: Any) -> str:
    """A config value or fact as a person writes it: lists without brackets, short numbers."""
    if isinstance(value, (list, tuple)):
        return ", ".join(_shown(item) for item in value)
    if isinstance(value, float):
        return f"{value:.6g}"
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def _class_set(report: Mapping[str, Any]) -> ClassSet:
    named = report.get("class_set") or {}
    return class_set_of(named.get("classes") or ["class 0"], str(named.get("name", "custom")))


def _pictures(
    strips: Sequence[Strip], class_set: ClassSet, files: Sequence[str]
) -> list[dict[str, Any]]:
    """Each strip's panels as data URIs, in the largest size whose sum stays within PICTURE_BYTES."""
    encoded: list[list[dict[str, str]]] = []
    for width in PANEL_WIDTHS:
        encoded = [_encoded_panels(strip, class_set, width) for strip in strips]
        total = sum(len(panel["uri"]) * 3 // 4 for panels in encoded for panel in panels)
        if total <= PICTURE_BYTES:
            break
    return [
        {"image_id": strip.image_id, "panels": panels, "file": file}
        for strip, panels, file in zip(strips, encoded, files, strict=True)
    ]


def _encoded_panels(strip: Strip, class_set: ClassSet, width: int) -> list[dict[str, str]]:
    panels = strip_panels(strip, class_set, height=width, max_width=width)
    # in the page's grid the label stands above the predictions that are compared with it
    panels.sort(key=lambda panel: panel.title not in ("image", "masks", "label"))
    return [
        {"title": panel.title, "detail": panel.detail, "uri": data_uri(panel.image)}
        for panel in panels
    ]


def data_uri(image: np.ndarray) -> str:
    """An RGB picture (H, W, 3) as a data URI, PNG or JPEG, whichever is smaller."""
    written = {"png": encode(image, ".png"), "jpeg": encode(image, ".jpg")}
    kind = min(written, key=lambda name: len(written[name]))
    return f"data:image/{kind};base64,{base64.b64encode(written[kind]).decode()}"


def _picture_file(index: int, strip: Strip) -> str:
    """A file name that any disk takes; the number keeps names apart that become the same."""
    safe = re.sub(r"[^A-Za-z0-9._-]+", "_", strip.image_id).strip("._")[-80:]
    return f"pictures/{index + 1:02d}_{safe or 'image'}.png"
