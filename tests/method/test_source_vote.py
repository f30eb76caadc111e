"""The vote of the source model in the teacher's pseudo-labels."""

import pytest
import torch
from step_networks import StepNetworks, quadrants
from train_samples import colour_segmenter, drawn_batch

from sfss_ray.method.source_vote import pool_with_source
from sfss_ray.method.teacher_view import predict_teacher

ALONE: dict = {"loss__mask_vote": "none", "loss__prior_power": 0.0}


def random_probabilities(seed: int) -> torch.Tensor:
    logits = torch.randn(2, 4, 3, 5, generator=torch.Generator().manual_seed(seed))
    return logits.softmax(1)


def view_with(weight: float, source, weak: torch.Tensor):
    networks = StepNetworks(**ALONE, loss__source_vote=weight)
    batch = {"weak": weak, "mask_ids": torch.zeros(len(weak), *weak.shape[-2:], dtype=torch.long)}
    return predict_teacher(
        networks.teacher, batch, networks.memory, networks.config.loss, source=source
    )


def test_opinions_are_pooled_by_their_geometric_mean():
    teacher = torch.tensor([0.9, 0.1]).view(1, 2, 1, 1)
    source = torch.tensor([0.5, 0.5]).view(1, 2, 1, 1)
    # sqrt(.9 * .5) and sqrt(.1 * .5) are as 3 to 1.
    pooled = pool_with_source(teacher, source, 0.5)
    torch.testing.assert_close(pooled.flatten(), torch.tensor([0.75, 0.25]))
    # .9 ** .75 * .5 ** .25 and .1 ** .75 * .5 ** .25 are as 9 ** .75 to 1.
    pooled = pool_with_source(teacher, source, 0.25)
    torch.testing.assert_close(pooled[0, 0].item(), 9**0.75 / (9**0.75 + 1))


def test_the_ends_of_the_weight_are_one_opinion_alone():
    teacher, source = random_probabilities(0), random_probabilities(1)
    torch.testing.assert_close(pool_with_source(teacher, source, 0.0), teacher)
    torch.testing.assert_close(pool_with_source(teacher, source, 1.0), source)
    torch.testing.assert_close(pool_with_source(teacher, teacher, 0.3), teacher)


@pytest.mark.parametrize("weight", [0.1, 0.25, 0.9])
def test_probabilities_sum_to_one_whatever_the_order_of_classes(weight):
    teacher, source = random_probabilities(2), random_probabilities(3)
    pooled = pool_with_source(teacher, source, weight)
    torch.testing.assert_close(pooled.sum(1), torch.ones(2, 3, 5))
    order = [2, 0, 3, 1]
    permuted = pool_with_source(teacher[:, order], source[:, order], weight)
    torch.testing.assert_close(permuted, pooled[:, order])


def test_no_opinion_can_veto_a_class():
    sure = torch.tensor([1.0, 0.0]).view(1, 2, 1, 1)
    pooled = pool_with_source(sure, sure.flip(1), 0.25)
    assert torch.isfinite(pooled).all()
    # (1 / 1e-4) ** .75 against (1 / 1e-4) ** .25: 100 to 1.
    torch.testing.assert_close(pooled.flatten(), torch.tensor([100.0, 1.0]) / 101)


def test_labels_cells_and_class_shares_are_those_of_the_pool():
    weak = drawn_batch([0, 1])["weak"]
    torch.manual_seed(5)
    source = colour_segmenter().eval()
    with torch.no_grad():
        for parameter in source.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    teacher = StepNetworks(**ALONE).teacher
    with torch.no_grad():
        own = teacher.segmenter.logits(weak).softmax(1)
        other = source.logits(weak).softmax(1)
    view = view_with(0.5, source, weak)
    pooled = pool_with_source(own, other, 0.5)
    assert torch.equal(view.labels, pooled.argmax(1))
    torch.testing.assert_close(view.confidence, pooled.amax(1))
    side = weak.shape[-1] // view.probabilities.shape[-1]
    cells = pooled.unfold(2, side, side).unfold(3, side, side).mean((-2, -1))
    torch.testing.assert_close(view.probabilities, cells)
    assert (own.argmax(1) != pooled.argmax(1)).any()


def test_a_step_learns_from_what_only_the_source_model_sees():
    networks = StepNetworks(**ALONE, loss__source_vote=0.98)
    batch = quadrants()
    lost = 2
    with torch.no_grad():  # the teacher never predicts the class again
        networks.teacher.segmenter.heads[0].bias[lost] -= 1e4
    memory, config = networks.memory, networks.config.loss
    alone = predict_teacher(networks.teacher, batch, memory, config)
    assert not (alone.labels == lost).any()
    source = colour_segmenter().eval()
    voted = predict_teacher(networks.teacher, batch, memory, config, source=source)
    inside = batch["mask_ids"] == lost + 1
    assert (voted.labels[inside] == lost).float().mean() > 0.8
