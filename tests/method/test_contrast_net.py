"""The network of student and teacher: shapes, lengths and types of its outputs."""

import pytest
import torch
from step_networks import StepNetworks
from torch.nn import functional as F
from train_samples import CLASSES, colour_segmenter, drawn_batch, small_config

from sfss_ray.method.contrast_net import ContrastNet
from sfss_ray.models.architectures.catalogue import build_network


def test_embeddings_have_length_one():
    for projection in ("none", "mlp"):
        student = StepNetworks(loss__projection=projection).student
        embeddings = student(drawn_batch([0])["weak"])[1]
        torch.testing.assert_close(embeddings.norm(dim=1), torch.ones(1, 16, 16))


@pytest.mark.parametrize(("projection", "dim"), [("none", 3), ("mlp", 16)])
def test_the_projection_decides_the_size_of_the_embeddings(projection, dim):
    net = ContrastNet(colour_segmenter(), small_config(loss__projection=projection).train)
    logits, embeddings, _ = net(drawn_batch([0, 1])["weak"])
    assert net.embedding_dim == dim
    assert logits.shape == (2, len(CLASSES), 16, 16)
    assert embeddings.shape == (2, dim, 16, 16)
    assert len(list(net.projection.parameters())) == (4 if projection == "mlp" else 0)


def test_without_a_projection_the_embeddings_are_the_features():
    net = ContrastNet(colour_segmenter(), small_config(loss__projection="none").train)
    images = drawn_batch([0])["weak"]
    embeddings = net(images).embeddings
    features = net.segmenter(images).features
    torch.testing.assert_close(embeddings * features.norm(dim=1, keepdim=True), features)


def test_bf16_networks_return_float32():
    net = ContrastNet(colour_segmenter(), small_config(precision="bf16").train)
    plain = ContrastNet(net.segmenter, small_config().train)
    images = drawn_batch([0])["weak"]
    logits, embeddings, _ = net(images)
    assert logits.dtype == embeddings.dtype == torch.float32
    assert not torch.equal(logits, plain(images)[0])


def test_features_finer_than_stride_four_are_averaged():
    """The contrast of a grid of stride 2 would cost four times as much."""
    fine = build_network("espnet", len(CLASSES), {"p": 1, "q": 1}).eval()
    net = ContrastNet(fine, small_config(loss__projection="none").train)
    images = torch.rand(1, 3, 64, 96)
    logits, embeddings, _ = net(images)
    assert logits.shape[-2:] == (64, 96), "the loss of the labels sees the network's own logits"
    features = fine(images).features
    blocks = features.unfold(2, 2, 2).unfold(3, 2, 2).mean((-2, -1))
    torch.testing.assert_close(embeddings, F.normalize(blocks, dim=1))
