"""The label-free loss of the learned space against a loop over masks."""

import math
from dataclasses import replace

import pytest
import torch

from sfss_ray.method.mask_evidence import MaskPixels
from sfss_ray.method.mask_metric import MetricOptions, MetricTargets, metric_loss
from sfss_ray.method.mask_neighbours import MaskNeighbours
from sfss_ray.method.mask_space import EMBEDDING_WIDTH, MaskSpace, pool_cells

CLASSES = 4
OPTIONS = MetricOptions(temperature=0.2, seed=3)


def unit(rows: torch.Tensor) -> torch.Tensor:
    return rows / rows.norm(dim=1, keepdim=True)


def drawn():
    """Two images of four masks, targets of the teacher, and a ring of 40 masks of six images."""
    generator = torch.Generator().manual_seed(1)
    torch.manual_seed(0)
    space = MaskSpace("learned", 5)
    # One cell per mask: every part of a mask is the mask.
    grid = torch.arange(1, 5).view(1, 2, 2).repeat(2, 1, 1)
    ids = grid.repeat_interleave(8, 1).repeat_interleave(8, 2)
    features = torch.randn(2, 5, 2, 2, generator=generator)
    targets = MetricTargets(
        embeddings=unit(torch.randn(8, EMBEDDING_WIDTH, generator=generator)),
        geometry=torch.rand(8, 4, generator=generator),
        opinions=(2 * torch.randn(8, CLASSES, generator=generator)).softmax(1),
        images=torch.tensor([0] * 4 + [1] * 4),
        rows=torch.tensor([0] * 4 + [1] * 4),
        ids=torch.tensor([1, 2, 3, 4] * 2),
    )
    ring = MaskNeighbours(CLASSES, 64)
    ring.write(
        (unit(torch.randn(40, EMBEDDING_WIDTH, generator=generator)),),
        torch.randint(0, 6, (40,), generator=generator),
        (2 * torch.randn(40, CLASSES, generator=generator)).softmax(1),
    )
    batch = {"mask_ids": ids, "number": torch.tensor([7, 8])}
    return space, space(features), batch, targets, ring


def loss_of(space, features, batch, targets, ring) -> float:
    return metric_loss(features, batch, targets, space, ring, OPTIONS).item()


def by_hand(space, features, batch, targets, ring, counted=range(8)) -> float:
    masks = MaskPixels(batch["mask_ids"])
    pooled = pool_cells(features, batch["mask_ids"], masks)
    losses = []
    for k in counted:
        number = int(targets.rows[k]) * masks.ids_per_image + int(targets.ids[k])
        (e,) = space.embed(pooled[number : number + 1], targets.geometry[k : k + 1])
        negatives = []
        for j in range(len(ring)):
            overlap = sum(
                min(float(targets.opinions[k, c]), float(ring.probabilities[j, c]))
                for c in range(CLASSES)
            )
            if overlap < 0.5 and ring.images[j] != targets.images[k]:
                negatives.append(math.exp(float(e.detach() @ ring.blocks[0][j]) / 0.2))
        if negatives:
            positive = float(e.detach() @ targets.embeddings[k]) / 0.2
            losses.append(math.log(1 + sum(negatives) / math.exp(positive)))
    return sum(losses) / len(losses)


def test_the_loss_is_that_of_a_loop_over_masks():
    parts = drawn()
    assert loss_of(*parts) == pytest.approx(by_hand(*parts), rel=1e-5)


def test_permuting_the_classes_changes_nothing():
    space, features, batch, targets, ring = drawn()
    before = loss_of(space, features, batch, targets, ring)
    order = torch.tensor([2, 0, 3, 1])
    ring.probabilities = ring.probabilities[:, order]
    permuted = replace(targets, opinions=targets.opinions[:, order])
    assert loss_of(space, features, batch, permuted, ring) == pytest.approx(before, rel=1e-6)


def test_masks_of_the_same_image_or_of_like_opinion_are_no_negatives():
    space, features, batch, targets, ring = drawn()
    ring.images[:40] = 0
    expected = by_hand(space, features, batch, targets, ring, counted=range(4, 8))
    assert loss_of(space, features, batch, targets, ring) == pytest.approx(expected, rel=1e-5)
    ring.probabilities[:40] = targets.opinions[0]
    alike = replace(targets, opinions=targets.opinions[:1].expand(8, -1))
    assert loss_of(space, features, batch, alike, ring) == 0


def test_masks_that_class_mix_covers_do_not_count():
    space, features, batch, targets, ring = drawn()
    ids = batch["mask_ids"].clone()
    ids[0, :8, :8] = 9  # pasted over mask 1 of the first image; its number is higher
    mixed = batch | {"mask_ids": ids}
    masks = MaskPixels(ids)
    assert masks.ids_per_image == 10
    expected = by_hand(space, features, mixed, targets, ring, counted=range(1, 8))
    assert loss_of(space, features, mixed, targets, ring) == pytest.approx(expected, rel=1e-5)


def test_without_a_visible_mask_the_loss_is_zero_and_has_a_gradient():
    space, features, batch, targets, ring = drawn()
    empty = batch | {"mask_ids": torch.zeros_like(batch["mask_ids"])}
    loss = metric_loss(features, empty, targets, space, ring, OPTIONS)
    assert loss.item() == 0
    loss.backward()


def test_the_student_sees_a_part_that_the_sample_decides():
    space, _, _, targets, ring = drawn()
    generator = torch.Generator().manual_seed(4)
    features = torch.randn(2, EMBEDDING_WIDTH, 16, 16, generator=generator)
    grid = torch.arange(1, 5).view(1, 2, 2).repeat(2, 1, 1)
    ids = grid.repeat_interleave(8, 1).repeat_interleave(8, 2)
    batch = {"mask_ids": ids, "number": torch.tensor([7, 8])}
    first = loss_of(space, features, batch, targets, ring)
    assert first == loss_of(space, features, batch, targets, ring)
    assert first != pytest.approx(by_hand(space, features, batch, targets, ring), rel=1e-4)
    other = batch | {"number": torch.tensor([9, 8])}
    assert first != loss_of(space, features, other, targets, ring)


def test_every_seed_of_a_run_is_taken():
    space, features, batch, targets, ring = drawn()
    options = MetricOptions(OPTIONS.temperature, 2**31 - 1)
    assert torch.isfinite(metric_loss(features, batch, targets, space, ring, options))


def test_training_on_it_brings_views_of_a_mask_together():
    space, _, batch, targets, ring = drawn()
    features = torch.randn(2, 5, 2, 2, generator=torch.Generator().manual_seed(6))
    optimizer = torch.optim.Adam(space.parameters(), 1e-2)
    before = metric_loss(space(features), batch, targets, space, ring, OPTIONS).item()
    for _ in range(60):
        optimizer.zero_grad()
        loss = metric_loss(space(features), batch, targets, space, ring, OPTIONS)
        loss.backward()
        optimizer.step()
    assert loss.item() < 0.3 * before
