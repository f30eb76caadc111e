"""Memory of the encoder and of a batch of points on a CPU, for the mask bench; see masks.py."""

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
    """Extra peak memory with ViT-B, in a process of its own.

    Of an image's encoder where `who` is one of ENCODERS; of one batch of 64 points at 2048x1024 where
    it is one of BATCHES.
    """
    command = [sys.executable, str(Path(__file__).with_name("masks.py")), "--memory-of", who]
    done = subprocess.run(
        command,
        capture_output=True,
        text=True,
        check=True,
        env={**os.environ, "MALLOC_ARENA_MAX": "1"},
    )
    return json.loads(done.stdout.strip().splitlines()[-1])


def memory_here(who: str) -> dict[str, Any]:
    """The row of memory_of, in this process: above what is held before."""
    extra, facts = _encoder(who) if who in ENCODERS else _batch(who)
    return {"extra_gb": round(extra * 1024 / 1e9, 3), **facts, **machine()}


@torch.no_grad()
def _encoder(who: str) -> tuple[int, dict[str, Any]]:
    """KiB of an image, after a first one."""
    sam = calibrated_sam("vit_b", "cpu")
    encoder, image = sam.image_encoder, torch.rand(1, 3, 1024, 1024)
    encode = encoder if who == "encoder, stock" else partial(encode_image, encoder)
    encode(image)
    before = _peak_kib(forget=True)
    encode(image)
    return _peak_kib() - before, {}


def _batch(who: str) -> tuple[int, dict[str, Any]]:
    """KiB of a batch, and its masks.

    The encoder is left out, as its own peak would hide the batch's; a first call with one point
    brings in what is loaded once.
    """
    sam = calibrated_sam("vit_b", "cpu")
    sam.image_encoder = NoEncoder(sam)  # pyright: ignore[reportAttributeAccessIssue]
    drawn = draw_masks(low_size(CITYSCAPES), 8)
    image = smooth_image(CITYSCAPES)
    with quiet(), drawn_logits(sam, drawn, who):
        generator_of(sam, who, 1, points_per_side=1).generate(image)
        drawn.given = 0
        generator = generator_of(sam, who, 64, points_per_side=8)
        before = _peak_kib(forget=True)
        masks = generator.generate(image)
        return _peak_kib() - before, {"masks": len(masks)}


def _peak_kib(forget: bool = False) -> int:
    """Highest resident memory of this process in KiB (Linux); `forget` starts it anew."""
    if forget:
        Path("/proc/self/clear_refs").write_text("5")
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM"))
