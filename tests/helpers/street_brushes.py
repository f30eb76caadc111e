"""Brushes with a small canvas for tests of painting functions."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from sfss_ray.streets.appearance import sample_appearance
from sfss_ray.streets.brush import LABEL, Brush
from sfss_ray.streets.canvas import Camera, Canvas
from sfss_ray.streets.styles import STYLES

ROWS, COLUMNS = 120, 200
HORIZON = 50


def make_camera(**changes) -> Camera:
    """Return a level camera in the middle of the road, with some values changed."""
    values = {
        "rows": ROWS,
        "columns": COLUMNS,
        "focal": 100.0,
        "vanish_x": 100.0,
        "vanish_y": float(HORIZON),
        "roll": 0.0,
        "height": 1.5,
        "offset": 0.0,
    }
    return Camera(**(values | changes))


def make_brush(domain: str = "game", seed: int = 0, **style_changes) -> Brush:
    """Return a brush with an empty canvas, in a style with some values changed."""
    rng = np.random.default_rng(seed)
    appearance = sample_appearance(replace(STYLES[domain], **style_changes), rng)
    return Brush(Canvas(make_camera(), appearance.shadow()), appearance, rng)


def painted_labels(brush: Brush) -> np.ndarray:
    """Draw all pending shapes and return the (rows, columns) train ids of the canvas."""
    brush.canvas.finish()
    return brush.canvas.table().label[brush.canvas.ids]


def painted_names(brush: Brush) -> set[str]:
    """Draw all pending shapes and return the class names on the canvas, without void."""
    ids = set(np.unique(painted_labels(brush)).tolist())
    return {name for name, train_id in LABEL.items() if train_id in ids} - {"void"}
