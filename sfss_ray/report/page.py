"""The report of a run on disk: report.json for programs, report.html for people, and pictures.

The page is self-contained: styles, charts and pictures are embedded, so that it can be mailed.
"""

from __future__ import annotations

import base64
import functools
import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import jinja2
import numpy as np

from sfss_ray.config.space import short_names
from sfss_ray.data.class_sets import ClassSet, class_set_of
from sfss_ray.report import page_sections
from sfss_ray.report.charts import (
    MAX_POINTS,
    class_chart,
    curve_charts,
    report_colours,
    trial_charts,
)
from sfss_ray.report.comparison import (
    label_free_name,
    label_free_score,
    rank_correlation,
    searched_settings,
)
from sfss_ray.report.formatting import format_knob, format_number
from sfss_ray.report.importance import find_importance
from sfss_ray.report.pictures import (
    Strip,
    classes_present,
    draw_strip,
    encode,
    save_png,
    strip_panels,
)
from sfss_ray.report.report_record import RunRecord
from sfss_ray.storage.files import write_text
from sfss_ray.storage.places import Place, to_place

PICTURE_BYTES = 1_900_000
"""Bytes of all pictures in the page, before base64 adds a third."""
PANEL_WIDTHS = (480, 360, 240, 160, 96)
"""Sizes in pixels; the page uses the first that keeps the pictures within PICTURE_BYTES."""


@dataclass(frozen=True)
class PagePanel:
    """A panel as the page embeds it."""

    title: str
    detail: str
    uri: str


@dataclass(frozen=True)
class PagePicture:
    """The panels of one image."""

    image_id: str
    panels: list[PagePanel]
    file: str
    """Path of the full picture, relative to the page."""


def write_report(output_dir: Place | str, record: RunRecord, strips: Sequence[Strip] = ()) -> Place:
    """Write report.json, report.html and pictures/*.png into a folder or below an address.

    Files of an earlier report are replaced, each in one step, so that no reader meets half a file.

    Args:
        output_dir: Folder, made if needed, or address.
        record: What the report states; missing parts are left out of the page.
        strips: Images with masks and predictions to draw.

    Returns:
        The path of the page.

    Raises:
        DataError: the arrays of a strip do not fit together.
        OutputError: the disk is full or not writable.
    """
    output_dir = to_place(output_dir)
    text = json.dumps(record.to_json(), indent=2, ensure_ascii=False)
    write_text(output_dir / "report.json", text + "\n")
    class_set = _class_set(record)
    files = [_picture_file(index, strip) for index, strip in enumerate(strips)]
    for file, strip in zip(files, strips, strict=True):
        save_png(output_dir / file, draw_strip(strip, class_set))
    return write_text(output_dir / "report.html", render_page(record, strips, files))


def render_page(record: RunRecord, strips: Sequence[Strip] = (), files: Sequence[str] = ()) -> str:
    """Return the HTML page of a record.

    Args:
        record: What the report states.
        strips: Images to embed.
        files: Path of each strip's PNG, relative to the page.
    """
    class_set = _class_set(record)
    loader = jinja2.FileSystemLoader(Path(__file__).parent)
    environment = jinja2.Environment(
        loader=loader, autoescape=True, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters.update(
        number=format_number,
        knob=format_knob,
        shown=page_sections.show_value,
        breakable=page_sections.breakable,
    )
    present = classes_present(strips, class_set)
    score_name = label_free_name(record)
    return environment.get_template("page.html").render(
        record=record,
        sections=page_sections,
        class_chart=class_chart(record),
        curve_charts=curve_charts(record),
        trial_charts=trial_charts(record),
        max_points=MAX_POINTS,
        colours=report_colours(record),
        score_name=score_name,
        label_free_score=functools.partial(label_free_score, record),
        rank_correlation=rank_correlation(record.trials, score_name),
        settings=searched_settings(record.trials),
        titles=short_names(searched_settings(record.trials)),
        importance=find_importance(record.trials),
        legend=[(class_set.classes[k], bytes(class_set.palette[k]).hex()) for k in present],
        pictures=_pictures(strips, class_set, files),
    )


def _class_set(record: RunRecord) -> ClassSet:
    """The record's class set with its colours."""
    names = record.class_set.classes or ("class 0",)
    return class_set_of(names, record.class_set.name or "custom")


def _pictures(
    strips: Sequence[Strip], class_set: ClassSet, files: Sequence[str]
) -> list[PagePicture]:
    """Encode the panels of all strips in the largest size that keeps within PICTURE_BYTES."""
    encoded: list[list[PagePanel]] = []
    for width in PANEL_WIDTHS:
        encoded = [_page_panels(strip, class_set, width) for strip in strips]
        total = sum(len(panel.uri) * 3 // 4 for panels in encoded for panel in panels)
        if total <= PICTURE_BYTES:
            break
    return [
        PagePicture(strip.image_id, panels, file)
        for strip, panels, file in zip(strips, encoded, files, strict=True)
    ]


def _page_panels(strip: Strip, class_set: ClassSet, width: int) -> list[PagePanel]:
    panels = strip_panels(strip, class_set, height=width, max_width=width)
    # In the page's grid the label stands above the predictions that are compared with it.
    panels.sort(key=lambda panel: panel.title not in ("image", "masks", "label"))
    return [PagePanel(panel.title, panel.detail, data_uri(panel.image)) for panel in panels]


def data_uri(image: np.ndarray) -> str:
    """Encode an RGB picture (H, W, 3) as a data URI, PNG or JPEG, whichever is smaller."""
    encoded = {"png": encode(image, ".png"), "jpeg": encode(image, ".jpg")}
    smallest = min(encoded, key=lambda name: len(encoded[name]))
    return f"data:image/{smallest};base64,{base64.b64encode(encoded[smallest]).decode()}"


def _picture_file(index: int, strip: Strip) -> str:
    """Name a picture so that any disk takes it; the number keeps equal names apart."""
    safe = re.sub(r"[^A-Za-z0-9._-]+", "_", strip.image_id).strip("._")[-80:]
    return f"pictures/{index + 1:02d}_{safe or 'image'}.png"
