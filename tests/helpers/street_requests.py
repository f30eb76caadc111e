"""Requests of runs on drawn streets."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

from sfss_ray.config import Config, override
from sfss_ray.inputs.request import Request
from sfss_ray.masks.sam.networks import shipped_small_sam
from sfss_ray.streets.default import SOURCE_MODEL
from sfss_ray.streets.scenes import write_streets

CPU = {"compute.device": "cpu"}


def write_inputs(root: Path) -> Path:
    """Six target images, two labelled images and the small SAM, below `root`."""
    write_streets(root / "target", "camera", 5, 6, (64, 128), with_labels=False)
    write_streets(root / "val", "camera", 6, 2, (64, 128))
    shutil.copy(shipped_small_sam(), root / "sam.pth")
    return root


def adapt_arguments(streets: Path, output: Path) -> dict[str, Any]:
    """The arguments of `adapt` for written inputs."""
    return {
        "source_model": SOURCE_MODEL,
        "target_images": streets / "target" / "images",
        "output_dir": output,
        "val_images": streets / "val" / "images",
        "val_labels": streets / "val" / "labels",
    }


def request_for(
    streets: Path, output: Path, knobs: dict[str, Any] | None = None, **changes: Any
) -> Request:
    """A request of `adapt` on the CPU, with changed knobs and changed arguments."""
    config = override(Config(), CPU | (knobs or {}))
    defaults = {"kind": "adapt", "config": config}
    return Request(**(adapt_arguments(streets, output) | defaults | changes))
