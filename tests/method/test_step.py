"""One step on drawn batches, with a network whose class is the nearest colour."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch.nn import functional as F
from train_samples import CLASSES, colour_segmenter, drawn_batch, small_config

from sfss_ray.config import TrainConfig
from sfss_ray.method import pairs
from sfss_ray.method.losses import pair_loss
from sfss_ray.method.mask_vote import ClassPrior
from sfss_ray.method.pairs import Pairs, PrototypePool
from sfss_ray.method.prototype_bank import PrototypeBank
from sfss_ray.method.pseudo_labels import ClassThresholds
from sfss_ray.method.step import (
    ContrastNet,
    Memory,
    adaptation_losses,
    contrast,
    fetch_for_pairs,
    ramp,
    sum_of_contrasts,
    teacher_look,
)
from sfss_ray.method.teacher import make_teacher


class Players:
    """Student, teacher and memory of a step."""

    def __init__(self, **changes):
        torch.manual_seed(0)
        self.config: TrainConfig = small_config(**changes).train
        self.student = ContrastNet(colour_segmenter(), self.config)
        self.teacher = make_teacher(self.student)
        size, dim = self.config.pairs.bank_size, self.student.embedding_dim
        self.memory = Memory(
            ClassThresholds(len(CLASSES)),
            ClassPrior(len(CLASSES)),
            PrototypeBank(len(CLASSES), size, dim),
        )

    def step(self, batch, step=6, seed=0):
        segmenter = self.student.segmenter
        return adaptation_losses(
            self.student, self.teacher, segmenter, self.memory, batch, self.config, step, seed
        )

    def gradients(self, batch, **where):
        self.student.zero_grad(set_to_none=True)
        self.step(batch, **where)[0].backward()
        return [p.grad.clone() for p in self.student.parameters()]


def look_at(players, weak):
    ids = torch.zeros(len(weak), *weak.shape[-2:], dtype=torch.long)
    segmenter, prior = players.student.segmenter, players.memory.prior
    return teacher_look(players.teacher, segmenter, weak, ids, prior, players.config.loss)


def close(ones, others) -> bool:
    return all(
        torch.allclose(a, b, rtol=1e-4, atol=1e-7) for a, b in zip(ones, others, strict=True)
    )


@pytest.mark.parametrize(
    ("step", "value"), [(0, 0.0), (5, 0.0), (10, 0.0), (25, 0.5), (40, 1.0), (100, 1.0)]
)
def test_ramp_rises_between_its_shares(step, value):
    assert ramp(step, 100, (0.1, 0.4)) == pytest.approx(value)


@pytest.mark.parametrize(("step", "value"), [(1, 0.0), (19, 0.0), (20, 1.0), (21, 1.0)])
def test_a_ramp_without_length_is_a_step(step, value):
    assert ramp(step, 100, (0.2, 0.2)) == value


def test_a_ramp_of_zero_is_always_on():
    assert ramp(1, 100, (0.0, 0.0)) == 1.0


def test_parts_add_up():
    players = Players(loss__contrast_weight=0.7, loss__instance_share=0.3)
    players.step(drawn_batch([2, 3]))
    loss, parts = players.step(drawn_batch([0, 1]), step=1)
    share = ramp(1, 6, players.config.loss.ramp)
    assert 0 < share < 1
    assert parts["loss_ins"] > 0
    assert parts["loss_cls"] > 0
    expected = parts["loss_seg"] + 0.7 * share * (0.3 * parts["loss_ins"] + 0.7 * parts["loss_cls"])
    assert loss.item() == pytest.approx(expected.item(), rel=1e-5)
    assert parts["loss"].item() == loss.item()
    assert not any(part.requires_grad for part in parts.values())


def test_segmentation_part_is_the_mean_over_kept_pixels():
    players = Players()
    batch = drawn_batch([0, 1])
    _, parts = players.step(batch)
    look = look_at(players, batch["weak"])
    thresholds = players.memory.thresholds.thresholds(0.5, 0.9)
    kept = look.confidence >= thresholds[look.labels]
    logits = F.interpolate(players.student(batch["strong"])[0], size=(64, 64), mode="bilinear")
    each = F.cross_entropy(logits, look.labels, reduction="none")
    assert 0 < kept.float().mean() < 1
    assert parts["loss_seg"].item() == pytest.approx(each[kept].mean().item(), rel=1e-4)
    assert parts["kept"].item() == pytest.approx(kept.float().mean().item())


def test_paper_like_weights_scale_the_loss():
    players = Players(loss__thresholds="paper_like", loss__confidence=0.9)
    batch = drawn_batch([0, 1])
    _, parts = players.step(batch)
    look = look_at(players, batch["weak"])
    share = (look.confidence >= 0.9).float().mean((1, 2))
    logits = F.interpolate(players.student(batch["strong"])[0], size=(64, 64), mode="bilinear")
    each = F.cross_entropy(logits, look.labels, reduction="none").mean((1, 2))
    assert 0 < share.min() < share.max() < 1
    assert parts["loss_seg"].item() == pytest.approx((share * each).mean().item(), rel=1e-4)


def test_contrast_weight_zero_is_plain_self_training():
    batch = drawn_batch([0, 1])
    plain = Players(loss__contrast_weight=0.0)
    loss, parts = plain.step(batch)
    assert loss.item() == parts["loss_seg"].item()
    assert plain.memory.bank.written.sum() == 0
    without_masks = Players(loss__contrast_weight=0.0)
    blank = batch | {"mask_ids": torch.zeros_like(batch["mask_ids"])}
    fresh = Players(loss__contrast_weight=0.0)
    assert close(fresh.gradients(batch), without_masks.gradients(blank))
    assert not close(Players().gradients(batch), fresh.gradients(batch))


def test_before_the_ramp_only_the_bank_learns():
    batch = drawn_batch([0, 1])
    early = Players(loss__ramp=[0.5, 1.0])
    loss, parts = early.step(batch, step=1)
    assert loss.item() == parts["loss_seg"].item()
    assert parts["anchors"] == 0
    assert early.memory.bank.written.sum() > 0


def test_no_masks_at_all_is_plain_self_training_with_a_gradient_everywhere():
    batch = drawn_batch([0, 1])
    blank = batch | {"mask_ids": torch.zeros_like(batch["mask_ids"])}
    players = Players(loss__projection="mlp")
    gradients = players.gradients(blank)
    assert len(gradients) == len(list(players.student.parameters()))
    assert close(gradients[:4], Players(loss__contrast_weight=0.0).gradients(batch)[:4])
    assert all((g == 0).all() for g in gradients[4:])


def test_the_projection_head_learns_from_the_contrast_alone():
    players = Players(loss__projection="mlp")
    gradients = players.gradients(drawn_batch([0, 1]))
    assert players.student.embedding_dim == 16
    assert all((g != 0).any() for g in gradients[4:])


def test_teacher_receives_no_gradient():
    players = Players()
    players.gradients(drawn_batch([0, 1]))
    assert all(p.grad is None for p in players.teacher.parameters())
    assert not players.memory.bank.vectors.requires_grad


def test_order_of_the_batch_changes_nothing():
    first, second = (drawn_batch(order) for order in ([0, 1, 2], [2, 0, 1]))
    one, other = Players(), Players()
    assert close(one.gradients(first), other.gradients(second))
    histograms = (p.memory.thresholds.histogram for p in (one, other))
    assert torch.equal(*histograms)
    entries = [sorted(p.memory.bank.contents()[2].tolist()) for p in (one, other)]
    assert entries[0] == entries[1]


def test_renaming_masks_in_order_changes_nothing():
    batch = drawn_batch([0, 1])
    renamed = batch | {"mask_ids": batch["mask_ids"] * 5 - 2}
    assert all(
        torch.equal(a, b)
        for a, b in zip(Players().gradients(batch), Players().gradients(renamed), strict=True)
    )


def test_a_seed_draws_other_pairs_and_the_same_seed_the_same():
    batch = drawn_batch([0, 1])
    losses = [Players().step(batch, seed=seed)[0].item() for seed in (0, 0, 1)]
    assert losses[0] == losses[1]
    assert losses[0] != losses[2]


def quadrants() -> dict[str, torch.Tensor]:
    """One image of four quadrants, each of a class of its own."""
    batch = drawn_batch([0])
    labels = torch.tensor([[0, 1], [2, 3]]).repeat_interleave(32, 0).repeat_interleave(32, 1)
    colours = torch.tensor([[220, 40, 40], [40, 200, 60], [40, 60, 220], [220, 210, 50]]) / 255.0
    image = colours[labels].permute(2, 0, 1)[None]
    return batch | {"weak": image, "strong": image * 0.9, "mask_ids": labels[None] + 1}


def test_a_mask_is_no_positive_of_itself_until_the_bank_remembers_it():
    players = Players()
    _, parts = players.step(quadrants())
    assert parts["reliable"] == 1
    assert parts["masks"] == 4
    assert parts["anchors"] == 4 * 16
    assert parts["loss_ins"] > 0
    assert parts["loss_cls"] == 0
    _, parts = players.step(quadrants())
    assert parts["loss_cls"] > 0


@pytest.mark.parametrize("class_mix", [0.0, 1.0])
def test_own_masks_are_told_apart_in_every_image_of_a_batch(class_mix):
    # Two images of one number range: were keys mixed up, a mask could be its own positive. With
    # class-mix its copy in the other image could.
    players = Players(augment__class_mix=class_mix)
    one = quadrants()
    other = quadrants()
    other["mask_ids"] = other["mask_ids"] * (other["mask_ids"] < 3)  # classes 0 and 1
    one["mask_ids"] = one["mask_ids"] * (one["mask_ids"] > 2)  # classes 2 and 3
    batch = {k: torch.cat([one[k], other[k]]) for k in one}
    batch |= {"number": torch.tensor([4, 5]), "image": torch.tensor([0, 1])}
    _, parts = players.step(batch)
    assert parts["loss_ins"] > 0
    assert parts["loss_cls"] == 0


@pytest.mark.parametrize("per_image", [1, 2])
def test_the_bank_takes_the_best_of_each_class_and_image(per_image):
    players = Players(pairs__bank_per_image=per_image)
    batch = drawn_batch([0, 1, 2])
    players.step(batch)
    _, classes, images = players.memory.bank.contents()
    _, held = np.unique(np.stack([classes, images], 1), axis=0, return_counts=True)
    assert held.max() == per_image
    assert set(images.tolist()) == {0, 1, 2}


def test_the_bank_keeps_the_better_scored_masks():
    players = Players(pairs__bank_per_image=1)
    batch = quadrants()
    muddy = batch["weak"].clone()
    muddy[..., :32, 32:] = 0.8 * muddy[..., :32, :32] + 0.2 * muddy[..., 32:, :32]
    batch |= {"weak": muddy, "strong": muddy}  # the second quadrant is of class 0 too, but unsure
    players.step(batch)
    look = look_at(players, muddy)
    vectors, classes, _ = players.memory.bank.contents()
    assert (look.probabilities[0, 0, 2, 10] > 0.5).item()
    torch.testing.assert_close(vectors[classes == 0][0], look.embeddings[0, :, 2, 2])
    assert not torch.allclose(look.embeddings[0, :, 2, 10], look.embeddings[0, :, 2, 2])


def by_hand(z, t, pool, pairs, temperature):
    """sum_of_contrasts anchor by anchor; the own cell is taken out of its mask's prototype."""
    sums = torch.zeros(4)
    for a, anchor in enumerate(pairs.anchors.tolist()):
        negatives = pool.vectors[pairs.negatives[a][pairs.negative_valid[a]]]
        if not len(negatives):
            continue
        rest = pairs.instance_prototype_sum[a] - pairs.own_weight[a] * t[anchor]
        own = torch.cat([t[pairs.instance_positives[a]], F.normalize(rest, dim=0)[None]])
        push = (negatives @ z[anchor])[None]
        sums[0] += pair_loss((own @ z[anchor])[None], push, temperature)[0]
        sums[1] += 1
        valid = pairs.class_valid[a]
        if valid.any():
            friends = pool.vectors[pairs.class_positives[a][valid]]
            loss = pair_loss((friends @ z[anchor])[None], push, temperature)[0]
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
    found = sum_of_contrasts(z[:6], t, pool, pairs, 0.2)
    torch.testing.assert_close(found, by_hand(z, t, pool, pairs, 0.2), rtol=1e-4, atol=1e-5)


def test_embeddings_have_length_one():
    for projection in ("none", "mlp"):
        player = Players(loss__projection=projection)
        embeddings = player.student(drawn_batch([0])["weak"])[1]
        torch.testing.assert_close(embeddings.norm(dim=1), torch.ones(1, 16, 16))


def test_a_teacher_that_looks_twice_takes_the_mean():
    weak = drawn_batch([0, 1])["weak"]
    pixels: dict = {"loss__mask_vote": "none", "loss__prior_power": 0.0}
    once, mirrored = Players(**pixels), Players(**pixels, loss__teacher_flip=True)
    zoomed = Players(**pixels, loss__teacher_scales=(1.0, 1.5))
    plain, both = look_at(once, weak), look_at(mirrored, weak)
    turned = look_at(once, weak.flip(3))
    mean = (plain.confidence + turned.confidence.flip(2)) / 2
    same = plain.labels == turned.labels.flip(2)
    assert same.float().mean() > 0.5
    assert torch.allclose(both.confidence[same], mean[same], atol=1e-5)
    assert torch.equal(both.embeddings, plain.embeddings)
    assert both.probabilities.shape == plain.probabilities.shape
    assert torch.allclose(both.probabilities.sum(1), torch.ones(()), atol=1e-5)
    assert not torch.equal(look_at(zoomed, weak).confidence, plain.confidence)


def test_the_contrast_asks_nothing_of_the_networks_device(monkeypatch):
    """Meta tensors have no values: reading one, or mixing it with the CPU's, would stop here.

    So a GPU that holds the vectors is handed all its work without being waited for.
    """
    # The meta device has no generators; what is drawn has no value there anyway.
    on = pairs._generator_on
    monkeypatch.setattr(
        pairs,
        "_generator_on",
        lambda device, own: None if device.type == "meta" else on(device, own),
    )
    players, batch = Players(pairs__bank_size=8, loss__projection="none"), drawn_batch([0, 1, 2])
    players.step(batch)  # puts entries into the bank
    look = look_at(players, batch["weak"])
    logits, embeddings = players.student(batch["strong"])
    bank = players.memory.bank
    held = len(bank.contents()[1])
    bank.vectors = bank.vectors.to("meta")
    z = embeddings.detach().to("meta").requires_grad_()
    look = replace(look, embeddings=look.embeddings.to("meta"))
    thresholds = torch.full((len(CLASSES),), 0.5)
    asked = fetch_for_pairs(look, thresholds, batch, players.config)
    parts = contrast(z, logits, look, asked, players.memory, players.config, seed=0, share=1.0)
    (parts["loss_ins"] + parts["loss_cls"]).backward()
    assert z.grad is not None
    assert z.grad.shape == embeddings.shape
    assert all(value.is_meta for value in parts.values())
    assert 0 < held < len(bank.contents()[1])
