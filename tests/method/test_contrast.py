"""The contrast of a batch: its sums against a slow loop, its gathers, and its device."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from step_networks import StepNetworks
from torch.nn import functional as F
from train_samples import CLASSES, drawn_batch

from sfss_ray.method import negatives
from sfss_ray.method.contrast import (
    contrast_losses,
    fetch_pair_inputs,
    gather_cell_vectors,
    sum_contrasts,
)
from sfss_ray.method.contrast_net import NetworkOutput
from sfss_ray.method.losses import pair_loss
from sfss_ray.method.pairs import Pairs
from sfss_ray.method.prototype_pool import PrototypePool


def by_hand(z, t, pool, pairs, temperature):
    """Sum the contrasts anchor by anchor; the own cell is left out of its mask's prototype."""
    sums = torch.zeros(4)
    for a, anchor in enumerate(pairs.anchors.tolist()):
        negatives = pool.vectors[pairs.negatives[a][pairs.negative_valid[a]]]
        if not len(negatives):
            continue
        rest = pairs.instance_prototype_sum[a] - pairs.own_weight[a] * t[anchor]
        same_mask = torch.cat([t[pairs.instance_positives[a]], F.normalize(rest, dim=0)[None]])
        push = (negatives @ z[anchor])[None]
        sums[0] += pair_loss((same_mask @ z[anchor])[None], push, temperature)[0]
        sums[1] += 1
        valid = pairs.class_valid[a]
        if valid.any():
            same_class = pool.vectors[pairs.class_positives[a][valid]]
            loss = pair_loss((same_class @ z[anchor])[None], push, temperature)[0]
            sums[2] += pairs.class_weight[a] * loss
            sums[3] += pairs.class_weight[a]
    return sums


def test_contrast_is_the_sum_over_anchors():
    g = torch.Generator().manual_seed(0)
    z, t, vectors = (F.normalize(torch.randn(n, 5, generator=g), dim=1) for n in (30, 30, 12))
    classes = np.arange(12) % 3
    pool = PrototypePool.build(vectors, classes, classes, np.arange(12), 3)
    pairs = Pairs(
        anchors=torch.arange(6),
        instance_positives=torch.randint(0, 30, (6, 3), generator=g),
        instance_prototype_sum=torch.randn(6, 5, generator=g) * 4,
        own_weight=torch.rand(6, generator=g),
        class_positives=torch.randint(0, 12, (6, 3), generator=g),
        class_valid=torch.rand(6, 3, generator=g) < 0.5,
        class_weight=torch.rand(6, generator=g),
        negatives=torch.randint(0, 12, (6, 7), generator=g),
        negative_valid=torch.tensor([True, True, True, False, True, True])[:, None].expand(6, 7),
        similarity=z[:6] @ pool.vectors.T,
    )
    sums = sum_contrasts(z[:6], t, pool, pairs, 0.2)
    torch.testing.assert_close(sums, by_hand(z, t, pool, pairs, 0.2), rtol=1e-4, atol=1e-5)


def test_the_contrast_reads_nothing_from_the_networks_device(monkeypatch):
    """Meta tensors have no values: reading one, or mixing it with tensors of the CPU, would raise.

    So a GPU that holds the vectors gets all its work without a stop.
    """
    # The meta device has no generators; what is drawn has no value there anyway.
    generator_on = negatives.generator_on
    monkeypatch.setattr(
        negatives,
        "generator_on",
        lambda device, cpu: None if device.type == "meta" else generator_on(device, cpu),
    )
    networks, batch = (
        StepNetworks(pairs__bank_size=8, loss__projection="none"),
        drawn_batch([0, 1, 2]),
    )
    networks.step(batch)  # puts entries into the bank
    view = networks.view(batch["weak"])
    logits, embeddings, _ = networks.student(batch["strong"])
    bank = networks.memory.bank
    entries_before = len(bank.contents()[1])
    bank.vectors = bank.vectors.to("meta")
    z = embeddings.detach().to("meta").requires_grad_()
    view = replace(view, embeddings=view.embeddings.to("meta"))
    thresholds = torch.full((len(CLASSES),), 0.5)
    inputs = fetch_pair_inputs(view, thresholds, batch, networks.config)
    student = NetworkOutput(logits, z)
    parts = contrast_losses(student, inputs, bank, networks.config, seed=0)
    (parts["loss_ins"] + parts["loss_cls"]).backward()
    assert z.grad is not None
    assert z.grad.shape == embeddings.shape
    assert all(value.is_meta for value in parts.values())
    assert 0 < entries_before < len(bank.contents()[1])


@pytest.mark.parametrize("counts", [(3, 3), (1, 4), (0, 2)])
def test_vectors_are_gathered_image_after_image(counts):
    embeddings = torch.randn(2, 5, 4, 6, generator=torch.Generator().manual_seed(0))
    rng = np.random.default_rng(1)
    cells = [rng.integers(0, 24, count) for count in counts]
    expected = [embeddings[b, :, i // 6, i % 6] for b in range(2) for i in cells[b]]
    assert torch.equal(gather_cell_vectors(embeddings, cells), torch.stack(expected))


def test_without_prototypes_the_sums_are_zero_with_a_gradient():
    vectors = torch.randn(0, 5, requires_grad=True)
    nothing = np.zeros(0, np.int64)
    pool = PrototypePool.build(torch.zeros(0, 5), nothing, nothing, nothing, 3)
    index, none = torch.zeros(0, 2).long(), torch.zeros(0, 2).bool()
    weight = torch.zeros(0)
    pairs = Pairs(
        weight.long(), index, vectors, weight, index, none, weight, index, none, torch.zeros(0, 0)
    )
    sums = sum_contrasts(vectors, torch.randn(6, 5), pool, pairs, 0.1)
    assert sums.tolist() == [0.0] * 4
    assert sums.requires_grad


def test_before_the_ramp_no_pairs_are_drawn_and_the_bank_is_filled():
    networks, batch = StepNetworks(loss__projection="none"), drawn_batch([0, 1])
    view, bank = networks.view(batch["weak"]), networks.memory.bank
    inputs = fetch_pair_inputs(view, torch.full((len(CLASSES),), 0.5), batch, networks.config)
    student = networks.student(batch["strong"])
    metrics = contrast_losses(student, inputs, bank, networks.config, seed=0, draw=False)
    assert metrics["anchors"] == metrics["loss_ins"] == metrics["loss_cls"] == 0
    assert metrics["masks"] == 16
    assert bank.written.sum() > 0


def test_confident_pseudo_labels_can_be_the_regions():
    networks = StepNetworks(loss__region_source="pseudo_labels", loss__projection="none")
    batch = drawn_batch([0]) | {"mask_ids": torch.zeros(1, 64, 64, dtype=torch.long)}
    view = networks.view(batch["weak"])
    inputs = fetch_pair_inputs(view, torch.full((len(CLASSES),), 0.5), batch, networks.config)
    (table,) = inputs.describe(networks.config).tables
    assert set(table.ids) <= set(range(1, len(CLASSES) + 1))
    assert np.array_equal(table.ids - 1, table.label)
