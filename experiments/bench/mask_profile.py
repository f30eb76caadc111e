"""The time of each part of mask generation, on a CPU and on CUDA. See masks.py.

A part is a function of the generator. Its time leaves out the parts that it calls, so that the parts and
the remainder sum to the whole. On CUDA the times are those between two events of the stream: kernels,
and the gaps in which the GPU waits for Python.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, nullcontext
from functools import partial
from typing import Any
from unittest.mock import patch

import numpy as np
import torch
from mask_family import random_family_model
from mask_images import CAMVID, CITYSCAPES, SMALL_SETTINGS, Options, quiet
from mask_models import calibrated_sam, draw_masks, low_size, smooth_image
from mask_speed import drawn_logits, generator_of
from records import machine

from sfss_ray.masks.sam import (
    candidates,
    conventions,
    decoder,
    factored_decoder,
    factored_keys,
    image_attention,
    measure_cpu,
    measure_gpu,
    segment_anything_model,
    transformers_model,
)
from sfss_ray.masks.sam.generator import AutomaticMaskGenerator
from sfss_ray.masks.sam.networks import load_sam, shipped_small_sam

VARIANTS = ("eager", "gpu_code", "compile", "graphs", "in_flight")
"""gpu_code runs the code for a GPU, also on a CPU. graphs needs CUDA."""
_POINTS_PER_SIDE = {
    "cpu": 8,
    "cuda": 32,
}  # of published sizes: a CPU takes a minute for 1024 points
_PARTS: tuple[tuple[str, Any, str], ...] = (
    ("encoder", segment_anything_model, "encode_crop"),
    ("encoder", transformers_model.TransformersModel, "encode"),
    ("prompts", decoder.SharedImageDecoder, "_attend"),
    ("tokens to image", image_attention.SharedImageAttention, "__call__"),
    ("tokens to image", image_attention.ImageAttention, "__call__"),
    ("image to tokens", image_attention.ImageUpdate, "__call__"),
    ("tokens to image", factored_keys.FactoredAttention, "__call__"),
    ("image to tokens", factored_keys.FactoredUpdate, "__call__"),
    ("row normalisation", image_attention, "layer_norm"),
    ("row normalisation", factored_decoder, "layer_norm"),
    ("row normalisation", decoder, "layer_norm"),
    ("upscaling", decoder.SharedImageDecoder, "_mask_rasters"),
    ("upscaling", factored_decoder.FactoredDecoder, "_point_masks"),
    ("pixel order", decoder.SharedImageDecoder, "_shuffle_pixels"),
    ("enlarging", measure_gpu.FullImageUpsampler, "_enlarge"),
    ("pixel counts", measure_gpu, "count_pixels"),
    ("boxes", measure_gpu, "_boxes"),
    ("thresholds", candidates, "measure_masks"),
    ("enlarging and thresholds", candidates, "measure_mask"),
    ("filters and copies", candidates, "_to_candidates"),
    ("second decoding", conventions, "recompute_ambiguous"),
    ("run lengths", measure_cpu.PackedMasks, "counts_in_image"),
    ("run lengths", measure_gpu.DeferredMasks, "counts_in_image"),
    ("edges and copies", measure_gpu, "_edges"),
)
_COMPILED = ("_attend", "_mask_rasters")  # of SharedImageDecoder; parts in them are not told apart


class PartClock:
    """Seconds by part, each without the parts that it calls.

    Args:
        device: cpu (processor time) or cuda (events).
    """

    def __init__(self, device: str) -> None:
        self._device = device
        self._marks: list[tuple[str, Any, Any, list[int]]] = []
        self._open: list[list[int]] = []

    def timed(self, part: str, function: Callable) -> Callable:
        """Return the function with a clock around it."""

        def run(*arguments: Any, **named: Any) -> Any:
            children: list[int] = []
            self._open.append(children)
            start = self._now()
            try:
                return function(*arguments, **named)
            finally:
                end = self._now()
                self._open.pop()
                self._marks.append((part, start, end, children))
                if self._open:
                    self._open[-1].append(len(self._marks) - 1)

        return run

    def _now(self) -> Any:
        if self._device == "cpu":
            return time.process_time()
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event

    def seconds(self) -> dict[str, float]:
        """Return the seconds of each part that was called."""
        if self._device != "cpu":
            torch.cuda.synchronize()
        durations = [self._between(start, end) for _, start, end, _ in self._marks]
        totals: dict[str, float] = {}
        for (part, _, _, children), duration in zip(self._marks, durations, strict=True):
            duration -= sum(durations[child] for child in children)
            totals[part] = totals.get(part, 0.0) + duration
        return totals

    def _between(self, start: Any, end: Any) -> float:
        return end - start if self._device == "cpu" else start.elapsed_time(end) / 1000


def profile(options: Options, kind: str, who: str, batch: int, variant: str) -> dict[str, Any]:
    """Return the seconds of an image by part, and the images per second without the clock.

    Args:
        options: `repeats` images are timed after one that warms up.
        kind: small (the shipped weights, 480x360), sam2 (random weights of the default size, 480x360),
            vit_b or vit_h (drawn logits, 2048x1024).
        who: fp32 or bf16.
        batch: points decoded at once, where the device does not decide.
        variant: one of VARIANTS.
    """
    if variant == "graphs" and options.device != "cuda":
        raise SystemExit("graphs: CUDA graphs need --device cuda")
    build, image, logits = _case(options.device, kind, who, batch)
    with quiet(), logits, _variant(variant):
        generator = build()
        masks = generator.generate(image)
        seconds = _seconds(lambda: generator.generate(image), options)
        clock = PartClock(options.device)
        with _clocks(clock, compiled=variant in ("compile", "graphs")):
            clock.timed("remainder", generator.generate)(image)
        in_flight = variant == "in_flight"
        rate = _two_in_flight([build(), build()], image, options) if in_flight else 1 / seconds
    parts = {part: round(1000 * s, 2) for part, s in clock.seconds().items()}
    row = {"milliseconds": round(1000 * seconds, 1), "images_per_second": round(rate, 3)}
    points = sum(len(grid) for grid in generator.point_grids)
    return row | {"points": points, "masks": len(masks), "parts": parts, **machine(options.device)}


def _case(
    device: str, kind: str, who: str, batch: int
) -> tuple[Callable[[], Any], np.ndarray, Any]:
    """Return a function that builds the generator, an image, and the context that draws its logits."""
    if kind == "small":
        sam = load_sam(shipped_small_sam(), device=device)
        build = partial(generator_of, sam, who, batch, **SMALL_SETTINGS)
        return build, smooth_image(CAMVID), nullcontext()
    side = _POINTS_PER_SIDE[device]
    if kind == "sam2":
        model = random_family_model("sam2", "published").to(device)
        dtype = torch.float32 if who == "fp32" else torch.bfloat16
        settings = {"points_per_batch": batch, "dtype": dtype, "stability_score_thresh": 0.3}
        build = partial(AutomaticMaskGenerator, model, side, output_mode="coco_rle", **settings)
        return build, smooth_image(CAMVID), nullcontext()
    sam = calibrated_sam(kind, device)
    drawn = draw_masks(low_size(CITYSCAPES), side, device=device)
    build = partial(generator_of, sam, who, batch, points_per_side=side)
    return build, smooth_image(CITYSCAPES), drawn_logits(sam, drawn, who)


@contextmanager
def _clocks(clock: PartClock, compiled: bool) -> Iterator[None]:
    """Put a clock around every part inside the block."""
    inside = (image_attention.SharedImageAttention, image_attention.ImageAttention,
              image_attention.ImageUpdate, image_attention)  # fmt: skip
    with ExitStack() as stack:
        for part, owner, name in _PARTS:
            if compiled and (owner in inside or name == "layer_norm"):
                continue  # a clock would split the compiled graph
            timed = clock.timed(part, getattr(owner, name))
            stack.enter_context(patch.object(owner, name, _as_method(timed)))
        yield


def _as_method(function: Callable) -> Callable:
    """Return a plain function, which becomes a method where it is put on a class."""

    def call(*arguments: Any, **named: Any) -> Any:
        return function(*arguments, **named)

    return call


@contextmanager
def _variant(variant: str) -> Iterator[None]:
    with ExitStack() as stack:
        if variant == "gpu_code":
            replacement = patch.object(candidates, "_runs_mask_by_mask", lambda _: False)
            stack.enter_context(replacement)
        if variant in ("compile", "graphs"):
            mode = "reduce-overhead" if variant == "graphs" else "default"
            for name in _COMPILED:
                method = getattr(decoder.SharedImageDecoder, name)
                compiled = torch.compile(method, mode=mode, dynamic=False)
                copied = _with_copies(compiled) if variant == "graphs" else _as_method(compiled)
                stack.enter_context(patch.object(decoder.SharedImageDecoder, name, copied))
        yield


def _with_copies(compiled: Callable) -> Callable:
    """Return copies of the outputs: the next replay of a CUDA graph overwrites the outputs."""

    def call(*arguments: Any) -> Any:
        torch.compiler.cudagraph_mark_step_begin()
        outputs = compiled(*arguments)
        return tuple(o.clone() for o in outputs) if isinstance(outputs, tuple) else outputs.clone()

    return call


def _seconds(work: Callable[[], Any], options: Options) -> float:
    """Return the mean seconds of `repeats` calls: processor time, or wall time on CUDA."""
    if options.device != "cpu":
        torch.cuda.synchronize()
    clock = time.process_time if options.device == "cpu" else time.perf_counter
    start = clock()
    for _ in range(options.repeats):
        work()
    if options.device != "cpu":
        torch.cuda.synchronize()
    return (clock() - start) / options.repeats


def _two_in_flight(generators: list[Any], image: np.ndarray, options: Options) -> float:
    """Return the images per second, by the wall, of two threads with a stream each."""

    def work(generator: Any) -> None:
        on_gpu = options.device != "cpu"
        with torch.cuda.stream(torch.cuda.Stream()) if on_gpu else nullcontext():
            for _ in range(options.repeats):
                generator.generate(image)
            if on_gpu:
                torch.cuda.current_stream().synchronize()

    threads = [threading.Thread(target=work, args=(generator,)) for generator in generators]
    start = time.perf_counter()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return len(generators) * options.repeats / (time.perf_counter() - start)


def table(rows: dict[str, dict[str, Any]]) -> list[str]:
    """Return a table with a line per part and a column per row, in milliseconds."""
    if not rows:
        return []
    names = list(dict.fromkeys(part for row in rows.values() for part in row["parts"]))
    head = ["milliseconds", *rows]
    lines = ["## Time by part (network, precision, points a batch, variant)", ""]
    lines += [f"| {' | '.join(head)} |", f"|{'---|' * len(head)}"]
    for name in names:
        cells = [
            f"{row['parts'][name]:.4g}" if name in row["parts"] else "" for row in rows.values()
        ]
        lines.append(f"| {' | '.join([name, *cells])} |")
    for name in ("milliseconds", "images_per_second", "points", "masks"):
        title = {"milliseconds": "whole image"}.get(name, name.replace("_", " "))
        lines.append(f"| {' | '.join([title, *(str(row[name]) for row in rows.values())])} |")
    return [*lines, ""]
