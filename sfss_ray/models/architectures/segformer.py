"""SegFormer, DAFormer, HRDA: a Mix Transformer (MiT) of transformers' under their decode heads.

Sources: SegFormer (Xie et al., NeurIPS 2021) for sizes MiT-B0 to B5; DAFormer (Hoyer et al., CVPR 2022).
Nothing is downloaded: configs are stated here, weights come from a checkpoint or from chance.

In training mode, dropout (0.1, before the classifier) and stochastic depth (0.1, growing with depth)
act in the student, and BatchNorm of the decode head as `train.batch_norm` says; the encoder has
LayerNorm alone. The teacher is always in eval mode: it drops nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from sfss_ray.errors import ConfigError
from sfss_ray.models.architectures.daformer_head import POINTWISE, SEPARABLE_CONTEXT, DAFormerHead
from sfss_ray.models.architectures.hrda import HRDABody, HRDASegmenter
from sfss_ray.models.architectures.mit_heads import MMSegHead
from sfss_ray.models.segmenter import Segmenter


@dataclass(frozen=True)
class MitSize:
    """Widths and depths of the four stages, and the width of SegFormer's decode head."""

    widths: tuple[int, int, int, int]
    depths: tuple[int, int, int, int]
    decoder: int


_WIDE = (64, 128, 320, 512)
SIZES = {
    "b0": MitSize((32, 64, 160, 256), (2, 2, 2, 2), 256),
    "b1": MitSize(_WIDE, (2, 2, 2, 2), 256),
    "b2": MitSize(_WIDE, (3, 4, 6, 3), 768),
    "b3": MitSize(_WIDE, (3, 4, 18, 3), 768),
    "b4": MitSize(_WIDE, (3, 8, 27, 3), 768),
    "b5": MitSize(_WIDE, (3, 6, 40, 3), 768),
}
FUSED = 256
"""Width of the features of mmseg's and DAFormer's heads."""


class MitBody(nn.Module):
    """Images (B, 3, H, W) -> features (B, F, H / 4, W / 4): encoder, then decode head.

    The attribute `decode_head` tells the optimiser which part of the body learns at the head's rate.
    """

    def __init__(self, encoder: nn.Module, decode_head: nn.Module):
        super().__init__()
        self.encoder = encoder
        self.decode_head = decode_head

    def forward(self, images: Tensor) -> Tensor:
        stages = []
        for stage in self.encoder.get_submodule("stages").children():
            images = stage(images)
            stages.append(images)
        return self.decode_head(stages)


def segformer_builder(size: str) -> Callable[..., Segmenter]:
    """transformers' SegformerForSemanticSegmentation, taken apart before its classifier.

    Checkpoints of NVlabs' code and of DAFormer's fit too, with `original_norms`: most of their
    LayerNorms add 1e-6 to the variance where those of transformers add 1e-5. `decoder_width` is that of
    the decode head, where it is not the size's own.
    """

    def build(
        num_classes: int, original_norms: bool = False, decoder_width: int | None = None
    ) -> Segmenter:
        whole = _of_transformers(size, num_classes, decoder_width)
        if original_norms:
            _use_original_norms(whole.segformer)
        classifier = whole.decode_head.classifier
        whole.decode_head.classifier = nn.Identity()
        return Segmenter(MitBody(whole.segformer, whole.decode_head), classifier)

    return build


def segformer_mmseg_builder(size: str) -> Callable[..., Segmenter]:
    """SegFormer as mmsegmentation builds it: 1x1 convolutions with BatchNorm and ReLU in the head."""

    def build(num_classes: int) -> Segmenter:
        encoder = _of_transformers(size, num_classes).segformer
        _set_epsilon(encoder, ("layer_norm", "layernorm_before", "layernorm_after"), 1e-6)
        head = MMSegHead(SIZES[size].widths, FUSED)
        return Segmenter(MitBody(encoder, head), _classifier(num_classes))

    return build


def daformer_builder(size: str) -> Callable[..., Segmenter]:
    """DAFormer: by default context of four dilations over the fused stages (MiT-B5 in its paper)."""

    def build(
        num_classes: int,
        fusion: Mapping[str, Any] = SEPARABLE_CONTEXT,
        last: Mapping[str, Any] | None = None,
    ) -> Segmenter:
        head = DAFormerHead(SIZES[size].widths, FUSED, fusion, last)
        return Segmenter(MitBody(_original_encoder(size), head), _classifier(num_classes))

    return build


def hrda_builder(size: str) -> Callable[..., Segmenter]:
    """HRDA, and MIC made from it: DAFormer's head at two sizes (MiT-B5 in its paper)."""

    def build(
        num_classes: int,
        fusion: Mapping[str, Any] = SEPARABLE_CONTEXT,
        attention_fusion: Mapping[str, Any] = POINTWISE,
    ) -> Segmenter:
        widths = SIZES[size].widths
        head = DAFormerHead(widths, FUSED, fusion)
        attention = DAFormerHead(widths, FUSED, attention_fusion)
        body = HRDABody(_original_encoder(size), head, attention)
        return HRDASegmenter(body, _classifier(num_classes), _classifier(num_classes))

    return build


def _original_encoder(size: str) -> nn.Module:
    return _use_original_norms(_of_transformers(size, 2).segformer)


def _use_original_norms(encoder: Any) -> nn.Module:
    """Give it the LayerNorms of NVlabs' code: patch embedding and reduction keep 1e-5."""
    _set_epsilon(encoder, ("layernorm_before", "layernorm_after"), 1e-6)
    for stage in encoder.stages:
        stage.layer_norm.eps = 1e-6
    return encoder


def _classifier(num_classes: int) -> nn.Conv2d:
    layer = nn.Conv2d(FUSED, num_classes, 1)
    nn.init.normal_(layer.weight, 0, 0.01)
    assert layer.bias is not None
    nn.init.zeros_(layer.bias)
    return layer


def _set_epsilon(encoder: nn.Module, names: tuple[str, ...], epsilon: float) -> None:
    for name, module in encoder.named_modules():
        if isinstance(module, nn.LayerNorm) and name.rpartition(".")[2] in names:
            module.eps = epsilon


def _of_transformers(size: str, num_classes: int, decoder_width: int | None = None) -> Any:
    """A SegformerForSemanticSegmentation with random weights; ConfigError without the package."""
    try:
        from transformers import SegformerConfig, SegformerForSemanticSegmentation
    except ImportError as error:
        raise ConfigError(_missing(size, "transformers is not installed")) from error
    shape = SIZES[size]
    config = SegformerConfig(
        depths=shape.depths,
        hidden_sizes=shape.widths,
        num_attention_heads=(1, 2, 5, 8),
        sr_ratios=(8, 4, 2, 1),
        mlp_ratios=(4, 4, 4, 4),
        decoder_hidden_size=decoder_width or shape.decoder,
        num_labels=num_classes,  # pyright: ignore[reportCallIssue]
    )
    whole = SegformerForSemanticSegmentation(config)
    if not hasattr(whole.segformer, "stages"):
        raise ConfigError(_missing(size, "the installed transformers is too old"))
    return whole


def _missing(size: str, why: str) -> str:
    return (
        f"networks on MiT-{size.upper()} are built with transformers, and {why}: run"
        " `pip install 'sfss-ray[transformers]'`"
    )
