"""SegFormer, DAFormer and HRDA: the Mix Transformer (MiT) of transformers with their decode heads.

Sources: SegFormer (Xie et al., NeurIPS 2021) for the sizes MiT-B0 to B5; DAFormer (Hoyer et al., CVPR
2022). Nothing is downloaded: the sizes are defined here, and weights are random or come from a
checkpoint.

In training mode, the student has dropout (0.1, before the classifier) and stochastic depth (up to 0.1,
growing with depth). BatchNorm of the decode head follows `train.batch_norm`; the encoder has only
LayerNorm. The teacher is always in eval mode and drops nothing.
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
    """Widths and depths of the four stages of a MiT, and the width of SegFormer's decode head on it."""

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
"""Channels of the features of mmseg's and DAFormer's heads."""


class MitBody(nn.Module):
    """Maps images (B, 3, H, W) to features (B, F, H / 4, W / 4) with an encoder and a decode head.

    By its name, `decode_head` is the part of the body that trains at the head's learning rate.
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
    """Return the builder of transformers' SegformerForSemanticSegmentation, split before its classifier.

    Checkpoints of NVlabs' and DAFormer's code need the option `original_norms`: most of their LayerNorms
    have an epsilon of 1e-6 instead of 1e-5. The option `decoder_width` is the width of the decode head,
    if it is not the usual one of the size.
    """

    def build(
        num_classes: int, original_norms: bool = False, decoder_width: int | None = None
    ) -> Segmenter:
        model = _transformers_model(size, num_classes, decoder_width)
        if original_norms:
            _use_original_norms(model.segformer)
        classifier = model.decode_head.classifier
        model.decode_head.classifier = nn.Identity()
        return Segmenter(MitBody(model.segformer, model.decode_head), classifier)

    return build


def segformer_mmseg_builder(size: str) -> Callable[..., Segmenter]:
    """Return the builder of mmsegmentation's SegFormer, which has another decode head."""

    def build(num_classes: int) -> Segmenter:
        encoder = _transformers_model(size, num_classes).segformer
        _set_epsilon(encoder, ("layer_norm", "layernorm_before", "layernorm_after"), 1e-6)
        head = MMSegHead(SIZES[size].widths, FUSED)
        return Segmenter(MitBody(encoder, head), _classifier(num_classes))

    return build


def daformer_builder(size: str) -> Callable[..., Segmenter]:
    """Return the builder of DAFormer, by default with the paper's head: context over the fused stages.

    The paper uses MiT-B5. For the options see `DAFormerHead`.
    """

    def build(
        num_classes: int,
        fusion: Mapping[str, Any] = SEPARABLE_CONTEXT,
        last: Mapping[str, Any] | None = None,
    ) -> Segmenter:
        head = DAFormerHead(SIZES[size].widths, FUSED, fusion, last)
        return Segmenter(MitBody(_original_encoder(size), head), _classifier(num_classes))

    return build


def hrda_builder(size: str) -> Callable[..., Segmenter]:
    """Return the builder of HRDA, and of MIC, which is based on it: DAFormer's head at two scales.

    The paper uses MiT-B5. The options describe the layers that fuse the stages in the two heads.
    """

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
    return _use_original_norms(_transformers_model(size, 2).segformer)


def _use_original_norms(encoder: Any) -> nn.Module:
    """Set the LayerNorm epsilons of NVlabs' code; patch embedding and reduction keep 1e-5."""
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


def _transformers_model(size: str, num_classes: int, decoder_width: int | None = None) -> Any:
    """Return a SegformerForSemanticSegmentation with random weights.

    Raises:
        ConfigError: transformers is missing or too old.
    """
    try:
        from transformers import SegformerConfig, SegformerForSemanticSegmentation
    except ImportError as error:
        raise ConfigError(_install_message(size, "transformers is not installed")) from error
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
    model = SegformerForSemanticSegmentation(config)
    if not hasattr(model.segformer, "stages"):
        raise ConfigError(_install_message(size, "the installed transformers is too old"))
    return model


def _install_message(size: str, reason: str) -> str:
    return (
        f"networks on MiT-{size.upper()} are built with transformers, and {reason}: run"
        " `pip install 'sfss-ray[transformers]'`"
    )
