"""Measure the memory of the encoder and of a batch of points on a CPU. See masks.py."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from functools import partial
from pathlib import Path
from typing import Any

import torch
from mask_images import CITYSCAPES, quiet
from mask_models import NoEncoder, calibrated_sam, draw_masks, low_size, smooth_image
from mask_speed import drawn_logits, generator_of
from records import machine

from sfss_ray.masks.sam.encoder import encode_image

BATCHES = ("stock", "fp32", "bf16")
ENCODERS = ("encoder, stock", "encoder, fp32")


def memory_of(who: str) -> dict[str, Any]:
    """Measure the extra peak memory with ViT-B in a process of its own.

    `who` is one of ENCODERS (the encoder of one image) or of BATCHES (64 points at 2048x1024).
    """
    command = [sys.executable, str(Path(__file__).with_name("masks.py")), "--memory-of", who]
    process = subprocess.run(
        command,
        capture_output=True,
        text=True,
        check=True,
        env={**os.environ, "MALLOC_ARENA_MAX": "1"},
    )
    return json.loads(process.stdout.strip().splitlines()[-1])


def memory_here(who: str) -> dict[str, Any]:
    """Measure the row of memory_of in this process, above the memory before the call."""
    extra, facts = _encoder(who) if who in ENCODERS else _batch(who)
    return {"extra_gb": round(extra * 1024 / 1e9, 3), **facts, **machine()}


@torch.no_grad()
def _encoder(who: str) -> tuple[int, dict[str, Any]]:
    """Return the KiB of an image after a warm-up image."""
    sam = calibrated_sam("vit_b", "cpu")
    encoder, image = sam.image_encoder, torch.rand(1, 3, 1024, 1024)
    encode = encoder if who == "encoder, stock" else partial(encode_image, encoder)
    encode(image)
    before = _peak_kib(forget=True)
    encode(image)
    return _peak_kib() - before, {}


def _batch(who: str) -> tuple[int, dict[str, Any]]:
    """Return the KiB of a batch, and its number of masks.

    The encoder is left out, because its peak would hide that of the batch. A first call with one point
    loads everything that is loaded once.
    """
    sam = calibrated_sam("vit_b", "cpu")
    sam.image_encoder = NoEncoder(sam)  # pyright: ignore[reportAttributeAccessIssue]
    drawn = draw_masks(low_size(CITYSCAPES), 8)
    image = smooth_image(CITYSCAPES)
    with quiet(), drawn_logits(sam, drawn, who):
        generator_of(sam, who, 1, points_per_side=1).generate(image)
        drawn.returned = 0
        generator = generator_of(sam, who, 64, points_per_side=8)
        before = _peak_kib(forget=True)
        masks = generator.generate(image)
        return _peak_kib() - before, {"masks": len(masks)}


def _peak_kib(forget: bool = False) -> int:
    """Return the peak resident memory of this process in KiB (Linux). `forget` resets it."""
    if forget:
        Path("/proc/self/clear_refs").write_text("5")
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM"))
