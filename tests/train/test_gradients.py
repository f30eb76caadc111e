"""One optimiser step: accumulation, clipping, and the check of the gradient."""

import pytest
import torch
from torch import nn

from sfss_ray.errors import TrainingError
from sfss_ray.train.gradients import Learner, StepContext, split_batch


def learner(max_grad_norm: float = 1e6) -> Learner:
    module = nn.Linear(3, 1, bias=False)
    nn.init.constant_(module.weight, 0.5)
    return Learner(module, torch.optim.SGD(module.parameters(), lr=0.1), max_grad_norm)


def squares(update: Learner, factor: float = 1.0):
    """Return a loss function: the mean square of the module's outputs."""

    def compute(index, part):
        loss = factor * update.module(part["x"]).square().mean()
        return loss, {"loss": loss.detach(), "index": torch.tensor(float(index))}

    return compute


@pytest.fixture
def batch():
    return {"x": torch.randn(4, 3, generator=torch.Generator().manual_seed(0))}


def test_a_batch_is_split_in_order():
    batch = {"x": torch.arange(6), "y": torch.arange(12).view(6, 2)}
    parts = split_batch(batch, 3)
    assert [part["x"].tolist() for part in parts] == [[0, 1], [2, 3], [4, 5]]
    assert parts[1]["y"].tolist() == [[4, 5], [6, 7]]


@pytest.mark.parametrize("count", [2, 4])
def test_parts_of_a_batch_give_the_step_of_the_whole(batch, count):
    whole, parts = learner(), learner()
    first = whole.update([batch], squares(whole), StepContext(1))
    second = parts.update(split_batch(batch, count), squares(parts), StepContext(1))
    torch.testing.assert_close(parts.module.weight, whole.module.weight)
    torch.testing.assert_close(second["loss"], first["loss"])
    assert second["index"] == (count - 1) / 2


def test_gradients_of_the_step_before_do_not_count(batch):
    once, twice = learner(), learner()
    twice.module(batch["x"]).sum().backward()
    for each in (once, twice):
        each.update([batch], squares(each), StepContext(1))
    assert torch.equal(once.module.weight, twice.module.weight)


def test_the_gradient_is_clipped_to_its_largest_norm(batch):
    clipped = learner(max_grad_norm=0.01)
    before = clipped.module.weight.detach().clone()
    clipped.update([batch], squares(clipped), StepContext(1))
    step = (clipped.module.weight - before).norm()
    assert step.item() == pytest.approx(0.1 * 0.01, rel=1e-3)


@pytest.mark.parametrize("bad", [torch.nan, torch.inf])
@pytest.mark.parametrize(
    ("checkpoint", "text"),
    [(0, "no checkpoint was saved yet"), (5, "the checkpoint of step 5 is kept")],
)
def test_a_gradient_that_is_not_finite_changes_no_weight(batch, bad, checkpoint, text):
    update = learner()
    before = update.module.weight.detach().clone()
    with pytest.raises(
        TrainingError, match=rf"the loss is (nan|inf) .* at step 7 \({text}\): lower"
    ):
        update.update([batch], squares(update, bad), StepContext(7, checkpoint))
    assert torch.equal(update.module.weight, before)


def test_workers_exchange_gradients_in_the_last_part_only(batch):
    events = []

    class Wrapped(nn.Module):
        def __init__(self, module):
            super().__init__()
            self.module = module

        def forward(self, x):
            events.append("forward")
            return self.module(x)

        def no_sync(self):
            events.append("no sync")
            return torch.enable_grad()

    plain = learner()
    wrapped = Learner(Wrapped(plain.module), plain.optimizer, 1e6)
    wrapped.update(split_batch(batch, 2), squares(wrapped), StepContext(1))
    assert events == ["no sync", "forward", "forward"]


def test_a_layer_with_a_single_value_per_channel_is_explained():
    module = nn.BatchNorm1d(3)
    single = Learner(module, torch.optim.SGD(module.parameters(), lr=0.1), 1.0)
    with pytest.raises(TrainingError, match=r"at least two crops .*batch_norm to frozen"):
        single.update([{"x": torch.rand(1, 3)}], squares(single), StepContext(1))
