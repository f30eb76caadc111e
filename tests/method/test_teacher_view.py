"""The teacher's predictions: one view, several views, and the running class shares."""

import torch
from step_networks import StepNetworks, quadrants
from torch.nn import functional as F
from train_samples import drawn_batch

from sfss_ray.method.contrast_net import ContrastNet
from sfss_ray.method.teacher_view import predict_teacher
from sfss_ray.models.architectures.catalogue import build_network

PLAIN: dict = {"loss__mask_vote": "none", "loss__prior_power": 0.0}


def test_a_plain_view_is_the_softmax_of_the_teacher():
    networks, weak = StepNetworks(**PLAIN), drawn_batch([0, 1])["weak"]
    view = networks.view(weak)
    logits, embeddings, _ = networks.teacher(weak)
    full = F.interpolate(logits, size=weak.shape[-2:], mode="bilinear").softmax(1)
    torch.testing.assert_close(view.confidence, full.amax(1))
    assert torch.equal(view.labels, full.argmax(1))
    torch.testing.assert_close(view.probabilities, logits.softmax(1))
    assert torch.equal(view.embeddings, embeddings)
    assert not view.probabilities.requires_grad


def test_several_views_are_averaged():
    weak = drawn_batch([0, 1])["weak"]
    once, mirrored = StepNetworks(**PLAIN), StepNetworks(**PLAIN, loss__teacher_flip=True)
    zoomed = StepNetworks(**PLAIN, loss__teacher_scales=(1.0, 1.5))
    plain, both = once.view(weak), mirrored.view(weak)
    turned = once.view(weak.flip(3))
    mean = (plain.confidence + turned.confidence.flip(2)) / 2
    same = plain.labels == turned.labels.flip(2)
    assert same.float().mean() > 0.5
    assert torch.allclose(both.confidence[same], mean[same], atol=1e-5)
    assert torch.equal(both.embeddings, plain.embeddings)
    assert both.probabilities.shape == plain.probabilities.shape
    assert torch.allclose(both.probabilities.sum(1), torch.ones(()), atol=1e-5)
    assert not torch.equal(zoomed.view(weak).confidence, plain.confidence)


def test_the_vote_gives_a_mask_one_label():
    networks = StepNetworks(loss__mask_vote="majority", loss__prior_power=0.0)
    batch = quadrants() | {"mask_ids": torch.ones(1, 64, 64, dtype=torch.long)}
    batch["mask_ids"][..., :8] = 0
    view = predict_teacher(networks.teacher, batch, networks.memory, networks.config.loss)
    assert len(view.labels[batch["mask_ids"] == 1].unique()) == 1
    assert view.labels[0, 0, 0] == 0
    assert view.labels[0, 63, 0] == 2


def test_the_prior_is_updated_only_if_it_is_used():
    weak = drawn_batch([0])["weak"]
    unused, used = StepNetworks(**PLAIN), StepNetworks(loss__prior_power=0.5)
    before = used.memory.prior.total.clone()
    for networks in (unused, used):
        networks.view(weak)
    assert torch.equal(unused.memory.prior.total, before)
    assert not torch.equal(used.memory.prior.total, before)


def test_older_class_shares_fade_once_per_step():
    networks = StepNetworks(loss__prior_power=0.5)
    batch = quadrants()
    memory, config = networks.memory, networks.config.loss
    prior = memory.prior
    predict_teacher(networks.teacher, batch, memory, config)
    first = prior.total.clone()
    predict_teacher(networks.teacher, batch, memory, config, first_part=False)
    torch.testing.assert_close(prior.total, 2 * first, rtol=1e-4, atol=1e-3)
    predict_teacher(networks.teacher, batch, memory, config)
    torch.testing.assert_close(prior.total, 2.96 * first, rtol=1e-4, atol=1e-3)


def test_probabilities_of_finer_logits_are_means_over_the_cells_of_the_embeddings():
    segmenter = build_network("espnet", 5, {"p": 1, "q": 1}).eval()
    networks = StepNetworks(**PLAIN)
    teacher = ContrastNet(segmenter, networks.config)
    weak = torch.rand(2, 3, 32, 64)
    batch = {"weak": weak, "mask_ids": torch.zeros(2, 32, 64, dtype=torch.long)}
    view = predict_teacher(teacher, batch, networks.memory, networks.config.loss)
    full = segmenter.logits(weak).softmax(1)
    assert view.probabilities.shape == (2, 5, 8, 16)
    cells = full.unfold(2, 4, 4).unfold(3, 4, 4).mean((-2, -1))
    torch.testing.assert_close(view.probabilities, cells)
    assert torch.equal(view.labels, full.argmax(1))


def test_zoomed_views_keep_the_multiple_of_the_network():
    networks, weak = (
        StepNetworks(**PLAIN, loss__teacher_scales=(0.7, 1.0)),
        drawn_batch([0])["weak"],
    )
    networks.teacher.segmenter.size_multiple = 16
    sizes = []
    networks.teacher.segmenter.register_forward_pre_hook(lambda _, x: sizes.append(x[0].shape[-2:]))
    networks.view(weak)
    assert weak.shape[-2:] == (64, 64)
    assert sizes == [(64, 64), (48, 48)]
