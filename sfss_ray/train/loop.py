"""What pretraining and adaptation share: optimiser, schedule, and the walk over steps."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from sfss_ray.config import OptimConfig
from sfss_ray.errors import TrainingError
from sfss_ray.method.collective import mean_over_workers
from sfss_ray.models.user_code.layers import torch_methods, weights_of
from sfss_ray.train.run_state import Run
from sfss_ray.train.samples import Share

LOG_EVERY = 10


def build_optimizer(body: nn.Module, heads: Iterable[nn.Module], config: OptimConfig):
    """Four groups: body and heads, each with decayed matrices and undecayed vectors.

    A head may be a part of the body: its weights learn at the head's rate.
    """
    of_heads = [p for head in heads for p in weights_of(head)]
    taken = set(map(id, of_heads))
    of_body = [p for p in weights_of(body) if id(p) not in taken]
    groups = []
    for members, multiplier in ((of_body, 1.0), (of_heads, config.head_multiplier)):
        parameters = [p for p in members if p.requires_grad]
        for decayed in (True, False):
            chosen = [p for p in parameters if (p.ndim > 1) == decayed]
            decay = config.weight_decay if decayed else 0.0
            groups.append({"params": chosen, "weight_decay": decay, "multiplier": multiplier})
    groups = [group for group in groups if group["params"]]
    if config.optimizer == "sgd":
        return torch.optim.SGD(groups, lr=config.learning_rate, momentum=0.9)
    return torch.optim.AdamW(groups, lr=config.learning_rate)


def learning_rate(step: int, num_steps: int, config: OptimConfig) -> float:
    """Rate of step 1..num_steps: linear warm-up, then (1 - progress)**poly_power."""
    warmup = config.warmup_steps or config.warmup_share * num_steps
    rising = min(1.0, step / warmup) if warmup >= 1 else 1.0
    falling = (1 - (step - 1) / num_steps) ** config.poly_power
    return config.learning_rate * rising * falling


def set_learning_rate(optimizer: torch.optim.Optimizer, rate: float) -> None:
    """Give each group the rate times its multiplier."""
    for group in optimizer.param_groups:
        group["lr"] = rate * group["multiplier"]


def distribute(module: nn.Module, run: Run) -> nn.Module:
    """DDP over the workers; the module itself for one worker.

    Buffers are not broadcast: the loop averages BatchNorm statistics over workers instead.
    """
    if run.world == 1:
        return module
    with torch_methods(module):
        if run.device.type != "cuda":
            return DistributedDataParallel(module, broadcast_buffers=False)
        module = nn.SyncBatchNorm.convert_sync_batchnorm(module)
        return DistributedDataParallel(module, [run.device.index or 0], broadcast_buffers=False)


def share_of(run: Run, parts: int) -> Share:
    """What a worker sees of each batch that is worked through in `parts`."""
    return Share(run.rank, run.world, parts)


@contextlib.contextmanager
def too_few_for_batch_norm() -> Iterator[None]:
    """Says what to do where a layer has one value a channel and no statistics can be made of it.

    That is so for networks that normalise a pooled vector (DeepLabV3) and crops that come alone.
    """
    try:
        yield
    except ValueError as error:
        if "more than 1 value per channel" not in str(error):
            raise
        raise TrainingError(
            "this network normalises a pooled vector, of which a single crop has but one: give every"
            " worker two crops or more at a time (raise batch_size, lower num_workers or accumulate),"
            " or choose batch_norm frozen"
        ) from error


def autocast(run: Run, precision: str) -> torch.autocast:
    """bfloat16 autocast for networks when asked for, on the run's kind of device."""
    return torch.autocast(run.device.type, torch.bfloat16, enabled=precision == "bf16")


LossOf = Callable[[int, dict[str, Any]], tuple[Tensor, dict[str, Tensor]]]
"""Of a part of a batch and its number from 0 on: the loss to call backward on, and what is logged."""


def learn(
    parts: Sequence[dict[str, Any]],
    loss_of: LossOf,
    module: nn.Module,
    optimizer: torch.optim.Optimizer,
    max_grad_norm: float,
    step: int,
    last_saved: int,
) -> dict[str, Tensor]:
    """One optimiser step on the mean loss of a batch's parts; returns the means of what is logged.

    Parts are worked through one after the other, so that only one of them is in memory; workers
    bring their gradients together at the last. The gradients' norm is checked, which DDP makes the
    same on every worker: so all of them stop together, and nothing that is not finite reaches a
    weight or a checkpoint.

    Raises:
        TrainingError: names the step, the loss and the last checkpoint.
    """
    optimizer.zero_grad(set_to_none=True)
    logged: list[dict[str, Tensor]] = []
    total = 0.0
    for number, part in enumerate(parts):
        with _bringing_together(module, number == len(parts) - 1), too_few_for_batch_norm():
            loss, metrics = loss_of(number, part)
            (loss / len(parts)).backward()
        total += loss.item() / len(parts)
        logged.append(metrics)
    norm = nn.utils.clip_grad_norm_(module.parameters(), max_grad_norm)
    if not math.isfinite(norm.item()):
        kept = (
            f"the checkpoint of step {last_saved} is kept" if last_saved else "none was saved yet"
        )
        raise TrainingError(
            f"the loss is {total:.4g} and its gradient {norm.item():.4g} at step {step} ({kept}):"
            " lower the learning rate or raise the temperature, and run again"
        )
    optimizer.step()
    return {name: torch.stack([m[name] for m in logged]).mean(0) for name in logged[0]}


def parts_of(batch: dict[str, Any], count: int) -> list[dict[str, Any]]:
    """A batch in `count` equal parts, in order."""
    chunks = {name: values.chunk(count) for name, values in batch.items()}
    return [{name: values[k] for name, values in chunks.items()} for k in range(count)]


def _bringing_together(module: nn.Module, now: bool) -> contextlib.AbstractContextManager:
    """Unless it is the last part, DDP keeps gradients to itself."""
    no_sync = getattr(module, "no_sync", None)
    return contextlib.nullcontext() if now or no_sync is None else no_sync()


def to_device(batch: dict[str, Any], device: torch.device) -> dict[str, Any]:
    """Move a batch; uint8 images become float32 in [0, 1]."""
    moved = {k: v.to(device, non_blocking=True) for k, v in batch.items()}
    return {k: v.float() / 255 if v.dtype == torch.uint8 else v for k, v in moved.items()}


def run_steps(
    run: Run,
    seed: int,
    batches: Iterable[dict[str, Any]],
    start: int,
    num_steps: int,
    report_every: int,
    take_step: Callable[[int, dict[str, Any]], dict[str, Tensor]],
    observe: Callable[[], dict[str, float]],
    state: Callable[[int], dict[str, Any]],
) -> None:
    """Take steps start + 1 .. num_steps; log means, observe and save every `report_every` steps.

    `observe` runs on rank 0 alone; the other workers wait for it in the report.
    """
    kept: list[dict[str, float]] = []
    for step, batch in enumerate(batches, start + 1):
        # Dropout draws from the global generator: a resumed run must draw what an uninterrupted would.
        torch.manual_seed((seed * 1_000_003 + step) * run.world + run.rank)
        metrics = take_step(step, to_device(batch, run.device))
        kept.append(_to_numbers(metrics))
        reporting = step % report_every == 0 or step == num_steps
        if not reporting and step % LOG_EVERY:
            continue
        seen = mean_over_workers(_means(kept), run.device)
        record: dict[str, Any] = {"step": step, "num_steps": num_steps, **seen}
        if reporting and run.rank == 0:
            record |= observe()
        if run.rank == 0:
            run.log(record)
        kept = []
        if reporting:
            run.report(record, lambda step=step: state(step))


def _to_numbers(metrics: dict[str, Tensor]) -> dict[str, float]:
    """Scalars on the host, in one transfer."""
    values = torch.stack([value.double() for value in metrics.values()]).tolist()
    return dict(zip(metrics, values, strict=True))


def _means(records: list[dict[str, float]]) -> dict[str, float]:
    return {name: sum(r[name] for r in records) / len(records) for name in records[0]}
