"""Whether parts of a Sam are segment_anything's own, whose algebra may be rearranged.

Subclasses are not, nor modules with a method or a hook of their own: what they compute may differ.
"""

from collections.abc import Iterable

from segment_anything.modeling import (
    ImageEncoderViT,
    MaskDecoder,
    PromptEncoder,
    Sam,
    TwoWayTransformer,
    image_encoder,
    transformer,
)
from segment_anything.modeling.common import LayerNorm2d, MLPBlock
from segment_anything.modeling.mask_decoder import MLP
from torch import nn

_SHARED = (
    MLPBlock, LayerNorm2d, nn.Linear, nn.LayerNorm, nn.Sequential, nn.ModuleList, nn.GELU, nn.ReLU,
    nn.SiLU, nn.LeakyReLU,
)  # fmt: skip
_OF_DECODER = (
    *_SHARED, MaskDecoder, TwoWayTransformer, transformer.TwoWayAttentionBlock,
    transformer.Attention, MLP, nn.Embedding, nn.ConvTranspose2d,
)  # fmt: skip
_OF_ENCODER = (
    *_SHARED, ImageEncoderViT, image_encoder.PatchEmbed, image_encoder.Block,
    image_encoder.Attention, nn.Conv2d,
)  # fmt: skip


def is_stock_encoder(encoder: nn.Module) -> bool:
    """Whether an image encoder is segment_anything's in every module."""
    return _are_all_of(_OF_ENCODER, encoder.modules()) and _none_is_patched(encoder.modules())


def is_stock(sam: Sam) -> bool:
    """Whether mask decoder and prompt encoder are segment_anything's."""
    decoder, prompts = sam.mask_decoder, sam.prompt_encoder
    return (
        _are_all_of(_OF_DECODER, decoder.modules())
        and _none_is_patched((*decoder.modules(), *prompts.modules()))
        and type(prompts) is PromptEncoder
        and type(decoder.transformer) is TwoWayTransformer
        and len(decoder.transformer.layers) > 0
    )


def _are_all_of(classes: tuple[type, ...], modules: Iterable[nn.Module]) -> bool:
    return all(type(module) in classes for module in modules)


def _none_is_patched(modules: Iterable[nn.Module]) -> bool:
    return not any(_is_patched(module) for module in modules)


def _is_patched(module: nn.Module) -> bool:
    """Whether this one module computes otherwise than its class: by hooks, or by a method of its own."""
    methods = (name for name in vars(module) if callable(getattr(type(module), name, None)))
    return bool(module._forward_hooks or module._forward_pre_hooks or any(methods))
