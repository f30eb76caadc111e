"""The neighbours of masks against a brute-force loop written from the formula."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch

from sfss_ray.method.mask_evidence import Evidence
from sfss_ray.method.mask_neighbours import MaskNeighbours, ask_neighbours
from sfss_ray.method.mask_space import describe_masks

CLASSES = 5


def drawn(count, seed=0, images=6):
    generator = torch.Generator().manual_seed(seed)
    geometry = torch.rand(count, 4, generator=generator) * torch.tensor([1.0, 0.2, 0.1, 8.0])
    numbers = torch.randint(0, images, (count,), generator=generator)
    probabilities = (2 * torch.randn(count, CLASSES, generator=generator)).softmax(1)
    return geometry, numbers, probabilities


def ring_of(count, size=200, **drawing) -> MaskNeighbours:
    ring = MaskNeighbours(CLASSES, size)
    geometry, numbers, probabilities = drawn(count, **drawing)
    ring.write((geometry,), numbers, probabilities)
    return ring


def slow_opinion(ring, geometry, image):
    """Ask one mask at a time, in double precision."""
    rows = [g.double().numpy() for g in ring.blocks[0][: len(ring)]]
    mean, spread = np.mean(rows, 0), np.std(rows, 0)

    def unit(g):
        standard = (g - mean) / spread
        return standard / np.linalg.norm(standard)

    p = ring.probabilities[: len(ring)].double().numpy()
    candidates = []
    for row, number, probability in zip(rows, ring.images.tolist(), p, strict=False):
        if number != image:
            similarity = float(unit(row) @ unit(geometry.double().numpy()))
            candidates.append((similarity, probability / np.sqrt(p.mean(0))))
    nearest = sorted(candidates, key=lambda c: -c[0])[:20]
    weights = [math.exp(similarity / 0.07) for similarity, _ in nearest]
    total = sum(w * say for w, (_, say) in zip(weights, nearest, strict=True))
    return total / total.sum()


def test_opinions_are_those_of_a_brute_force_loop():
    ring = ring_of(150)
    geometry, images, _ = drawn(30, seed=1)
    opinions = ring.opinions((geometry,), images)
    for k in range(30):
        expected = slow_opinion(ring, geometry[k], int(images[k]))
        np.testing.assert_allclose(opinions[k].numpy(), expected, rtol=1e-3, atol=1e-4)


def test_the_own_image_has_no_say():
    ring = ring_of(60, images=3)
    geometry, _, _ = drawn(4, seed=2)
    before = ring.opinions((geometry,), torch.full((4,), 1))
    ring.probabilities[ring.images == 1] = torch.eye(CLASSES)[0] * 1.0
    mean = ring.probabilities[:60].mean(0)
    # Only the mean over the ring, by which all opinions are divided, has changed.
    old = ring_of(60, images=3)
    expected = before * old.probabilities[:60].mean(0).sqrt() / mean.sqrt()
    expected = expected / expected.sum(1, keepdim=True)
    torch.testing.assert_close(ring.opinions((geometry,), torch.full((4,), 1)), expected)


def test_a_mask_whose_neighbours_are_all_of_its_image_has_a_uniform_opinion():
    ring = ring_of(10, images=1)
    geometry, _, _ = drawn(3, seed=2)
    opinions = ring.opinions((geometry,), torch.tensor([0, 0, 4]))
    assert opinions[:2].std(1).max() < 1e-6
    assert opinions[2].std() > 0.02


def test_an_empty_ring_has_no_opinion():
    geometry, images, _ = drawn(3)
    assert MaskNeighbours(CLASSES, 10).opinions((geometry,), images) is None
    assert ring_of(5).opinions((geometry[:0],), images[:0]) is None


def test_the_order_of_masks_and_the_names_of_images_do_not_matter():
    geometry, images, probabilities = drawn(80)
    asking, its_images, _ = drawn(10, seed=3)
    opinions = ring_of(80).opinions((asking,), its_images)
    order = torch.randperm(80, generator=torch.Generator().manual_seed(0))
    renamed = torch.tensor([9, 3, 7, 0, 5, 12])
    other = MaskNeighbours(CLASSES, 200)
    other.write((geometry[order],), renamed[images[order]], probabilities[order])
    again = other.opinions((asking.flip(0),), renamed[its_images].flip(0)).flip(0)
    torch.testing.assert_close(again, opinions, rtol=1e-4, atol=1e-4)


def test_equal_masks_are_not_told_apart_by_rounding():
    ring = MaskNeighbours(CLASSES, 50)
    geometry, images, probabilities = drawn(40)
    geometry[:, 3] = -2.7725887
    ring.write((geometry,), images, probabilities)
    opinions = ring.opinions((geometry[:5],), torch.full((5,), 99))
    geometry[:, 3] += 3e-7
    ring.blocks[0][:40] = geometry
    torch.testing.assert_close(
        ring.opinions((geometry[:5],), torch.full((5,), 99)), opinions, atol=0.02, rtol=0
    )


@pytest.mark.parametrize("writes", [[3, 4], [7, 5, 6], [25], [10, 10, 3]])
def test_the_oldest_masks_are_overwritten_first(writes):
    ring = MaskNeighbours(CLASSES, 10)
    geometry, _, probabilities = drawn(sum(writes))
    numbers = torch.arange(sum(writes))
    for g, i, p in zip(
        geometry.split(writes), numbers.split(writes), probabilities.split(writes), strict=True
    ):
        ring.write((g,), i, p)
    assert len(ring) == min(10, sum(writes))
    newest = numbers[-len(ring) :]
    assert sorted(ring.images[: len(ring)].tolist()) == newest.tolist()
    for position, number in enumerate(ring.images[: len(ring)].tolist()):
        assert torch.equal(ring.blocks[0][position], geometry[number])
        assert torch.equal(ring.probabilities[position], probabilities[number])


def test_a_restored_ring_goes_on_where_the_saved_one_was(tmp_path):
    ring, restored = ring_of(7, size=10), MaskNeighbours(CLASSES, 10)
    torch.save(ring.state_dict(), tmp_path / "ring.pt")
    restored.load_state_dict(torch.load(tmp_path / "ring.pt", weights_only=True))
    for one in (ring, restored):
        geometry, images, probabilities = drawn(6, seed=4)
        one.write((geometry,), images, probabilities)
    expected = ring.state_dict()
    (block,), (restored_block,) = expected.pop("blocks"), restored.blocks
    assert torch.equal(block, restored_block)
    for name, values in expected.items():
        assert torch.equal(values, restored.state_dict()[name])


def evidence_and_batch():
    generator = torch.Generator().manual_seed(5)
    q = torch.randn(2, CLASSES, 6, 8, generator=generator).softmax(1)
    ids = torch.randint(0, 4, (2, 6, 8), generator=generator)
    evidence = Evidence.gather(q, ids, torch.ones(CLASSES) / CLASSES, power=0.0)
    geometry = torch.rand(2, 7, 4, generator=generator)  # more rows than ids in the crops
    return evidence, {
        "image": torch.tensor([20, 30]),
        "mask_geometry": geometry,
        "mask_ids": ids,
    }


def ask(evidence, batch, ring, weight, pooling="sum"):
    described = describe_masks(evidence.masks, batch, None, None)
    return ask_neighbours(evidence, described, ring, weight, pooling)


def test_an_empty_ring_is_the_plain_vote_and_is_filled():
    evidence, batch = evidence_and_batch()
    ring = MaskNeighbours(CLASSES, 50)
    corrected, opinions = ask(evidence, batch, ring, 1.0)
    assert corrected is evidence
    assert opinions is None
    assert len(ring) == 6
    assert ring.images[:6].tolist() == [20, 20, 20, 30, 30, 30]
    assert torch.equal(ring.blocks[0][:6], batch["mask_geometry"][:, 1:4].flatten(0, 1))
    torch.testing.assert_close(ring.probabilities[3], evidence.of_masks[5].softmax(0))


@pytest.mark.parametrize("pooling", ["sum", "mean"])
@pytest.mark.parametrize("weight", [0.5, 2.0])
def test_evidence_and_opinion_are_pooled(weight, pooling):
    evidence, batch = evidence_and_batch()
    ring = ring_of(60)
    geometry = batch["mask_geometry"][:, 1:4].flatten(0, 1)
    expected_opinions = ring_of(60).opinions(
        (geometry,), torch.tensor([20, 30]).repeat_interleave(3)
    )
    corrected, opinions = ask(evidence, batch, ring, weight, pooling)
    assert torch.equal(opinions, expected_opinions)
    total = 1 + weight if pooling == "mean" else 1  # the weights of a mean sum to one
    numbers = [1, 2, 3, 5, 6, 7]
    expected = evidence.of_masks[numbers] / total + weight / total * (opinions + 0.02).log()
    torch.testing.assert_close(corrected.of_masks[numbers], expected)
    assert torch.equal(corrected.of_pixels, evidence.of_pixels)
    assert torch.equal(corrected.own_of_masks, evidence.of_masks)
    assert torch.equal(corrected.of_masks[[0, 4]], evidence.of_masks[[0, 4]])  # no mask


def test_an_opinion_equal_to_the_evidence_changes_nothing_by_the_mean():
    """The weights of evidence and opinion sum to one."""
    evidence, batch = evidence_and_batch()
    numbers = [1, 2, 3, 5, 6, 7]
    ring = ring_of(60)
    _, opinions = ask(evidence, batch, ring, 1.0)
    agreed = evidence.of_masks.clone()
    agreed[numbers] = (opinions + 0.02).log()
    for weight in (0.5, 3.0):
        same, _ = ask(replace(evidence, of_masks=agreed), batch, ring_of(60), weight, "mean")
        torch.testing.assert_close(same.of_masks, agreed)


def test_a_mask_with_few_masks_in_other_images_asks_those_alone():
    ring = ring_of(60, images=2)
    ring.images[ring.images == 1] = 0
    ring.images[:5] = 1
    geometry, _, _ = drawn(3, seed=1)
    opinions = ring.opinions((geometry,), torch.zeros(3, dtype=torch.int64))
    for k in range(3):
        expected = slow_opinion(ring, geometry[k], 0)
        np.testing.assert_allclose(opinions[k].numpy(), expected, rtol=1e-3, atol=1e-4)


def test_blocks_count_alike_whatever_their_width():
    wide = torch.randn(60, 30, generator=torch.Generator().manual_seed(1))
    geometry, images, probabilities = drawn(60)
    ring = MaskNeighbours(CLASSES, 100)
    ring.write((wide, geometry), images, probabilities)
    opinions = ring.opinions((wide[:8], geometry[:8]), images[:8])
    units = []
    for block in (wide, geometry):
        standard = ((block - block.mean(0)) / block.std(0, correction=0)).double()
        units.append(standard / standard.norm(dim=1, keepdim=True))
    similarity = (units[0] @ units[0].T + units[1] @ units[1].T) / 2
    weighted = (probabilities / probabilities.mean(0).sqrt()).double()
    for k in range(8):
        others = [j for j in range(60) if images[j] != images[k]]
        nearest = sorted(others, key=lambda j: -float(similarity[k, j]))[:20]
        weights = torch.exp(similarity[k, nearest] / 0.07)
        expected = (weights[:, None] * weighted[nearest]).sum(0)
        expected = (expected / expected.sum()).float()
        torch.testing.assert_close(opinions[k], expected, rtol=1e-3, atol=1e-4)
