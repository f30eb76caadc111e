r"""Train the small SAM this package ships, on rendered street scenes.

    python experiments/train_small_sam.py --minutes 65 --output runs/small_sam [--resume]
    python experiments/train_small_sam.py --minutes 90 --output runs/small_sam --start FILE
    python experiments/train_small_sam.py --minutes 10 --output runs/small_sam --device cuda \
        --workers 14 --images-times 3 --points-times 4
    python experiments/measure_small_sam.py --run runs/small_sam

Scenes are rendered while training; nothing is downloaded. The run saves its state every few minutes
and goes on from it with --resume. --start begins from trained weights instead of random ones and skips
the cheap small windows that teach a new network what a point means. It leaves small_sam.pt (float16,
averaged weights) and training.json; the last command measures them and puts them into the package.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import time
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import cv2
import numpy as np
import torch
from measure_small_sam import CHECK_SEED, DOMAINS, prompted_iou
from segment_anything.modeling import Sam
from small_sam_learning import (
    PIXELS_PER_LOGIT,
    SMALLEST_TARGET,
    Batch,
    PairHeads,
    batch_loss,
    prepare_for_training,
)
from torch import Tensor, nn
from torch.utils.data import DataLoader, IterableDataset, get_worker_info

from sfss_ray.masks.sam import SMALL_PATCH_SIZE, build_small_sam
from sfss_ray.models.build import file_sha256
from sfss_ray.streets.scenes import render_scene

RENDER_SIZES = (*((128, 256),) * 5, (192, 256), (192, 256), (256, 512))  # (height, width) in px
POOL_AT_START = 64
POOL_CAPACITY = 2000
EMA_DECAY = 0.998
PEAK_RATE = 1.5e-3
CONTINUED_RATE = 1e-3
SECONDS_BETWEEN_LINES = 20
SECONDS_BETWEEN_SAVES = 120


@dataclass(frozen=True)
class Stage:
    """A share of the run: how large the images are, and which loss."""

    until: float  # share of the run's minutes at which it ends
    sizes: tuple[tuple[int, int], ...]  # (height, width) in px; a batch has one of them
    padded: float  # share of batches padded to the square, as SAM does when it is used
    images: int
    points: int  # per image
    focal: bool


WIDE_SIZES = ((128, 256), (128, 256), (128, 256), (128, 256), (160, 256), (192, 256), (192, 256))
STAGES = (
    Stage(0.20, ((128, 128),), padded=0.0, images=12, points=6, focal=False),
    Stage(0.30, ((128, 128),), padded=0.0, images=12, points=6, focal=True),
    Stage(0.60, WIDE_SIZES, padded=0.5, images=5, points=8, focal=True),
    Stage(math.inf, (*WIDE_SIZES, (256, 256)), padded=1.0, images=4, points=10, focal=True),
)


CONTINUED_STAGES = (
    Stage(0.40, WIDE_SIZES, padded=0.5, images=5, points=8, focal=True),
    Stage(math.inf, (*WIDE_SIZES, (256, 256)), padded=1.0, images=4, points=10, focal=True),
)


class ScenePool:
    """Rendered scenes of both domains; every draw renders one more, as rendering is not free.

    The scenes of a seed are dealt out: pool `part` of `parts` has every parts-th of them.
    """

    def __init__(self, seed: int, rendered: int = 0, part: int = 0, parts: int = 1) -> None:
        self.seed = seed
        self.next = rendered + part
        self.parts = parts
        self.rng = np.random.default_rng([seed, rendered, part])
        self.scenes: deque[tuple[np.ndarray, ...]] = deque(maxlen=POOL_CAPACITY)
        for _ in range(max(1, POOL_AT_START // parts)):
            self._render_next()

    def _render_next(self) -> None:
        domain = DOMAINS[self.rng.integers(len(DOMAINS))]
        size = RENDER_SIZES[self.rng.integers(len(RENDER_SIZES))]
        scene = render_scene(domain, self.seed, self.next, size)
        self.scenes.append((scene.image, scene.instances, scene.parts))
        self.next += self.parts

    def draw(self, count: int, rng: np.random.Generator) -> list[tuple[np.ndarray, ...]]:
        self._render_next()
        others = rng.integers(0, len(self.scenes), count - 1)
        return [self.scenes[-1], *(self.scenes[i] for i in others)]


def cut_window(
    scene: tuple[np.ndarray, ...], size: tuple[int, int], rng: np.random.Generator
) -> tuple[np.ndarray, ...]:
    """A window of the scene with the aspect of `size` (H, W), resized to it, flipped by chance."""
    height, width = scene[0].shape[:2]
    widest = min(width, height * size[1] / size[0])
    cut_width = widest * (1.0 if rng.random() < 0.5 else rng.uniform(0.55, 1.0))
    cut_height = cut_width * size[0] / size[1]
    left = rng.uniform(0, width - cut_width)
    top = rng.uniform(0, height - cut_height)
    y0, x0 = int(top), int(left)
    y1, x1 = y0 + max(8, round(cut_height)), x0 + max(8, round(cut_width))
    step = -1 if rng.random() < 0.5 else 1
    target = (size[1], size[0])
    shrinks = cut_width > size[1]
    ways = (cv2.INTER_AREA if shrinks else cv2.INTER_LINEAR, cv2.INTER_NEAREST, cv2.INTER_NEAREST)
    return tuple(
        np.ascontiguousarray(cv2.resize(plane[y0:y1, x0:x1], target, interpolation=way)[:, ::step])
        for plane, way in zip(scene, ways, strict=True)
    )


def vary_appearance(image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Light, colour, blur, noise as of other cameras. uint8 HWC in, float32 HWC 0..255 out."""
    pixels = image.astype(np.float32)
    if rng.random() < 0.15:
        return pixels
    if rng.random() < 0.25:
        pixels = cv2.GaussianBlur(pixels, (0, 0), rng.uniform(0.3, 1.0))
    grey = pixels.mean(axis=2, keepdims=True)
    saturation = 0.0 if rng.random() < 0.05 else rng.uniform(0.5, 1.4)
    pixels = grey + saturation * (pixels - grey)
    gain = rng.uniform(0.85, 1.15, 3) * rng.uniform(0.7, 1.3)
    pixels = (pixels - 128) * gain.astype(np.float32) + 128 + np.float32(rng.uniform(-35, 35))
    pixels = 255 * (np.clip(pixels, 0, 255) / 255) ** np.float32(rng.uniform(0.7, 1.4))
    if rng.random() < 0.4:
        noise = rng.standard_normal(pixels.shape, dtype=np.float32)
        pixels = pixels + np.float32(rng.uniform(0, 12)) * noise
    return np.clip(pixels, 0, 255)


def draw_points(
    instances: np.ndarray, parts: np.ndarray, count: int, rng: np.random.Generator
) -> np.ndarray | None:
    """(count, 2) pixel (x, y): a third over pixels, a third over objects, a third over parts.

    None where the window shows no object.
    """
    ys, xs = np.nonzero(instances)
    if len(ys) == 0:
        return None
    picked = rng.integers(0, len(ys), count)
    for kind, ids in ((1, instances), (2, parts)):
        flat = ids[ys, xs]
        names, areas = np.unique(flat, return_counts=True)
        names = names[areas >= min(SMALLEST_TARGET, areas.max())]
        for i in range(kind, count, 3):
            members = np.flatnonzero(flat == names[rng.integers(len(names))])
            picked[i] = members[rng.integers(len(members))]
    return np.stack([xs[picked], ys[picked]], axis=1)


def make_batch(pool: ScenePool, stage: Stage, rng: np.random.Generator) -> Batch:
    size = stage.sizes[rng.integers(len(stage.sizes))]
    rows: list[tuple[np.ndarray, ...]] = []
    draws = 0
    while len(rows) < stage.images:
        draws += 1
        for scene in pool.draw(stage.images - len(rows), rng):
            image, instances, parts = cut_window(scene, size, rng)
            points = draw_points(instances, parts, stage.points, rng)
            if points is not None:
                ids = np.stack([instances, parts], axis=-1)
                y, x = rng.integers(0, PIXELS_PER_LOGIT, 2)
                small = ids[y::PIXELS_PER_LOGIT, x::PIXELS_PER_LOGIT]
                wanted = ids[points[:, 1], points[:, 0]]
                middle = SMALL_PATCH_SIZE // 2
                tokens = ids[middle::SMALL_PATCH_SIZE, middle::SMALL_PATCH_SIZE]
                pixels = vary_appearance(image, rng).round().astype(np.uint8)
                rows.append((pixels, points.astype(np.float32), wanted, small, tokens))
    columns = (torch.from_numpy(np.stack(column)) for column in zip(*rows, strict=True))
    padded = bool(rng.random() < stage.padded)
    return Batch(*columns, padded=padded, focal=stage.focal, rendered=draws)


class BatchStream(IterableDataset):
    """Batches without end, of the stage that the training is in; each worker has its own pool."""

    def __init__(self, run: Run, seed: int, progress: Tensor) -> None:
        self.seed, self.step, self.rendered = seed, run.step, run.rendered
        self.stages, self.progress = run.stages, progress

    def __iter__(self) -> Iterator[Batch]:
        worker = get_worker_info()
        part, parts = (worker.id, worker.num_workers) if worker else (0, 1)
        torch.set_num_threads(1)
        cv2.setNumThreads(1)
        pool = ScenePool(self.seed, self.rendered, part, parts)
        rng = np.random.default_rng([self.seed, self.step, part])
        while True:
            yield make_batch(pool, stage_at(self.stages, float(self.progress)), rng)


@dataclass
class Run:
    """Everything that changes while training."""

    sam: Sam
    average: Sam
    heads: PairHeads
    optimizer: torch.optim.Optimizer
    step: int = 0
    seconds: float = 0.0
    cpu_seconds: float = 0.0
    rendered: int = 0
    stages: tuple[Stage, ...] = STAGES
    peak_rate: float = PEAK_RATE


def start_run(arguments: argparse.Namespace) -> Run:
    torch.manual_seed(arguments.seed)
    start, device = arguments.start, arguments.device
    sam, average, heads = build_small_sam(), build_small_sam().eval(), PairHeads()
    prepare_for_training(sam)
    if start is not None:
        sam.load_state_dict({k: v.float() for k, v in read_weights(start).items()})
    average.load_state_dict(sam.state_dict())
    for module in (sam, average, heads):
        module.to(device)
    parameters = [*sam.parameters(), *heads.parameters()]
    optimizer = torch.optim.AdamW(parameters, lr=PEAK_RATE, betas=(0.9, 0.98), weight_decay=0.02)
    run = Run(sam, average.requires_grad_(False), heads, optimizer)
    if start is not None:
        run.stages, run.peak_rate = CONTINUED_STAGES, CONTINUED_RATE
    run.stages = tuple(
        replace(
            stage,
            images=stage.images * arguments.images_times,
            points=stage.points * arguments.points_times,
        )
        for stage in run.stages
    )
    return run


def read_weights(path: Path) -> dict[str, Tensor]:
    return torch.load(path, map_location="cpu", weights_only=True)


MODULES = ("sam", "average", "heads", "optimizer")
NUMBERS = ("step", "seconds", "cpu_seconds", "rendered")


def save(run: Run, arguments: argparse.Namespace) -> None:
    """The state to go on from, the averaged weights as float16, and the facts of the training."""
    folder = arguments.output
    state = {name: getattr(run, name).state_dict() for name in MODULES}
    save_atomically(state | {name: getattr(run, name) for name in NUMBERS}, folder / "state.pt")
    half = {name: value.half().cpu() for name, value in run.average.state_dict().items()}
    save_atomically(half, folder / "small_sam.pt")
    facts = {
        "data": "scenes rendered by sfss_ray.streets while training",
        "domains": DOMAINS,
        "seed": arguments.seed,
        "device": device_name(run.sam.device),
        "images_times": arguments.images_times,
        "points_times": arguments.points_times,
        "started_from": file_sha256(arguments.start) if arguments.start else "random weights",
        "scenes": run.rendered,
        "steps": run.step,
        "minutes": round(run.seconds / 60, 1),
        "cpu_minutes": round(run.cpu_seconds / 60, 1),
    }
    (folder / "training.json").write_text(json.dumps(facts, indent=2) + "\n")


def device_name(device: torch.device) -> str:
    return torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu"


def load_state(run: Run, path: Path) -> None:
    state = read_weights(path)
    for name in MODULES:
        getattr(run, name).load_state_dict(state[name])
    for name in NUMBERS:
        setattr(run, name, state[name])


def save_atomically(content: object, path: Path) -> None:
    temporary = path.with_suffix(".tmp")
    torch.save(content, temporary)
    os.replace(temporary, path)


def stage_at(stages: Sequence[Stage], progress: float) -> Stage:
    return next(stage for stage in stages if progress < stage.until)


def take_step(run: Run, batch: Batch, progress: float) -> Tensor:
    """One update. Returns (loss, object IoU, part IoU)."""
    rate = (
        run.peak_rate * min(1.0, (run.step + 1) / 200) * (0.5 + 0.5 * math.cos(math.pi * progress))
    )
    for group in run.optimizer.param_groups:
        group["lr"] = max(rate, 1e-5)
    loss, iou = batch_loss(run.sam, run.heads, batch, pair_weight=0.1 + 0.9 * (1 - progress))
    run.optimizer.zero_grad()
    loss.backward()
    nn.utils.clip_grad_norm_(run.sam.parameters(), 1.0)
    run.optimizer.step()
    run.step += 1
    run.rendered += batch.rendered
    decay = min(EMA_DECAY, run.step / (run.step + 10))
    with torch.no_grad():
        old: list[Tensor] = [*run.average.parameters()]
        new: list[Tensor] = [*run.sam.parameters()]
        # On a GPU one kernel in all, not one per tensor.
        torch._foreach_lerp_(old, new, 1 - decay)  # pyright: ignore[reportPrivateImportUsage]
    return torch.stack([loss.detach(), *iou])


def train(run: Run, arguments: argparse.Namespace) -> None:
    """Step until the minutes are spent; progress lines, saves and held-out checks on the way."""
    budget = 60 * arguments.minutes
    began = time.monotonic() - run.seconds
    cpu_began = time.process_time() - run.cpu_seconds
    progress = torch.tensor(run.seconds / budget).share_memory_()  # workers see it change
    stream = BatchStream(run, arguments.seed, progress)
    workers = arguments.workers
    loader = DataLoader(stream, None, num_workers=workers, prefetch_factor=2 if workers else None)
    seen: list[Tensor] = []
    next_line = run.seconds + SECONDS_BETWEEN_LINES
    next_save = run.seconds + SECONDS_BETWEEN_SAVES
    for batch in loader:
        seen.append(take_step(run, batch.to(run.sam.device), float(progress)))
        run.seconds = time.monotonic() - began
        run.cpu_seconds = time.process_time() - cpu_began
        progress.fill_(run.seconds / budget)
        if run.seconds >= budget:
            break
        if run.seconds >= next_line:
            print(progress_line(run, torch.stack(seen).mean(0).tolist(), budget), flush=True)
            seen, next_line = [], run.seconds + SECONDS_BETWEEN_LINES
        if run.seconds >= next_save:
            save(run, arguments)
            check = prompted_iou(run.average, CHECK_SEED, 8)
            print(f"prompted IoU on unseen scenes {check}", flush=True)
            next_save = run.seconds + SECONDS_BETWEEN_SAVES


def progress_line(run: Run, means: list[float], budget: float) -> str:
    stage = run.stages.index(stage_at(run.stages, run.seconds / budget)) + 1
    return (
        f"step {run.step} stage {stage} loss {means[0]:.3f} IoU object {means[1]:.3f} "
        f"part {means[2]:.3f} scenes {run.rendered} minutes {run.seconds / 60:.1f} "
        f"cpu {run.cpu_seconds / 60:.1f}"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--minutes", type=float, default=65.0)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output", type=Path, default=Path("runs/small_sam"))
    parser.add_argument("--start", type=Path, help="weights to begin from (small_sam.pt)")
    parser.add_argument("--resume", action="store_true")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--workers", type=int, default=0, help="processes that draw; 0: this one")
    parser.add_argument("--images-times", type=int, default=1, help="larger batches: for a GPU")
    parser.add_argument("--points-times", type=int, default=1, help="more points an image")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    cv2.setNumThreads(1)
    arguments.output.mkdir(parents=True, exist_ok=True)
    run = start_run(arguments)
    if arguments.resume:
        load_state(run, arguments.output / "state.pt")
    train(run, arguments)
    save(run, arguments)


if __name__ == "__main__":
    main()
