"""The vote of the masks against a slow loop, and its guards for rare classes."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from sfss_ray.config import LossConfig
from sfss_ray.method import mask_vote
from sfss_ray.method.mask_evidence import Evidence
from sfss_ray.method.mask_vote import ClassPrior, plausible_classes


def relabel(probabilities, ids, prior, config):
    evidence = Evidence.gather(probabilities, ids, prior, config.prior_power)
    return mask_vote.relabel(evidence, config)


def method(mask_vote="none", prior_power=0.0, **knobs):
    return LossConfig(mask_vote=mask_vote, prior_power=prior_power, **knobs)


def drawn(seed=0, batch=2, classes=4, height=12, width=10, masks=5):
    generator = torch.Generator().manual_seed(seed)
    logits = 2 * torch.randn(batch, classes, height, width, generator=generator)
    ids = torch.randint(0, masks + 1, (batch, height, width), generator=generator)
    prior = torch.rand(classes, generator=generator) + 0.1
    return logits.softmax(1), ids, prior / prior.sum()


def slow_relabel(probabilities, ids, prior, config):
    """Vote one pixel and one mask at a time; probabilities below 1e-4 count as 1e-4."""
    q = probabilities.double().numpy().clip(1e-4)
    labels, confidence = np.zeros(ids.shape, int), np.zeros(ids.shape)
    power = prior.double().numpy() ** config.prior_power
    for b in range(len(ids)):
        corrected = q[b] / power[:, None, None]
        corrected = corrected / corrected.sum(0)
        label = corrected.argmax(0)
        for y, x in np.ndindex(ids.shape[1:]):
            labels[b, y, x], confidence[b, y, x] = label[y, x], corrected[:, y, x].max()
        for k in set(ids[b].flatten().tolist()) - {0}:
            inside = (ids[b] == k).numpy()
            if config.mask_vote == "majority":
                votes = np.bincount(label[inside], minlength=len(power))
                mean_probability = corrected[:, inside].mean(1)[votes.argmax()]
            else:
                votes = np.exp(np.log(corrected[:, inside]).mean(1))
            purity = (label[inside] == votes.argmax()).mean()
            if purity < config.vote_min_purity:
                continue
            for y, x in np.argwhere(inside):
                if config.mask_vote == "majority":
                    labels[b, y, x], confidence[b, y, x] = votes.argmax(), mean_probability
                    continue
                w = config.vote_weight
                pooled = corrected[:, y, x] ** (1 - w) * votes**w
                pooled = pooled / pooled.sum()
                labels[b, y, x], confidence[b, y, x] = pooled.argmax(), pooled.max()
    return labels, confidence


@pytest.mark.parametrize("vote", ["majority", "pooled"])
@pytest.mark.parametrize(("purity", "power"), [(0.0, 0.0), (0.4, 0.0), (0.0, 0.5), (0.4, 1.0)])
def test_votes_are_those_of_a_slow_loop(vote, purity, power):
    probabilities, ids, prior = drawn()
    config = method(mask_vote=vote, vote_weight=0.7, vote_min_purity=purity, prior_power=power)
    labels, confidence = relabel(probabilities, ids, prior, config)
    slow_labels, slow_confidence = slow_relabel(probabilities, ids, prior, config)
    np.testing.assert_array_equal(labels.numpy(), slow_labels)
    np.testing.assert_allclose(confidence.numpy(), slow_confidence, rtol=1e-4)


@pytest.mark.parametrize("weight", [0.5, 1.0])
def test_neighbours_speak_for_the_pixels_that_agree_with_their_mask(weight):
    probabilities, ids, prior = drawn()
    config = method(mask_vote="pooled", vote_weight=weight, neighbour_pixels="agreeing")
    own = Evidence.gather(probabilities, ids, prior, config.prior_power)
    generator = torch.Generator().manual_seed(1)
    opinions = 3 * torch.randn(own.of_masks.shape, generator=generator)
    asked = replace(own, of_masks=own.of_masks + opinions, own_of_masks=own.of_masks)
    labels, confidence = mask_vote.relabel(asked, config)
    reached = 0
    for b, y, x in np.ndindex(ids.shape):
        pixel = probabilities[b, :, y, x].clamp(min=1e-4).log()
        mask = int(ids[b, y, x])
        pooled = pixel
        if mask:
            number = own.masks.ids_per_image * b + mask
            agrees = int(pixel.argmax()) == int(own.of_masks[number].argmax())
            reached += agrees
            voice = own.of_masks[number] + (opinions[number] if agrees else 0)
            pooled = (1 - weight) * pixel + weight * voice
        assert int(labels[b, y, x]) == int(pooled.argmax())
        assert float(confidence[b, y, x]) == pytest.approx(float(pooled.softmax(0).max()), abs=1e-5)
    assert 20 < reached < (ids > 0).sum() - 20


def test_neighbours_speak_for_all_pixels_of_a_mask():
    probabilities, ids, prior = drawn()
    config = method(mask_vote="pooled", vote_weight=0.5, neighbour_pixels="all")
    own = Evidence.gather(probabilities, ids, prior, config.prior_power)
    other = torch.randn(own.of_masks.shape, generator=torch.Generator().manual_seed(1))
    labels, confidence = mask_vote.relabel(
        replace(own, of_masks=other, own_of_masks=own.of_masks), config
    )
    expected = mask_vote.relabel(replace(own, of_masks=other), config)
    assert torch.equal(labels, expected[0])
    assert torch.equal(confidence, expected[1])


def test_without_a_vote_only_the_prior_counts():
    probabilities, ids, prior = drawn()
    labels, confidence = relabel(probabilities, ids, prior, method())
    assert torch.equal(labels, probabilities.argmax(1))
    torch.testing.assert_close(confidence, probabilities.amax(1), rtol=0, atol=5e-4)
    corrected, _ = relabel(probabilities, ids, prior, method(prior_power=1.0))
    assert torch.equal(corrected, (probabilities / prior[:, None, None]).argmax(1))


def test_pixels_outside_masks_keep_their_own_label():
    probabilities, ids, prior = drawn()
    for vote in ("majority", "pooled"):
        labels, _ = relabel(probabilities, ids, prior, method(mask_vote=vote))
        assert torch.equal(labels[ids == 0], probabilities.argmax(1)[ids == 0])


def test_full_vote_weight_gives_each_mask_one_label():
    probabilities, ids, prior = drawn()
    labels, _ = relabel(probabilities, ids, prior, method(mask_vote="pooled", vote_weight=1.0))
    for b in range(len(ids)):
        for k in range(1, int(ids.max()) + 1):
            assert len(labels[b][ids[b] == k].unique()) == 1


def test_zero_vote_weight_is_no_vote():
    probabilities, ids, prior = drawn()
    labels, _ = relabel(probabilities, ids, prior, method(mask_vote="pooled", vote_weight=0.0))
    assert torch.equal(labels, probabilities.argmax(1))


def test_renaming_masks_and_reordering_images_changes_nothing():
    probabilities, ids, prior = drawn()
    config = method(mask_vote="pooled", prior_power=0.5)
    labels, confidence = relabel(probabilities, ids, prior, config)
    renamed = torch.where(ids > 0, 17 - 3 * ids, 0)
    again, _ = relabel(probabilities, renamed, prior, config)
    assert torch.equal(labels, again)
    reordered, its_confidence = relabel(probabilities.flip(0), ids.flip(0), prior, config)
    assert torch.equal(labels.flip(0), reordered)
    torch.testing.assert_close(confidence.flip(0), its_confidence)


def test_a_confident_rare_pixel_is_not_outvoted_by_its_mask():
    """Nine unsure pixels of a common class and one confident pixel of a rare one, in one mask."""
    q = torch.full((1, 2, 1, 10), 0.0)
    q[0, 0, 0, :9], q[0, 1, 0, :9] = 0.6, 0.4
    q[0, 0, 0, 9], q[0, 1, 0, 9] = 0.001, 0.999
    ids, prior = torch.ones(1, 1, 10, dtype=torch.long), torch.tensor([0.9, 0.1])
    majority, _ = relabel(q, ids, prior, method(mask_vote="majority"))
    assert majority[0, 0].tolist() == [0] * 10
    pooled, _ = relabel(q, ids, prior, method(mask_vote="pooled", vote_weight=0.5))
    assert pooled[0, 0, 9] == 1


def test_class_shares_follow_the_teachers_probabilities():
    prior = ClassPrior(3)
    assert prior.share().tolist() == pytest.approx([1 / 3] * 3)
    for _ in range(300):
        prior.update(torch.tensor([6.0, 3.0, 1.0]))
    assert prior.share().tolist() == pytest.approx([0.6, 0.3, 0.1], abs=1e-4)
    for _ in range(300):
        prior.update(torch.tensor([0.0, 5.0, 5.0]))
    assert prior.share().tolist() == pytest.approx([0.0, 0.5, 0.5], abs=0.01)


@pytest.mark.parametrize("by_pixel", [False, True])
@pytest.mark.parametrize("count", [1, 3, 9])
def test_plausible_classes_are_the_likeliest_of_the_mask(count, by_pixel):
    probabilities, ids, prior = drawn()
    evidence = Evidence.gather(probabilities, ids, prior, 0.5)
    plausible = plausible_classes(evidence, count, by_pixel)
    assert plausible.shape == (2, min(count, 4), 12, 10)
    corrected = probabilities.log() - 0.5 * prior.log()[:, None, None]
    for b, y, x in [
        (0, 0, 0),
        (1, 5, 7),
        (0, 11, 9),
        (1, 3, 3),
        *(ids == 0).nonzero()[:4].tolist(),
    ]:
        inside = ids[b] == ids[b, y, x]
        if by_pixel or ids[b, y, x] == 0:
            scores = corrected[b, :, y, x]
        else:
            scores = corrected[b][:, inside].mean(1)
        expected = scores.argsort(descending=True)[:count]
        assert plausible[b, :, y, x].tolist() == expected.tolist()
