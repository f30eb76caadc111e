"""Networks whose features and logits have different grids."""

from step_networks import StepNetworks
from torch import Tensor, nn
from torch.nn import functional as F
from train_samples import CLASSES, colour_segmenter

from sfss_ray.method.contrast_net import ContrastNet
from sfss_ray.method.memory import Memory
from sfss_ray.method.teacher import frozen_copy
from sfss_ray.models.segmenter import Segmenter, SegmenterOutput


class TwoGrids(Segmenter):
    """Classifies the mean colours of blocks; its features are a convolution of other blocks."""

    def __init__(self, feature_stride: int, logit_stride: int):
        plain = colour_segmenter()
        body = nn.Conv2d(3, 3, feature_stride, stride=feature_stride)
        super().__init__(body, plain.classifier, plain.card())
        self.logit_stride = logit_stride

    def output_grid(self, images: Tensor) -> SegmenterOutput:
        logits = self.classifier(F.avg_pool2d(self.prepare(images), self.logit_stride))
        return SegmenterOutput(self.body(images), logits)


def two_grid_networks(feature_stride: int, logit_stride: int, **changes) -> StepNetworks:
    """Return student and teacher of these strides in pixels; `changes` are those of `small_config`."""
    networks = StepNetworks(**changes)
    segmenter = TwoGrids(feature_stride, logit_stride)
    networks.student = ContrastNet(segmenter, networks.config)
    networks.teacher = frozen_copy(networks.student)
    embedding_dim = networks.student.embedding_dim
    networks.memory = Memory.empty(len(CLASSES), embedding_dim, networks.config)
    return networks
