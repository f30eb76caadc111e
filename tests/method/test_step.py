"""A step of adaptation on drawn images whose class is the nearest colour."""

import dataclasses

import numpy as np
import pytest
import torch
from step_networks import StepNetworks, quadrants
from torch.nn import functional as F
from train_samples import CLASSES, drawn_batch
from two_grids import two_grid_networks

from sfss_ray.config import LossConfig
from sfss_ray.method import output_contrast
from sfss_ray.method import step as step_module
from sfss_ray.method.contrast_net import ContrastNet
from sfss_ray.method.memory import Memory
from sfss_ray.method.step import label_space_loss, ramp
from sfss_ray.method.teacher import frozen_copy
from sfss_ray.method.teacher_view import predict_teacher
from sfss_ray.models.architectures.catalogue import build_network


def close(first, second) -> bool:
    return all(
        torch.allclose(a, b, rtol=1e-4, atol=1e-7) for a, b in zip(first, second, strict=True)
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
    networks = StepNetworks(loss__contrast_weight=0.7, loss__instance_share=0.3)
    networks.step(drawn_batch([2, 3]))
    loss, parts = networks.step(drawn_batch([0, 1]), step=1)
    share = ramp(1, 6, networks.config.loss.ramp)
    assert 0 < share < 1
    assert parts["loss_ins"] > 0
    assert parts["loss_cls"] > 0
    expected = parts["loss_seg"] + 0.7 * share * (0.3 * parts["loss_ins"] + 0.7 * parts["loss_cls"])
    assert loss.item() == pytest.approx(expected.item(), rel=1e-5)
    assert parts["loss"].item() == loss.item()
    assert not any(part.requires_grad for part in parts.values())


def test_segmentation_part_is_the_mean_over_kept_pixels():
    networks = StepNetworks()
    batch = drawn_batch([0, 1])
    _, parts = networks.step(batch)
    view = networks.view(batch["weak"])
    thresholds = networks.memory.thresholds.thresholds(0.5, 0.9)
    kept = view.confidence >= thresholds[view.labels]
    logits = F.interpolate(networks.student(batch["strong"])[0], size=(64, 64), mode="bilinear")
    per_pixel = F.cross_entropy(logits, view.labels, reduction="none")
    assert 0 < kept.float().mean() < 1
    assert parts["loss_seg"].item() == pytest.approx(per_pixel[kept].mean().item(), rel=1e-4)
    assert parts["kept"].item() == pytest.approx(kept.float().mean().item())


def test_paper_like_weights_scale_the_loss():
    networks = StepNetworks(loss__thresholds="paper_like", loss__confidence=0.9)
    batch = drawn_batch([0, 1])
    _, parts = networks.step(batch)
    view = networks.view(batch["weak"])
    share = (view.confidence >= 0.9).float().mean((1, 2))
    logits = F.interpolate(networks.student(batch["strong"])[0], size=(64, 64), mode="bilinear")
    per_pixel = F.cross_entropy(logits, view.labels, reduction="none").mean((1, 2))
    assert 0 < share.min() < share.max() < 1
    assert parts["loss_seg"].item() == pytest.approx((share * per_pixel).mean().item(), rel=1e-4)


def test_contrast_weight_zero_is_plain_self_training():
    batch = drawn_batch([0, 1])
    plain = StepNetworks(loss__contrast_weight=0.0)
    loss, parts = plain.step(batch)
    assert loss.item() == parts["loss_seg"].item()
    assert plain.memory.bank.written.sum() == 0
    without_masks = StepNetworks(loss__contrast_weight=0.0)
    blank = batch | {"mask_ids": torch.zeros_like(batch["mask_ids"])}
    fresh = StepNetworks(loss__contrast_weight=0.0)
    assert close(fresh.gradients(batch), without_masks.gradients(blank))
    assert not close(StepNetworks().gradients(batch), fresh.gradients(batch))


def test_before_the_ramp_only_the_bank_learns():
    batch = drawn_batch([0, 1])
    early = StepNetworks(loss__ramp=[0.5, 1.0])
    loss, parts = early.step(batch, step=1)
    assert loss.item() == parts["loss_seg"].item()
    assert parts["anchors"] == 0
    assert early.memory.bank.written.sum() > 0


def test_no_masks_at_all_is_plain_self_training_with_a_gradient_everywhere():
    batch = drawn_batch([0, 1])
    blank = batch | {"mask_ids": torch.zeros_like(batch["mask_ids"])}
    networks = StepNetworks(loss__projection="mlp")
    gradients = networks.gradients(blank)
    assert len(gradients) == len(list(networks.student.parameters()))
    assert close(gradients[:4], StepNetworks(loss__contrast_weight=0.0).gradients(batch)[:4])
    assert all((g == 0).all() for g in gradients[4:])


def test_the_projection_head_learns_from_the_contrast_alone():
    networks = StepNetworks(loss__projection="mlp")
    gradients = networks.gradients(drawn_batch([0, 1]))
    assert networks.student.embedding_dim == 16
    assert all((g != 0).any() for g in gradients[4:])


def test_teacher_receives_no_gradient():
    networks = StepNetworks()
    networks.gradients(drawn_batch([0, 1]))
    assert all(p.grad is None for p in networks.teacher.parameters())
    assert not networks.memory.bank.vectors.requires_grad


def test_order_of_the_batch_changes_nothing():
    first, second = (drawn_batch(order) for order in ([0, 1, 2], [2, 0, 1]))
    one, other = StepNetworks(), StepNetworks()
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
        for a, b in zip(
            StepNetworks().gradients(batch), StepNetworks().gradients(renamed), strict=True
        )
    )


def test_losses_without_draws_do_not_depend_on_the_order_of_mask_ids(monkeypatch):
    """Pairs are drawn in the order of ids. These losses draw nothing."""
    monkeypatch.setattr(output_contrast, "TOP_K", 1)  # grey is second in every mask
    knobs = NEWS | {
        "loss__neighbour_weight": 1.0,
        "loss__neighbour_space": "geometry",
        "loss__contrast_weight": 0.0,
    }
    first, second = drawn_batch([2, 3]), drawn_batch([0, 1])
    count = int(max(b["mask_ids"].max() for b in (first, second))) + 1
    order = torch.randperm(count - 1, generator=torch.Generator().manual_seed(0)) + 1
    new_ids = torch.cat([torch.zeros(1, dtype=torch.long), order])
    gradients, places = [], torch.rand(2, count, 4, generator=torch.Generator().manual_seed(1))
    same = torch.arange(count)
    for rename, moved in ((same, same), (new_ids, new_ids), (new_ids, same)):
        networks = StepNetworks(**knobs)
        for batch in (first, second):  # the second batch has neighbours
            geometry = torch.zeros(2, count, 4)
            geometry[:, moved] = places
            changed = {"mask_ids": rename[batch["mask_ids"]], "mask_geometry": geometry}
            gradients.append(networks.gradients(batch | changed))
    assert close(gradients[0], gradients[2])
    assert close(gradients[1], gradients[3])
    assert not close(gradients[1], gradients[5])  # masks at other places have other neighbours


def test_losses_without_draws_do_not_depend_on_the_order_of_images(monkeypatch):
    monkeypatch.setattr(output_contrast, "TOP_K", 1)
    places = torch.rand(4, 17, 4, generator=torch.Generator().manual_seed(1))
    parts = []
    for order in ([0, 1], [1, 0]):
        networks = StepNetworks(**NEWS, loss__neighbour_weight=1.0)
        for images in ([2, 3], [0, 1]):  # the second batch has neighbours
            reordered = [images[position] for position in order]
            batch = drawn_batch(reordered) | {"mask_geometry": places[reordered]}
            _, metrics = networks.step(batch)
        parts.append(metrics)
    for name in ("loss_seg", "loss_rule_out", "loss_output"):
        assert parts[0][name] > 0
        torch.testing.assert_close(parts[0][name], parts[1][name], rtol=1e-4, atol=1e-6)


def test_the_loss_of_a_learned_space_does_not_read_pseudo_labels(monkeypatch):
    places = torch.rand(2, 17, 4, generator=torch.Generator().manual_seed(1))
    metric = []
    for shift in (0, 1):

        def shifted(*arguments, shift=shift):
            view = predict_teacher(*arguments)
            return dataclasses.replace(view, labels=(view.labels + shift) % len(CLASSES))

        monkeypatch.setattr(step_module, "predict_teacher", shifted)
        knobs = {"loss__neighbour_weight": 1.0, "loss__neighbour_space": "learned"}
        networks = StepNetworks(**NEWS, **knobs)
        for images in ([2, 3], [0, 1]):  # the second batch has neighbours
            _, parts = networks.step(drawn_batch(images) | {"mask_geometry": places})
        metric.append((parts["loss_metric"], parts["loss_seg"]))
    assert metric[0][0] > 0
    assert torch.equal(metric[0][0], metric[1][0])
    assert not torch.equal(metric[0][1], metric[1][1])


def test_a_seed_draws_other_pairs_and_the_same_seed_the_same():
    batch = drawn_batch([0, 1])
    losses = [StepNetworks().step(batch, seed=seed)[0].item() for seed in (0, 0, 1)]
    assert losses[0] == losses[1]
    assert losses[0] != losses[2]


def test_a_mask_is_no_positive_of_itself_until_the_bank_remembers_it():
    networks = StepNetworks()
    _, parts = networks.step(quadrants())
    assert parts["reliable"] == 1
    assert parts["masks"] == 4
    assert parts["anchors"] == 4 * 16  # of one image
    assert parts["loss_ins"] > 0
    assert parts["loss_cls"] == 0
    _, parts = networks.step(quadrants())
    assert parts["loss_cls"] > 0


@pytest.mark.parametrize("class_mix", [0.0, 1.0])
def test_no_mask_of_a_batch_is_a_positive_of_itself(class_mix):
    # If keys of the two images were mixed up, a mask could be its own positive. With class-mix its
    # copy in the other image could.
    networks = StepNetworks(augment__class_mix=class_mix)
    one = quadrants()
    other = quadrants()
    other["mask_ids"] = other["mask_ids"] * (other["mask_ids"] < 3)  # classes 0 and 1
    one["mask_ids"] = one["mask_ids"] * (one["mask_ids"] > 2)  # classes 2 and 3
    batch = {k: torch.cat([one[k], other[k]]) for k in one}
    batch |= {"number": torch.tensor([4, 5]), "image": torch.tensor([0, 1])}
    _, parts = networks.step(batch)
    assert parts["loss_ins"] > 0
    assert parts["loss_cls"] == 0


@pytest.mark.parametrize("per_image", [1, 2])
def test_the_bank_takes_the_best_of_each_class_and_image(per_image):
    networks = StepNetworks(pairs__bank_per_image=per_image)
    batch = drawn_batch([0, 1, 2])
    networks.step(batch)
    _, classes, images = networks.memory.bank.contents()
    _, counts = np.unique(np.stack([classes, images], 1), axis=0, return_counts=True)
    assert counts.max() == per_image
    assert set(images.tolist()) == {0, 1, 2}


def test_the_bank_keeps_the_better_scored_masks():
    networks = StepNetworks(pairs__bank_per_image=1)
    batch = quadrants()
    muddy = batch["weak"].clone()
    # The second quadrant becomes class 0 too, but less confident.
    muddy[..., :32, 32:] = 0.8 * muddy[..., :32, :32] + 0.2 * muddy[..., 32:, :32]
    batch |= {
        "weak": muddy,
        "strong": muddy,
    }
    networks.step(batch)
    view = networks.view(muddy)
    vectors, classes, _ = networks.memory.bank.contents()
    assert (view.probabilities[0, 0, 2, 10] > 0.5).item()
    torch.testing.assert_close(vectors[classes == 0][0], view.embeddings[0, :, 2, 2])
    assert not torch.allclose(view.embeddings[0, :, 2, 10], view.embeddings[0, :, 2, 2])


def test_the_entropy_loss_is_the_mean_over_all_pixels():
    logits = 2 * torch.randn(2, 4, 3, 5, generator=torch.Generator().manual_seed(1))
    labels, weights = torch.zeros(2, 3, 5).long(), torch.zeros(2, 3, 5)
    loss = label_space_loss(logits, labels, weights, LossConfig(label_space="entropy"))
    entropy = torch.distributions.Categorical(logits=logits.permute(0, 2, 3, 1)).entropy()
    torch.testing.assert_close(loss, entropy.mean())


def test_without_a_kept_pixel_the_segmentation_loss_is_zero():
    logits = torch.randn(1, 4, 3, 5)
    loss = label_space_loss(logits, torch.zeros(1, 3, 5).long(), torch.zeros(1, 3, 5), LossConfig())
    assert loss == 0


def test_logits_finer_than_features_give_every_weight_a_gradient():
    """ESPNet's last layer doubles the grid: labels are learnt at its resolution, pairs at stride 4."""
    networks = StepNetworks()
    segmenter = build_network("espnet", len(CLASSES), {"p": 1, "q": 1})
    networks.student = ContrastNet(segmenter, networks.config)
    networks.teacher = frozen_copy(networks.student)
    networks.memory = Memory.empty(len(CLASSES), networks.student.embedding_dim, networks.config)
    _, metrics = networks.step(quadrants())
    assert metrics["anchors"] > 0
    assert all(gradient.abs().sum() > 0 for gradient in networks.gradients(quadrants()))


GRIDS = [(8, 2), (4, 8), (8, 1), (4, 4)]
"""Strides of the features and of the logits: 4 times finer, coarser, as fine as the image, equal."""


@pytest.mark.parametrize(("feature_stride", "logit_stride"), GRIDS)
def test_labels_are_learnt_from_the_logits_own_grid(feature_stride, logit_stride):
    networks = two_grid_networks(feature_stride, logit_stride, loss__contrast_weight=0.0)
    batch = drawn_batch([0, 1])
    _, parts = networks.step(batch)
    # The classifier reads the mean colours of blocks.
    classify = networks.student.segmenter.classifier
    weak, strong = (classify(F.avg_pool2d(batch[v], logit_stride)) for v in ("weak", "strong"))
    weak, strong = (F.interpolate(v, size=(64, 64), mode="bilinear") for v in (weak, strong))
    confidence, labels = weak.softmax(1).max(1)
    kept = confidence >= networks.memory.thresholds.thresholds(0.5, 0.9)[labels]
    expected = F.cross_entropy(strong, labels, reduction="none")[kept].mean()
    assert kept.any()
    assert parts["loss_seg"].item() == pytest.approx(expected.item(), rel=1e-4)
    assert parts["kept"].item() == pytest.approx(kept.float().mean().item())


def means_of_cells(values: torch.Tensor, cell: int) -> torch.Tensor:
    """Average pixels (B, C, H, W) over square cells, one cell after the other."""
    rows, columns = (side // cell for side in values.shape[-2:])
    means = torch.zeros(*values.shape[:2], rows, columns)
    for i in range(rows):
        for j in range(columns):
            block = values[..., i * cell : (i + 1) * cell, j * cell : (j + 1) * cell]
            means[..., i, j] = block.mean((2, 3))
    return means


@pytest.mark.parametrize(("feature_stride", "logit_stride"), GRIDS[:3])
def test_the_contrast_sees_both_networks_on_the_features_grid(
    feature_stride, logit_stride, monkeypatch
):
    networks, batch = two_grid_networks(feature_stride, logit_stride), drawn_batch([0, 1])
    contrast_losses, calls = step_module.contrast_losses, []

    def record(student, inputs, *arguments, **options):
        calls.append((student, inputs))
        return contrast_losses(student, inputs, *arguments, **options)

    monkeypatch.setattr(step_module, "contrast_losses", record)
    _, parts = networks.step(batch)
    assert parts["anchors"] > 0
    ((student, inputs),) = calls
    of_pixels = {
        view: networks.student.segmenter.logits(batch[view]).softmax(1).detach()
        for view in ("weak", "strong")
    }
    cells = means_of_cells(of_pixels["strong"], feature_stride)
    assert torch.equal(student.logits.argmax(1), cells.argmax(1))
    assert student.embeddings.shape[-2:] == cells.shape[-2:]
    _, probabilities, confidence, labels, *_ = inputs.fetched.wait()
    cells = means_of_cells(of_pixels["weak"], feature_stride).flatten(2).transpose(1, 2)
    torch.testing.assert_close(probabilities, cells)
    torch.testing.assert_close(probabilities.sum(2), torch.ones(cells.shape[:2]))
    torch.testing.assert_close(confidence, cells.amax(2))
    assert torch.equal(labels, cells.argmax(2))


@pytest.mark.parametrize("class_mix", [0.0, 1.0])
@pytest.mark.parametrize(("feature_stride", "logit_stride"), GRIDS[:3])
def test_each_loss_reaches_its_own_grid(feature_stride, logit_stride, class_mix):
    """The classifier of this network does not read the features, so that the losses are told apart."""
    options = {"augment__class_mix": class_mix, "loss__projection": "none"}
    networks = two_grid_networks(feature_stride, logit_stride, **options)
    networks.gradients(drawn_batch([0, 1]))
    segmenter = networks.student.segmenter
    assert segmenter.body.weight.grad.abs().sum() > 0
    assert segmenter.classifier.weight.grad.abs().sum() > 0
    plain = two_grid_networks(feature_stride, logit_stride, loss__contrast_weight=0.0, **options)
    plain.gradients(drawn_batch([0, 1]))
    assert plain.student.segmenter.body.weight.grad.abs().sum() == 0
    torch.testing.assert_close(
        plain.student.segmenter.classifier.weight.grad, segmenter.classifier.weight.grad
    )


NEWS = {
    "loss__contrast_weight": 0.0,
    "loss__mask_vote": "pooled",
    "loss__prior_power": 0.5,
    "loss__rule_out_weight": 0.7,
    "loss__output_weight": 0.3,
    "loss__temperature": 0.2,
}


def test_losses_of_masks_on_outputs_add_up(monkeypatch):
    # In the drawn images grey is the second likeliest class of every mask.
    monkeypatch.setattr(output_contrast, "TOP_K", 1)
    networks = StepNetworks(**NEWS)
    networks.step(drawn_batch([2, 3]))
    loss, parts = networks.step(drawn_batch([0, 1]), step=1)
    share = ramp(1, 6, networks.config.loss.ramp)
    assert 0 < share < 1
    assert parts["loss_rule_out"] > 0
    assert parts["loss_output"] > 0
    extra = 0.7 * parts["loss_rule_out"] + 0.3 * parts["loss_output"]
    assert loss.item() == pytest.approx((parts["loss_seg"] + share * extra).item(), rel=1e-5)


CONFIDENCE = 0.9985
"""Of paper_like: between half and three quarters of the drawn pixels reach it."""


@pytest.mark.parametrize("thresholds", ["class_adaptive", "paper_like"])
def test_the_rule_out_part_counts_left_out_pixels_over_kept_ones(thresholds):
    networks = StepNetworks(
        **NEWS | {"loss__thresholds": thresholds, "loss__confidence": CONFIDENCE}
    )
    batch = drawn_batch([0, 1])
    _, parts = networks.step(batch)
    view = predict_teacher(networks.teacher, batch, networks.memory, networks.config.loss)
    of_classes = networks.memory.thresholds.thresholds(0.5, 0.9)
    least = CONFIDENCE if thresholds == "paper_like" else of_classes[view.labels]
    left_out = view.confidence < least
    assert parts["kept"].item() == pytest.approx((~left_out).float().mean().item())
    assert 0 < left_out.sum() < left_out.numel()
    logits = F.interpolate(networks.student(batch["strong"])[0], size=(64, 64), mode="bilinear")
    plausible = torch.zeros_like(logits).scatter_(1, view.plausible, 1.0)
    per_pixel = -(logits.softmax(1) * plausible).sum(1).log()
    expected = per_pixel[left_out].sum() / (~left_out).sum()
    assert parts["loss_rule_out"].item() == pytest.approx(expected.item(), rel=1e-3)


def test_the_rule_out_part_is_bounded_where_no_pixel_is_kept():
    networks = StepNetworks(**NEWS | {"loss__thresholds": "paper_like", "loss__confidence": 1.0})
    batch = drawn_batch([0, 1])
    _, parts = networks.step(batch)
    assert parts["kept"] == 0
    view = predict_teacher(networks.teacher, batch, networks.memory, networks.config.loss)
    logits = F.interpolate(networks.student(batch["strong"])[0], size=(64, 64), mode="bilinear")
    plausible = torch.zeros_like(logits).scatter_(1, view.plausible, 1.0)
    expected = -(logits.softmax(1) * plausible).sum(1).log().mean() / 0.05
    assert parts["loss_rule_out"].item() == pytest.approx(expected.item(), rel=1e-3)


def test_parts_of_weight_zero_are_not_computed():
    _, parts = StepNetworks(**NEWS | {"loss__rule_out_weight": 0.0}).step(drawn_batch([0, 1]))
    assert "loss_rule_out" not in parts
    assert "loss_output" in parts
    _, parts = StepNetworks(**NEWS | {"loss__output_weight": 0.0}).step(drawn_batch([0, 1]))
    assert "loss_output" not in parts


def test_neighbours_change_labels_of_masks_once_the_ring_has_masks():
    networks = StepNetworks(**NEWS, loss__neighbour_weight=5.0, loss__neighbour_space="geometry")
    batch = drawn_batch([0, 1])
    geometry = torch.rand(2, 17, 4, generator=torch.Generator().manual_seed(0))
    batch["mask_geometry"] = geometry
    arguments = (networks.teacher, batch, networks.memory, networks.config.loss)
    first, plain = predict_teacher(*arguments), StepNetworks(**NEWS)
    alone = predict_teacher(plain.teacher, batch, plain.memory, plain.config.loss)
    assert torch.equal(first.labels, alone.labels)
    assert networks.memory.neighbours is not None
    assert len(networks.memory.neighbours) == 32
    second = predict_teacher(*arguments)
    changed = second.labels != first.labels
    assert 0 < changed.float().mean() < 1


def test_the_contrast_at_boundaries_is_added_after_the_ramp_begins():
    networks = StepNetworks(
        **NEWS | {"loss__rule_out_weight": 0.0, "loss__output_weight": 0.0},
        loss__ring_weight=0.6,
        pairs__min_cells=2,
    )
    networks.step(drawn_batch([2, 3]))
    loss, parts = networks.step(drawn_batch([0, 1]), step=6)
    assert parts["loss_ring"] > 0
    assert parts["loss_ins"] == parts["loss_cls"] == 0
    expected = parts["loss_seg"] + 0.6 * parts["loss_ring"]
    assert loss.item() == pytest.approx(expected.item(), rel=1e-5)
    _, before = networks.step(drawn_batch([0, 1]), step=0)
    assert before["loss_ring"] == 0
