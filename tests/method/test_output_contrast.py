"""The contrast of outputs against a slow loop written from its formula."""

import math

import pytest
import torch

from sfss_ray.method.output_contrast import contrast_outputs


def drawn(seed=0, classes=12):
    """Return probabilities that differ between masks more than inside them."""
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(0, 5, (2, 8, 9), generator=generator)
    of_masks = 3 * torch.randn(2, 5, classes, generator=generator)
    logits = of_masks[torch.arange(2)[:, None, None], ids].permute(0, 3, 1, 2)
    student, teacher = (
        (logits + torch.randn(logits.shape, generator=generator)).softmax(1) for _ in range(2)
    )
    return student, teacher, ids


def slow_loss(student, teacher, ids, temperature):
    p, t = [], []
    for b in range(len(ids)):
        for mask in ids[b].unique().tolist():
            if mask:
                p.append(student[b][:, ids[b] == mask].mean(1))
                t.append(teacher[b][:, ids[b] == mask].mean(1))
    top = [set(row.topk(3).indices.tolist()) for row in t]
    losses = []
    for k in range(len(p)):

        def similarity(row, k=k):
            return float(p[k] @ row / p[k].norm() / row.norm()) / temperature

        negatives = [math.exp(similarity(t[j])) for j in range(len(t)) if not top[k] & top[j]]
        if negatives:
            losses.append(math.log(1 + sum(negatives) / math.exp(similarity(t[k]))))
    return sum(losses) / len(losses), len(losses)


@pytest.mark.parametrize("temperature", [0.1, 1.0])
def test_it_is_the_formula(temperature):
    student, teacher, ids = drawn()
    expected, counted = slow_loss(student, teacher, ids, temperature)
    assert 2 <= counted <= 8
    loss = contrast_outputs(student, teacher, ids, temperature)
    assert loss.item() == pytest.approx(expected, rel=1e-4)


def test_order_of_images_and_ids_of_masks_do_not_matter():
    student, teacher, ids = drawn()
    loss = contrast_outputs(student, teacher, ids, 0.1)
    renamed = torch.tensor([0, 11, 4, 9, 2])[ids]
    other = contrast_outputs(student.flip(0), teacher.flip(0), renamed.flip(0), 0.1)
    torch.testing.assert_close(other, loss)


def test_labels_have_no_say_but_through_the_classes_of_masks():
    """With classes renamed alike in both views, the loss is the same."""
    student, teacher, ids = drawn()
    order = torch.randperm(12, generator=torch.Generator().manual_seed(1))
    other = contrast_outputs(student[:, order], teacher[:, order], ids, 0.1)
    torch.testing.assert_close(other, contrast_outputs(student, teacher, ids, 0.1))


def test_it_pulls_a_mask_to_the_teacher():
    _, teacher, ids = drawn()
    logits = torch.zeros_like(teacher, requires_grad=True)
    optimizer = torch.optim.SGD([logits], lr=5.0)
    losses = []
    for _ in range(60):
        loss = contrast_outputs(logits.softmax(1), teacher, ids, 0.1)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.5 * losses[0]


@pytest.mark.parametrize("ids", [torch.zeros(2, 8, 9).long(), torch.ones(2, 8, 9).long()])
def test_without_masks_or_negatives_it_is_zero_and_has_a_gradient(ids):
    student, teacher, _ = drawn(classes=1)
    student.requires_grad_()
    loss = contrast_outputs(student, teacher, ids, 0.1)
    assert loss == 0
    loss.backward()
    assert not student.grad.any()
