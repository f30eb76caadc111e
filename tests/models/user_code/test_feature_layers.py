"""Tests of finding the feature layer of a module, and of recording its features."""

from __future__ import annotations

import pytest
import torch
from segmentation_modules import NUM_CLASSES, AddedScores, UNet
from torch import Tensor, nn
from torchvision.models import segmentation

from sfss_ray.errors import ConfigError
from sfss_ray.models.user_code.feature_layers import (
    check_feature_layer,
    find_feature_layer,
    recorded_features,
    single_features,
)
from sfss_ray.models.user_code.module_outputs import find_logits


def layer_of(module: nn.Module, classes: int = NUM_CLASSES) -> str:
    images = torch.rand(1, 3, 64, 96)
    return find_feature_layer(module.eval(), images, lambda output: find_logits(output, classes))


class WithHead(nn.Module):
    """Features at stride 8 and a head that maps them to logits."""

    def __init__(self, head: nn.Module, width: int = 16):
        super().__init__()
        self.features = nn.Conv2d(3, width, 3, 8, 1)
        self.head = head

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.features(x))


class ChannelsLastLinear(nn.Linear):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


def test_it_is_what_the_last_convolution_before_the_logits_reads():
    assert layer_of(UNet()) == "head:input"
    assert layer_of(WithHead(nn.Conv2d(16, NUM_CLASSES, 1))) == "head:input"
    assert layer_of(WithHead(nn.ConvTranspose2d(16, NUM_CLASSES, 2, 2))) == "head:input"


@pytest.mark.parametrize("classes", [16, 19])
def test_it_is_what_the_classifier_of_torchvisions_deeplab_reads(classes):
    """With 16 classes the first convolution of its backbone has as many outputs as classes too."""
    network = segmentation.deeplabv3_mobilenet_v3_large(
        weights=None, weights_backbone=None, num_classes=classes, aux_loss=True
    )
    assert layer_of(network, classes) == "classifier.4:input"


def test_of_scores_that_are_added_the_finest_is_taken():
    """The last convolution has stride 16. The first one has as many outputs, but they are no scores."""
    assert layer_of(AddedScores()) == "scores.0:input"


def test_a_layer_of_stride_4_is_fine_enough():
    module = AddedScores()
    module.stages[1].stride = module.stages[2].stride = (1, 1)
    assert layer_of(module) == "scores.2:input"


def test_convolutions_that_only_enlarge_scores_are_left_out():
    enlarge = nn.ConvTranspose2d(NUM_CLASSES, NUM_CLASSES, 4, 2, 1)
    with torch.no_grad():
        enlarge.weight.copy_(torch.eye(NUM_CLASSES)[:, :, None, None] * torch.rand(4, 4))
    depthwise = nn.ConvTranspose2d(NUM_CLASSES, NUM_CLASSES, 4, 2, 1, groups=NUM_CLASSES)
    head = nn.Sequential(nn.Conv2d(16, NUM_CLASSES, 1), enlarge, depthwise)
    assert layer_of(WithHead(head)) == "head.0:input"


def test_heads_without_a_convolution_of_class_scores():
    shuffled = nn.Sequential(nn.Conv2d(16, 4 * NUM_CLASSES, 1), nn.PixelShuffle(2))
    assert layer_of(WithHead(shuffled)) == "head.0:input"
    assert layer_of(WithHead(ChannelsLastLinear(16, NUM_CLASSES))) == "features"


def test_heads_that_take_no_part_or_run_twice_do_not_count():
    class Twice(WithHead):
        def forward(self, x):
            features = self.features(x)
            self.auxiliary(features)
            return self.head(features) + self.head(features.flip(3)).flip(3)

    module = Twice(nn.Conv2d(16, NUM_CLASSES, 1))
    module.auxiliary = nn.Conv2d(16, NUM_CLASSES, 1)
    assert layer_of(module) == "features"


def test_modules_that_cannot_be_trained_are_refused():
    class Untrainable(WithHead):
        @torch.no_grad()
        def forward(self, x):
            return super().forward(x)

    with pytest.raises(ConfigError, match=r"logits without gradients.*remove torch\.no_grad\(\)"):
        layer_of(Untrainable(nn.Conv2d(16, NUM_CLASSES, 1)))
    with pytest.raises(ConfigError, match=r"no convolution that runs once.*give feature_layer"):
        layer_of(ChannelsLastLinear(3, NUM_CLASSES))


def test_the_search_leaves_no_hooks_and_no_gradients():
    module = UNet()
    layer_of(module)
    assert not any(layer._forward_hooks for layer in module.modules())
    assert all(p.grad is None for p in module.parameters())


def test_features_are_what_a_layer_returns_or_reads():
    module = WithHead(nn.Conv2d(16, NUM_CLASSES, 1)).eval()
    images = torch.rand(1, 3, 32, 32)
    expected = module.features(images)
    for layer in ("features", "head:input"):
        with recorded_features(module, layer) as records:
            module(images)
        assert torch.equal(single_features(records, layer), expected)
    assert not module.head._forward_pre_hooks


def test_features_of_another_kind_are_refused():
    with pytest.raises(ConfigError, match="'a' ran 2 times in one pass"):
        single_features([1, 2], "a")
    with pytest.raises(ConfigError, match=r"'a' returns \(3,\): allowed are features"):
        single_features([torch.zeros(3)], "a")
    with pytest.raises(ConfigError, match="'a:input' reads list: allowed are features"):
        single_features([[]], "a:input")


def test_names_of_layers_are_checked():
    module = UNet()
    for name in ("head", "head:input", "down.1.0"):
        check_feature_layer(module, name)
    with pytest.raises(ConfigError, match="no layer 'heat': similar names are head"):
        check_feature_layer(module, "heat:input")
