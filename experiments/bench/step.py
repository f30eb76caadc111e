"""Measure the cost of the contrast beside plain self-training: time of a step and memory.

    python experiments/bench/step.py [--device cuda] [--settings embedded default deeplab deeplab4]

The settings `embedded` and `default` are whole steps of the compact network (two views, student and
teacher, backward pass, optimiser, moving average) with and without the contrast, in turns. They use
crops of 128x256 and 512x512 with the knobs of the embedded default and of the package.
`deeplab` uses the features of DeepLabV2-ResNet101: 2048 channels on the 64x128 grid of a 512x1024
crop. On a GPU these are whole steps. On a CPU, where a step takes a minute, the contrast with its
normalisation and backward pass is timed apart from the step of the network. `deeplab4` has four such
crops per step and needs a GPU. CPU times are process CPU time of one thread. The script writes
results/step_DEVICE.md and .json beside this file.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from sfss_ray.config import Config, TrainConfig, override
from sfss_ray.method.contrast import contrast_losses, fetch_pair_inputs
from sfss_ray.method.contrast_net import ContrastNet, NetworkOutput
from sfss_ray.method.memory import Memory
from sfss_ray.method.step import StepInfo, TeacherStudent, adaptation_losses
from sfss_ray.method.teacher import frozen_copy, update_teacher
from sfss_ray.method.teacher_view import TeacherView
from sfss_ray.models.architectures.catalogue import build_network
from sfss_ray.runtime.threads import use_threads
from sfss_ray.streets.default import embedded_config
from sfss_ray.streets.scenes import render_scene
from sfss_ray.train.gradients import Learner, StepContext
from sfss_ray.train.optimizer import build_optimizer

CLASSES = 19
DEEPLAB_CROP = (512, 1024)
DEEPLAB = {
    "train.batch_size": 1,
    "train.augment.crop_size": list(DEEPLAB_CROP),
    "train.loss.projection": "none",  # 2048 channels: the most expensive case
}
RESULTS = Path(__file__).resolve().parent / "results"
WARM_UP = 3


def default_config() -> Config:
    """Return the config of the package with the crop that a run chooses for large images."""
    return override(Config(), {"train.augment.crop_size": [512, 512]})


class Clock:
    """Measures CPU time of this process, or wall time until the GPU has finished."""

    def __init__(self, device: str):
        self.device = device

    def __call__(self, work: Callable[[], Any]) -> float:
        """Return the seconds of the work."""
        if self.device == "cpu":
            before = time.process_time()
            work()
            return time.process_time() - before
        torch.cuda.synchronize()
        before = time.perf_counter()
        work()
        torch.cuda.synchronize()
        return time.perf_counter() - before


def scenes(number: int, crop: tuple[int, int], device: str) -> dict[str, Tensor]:
    """Return a batch of drawn scenes with their Felzenszwalb regions."""
    from skimage.segmentation import felzenszwalb

    images, ids = [], []
    for index in range(number):
        image = render_scene("camera", 7, index, crop).image
        regions = felzenszwalb(image, scale=100.0, sigma=0.8, min_size=crop[0] * crop[1] // 650)
        images.append(torch.from_numpy(image).permute(2, 0, 1).float() / 255)
        ids.append(torch.from_numpy(regions).long() + 1)
    views, numbers = torch.stack(images).to(device), torch.arange(number)
    batch = {"weak": views, "strong": views, "mask_ids": torch.stack(ids).to(device)}
    return batch | {"image": numbers, "number": numbers}


class Trainer:
    """Student, teacher and memory for whole steps on one batch."""

    def __init__(self, name: str, config: Config, weight: float, device: str):
        train = override(config, {"train.loss.contrast_weight": weight}).train
        torch.manual_seed(0)
        self.config: TrainConfig = train
        network = build_network(name, CLASSES)
        self.student = ContrastNet(network, train).to(device).train()
        self.teacher = frozen_copy(self.student)
        segmenter = self.student.segmenter
        optimizer = build_optimizer(segmenter.body, segmenter.heads, train.optim)
        self.learner = Learner(self.student, optimizer, 5.0)
        self.memory = full_memory(train, self.student.embedding_dim, device)

    def step(self, batch: dict[str, Tensor]) -> None:
        """Take one training step after the ramp of the loss."""
        networks = TeacherStudent(self.student, self.teacher, self.memory)
        info = StepInfo(self.config.num_steps, seed=0)

        def losses(_: int, part: dict[str, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
            return adaptation_losses(networks, part, self.config, info)

        self.learner.update([batch], losses, StepContext(info.step))
        update_teacher(self.teacher, self.student, self.config.ema_momentum)


def full_memory(config: TrainConfig, dim: int, device: str) -> Memory:
    """Return a memory with a full bank, as after some hundred steps: the most expensive case."""
    memory = Memory.empty(CLASSES, dim, config, device)
    bank = memory.bank
    bank.vectors.copy_(torch.nn.functional.normalize(torch.randn(bank.vectors.shape), dim=2))
    bank.images.fill_(10_000)
    bank.written.fill_(bank.size)
    return memory


def whole_steps(name: str, config: Config, device: str, repeats: int) -> dict[str, Any]:
    """Time whole steps of a network with and without the contrast, in turns."""
    train, clock = config.train, Clock(device)
    batch = scenes(train.batch_size, train.augment.chosen_crop_size, device)
    plain, full = (Trainer(name, config, weight, device) for weight in (0.0, 0.1))
    times: dict[str, list[float]] = {"plain": [], "contrast": []}
    for repeat in range(WARM_UP + repeats):
        for kind, trainer in (("plain", plain), ("contrast", full)):
            seconds = clock(lambda trainer=trainer: trainer.step(batch))
            if repeat >= WARM_UP:
                times[kind].append(seconds)
    without, both = (statistics.median(times[kind]) for kind in ("plain", "contrast"))
    return {
        "network": name,
        "crop": list(train.augment.chosen_crop_size),
        "batch": train.batch_size,
        "channels": full.student.embedding_dim,
        "plain_ms": 1000 * without,
        "contrast_ms": 1000 * (both - without),
        "share_percent": 100 * (both / without - 1),
        "repeats": repeats,
        "times_ms": {kind: [round(1000 * t, 1) for t in values] for kind, values in times.items()},
    } | memory(full.memory, train, full.student.embedding_dim)


def memory(full_bank: Memory, config: TrainConfig, dim: int) -> dict[str, float]:
    """Return the megabytes (10^6 bytes) that the contrast adds.

    `bank_mb` is the bank. `graph_mb_per_image` is the largest float32 tensors of an image while its
    loss is in the graph, computed from their shapes.
    """
    bank, pairs = full_bank.bank, config.pairs
    bank_bytes = bank.vectors.numel() * 4 + bank.images.numel() * 8
    pool = CLASSES * bank.size
    anchors = pairs.anchors_per_image
    drawn = anchors * (pairs.negatives + pairs.positives * (dim + 1) + 3 * dim + pool)
    draws = anchors * (pairs.negatives // 2 * 5) * 4
    graph = (drawn + draws + pool * dim) * 4
    return {"bank_mb": bank_bytes / 1e6, "graph_mb_per_image": graph / 1e6}


def deeplab(device: str, repeats: int, network_repeats: int, crops: int = 1) -> dict[str, Any]:
    """Time the contrast on features of the size of DeepLabV2-ResNet101, and a step of that network.

    On a CPU a step always has one crop.
    """
    clock, config = Clock(device), override(Config(), DEEPLAB)
    if device == "cuda":
        config = override(config, {"train.batch_size": crops})
        return whole_steps("deeplabv2_resnet101", config, device, repeats)
    train = config.train
    batch, grid = scenes(1, DEEPLAB_CROP, device), (DEEPLAB_CROP[0] // 8, DEEPLAB_CROP[1] // 8)
    full_bank = full_memory(train, 2048, device)
    seconds = [
        clock(lambda: contrast_alone(train, full_bank, batch, grid, device))
        for _ in range(WARM_UP + repeats)
    ]
    contrast = statistics.median(seconds[WARM_UP:])
    network = statistics.median(network_steps(device, clock, batch, network_repeats))
    return {
        "network": "deeplabv2_resnet101",
        "crop": list(DEEPLAB_CROP),
        "batch": 1,
        "channels": 2048,
        "plain_ms": 1000 * network,
        "contrast_ms": 1000 * contrast,
        "share_percent": 100 * contrast / network,
        "repeats": repeats,
        "times_ms": {"contrast": [round(1000 * t, 1) for t in seconds[WARM_UP:]]},
    } | memory(full_bank, train, 2048)


def contrast_alone(
    config: TrainConfig,
    full_bank: Memory,
    batch: dict[str, Tensor],
    grid: tuple[int, int],
    device: str,
) -> None:
    """Normalise features of both networks, sample pairs, and run losses and backward pass."""
    generator = torch.Generator(device).manual_seed(0)
    features = torch.randn(1, 2048, *grid, device=device, generator=generator, requires_grad=True)
    logits = torch.randn(1, CLASSES, *grid, device=device, generator=generator)
    z = torch.nn.functional.normalize(features, dim=1)
    with torch.no_grad():
        teacher = torch.nn.functional.normalize(features, dim=1)
        q = probabilities_by_region(batch["mask_ids"], grid)
        labels = q.argmax(1)
        view = TeacherView(q, teacher, labels, q.max(1).values)
    thresholds = torch.full((CLASSES,), 0.5, device=device)
    inputs = fetch_pair_inputs(view, thresholds, batch, config)
    parts = contrast_losses(NetworkOutput(logits, z), inputs, full_bank.bank, config, seed=0)
    (parts["loss_ins"] + parts["loss_cls"]).backward()


def probabilities_by_region(mask_ids: Tensor, grid: tuple[int, int]) -> Tensor:
    """Return teacher probabilities (1, C, h, w) that are confident in every region."""
    ids = mask_ids[:, :: mask_ids.shape[1] // grid[0], :: mask_ids.shape[2] // grid[1]]
    return torch.nn.functional.one_hot(ids % CLASSES, CLASSES).permute(0, 3, 1, 2) * 0.9 + 0.1 / 19


def network_steps(device: str, clock: Clock, batch: dict[str, Tensor], repeats: int) -> list[float]:
    """Return the seconds of plain steps: both networks, backward pass, optimiser and average."""
    student = build_network("deeplabv2_resnet101", CLASSES).to(device).train()
    teacher = frozen_copy(student)
    optimizer = torch.optim.SGD(student.parameters(), lr=1e-4, momentum=0.9)
    learner = Learner(student, optimizer, 5.0)

    def cross_entropy(_: int, part: dict[str, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
        with torch.no_grad():
            labels = teacher.logits(part["weak"]).argmax(1)
        loss = torch.nn.functional.cross_entropy(student.logits(part["strong"]), labels)
        return loss, {"loss": loss.detach()}

    def step() -> None:
        learner.update([batch], cross_entropy, StepContext(1))
        update_teacher(teacher, student, 0.999)

    return [clock(step) for _ in range(repeats)]


def table(rows: list[dict[str, Any]], facts: dict[str, Any]) -> str:
    """Return the table as Markdown."""
    lines = [
        f"`{facts['command']}`: {facts['device']}, one thread, torch {facts['torch']},"
        f" load before {facts['load']}; {facts['clock']}, medians",
        "",
        "| network | crop | batch | channels | plain step, ms | contrast adds, ms | share |"
        " bank, MB | in the graph, MB per image |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    lines += [
        f"| {row['network']} | {row['crop'][0]}x{row['crop'][1]} | {row['batch']} |"
        f" {row['channels']} | {row['plain_ms']:.0f} | {row['contrast_ms']:.0f} |"
        f" {row['share_percent']:.1f} % | {row['bank_mb']:.0f} | {row['graph_mb_per_image']:.0f} |"
        for row in rows
    ]
    return "\n".join(lines) + "\n"


def main() -> None:
    """Measure from the command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    settings = ("embedded", "default", "deeplab", "deeplab4")
    parser.add_argument(
        "--settings", nargs="+", choices=settings, help="default: all of the device"
    )
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--repeats", type=int, default=20)
    parser.add_argument("--network-repeats", type=int, default=1, help="steps of DeepLabV2")
    arguments = parser.parse_args()
    device, load = arguments.device, round(os.getloadavg()[0], 1)
    use_threads(1)
    measures: dict[str, Callable[[], dict[str, Any]]] = {
        "embedded": lambda: whole_steps("compact", embedded_config(), device, arguments.repeats),
        "default": lambda: whole_steps("compact", default_config(), device, arguments.repeats),
        "deeplab": lambda: deeplab(device, arguments.repeats, arguments.network_repeats),
        "deeplab4": lambda: deeplab(device, arguments.repeats, arguments.network_repeats, 4),
    }
    if device == "cpu" and "deeplab4" in (arguments.settings or ()):
        parser.error("deeplab4 needs --device cuda, because a CPU takes minutes per step")
    device_settings = settings if device == "cuda" else settings[:-1]
    RESULTS.mkdir(exist_ok=True)
    stem = RESULTS / f"step_{device}"
    stored = (
        json.loads(stem.with_suffix(".json").read_text())
        if stem.with_suffix(".json").exists()
        else {}
    )
    rows = {row["setting"]: row for row in stored.get("rows", [])}  # keep the other settings
    for name in arguments.settings or device_settings:
        rows[name] = {"setting": name, "load": load} | measures[name]()
        print(table([rows[name]], facts(device, load)), flush=True)
        ordered = [rows[each] for each in settings if each in rows]
        content = {"facts": facts(device, load), "rows": ordered}
        stem.with_suffix(".json").write_text(json.dumps(content, indent=2) + "\n")
        stem.with_suffix(".md").write_text(table(ordered, content["facts"]))


def facts(device: str, load: float) -> dict[str, Any]:
    """Return the command and the machine of a measurement."""
    gpu = device == "cuda"
    return {
        "command": f"python experiments/bench/step.py --device {device}",
        "device": torch.cuda.get_device_name() if gpu else f"CPU ({platform.machine()})",
        "torch": torch.__version__,
        "load": load,
        "clock": "wall time until the GPU has finished" if gpu else "CPU time of the process",
    }


if __name__ == "__main__":
    main()
