"""Descriptions of masks against loops over pixels, and the learned embedding."""

import math

import pytest
import torch

from sfss_ray.method.mask_evidence import MaskPixels
from sfss_ray.method.mask_space import (
    EMBEDDING_WIDTH,
    MaskSpace,
    describe_masks,
    pool_cells,
    random_descriptions,
)


def drawn(batch=2, size=(12, 16), ids=5, grid=(3, 4), width=6):
    generator = torch.Generator().manual_seed(0)
    mask_ids = torch.randint(0, ids, (batch, *size), generator=generator)
    features = torch.randn(batch, width, *grid, generator=generator)
    geometry = torch.rand(batch, ids + 2, 4, generator=generator)
    images = torch.arange(batch) + 10
    return {"mask_ids": mask_ids, "image": images, "mask_geometry": geometry}, features


@pytest.mark.parametrize("grid", [(3, 4), (5, 7), (12, 16)])
def test_features_are_averaged_over_the_pixels_of_each_mask(grid):
    batch, features = drawn(grid=grid)
    masks = MaskPixels(batch["mask_ids"])
    pooled = pool_cells(features, batch["mask_ids"], masks)
    for b in range(2):
        for mask_id in range(1, 5):
            inside = (batch["mask_ids"][b] == mask_id).nonzero().tolist()
            vectors = [features[b, :, r * grid[0] // 12, c * grid[1] // 16] for r, c in inside]
            expected = torch.stack(vectors).mean(0)
            torch.testing.assert_close(pooled[b * masks.ids_per_image + mask_id], expected)


def test_random_descriptions_are_a_masks_own_and_look_uniform():
    images, ids = torch.arange(40).repeat_interleave(60), torch.arange(1, 61).repeat(40)
    drawn_numbers = random_descriptions(images, ids)
    assert drawn_numbers.min() >= 0
    assert drawn_numbers.max() < 1
    order = torch.randperm(len(ids), generator=torch.Generator().manual_seed(0))
    assert torch.equal(random_descriptions(images[order], ids[order]), drawn_numbers[order])
    assert len(drawn_numbers.unique(dim=0)) == len(ids)
    assert ((drawn_numbers.mean(0) - 0.5).abs() < 0.02).all()
    of_images = drawn_numbers.view(40, 60, -1).mean(1)  # of 60 uniform numbers: 0.5 +- 0.037
    assert of_images.std(0).max() < 0.06
    correlation = torch.corrcoef(torch.stack([ids.float(), *drawn_numbers.T]))
    assert (correlation - torch.eye(5)).abs().max() < 0.06


def test_masks_of_a_random_space_are_described_by_their_image_and_id():
    batch, features = drawn()
    masks = MaskPixels(batch["mask_ids"])
    described = describe_masks(masks, batch, MaskSpace("random", 6), features)
    ids = described.numbers % masks.ids_per_image
    assert torch.equal(described.blocks[0], random_descriptions(described.images, ids))


def test_a_part_of_a_mask_is_pooled_where_the_mask_has_one():
    _, features = drawn(batch=1)
    ids = torch.zeros(1, 12, 16, dtype=torch.long)
    ids[0, :4, :8] = 1  # the cells (0, 0) and (0, 1)
    ids[0, 8:, 12:] = 2  # the cell (2, 3)
    chosen = torch.zeros(1, 12, dtype=torch.bool)
    chosen[0, 1] = True
    pooled = pool_cells(features, ids, MaskPixels(ids), chosen)
    torch.testing.assert_close(pooled[1], features[0, :, 0, 1])
    torch.testing.assert_close(pooled[2], features[0, :, 2, 3])


def test_the_gradient_reaches_the_cells_of_masks_alone():
    _, features = drawn(batch=1)
    ids = torch.zeros(1, 12, 16, dtype=torch.long)
    ids[0, :4, :4] = 1
    features.requires_grad_()
    pool_cells(features, ids, MaskPixels(ids))[1].sum().backward()
    assert features.grad is not None
    assert (features.grad[0, :, 0, 0] == 1).all()
    assert features.grad.sum() == features.shape[1]


@pytest.mark.parametrize(
    ("space", "widths"),
    [("geometry", [4]), ("features", [6]), ("both", [6, 4]), ("learned", [EMBEDDING_WIDTH])],
)
def test_each_space_describes_the_masks_that_have_a_pixel(space, widths):
    batch, features = drawn()
    batch["mask_ids"][1][batch["mask_ids"][1] == 2] = 0
    masks = MaskPixels(batch["mask_ids"])
    network = None if space == "geometry" else MaskSpace(space, 6)
    mask_features = None if network is None else network(features)
    described = describe_masks(masks, batch, network, mask_features)
    assert described.numbers.tolist() == [1, 2, 3, 4, 6, 8, 9]
    assert described.images.tolist() == [10] * 4 + [11] * 3
    assert [block.shape for block in described.blocks] == [(7, width) for width in widths]
    assert torch.equal(described.geometry[5], batch["mask_geometry"][1, 3])


def test_embeddings_of_the_batch_are_the_description():
    batch, _ = drawn()
    batch["mask_embedding"] = torch.randn(2, 9, 12)
    described = describe_masks(MaskPixels(batch["mask_ids"]), batch, None, None)
    assert described.numbers.tolist() == [1, 2, 3, 4, 6, 7, 8, 9]
    (block,) = described.blocks
    assert torch.equal(block, batch["mask_embedding"][:, 1:5].flatten(0, 1))


def test_features_and_both_take_the_features_as_they_are():
    batch, features = drawn()
    masks = MaskPixels(batch["mask_ids"])
    expected = pool_cells(features, batch["mask_ids"], masks)[masks.present()]
    for space in ("features", "both"):
        network = MaskSpace(space, 6)
        assert torch.equal(network(features), features)
        described = describe_masks(masks, batch, network, network(features))
        assert torch.equal(described.blocks[0], expected)


def test_learned_embeddings_have_length_one_and_use_features_and_geometry():
    torch.manual_seed(0)
    space = MaskSpace("learned", 6)
    pooled = space(torch.randn(1, 6, 1, 3))[0, :, 0].T
    geometry = torch.tensor([[0.5, 0.1, 0.1, -6.0]]).repeat(3, 1)
    embeddings = space.embed(pooled, geometry)
    assert embeddings.norm(dim=1).tolist() == pytest.approx([1.0] * 3)
    # At the typical geometry only the bias of its layer is added.
    expected = pooled + space.of_geometry.bias
    torch.testing.assert_close(embeddings, expected / expected.norm(dim=1, keepdim=True))
    moved = space.embed(pooled, geometry + torch.tensor([0.3, 0.0, 0.0, 0.0]))
    cosine = (embeddings * moved).sum(1)
    assert (cosine < 1 - 1e-4).all()
    assert not math.isnan(float(cosine.detach().sum()))
