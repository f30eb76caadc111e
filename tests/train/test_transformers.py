"""SegFormer, DAFormer and HRDA in training: precisions, learning rates, gradients of all weights."""

from __future__ import annotations

import traceback

import pytest
import torch
import torch.distributed as dist
from train_samples import CLASSES, adaptation_task, small_config, write_dataset

pytest.importorskip("transformers", reason="pip install 'sfss-ray[transformers]'")

from sfss_ray.config import OptimConfig
from sfss_ray.data.class_sets import class_set_of
from sfss_ray.method.teacher import frozen_copy
from sfss_ray.models.architectures.catalogue import build_network
from sfss_ray.models.model_file import SourceModel, save_model
from sfss_ray.train.adaptation import adapt_student
from sfss_ray.train.batch_norm import set_batch_norm
from sfss_ray.train.optimizer import build_optimizer
from sfss_ray.train.run_state import LocalRun, load_state

NETWORKS = ("segformer_b0", "segformer_mmseg_b0", "daformer_b0", "hrda_b0")
PATIENCE = 150  # seconds until two processes that do not end count as hanging


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    root = write_dataset(tmp_path_factory.mktemp("transformers"), count=2)
    for name in NETWORKS:
        torch.manual_seed(0)
        model = SourceModel(build_network(name, len(CLASSES)), name, class_set_of(CLASSES))
        save_model(root / f"{name}.pt", model)
    return root


def task_of(root, name, **changes):
    config = small_config(
        num_steps=1, evaluate_every=1, statistics_images=2, augment__crop_size=[64, 64], **changes
    )
    return adaptation_task(root, root / f"{name}.pt", config)


@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_a_step_moves_encoder_decode_head_and_classifier(name, precision, root, tmp_path):
    adapt_student(task_of(root, name, precision=precision), LocalRun(tmp_path))
    before = torch.load(root / f"{name}.pt", weights_only=True)["state_dict"]
    after = load_state(tmp_path)["student"]
    weights = dict(build_network(name, len(CLASSES)).named_parameters())
    unchanged = {n for n in weights if torch.equal(before[n], after[f"segmenter.{n}"])}
    # A bias of keys adds the same to all scores of a query, which softmax ignores.
    assert all(n.endswith("k_proj.bias") for n in unchanged)
    assert all(after[f"segmenter.{n}"].dtype == torch.float32 for n in weights)
    assert all(value.isfinite().all() for value in after.values())


@pytest.mark.parametrize("name", NETWORKS)
def test_decode_head_and_classifier_learn_at_the_heads_rate(name):
    network = build_network(name, 5)
    config = OptimConfig(head_multiplier=10.0)
    groups = build_optimizer(network.body, network.heads, config).param_groups
    multiplier = {id(p): group["multiplier"] for group in groups for p in group["params"]}
    assert sum(len(group["params"]) for group in groups) == len(multiplier)
    for parameter_name, parameter in network.named_parameters():
        encoder = parameter_name.startswith("body.encoder.")
        assert multiplier.pop(id(parameter)) == (1.0 if encoder else 10.0), parameter_name
    assert not multiplier


def test_only_the_student_uses_dropout():
    torch.manual_seed(0)
    student = build_network("segformer_b0", 5)
    teacher = frozen_copy(student)
    set_batch_norm(student, "frozen")
    images = torch.rand(2, 3, 64, 64)
    with torch.no_grad():
        assert torch.equal(teacher(images).logits, teacher(images).logits)
        assert not torch.equal(student(images).logits, student(images).logits)
        student.eval()
        torch.testing.assert_close(student(images).logits, teacher(images).logits)


class RankRun(LocalRun):
    """A `LocalRun` that is one of several."""

    def __init__(self, folder):
        super().__init__(folder / f"rank{dist.get_rank()}")
        self.rank, self.world = dist.get_rank(), dist.get_world_size()


def work(rank: int, root) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", f"file://{root}/meeting", rank=rank, world_size=2)
    try:
        for name in NETWORKS:
            changes = {"num_steps": 2, "evaluate_every": 2}
            config = small_config(statistics_images=2, augment__crop_size=[64, 64], **changes)
            task = adaptation_task(root, root / f"{name}.pt", config)
            adapt_student(task, RankRun(root / f"ddp_{name}"))
    except Exception:
        (root / f"error{rank}").write_text(traceback.format_exc())
        raise
    finally:
        dist.destroy_process_group()


@pytest.mark.parametrize("name", NETWORKS)
def test_every_weight_gets_a_gradient(name):
    """Data-parallel training would wait for a missing gradient."""
    network = build_network(name, 5).train()
    output = network(torch.rand(2, 3, 64, 64))
    (output.logits.square().sum() + output.features.square().sum()).backward()
    assert [n for n, p in network.named_parameters() if p.grad is None] == []


@pytest.mark.slow
def test_data_parallel_training_has_a_gradient_of_every_weight(root):
    """DDP raises in its second step if a weight had no gradient in the first."""
    context = torch.multiprocessing.get_context("spawn")
    processes = [context.Process(target=work, args=(rank, root)) for rank in range(2)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(PATIENCE)
    hanging = [process for process in processes if process.is_alive()]
    for process in hanging:
        process.kill()
    errors = "\n".join(path.read_text() for path in sorted(root.glob("error*")))
    assert not hanging
    assert not errors, errors
    for name in NETWORKS:
        assert load_state(root / f"ddp_{name}" / "rank0")["step"] == 2
