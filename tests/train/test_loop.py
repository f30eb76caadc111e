import json
from types import SimpleNamespace

import pytest
import torch
import torch.distributed as dist
from torch import nn

from sfss_ray.config import OptimConfig
from sfss_ray.train.loop import (
    build_optimizer,
    distribute,
    learning_rate,
    run_steps,
    set_learning_rate,
    to_device,
)
from sfss_ray.train.run_state import (
    LocalRun,
    append_progress,
    load_state,
    read_progress,
    save_state,
)


def test_learning_rate_rises_then_falls():
    config = OptimConfig(learning_rate=2.0, warmup_share=0.1, poly_power=1.0)
    rates = [learning_rate(step, 100, config) for step in range(1, 101)]
    assert rates[0] == pytest.approx(0.2)
    assert rates[9] == pytest.approx(2.0 * 0.91)
    assert rates[50] == pytest.approx(2.0 * 0.5)
    assert rates[-1] == pytest.approx(2.0 * 0.01)
    assert min(rates) > 0
    constant = OptimConfig(learning_rate=2.0, warmup_share=0.0, poly_power=0.0)
    assert {learning_rate(step, 100, constant) for step in range(1, 101)} == {2.0}


@pytest.mark.parametrize("name", ["adamw", "sgd"])
def test_heads_learn_faster_and_vectors_do_not_decay(name):
    body, head = nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2)), nn.Conv2d(2, 3, 1)
    config = OptimConfig(optimizer=name, head_multiplier=10.0, weight_decay=0.01)
    optimizer = build_optimizer(body, [head, nn.Identity()], config)
    set_learning_rate(optimizer, 0.5)
    facts = {}
    for group in optimizer.param_groups:
        facts |= {id(p): (group["lr"], group["weight_decay"]) for p in group["params"]}
    assert facts[id(body[0].weight)] == (0.5, 0.01)
    assert facts[id(body[0].bias)] == (0.5, 0.0)
    assert facts[id(body[1].weight)] == (0.5, 0.0)
    assert facts[id(head.weight)] == (5.0, 0.01)
    assert facts[id(head.bias)] == (5.0, 0.0)
    assert len(facts) == 6


def test_only_uint8_is_scaled():
    batch = {"image": torch.tensor([0, 255]).byte(), "labels": torch.tensor([3, 255])}
    moved = to_device(batch, torch.device("cpu"))
    assert moved["image"].tolist() == [0.0, 1.0]
    assert moved["labels"].tolist() == [3, 255]


def test_steps_are_logged_reported_and_averaged(tmp_path):
    reported = []
    run = LocalRun(tmp_path, on_report=reported.append)
    run_steps(
        run,
        0,
        [{} for _ in range(23)],
        2,
        25,
        15,
        lambda step, batch: {"loss": torch.tensor(float(step))},
        lambda: {"score": 1.0},
        lambda step: {"step": step},
    )
    records = read_progress(tmp_path)
    assert [r["step"] for r in records] == [10, 15, 20, 25]
    assert [r["loss"] for r in records] == [6.5, 13.0, 18.0, 23.0]
    assert [r["step"] for r in reported] == [15, 25]
    assert [r.get("score") for r in records] == [None, 1.0, None, 1.0]
    assert load_state(tmp_path) == {"step": 25}


def test_progress_survives_a_killed_process(tmp_path):
    for step, loss in ((10, 1.0), (20, 2.0)):
        append_progress(tmp_path, {"step": step, "loss": loss})
    with open(tmp_path / "progress.jsonl", "a") as file:
        file.write(json.dumps({"step": 30})[:5] + "\n")
    append_progress(tmp_path, {"step": 20, "loss": 3.0})
    assert read_progress(tmp_path) == [{"step": 10, "loss": 1.0}, {"step": 20, "loss": 3.0}]
    assert read_progress(tmp_path / "nowhere") == []


def test_a_state_is_written_whole_or_not_at_all(tmp_path):
    save_state(tmp_path, {"step": 1})
    with pytest.raises(Exception, match="pickle"):
        save_state(tmp_path, {"step": lambda: None})
    assert load_state(tmp_path) == {"step": 1}


@pytest.fixture
def group(tmp_path):
    """A process group of this process alone."""
    dist.init_process_group("gloo", init_method=f"file://{tmp_path}/group", rank=0, world_size=1)
    yield
    dist.destroy_process_group()


@pytest.mark.filterwarnings("ignore:.*broadcast_buffers")
@pytest.mark.parametrize("name", ["modules", "parameters", "named_parameters", "named_children"])
def test_layers_that_hide_methods_of_torch_are_distributed(name, group):
    net = nn.Sequential(nn.Sequential(nn.Conv2d(3, 2, 1)))
    hiding = [net[0][0]]
    setattr(net[0], name, hiding)
    run = SimpleNamespace(world=2, device=torch.device("cpu"))
    images = torch.rand(1, 3, 4, 4)
    distributed = distribute(net, run)  # pyright: ignore[reportArgumentType]
    distributed(images).sum().backward()
    assert torch.allclose(net[0][0].weight.grad[0, :, 0, 0], images.sum((0, 2, 3)))
    assert vars(net[0])[name] is hiding
