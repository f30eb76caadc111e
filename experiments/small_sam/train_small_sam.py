r"""Train the small SAM this package ships, on rendered street scenes.

    python experiments/small_sam/train_small_sam.py --minutes 65 --output-dir runs/small_sam [--resume]
    python experiments/small_sam/train_small_sam.py --minutes 90 --output-dir runs/small_sam --start FILE
    python experiments/small_sam/train_small_sam.py --minutes 10 --output-dir runs/small_sam \
        --device cuda --workers 14 --images-times 3 --points-times 4
    python experiments/small_sam/measure_small_sam.py --run runs/small_sam

Scenes are rendered during training, and nothing is downloaded. The run saves its state every two minutes
and resumes from it with --resume. --start begins from trained weights instead of random ones and skips
the small windows of the first stages. The run writes small_sam.pt (float16, averaged weights) and
training.json. The last command measures the weights and copies them into the package.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import cv2
import torch
from measure_small_sam import CHECK_SEED, DOMAINS, prompted_iou
from segment_anything.modeling import Sam
from small_sam_graphs import GraphedUpdates
from small_sam_learning import Batch, PairHeads, batch_loss, prepare_for_training
from small_sam_scenes import CONTINUED_STAGES, STAGES, BatchStream, Stage, stage_at
from torch import Tensor, nn
from torch.utils.data import DataLoader

from sfss_ray.masks.sam.networks import build_small_sam
from sfss_ray.models.reading import file_sha256

EMA_DECAY = 0.998
PEAK_RATE = 1.5e-3
CONTINUED_RATE = 1e-3
SECONDS_BETWEEN_LINES = 20
SECONDS_BETWEEN_SAVES = 120


@dataclass
class Run:
    """The state of a training."""

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
    """Create networks and optimiser from random or trained weights."""
    torch.manual_seed(arguments.seed)
    start, device = arguments.start, torch.device(arguments.device)
    sam, average, heads = build_small_sam(), build_small_sam().eval(), PairHeads()
    prepare_for_training(sam)
    if start is not None:
        sam.load_state_dict({k: v.float() for k, v in read_weights(start).items()})
    average.load_state_dict(sam.state_dict())
    for module in (sam, average, heads):
        module.to(device)
    parameters = [*sam.parameters(), *heads.parameters()]
    on_gpu = device.type == "cuda"
    optimizer = torch.optim.AdamW(
        parameters,
        lr=torch.tensor(PEAK_RATE, device=device) if on_gpu else PEAK_RATE,
        betas=(0.9, 0.98),
        weight_decay=0.02,
        capturable=on_gpu,
    )
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
    """Read a file of tensors onto the CPU."""
    return torch.load(path, map_location="cpu", weights_only=True)


MODULES = ("sam", "average", "heads", "optimizer")
NUMBERS = ("step", "seconds", "cpu_seconds", "rendered")


def save(run: Run, arguments: argparse.Namespace) -> None:
    """Save the state for resuming, the averaged weights as float16, and the facts of the training."""
    folder = arguments.output_dir
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
    """Return the name of the hardware."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu"


def load_state(run: Run, path: Path) -> None:
    """Load the state of an interrupted run."""
    state = read_weights(path)
    rates = [group["lr"] for group in run.optimizer.param_groups]
    for name in MODULES:
        getattr(run, name).load_state_dict(state[name])
    for group, rate in zip(run.optimizer.param_groups, rates, strict=True):
        group["lr"] = rate  # a number, or a tensor on the device that each step sets
    for name in NUMBERS:
        setattr(run, name, state[name])


def save_atomically(content: object, path: Path) -> None:
    """Write a file whole or not at all."""
    temporary = path.with_suffix(".tmp")
    torch.save(content, temporary)
    os.replace(temporary, path)


def make_update(run: Run) -> Callable[[Batch, Tensor], Tensor]:
    """Return the update of the network for a batch and a weight of the pair loss.

    The update returns (loss, object IoU, part IoU). On a GPU it runs as a CUDA graph.
    """

    def update(batch: Batch, pair_weight: Tensor) -> Tensor:
        loss, iou = batch_loss(run.sam, run.heads, batch, pair_weight)
        loss.backward()
        nn.utils.clip_grad_norm_(run.sam.parameters(), 1.0)
        run.optimizer.step()
        run.optimizer.zero_grad()
        return torch.stack([loss.detach(), *iou])

    return GraphedUpdates(update, run.sam.device) if run.sam.device.type == "cuda" else update


def set_rate(run: Run, progress: float) -> None:
    """Set the learning rate: warm-up over 200 steps, then half a cosine over the training time."""
    warm_up = min(1.0, (run.step + 1) / 200)
    rate = max(run.peak_rate * warm_up * (0.5 + 0.5 * math.cos(math.pi * progress)), 1e-5)
    for group in run.optimizer.param_groups:
        if isinstance(group["lr"], Tensor):
            group["lr"].fill_(rate)
        else:
            group["lr"] = rate


@torch.no_grad()
def update_average(run: Run) -> None:
    """Update the exponential moving average of the weights."""
    decay = min(EMA_DECAY, run.step / (run.step + 10))
    old: list[Tensor] = [*run.average.parameters()]
    new: list[Tensor] = [*run.sam.parameters()]
    # One kernel for all tensors on a GPU.
    torch._foreach_lerp_(old, new, 1 - decay)  # pyright: ignore[reportPrivateImportUsage]


def train(run: Run, arguments: argparse.Namespace) -> None:
    """Train until the time is used up, with progress lines, saves and checks on held-out scenes."""
    budget = 60 * arguments.minutes
    started = time.monotonic() - run.seconds
    cpu_started = time.process_time() - run.cpu_seconds
    progress = torch.tensor(run.seconds / budget).share_memory_()  # shared with the workers
    stream = BatchStream(run.stages, arguments.seed, run.step, run.rendered, progress)
    workers = arguments.workers
    loader = DataLoader(stream, None, num_workers=workers, prefetch_factor=2 if workers else None)
    update = make_update(run)
    logged: list[Tensor] = []
    next_line = run.seconds + SECONDS_BETWEEN_LINES
    next_save = run.seconds + SECONDS_BETWEEN_SAVES
    for batch in loader:
        set_rate(run, float(progress))
        logged.append(update(batch, 0.1 + 0.9 * (1 - progress)))
        run.step += 1
        run.rendered += batch.rendered
        update_average(run)
        run.seconds = time.monotonic() - started
        run.cpu_seconds = time.process_time() - cpu_started
        progress.fill_(run.seconds / budget)
        if run.seconds >= budget:
            break
        if run.seconds >= next_line:
            print(progress_line(run, torch.stack(logged).mean(0).tolist(), budget), flush=True)
            logged, next_line = [], run.seconds + SECONDS_BETWEEN_LINES
        if run.seconds >= next_save:
            save(run, arguments)
            check = prompted_iou(run.average, CHECK_SEED, 8)
            print(f"prompted IoU on unseen scenes {check}", flush=True)
            next_save = run.seconds + SECONDS_BETWEEN_SAVES


def progress_line(run: Run, means: list[float], budget: float) -> str:
    """Return a line with step, stage, loss and IoU."""
    stage = run.stages.index(stage_at(run.stages, run.seconds / budget)) + 1
    return (
        f"step {run.step} stage {stage} loss {means[0]:.3f} IoU object {means[1]:.3f} "
        f"part {means[2]:.3f} scenes {run.rendered} minutes {run.seconds / 60:.1f} "
        f"cpu {run.cpu_seconds / 60:.1f}"
    )


def main() -> None:
    """Train from the command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--minutes", type=float, default=65.0)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output-dir", type=Path, default=Path("runs/small_sam"))
    parser.add_argument("--start", type=Path, help="weights to begin from (small_sam.pt)")
    parser.add_argument("--resume", action="store_true")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--device", default="cpu")
    parser.add_argument(
        "--workers", type=int, default=0, help="processes that render (0: this one)"
    )
    parser.add_argument("--images-times", type=int, default=1, help="larger batches, for a GPU")
    parser.add_argument("--points-times", type=int, default=1, help="more points per image")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    cv2.setNumThreads(1)
    arguments.output_dir.mkdir(parents=True, exist_ok=True)
    run = start_run(arguments)
    if arguments.resume:
        load_state(run, arguments.output_dir / "state.pt")
    train(run, arguments)
    save(run, arguments)


if __name__ == "__main__":
    main()
