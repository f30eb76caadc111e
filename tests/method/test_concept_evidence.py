"""Evidence of masks with classes: a slow loop, pixels without such a mask, and weight 0."""

import math

import pytest
import torch
from step_networks import StepNetworks
from train_samples import drawn_batch

from sfss_ray.method.concept_evidence import CONCEPT_SCORES, add_concepts
from sfss_ray.method.mask_evidence import Evidence
from sfss_ray.method.teacher_view import predict_teacher

BATCH, CLASSES, HEIGHT, WIDTH = 2, 3, 4, 5


def drawn(seed=0):
    generator = torch.Generator().manual_seed(seed)
    q = torch.randn(BATCH, CLASSES, HEIGHT, WIDTH, generator=generator).softmax(1)
    ids = torch.randint(0, 3, (BATCH, HEIGHT, WIDTH), generator=generator)
    found = torch.rand(BATCH, CLASSES, HEIGHT, WIDTH, generator=generator)
    scores = torch.where(found > 0.6, found, 0.0)
    prior = torch.tensor([0.2, 0.5, 0.3])
    return Evidence.gather(q, ids, prior, 0.25), q, ids, scores, prior


def test_evidence_is_that_of_a_loop_over_pixels_and_masks():
    evidence, q, ids, scores, prior = drawn()
    both = add_concepts(evidence, scores, weight=0.7)
    sums: dict[int, list[list[float]]] = {}
    for pixel in range(BATCH * HEIGHT * WIDTH):
        b, y, x = pixel // (HEIGHT * WIDTH), pixel // WIDTH % HEIGHT, pixel % WIDTH
        expected = [
            math.log(float(q[b, c, y, x]))
            - 0.25 * math.log(float(prior[c]))
            + 0.7 * math.log(1 + 20 * float(scores[b, c, y, x]))
            for c in range(CLASSES)
        ]
        assert both.of_pixels[pixel].tolist() == pytest.approx(expected, abs=1e-5)
        sums.setdefault(b * 3 + int(ids[b, y, x]), []).append(expected)
    for number, rows in sums.items():
        mean = [sum(column) / len(rows) for column in zip(*rows, strict=True)]
        assert both.of_masks[number].tolist() == pytest.approx(mean, abs=1e-5)


def test_pixels_without_a_mask_of_a_class_keep_their_evidence():
    evidence, _, _, scores, _ = drawn()
    both = add_concepts(evidence, scores, weight=2.0)
    free = (scores == 0).all(1).flatten()
    assert free.any()
    assert torch.equal(both.of_pixels[free], evidence.of_pixels[free])
    # One to nothing is log 21, whatever the other classes are.
    certain = torch.zeros(BATCH, CLASSES, HEIGHT, WIDTH)
    certain[:, 1] = 1.0
    gain = add_concepts(evidence, certain, weight=2.0).of_pixels - evidence.of_pixels
    torch.testing.assert_close(gain[:, 1], torch.full_like(gain[:, 1], 2 * math.log(21)))
    assert torch.equal(gain[:, 0], torch.zeros_like(gain[:, 0]))


def view_of(batch, **settings):
    networks = StepNetworks(**settings)
    return predict_teacher(networks.teacher, batch, networks.memory, networks.config.loss)


@pytest.mark.parametrize("vote", ["none", "majority", "pooled"])
@pytest.mark.parametrize("prior", [0.0, 0.25])
def test_weight_0_and_no_masks_with_classes_change_no_bit(vote, prior):
    batch = drawn_batch([0, 1])
    knobs = {"loss__mask_vote": vote, "loss__prior_power": prior}
    plain = view_of(batch, **knobs)
    classes = plain.probabilities.shape[1]
    generator = torch.Generator().manual_seed(0)
    scores = torch.rand(2, classes, *batch["mask_ids"].shape[1:], generator=generator)
    with_scores = batch | {CONCEPT_SCORES: scores}
    off = view_of(with_scores, **knobs, loss__concept_weight=0.0)
    assert torch.equal(off.labels, plain.labels)
    assert torch.equal(off.confidence, plain.confidence)
    unused = view_of(batch, **knobs, loss__concept_weight=10.0)
    assert torch.equal(unused.confidence, plain.confidence)
    on = view_of(with_scores, **knobs, loss__concept_weight=10.0)
    assert not torch.equal(on.confidence, plain.confidence)


def test_masks_with_a_class_decide_where_the_weight_is_large():
    batch = drawn_batch([0, 1])
    classes = view_of(batch).probabilities.shape[1]
    scores = torch.zeros(2, classes, *batch["mask_ids"].shape[1:], dtype=torch.float16)
    scores[0, 2] = 1.0
    view = view_of(
        batch | {CONCEPT_SCORES: scores}, loss__concept_weight=10.0, loss__mask_vote="none"
    )
    assert (view.labels[0] == 2).all()
    plain = view_of(batch, loss__mask_vote="none")
    assert torch.equal(view.labels[1], plain.labels[1]), "another image without such masks"
