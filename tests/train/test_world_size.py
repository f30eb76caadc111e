"""Two processes over gloo against one: the number of workers must not change the training."""

import traceback
from contextlib import suppress
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest
import torch
import torch.distributed as dist
from train_samples import (
    adaptation_task,
    assert_states_close,
    embed_masks,
    sharp_source,
    small_config,
    write_dataset,
)

from sfss_ray.errors import TrainingError
from sfss_ray.method.collective import average_buffers, gather_rows, sum_over_workers, world_size
from sfss_ray.train import adaptation
from sfss_ray.train.adaptation import AdaptationTask, adapt_student
from sfss_ray.train.run_state import LocalRun, ProgressLog, load_state, read_progress, save_state
from sfss_ray.train.samples import image_of_sample

WORLD = 2
PATIENCE = 150  # seconds until two processes that do not end count as hanging
# SGD: Adam's first step is the sign of a gradient, which rounding alone may turn.
# No clipping: it would hide a gradient that is scaled by the number of workers.
FROZEN = {
    "batch_norm": "frozen",
    "optim__optimizer": "sgd",
    "optim__learning_rate": 0.01,
    "optim__warmup_share": 0.0,
    "optim__max_grad_norm": 1e6,
    "loss__ramp": [0.0, 0.0],
}
SCENARIOS = {
    "frozen": FROZEN | {"num_steps": 2},
    "voted": FROZEN
    | {
        "num_steps": 2,
        "loss__mask_vote": "pooled",
        "loss__prior_power": 0.5,
        "augment__class_mix": 0.7,
    },
    "source_votes": {**FROZEN, "batch_norm": "target", "num_steps": 2, "loss__source_vote": 0.4},
    "paper_like": FROZEN | {"num_steps": 2, "loss__thresholds": "paper_like"},
    "entropy": FROZEN
    | {"num_steps": 2, "loss__label_space": "entropy", "optim__learning_rate": 0.1},
    "mlp": FROZEN | {"num_steps": 1, "loss__projection": "mlp"},
    "target": FROZEN | {"batch_norm": "target", "num_steps": 1},
    "accumulated": FROZEN | {"num_steps": 2, "accumulate": 2, "loss__mask_vote": "pooled"},
    "adapt": {"batch_norm": "adapt", "num_steps": 1},
    "some_without_masks": FROZEN | {"num_steps": 3},
    "all_without_masks": FROZEN | {"num_steps": 1},
    "masks_in_label_space": FROZEN
    | {
        "num_steps": 3,
        "loss__mask_vote": "pooled",
        "loss__prior_power": 0.5,
        "loss__neighbour_weight": 1.0,
        "loss__neighbour_space": "geometry",
        "loss__rule_out_weight": 1.0,
        "loss__output_weight": 0.5,
        "loss__ring_weight": 0.5,
        "augment__class_mix": 0.7,
    },
    "learned_space": FROZEN
    | {
        "num_steps": 3,
        "loss__mask_vote": "pooled",
        "loss__prior_power": 0.5,
        "loss__neighbour_weight": 1.0,
        "loss__neighbour_space": "learned",
        "loss__metric_weight": 0.5,
        "augment__class_mix": 0.7,
    },
    "by_chance": FROZEN
    | {
        "num_steps": 2,
        "loss__mask_vote": "pooled",
        "loss__neighbour_weight": 1.0,
        "loss__neighbour_space": "random",
    },
    "both_spaces": FROZEN
    | {
        "num_steps": 2,
        "loss__mask_vote": "pooled",
        "loss__neighbour_weight": 1.0,
        "loss__neighbour_space": "both",
    },
    "by_embedding": FROZEN
    | {
        "num_steps": 3,
        "loss__mask_vote": "pooled",
        "loss__neighbour_weight": 2.0,
        "loss__neighbour_space": "sam",
        "loss__neighbour_pixels": "agreeing",
        "augment__class_mix": 0.7,
    },
    "by_features_mean": FROZEN
    | {
        "num_steps": 2,
        "loss__mask_vote": "pooled",
        "loss__neighbour_weight": 1.0,
        "loss__neighbour_space": "features",
        "loss__neighbour_pooling": "mean",
        "loss__rule_out_weight": 1.0,
        "loss__rule_out_by": "pixel",
    },
    "learned_space_some_without_masks": FROZEN
    | {
        "num_steps": 3,
        "loss__mask_vote": "pooled",
        "loss__neighbour_weight": 1.0,
        "loss__neighbour_space": "learned",
        "loss__metric_weight": 0.5,
    },
    "uneven": FROZEN | {"num_steps": 2, "batch_size": 3, "loss__mask_vote": "pooled"},
    "uneven_pairs": FROZEN
    | {
        "num_steps": 2,
        "batch_size": 12,
        "accumulate": 2,
        "loss__neighbour_weight": 1.0,
        "loss__neighbour_space": "geometry",
        "loss__ring_weight": 0.5,
        "loss__mask_vote": "pooled",
        "augment__class_mix": 0.7,
    },
    "finer_logits": FROZEN
    | {
        "num_steps": 2,
        "loss__mask_vote": "pooled",
        "loss__prior_power": 0.5,
        "loss__class_quantile": 1.0,
        "pairs__min_purity": 0.2,  # a random network agrees with no mask
        "augment__class_mix": 0.7,
    },
}
CHANGED = {
    "to_two_and_back": (1, 2, 1),
    "to_one_and_back": (2, 1, 2),
}
"""Numbers of workers of the three thirds of a run that goes on with another number twice."""
LENGTH = 2
"""Steps of each third."""
CHANGED_KNOBS = SCENARIOS["masks_in_label_space"] | {
    "num_steps": 3 * LENGTH,
    "batch_size": 6,  # pairs of crops for two workers: 4 and 2
}
FINER_LOGITS = "finer_logits"
"""The scenario of a network whose logits are finer than the cells of its contrast."""
WITHOUT_MASKS = {
    "some_without_masks": (0, 2, 4),
    "learned_space_some_without_masks": (0, 2, 4),
    "all_without_masks": tuple(range(6)),
}


class RankRun(LocalRun):
    """A `LocalRun` that is one of several; every rank saves its state for comparison."""

    def __init__(self, folder: Path):
        super().__init__(folder / f"rank{dist.get_rank()}")
        self.rank, self.world = dist.get_rank(), dist.get_world_size()

    def report(self, metrics, state):
        ProgressLog(self.folder / "metrics").append(metrics)
        super().report(metrics, state)


def config_of(name: str):
    knobs = CHANGED_KNOBS if name in CHANGED else SCENARIOS[name]
    return small_config(**{"batch_size": 2 * WORLD, "evaluate_every": 1} | knobs)


def task_of(root: Path, name: str):
    return adaptation_task(root / f"data_{name}", source_of(root, name), config_of(name))


def source_of(root: Path, name: str) -> Path:
    return root / ("finer.pt" if name == FINER_LOGITS else "source.pt")


def work(rank: int, root: Path) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", f"file://{root}/meeting", rank=rank, world_size=WORLD)
    try:
        torch.save(collect(rank), root / f"collected{rank}.pt")
        for name in SCENARIOS:
            adapt_student(task_of(root, name), RankRun(root / name))
        spoil_one_rank(root, rank)
    finally:
        dist.destroy_process_group()


def work_and_change(rank: int, root: Path) -> None:
    """Run all scenarios on two workers, then those whose number of workers changes."""
    try:
        work(rank, root)
        for name, worlds in CHANGED.items():
            for third, world in enumerate(worlds):
                if rank < world:
                    train_third(rank, world, third, root / name, task_of(root, name))
        (root / f"finished{rank}").touch()
    except Exception:
        (root / f"error{rank}").write_text(traceback.format_exc())
        raise


class ThirdIsOverError(Exception):
    """The steps of this number of workers are taken."""


def train_third(rank: int, world: int, third: int, folder: Path, task: AdaptationTask) -> None:
    """Take the steps of one third of a run from the checkpoint of the one before."""
    last = (third + 1) * LENGTH

    def end(metrics: dict[str, Any]) -> None:
        if metrics["step"] == last:
            raise ThirdIsOverError

    if world > 1:
        folder.mkdir(exist_ok=True)
        # Rank 1 waits here for rank 0, which may be training alone.
        dist.init_process_group(
            "gloo", f"file://{folder}/meeting{third}", rank=rank, world_size=world
        )
    try:
        run = LocalRun(folder / f"third{third}" / f"rank{rank}", on_report=end)
        run.rank, run.world = rank, world
        if third:
            save_state(run.folder, load_state(folder / f"third{third - 1}" / "rank0"))
        with suppress(ThirdIsOverError):
            adapt_student(task, run)
    finally:
        if world > 1:
            dist.destroy_process_group()


def spoil_one_rank(root: Path, rank: int) -> None:
    """Make the loss of rank 1 NaN in the second step, and write down each rank's error."""
    sound = adaptation.adaptation_losses

    def spoilt(*arguments, **named):
        loss, metrics = sound(*arguments, **named)
        _, _, _, info = arguments
        return (loss * torch.nan if (rank, info.step) == (1, 2) else loss), metrics

    with patch.object(adaptation, "adaptation_losses", spoilt):
        try:
            adapt_student(task_of(root, "frozen"), RankRun(root / "spoilt"))
        except TrainingError as error:
            (root / f"spoilt{rank}").write_text(str(error))


def collect(rank: int) -> dict[str, torch.Tensor]:
    rows = torch.arange(3 * rank, 3 * rank + 2 * rank)[:, None] + torch.zeros(1, 2)
    layer = torch.nn.BatchNorm1d(2)
    layer.running_mean.fill_(float(rank))
    layer.num_batches_tracked.fill_(5)
    average_buffers(layer)
    local = torch.tensor([1.0 + rank])
    return {
        "rows": gather_rows(rows, rows.device),
        "nothing": gather_rows(torch.zeros(0, 3), rows.device),
        "sum": sum_over_workers(local),
        "local": local,
        "mean": layer.running_mean,
        "batches": layer.num_batches_tracked,
        "world": torch.tensor(world_size()),
    }


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """Run all scenarios once, because starting two processes takes seconds."""
    root = tmp_path_factory.mktemp("world")
    sharp_source(root / "source.pt")
    sharp_source(root / "finer.pt", name="espnet", options={"p": 1, "q": 1})
    for name in (*SCENARIOS, *CHANGED):
        data = write_dataset(root / f"data_{name}", without_masks=WITHOUT_MASKS.get(name, ()))
        if SCENARIOS.get(name, {}).get("loss__neighbour_space") == "sam":
            embed_masks(data / "masks")
    context = torch.multiprocessing.get_context("spawn")
    processes = [
        context.Process(target=work_and_change, args=(rank, root)) for rank in range(WORLD)
    ]
    for process in processes:
        process.start()
    for process in processes:
        process.join(PATIENCE)
    hanging = [process for process in processes if process.is_alive()]
    for process in hanging:
        process.kill()
    errors = "\n".join(path.read_text() for path in sorted(root.glob("error*")))
    assert not hanging, f"{len(hanging)} of {WORLD} processes hang\n{errors}"
    assert not errors, errors
    return root


def test_both_ranks_finish(root):
    assert all((root / f"finished{rank}").exists() for rank in range(WORLD))


@pytest.mark.parametrize("rank", range(WORLD))
def test_a_nan_on_one_rank_stops_both_in_the_same_step(root, rank):
    assert "at step 2 (the checkpoint of step 1 is kept)" in (root / f"spoilt{rank}").read_text()
    assert load_state(root / "spoilt" / f"rank{rank}")["step"] == 1


@pytest.mark.parametrize("rank", range(WORLD))
def test_collectives(root, rank):
    collected = torch.load(root / f"collected{rank}.pt", weights_only=True)
    assert collected["rows"].tolist() == [[3.0, 3.0], [4.0, 4.0]]  # rank 0 has no rows
    assert collected["nothing"].shape == (0, 3)
    assert collected["sum"].tolist() == [3.0]
    assert collected["local"].tolist() == [1.0 + rank]
    assert collected["mean"].tolist() == [0.5, 0.5]
    assert collected["batches"] == 5
    assert collected["world"] == WORLD


@pytest.mark.parametrize(
    "name",
    [name for name in SCENARIOS if name != "adapt"],  # its workers have different statistics
)
def test_two_workers_train_as_one(root, name):
    adapt_student(task_of(root, name), LocalRun(root / name / "single"))
    assert_states_close(root / name / "single", root / name / "rank0", tolerance=3e-5)
    assert_weights_moved(root, name)
    assert_losses_agree(root, name)
    assert_every_part_counted(root, name)


@pytest.mark.parametrize("name", list(CHANGED))
def test_a_change_of_the_number_of_workers_in_mid_run_changes_nothing(root, name):
    adapt_student(task_of(root, name), LocalRun(root / name / "single"))
    for third in range(len(CHANGED[name])):
        state = load_state(root / name / f"third{third}" / "rank0")
        assert state["step"] == (third + 1) * LENGTH
        assert state["bank"]["written"].sum() > 0
        assert state["neighbours"]["written"] > 0
    assert_states_close(root / name / "single", root / name / "third2" / "rank0", tolerance=3e-5)
    assert_weights_moved(root, name)


def assert_weights_moved(root: Path, name: str) -> None:
    """Assert that weights moved by far more than the tolerance, and that pairs were drawn."""
    state = load_state(root / name / "single")
    start = torch.load(source_of(root, name), weights_only=True)["state_dict"]
    change = state["student"]["segmenter.classifier.weight"] - start["classifier.weight"]
    assert change.abs().max() > 1e-3
    records = read_progress(root / name / "single")
    assert (sum(r["anchors"] for r in records) > 0) == (name != "all_without_masks")
    assert (state["bank"]["written"].sum() > 0) == (name != "all_without_masks")


def assert_every_part_counted(root: Path, name: str) -> None:
    """Assert that each part of the loss that a scenario switches on was more than 0 in some step."""
    knobs, records = SCENARIOS[name], read_progress(root / name / "single")
    for part in ("rule_out", "output", "ring", "metric"):
        if knobs.get(f"loss__{part}_weight", 0) > 0 and (
            part != "metric" or knobs.get("loss__neighbour_space") == "learned"
        ):
            assert max(record[f"loss_{part}"] for record in records) > 0, part
    if knobs.get("loss__neighbour_weight", 0) > 0:
        assert load_state(root / name / "single")["neighbours"]["written"] > 0


def assert_losses_agree(root: Path, name: str) -> None:
    """Assert that the records of the ranks are those of the whole batch, because losses are scaled."""
    whole = read_progress(root / name / "single")
    ranks = [read_progress(root / name / f"rank{rank}" / "metrics") for rank in range(WORLD)]
    for single, *of_ranks in zip(whole, *ranks, strict=True):
        assert single.keys() <= of_ranks[0].keys()
        for part in single:
            for record in of_ranks:
                assert record[part] == pytest.approx(single[part], rel=1e-4, abs=1e-6), part


@pytest.mark.parametrize("name", list(SCENARIOS))
def test_both_ranks_have_the_same_state(root, name):
    assert_states_close(root / name / "rank0", root / name / "rank1")


@pytest.mark.parametrize("name", ["some_without_masks", "learned_space_some_without_masks"])
def test_one_rank_had_no_masks_while_the_other_had(name):
    config, blank = config_of(name), WITHOUT_MASKS[name]
    ranks_without = []
    for step in range(config.train.num_steps):
        first = step * 2 * WORLD
        images = [image_of_sample(config.seed, first + i, 6) for i in range(2 * WORLD)]
        ranks_without.append(sum(set(images[i : i + 2]) <= set(blank) for i in (0, 2)))
    assert ranks_without.count(1) >= 2
