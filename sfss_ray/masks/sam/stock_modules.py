"""Whether parts of a Sam are segment_anything's own, whose algebra may be rearranged.

Subclasses are not, nor modules with a method or a hook of their own, nor any module while a method of
its class is replaced: what they compute may differ. The first difference is put into words.
"""

from collections.abc import Iterable, Iterator
from types import FunctionType, MethodType
from typing import Any, cast

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
from segment_anything.modeling.prompt_encoder import PositionEmbeddingRandom
from torch import nn
from torch.nn.modules import module as torch_module

_ACTIVATIONS = (nn.GELU, nn.ReLU, nn.SiLU, nn.LeakyReLU)
_SHARED = (
    MLPBlock, LayerNorm2d, nn.Linear, nn.LayerNorm, nn.Sequential, nn.ModuleList, *_ACTIVATIONS,
)  # fmt: skip
_OF_DECODER = (
    *_SHARED, MaskDecoder, TwoWayTransformer, transformer.TwoWayAttentionBlock,
    transformer.Attention, MLP, nn.Embedding, nn.ConvTranspose2d,
)  # fmt: skip
_OF_PROMPTS = (PromptEncoder, PositionEmbeddingRandom, nn.Embedding, nn.ModuleList)
_OF_ENCODER = (
    *_SHARED, ImageEncoderViT, image_encoder.PatchEmbed, image_encoder.Block,
    image_encoder.Attention, nn.Conv2d,
)  # fmt: skip
_FUNCTIONS_OF_ENCODER = ("get_rel_pos", "add_decomposed_rel_pos")
_PARTS_OF_PROMPTS = ("pe_layer", "point_embeddings", "not_a_point_embed", "no_mask_embed")
_KEEPS_VALUES = "torch.utils._contextlib"  # wrappers such as no_grad's


def is_stock_encoder(encoder: nn.Module) -> bool:
    """Whether an image encoder is segment_anything's in every module."""
    return next(_changes_of_encoder(encoder), None) is None


def is_stock(sam: Sam) -> bool:
    """Whether mask decoder and prompt encoder are segment_anything's."""
    return next(changes(sam), None) is None


def changes(sam: Sam, name: str = "sam") -> Iterator[str]:
    """What of mask decoder and prompt encoder is not segment_anything's, as clauses.

    Args:
        sam: the model.
        name: of the model in the clauses.
    """
    decoder, prompts = sam.mask_decoder, sam.prompt_encoder
    yield from _changed_calls((*_OF_DECODER, *_OF_PROMPTS))
    yield from _changed_root(decoder, MaskDecoder, f"{name}.mask_decoder")
    yield from _changed_modules(_named(decoder, f"{name}.mask_decoder"), _OF_DECODER)
    if not _has_stock_layout(decoder):
        yield f"{name}.mask_decoder has other layers than segment_anything's"
    yield from _changed_root(prompts, PromptEncoder, f"{name}.prompt_encoder")
    yield from _changed_modules(_named_prompts(prompts, f"{name}.prompt_encoder"), _OF_PROMPTS)


def origin(function: object) -> tuple[str, str]:
    """Module and qualified name that a function's code was written under.

    Unlike __module__ and __qualname__, a wrapper does not inherit them. Wrappers that leave values
    alone, such as no_grad's, are ignored. Empty for an object that is no function.
    """
    if isinstance(function, MethodType | staticmethod | classmethod):
        function = function.__func__
    if not isinstance(function, FunctionType):
        return "", ""
    module = function.__globals__.get("__name__", "")
    if module == _KEEPS_VALUES and hasattr(function, "__wrapped__"):
        return origin(function.__wrapped__)
    return module, function.__code__.co_qualname


def is_method_of(owner: type, method: object, name: str) -> bool:
    """Whether a method is the one that a class was written with."""
    return origin(method) == (owner.__module__, f"{owner.__qualname__}.{name}")


def _changes_of_encoder(encoder: nn.Module) -> Iterator[str]:
    yield from _changed_calls(_OF_ENCODER)
    for name in _FUNCTIONS_OF_ENCODER:
        if origin(getattr(image_encoder, name, None)) != (image_encoder.__name__, name):
            yield f"{image_encoder.__name__}.{name} was replaced"
    yield from _changed_root(encoder, ImageEncoderViT, "image_encoder")
    yield from _changed_modules(_named(encoder, "image_encoder"), _OF_ENCODER)
    for block in cast("Any", encoder).blocks:
        if not _are(image_encoder.Block, block) or not _are(image_encoder.Attention, block.attn):
            yield "image_encoder has other layers than segment_anything's"


def _changed_calls(classes: Iterable[type[nn.Module]]) -> Iterator[str]:
    """What was replaced or registered for all modules of a class."""
    hooks = ("_global_forward_hooks", "_global_forward_pre_hooks")
    if any(getattr(torch_module, name, None) for name in hooks):
        yield "a hook for all modules is registered with torch"
    if origin(nn.Module.__call__)[0] != torch_module.__name__:
        yield "torch.nn.Module.__call__ was replaced"
    for cls in classes:
        for name, method in _methods(cls):
            if not is_method_of(cls, method, name):
                yield f"{cls.__module__}.{cls.__qualname__}.{name} was replaced"


def _methods(cls: type[nn.Module]) -> Iterator[tuple[str, Any]]:
    """Methods that a forward pass may run, as the class itself defines them."""
    if cls.__module__.startswith("torch."):
        yield from ((n, m) for n, m in vars(cls).items() if n == "forward")
        return
    for name, method in vars(cls).items():
        if callable(method) and (name == "__call__" or not name.startswith("__")):
            yield name, method


def _named(root: nn.Module, name: str) -> Iterator[tuple[str, nn.Module]]:
    for path, module in root.named_modules():
        yield f"{name}.{path}" if path else name, module


def _named_prompts(prompts: nn.Module, name: str) -> Iterator[tuple[str, nn.Module]]:
    """Without the layers for masks, which a prompt of points does not use."""
    yield name, prompts
    for part in _PARTS_OF_PROMPTS:
        yield from _named(getattr(prompts, part), f"{name}.{part}")


def _changed_root(root: object, cls: type, name: str) -> Iterator[str]:
    if type(root) is not cls:
        yield f"{name} is a {type(root).__name__}, not segment_anything's {cls.__name__}"


def _changed_modules(
    modules: Iterable[tuple[str, nn.Module]], classes: tuple[type, ...]
) -> Iterator[str]:
    for name, module in modules:
        if type(module) not in classes:
            yield f"{name} is a {type(module).__name__}, not one of segment_anything's modules"
        if module._forward_hooks or module._forward_pre_hooks:
            yield f"{name} has hooks"
        yield from (f"{name}.{method} was replaced" for method in _own_methods(module))


def _own_methods(module: nn.Module) -> Iterator[str]:
    """Names of the methods that an instance has in place of those of its class."""
    cls = type(module)
    for name, value in vars(module).items():
        of_class = getattr(cls, name, None)
        if not callable(of_class):
            continue
        restored = isinstance(value, MethodType) and value.__self__ is module
        if not restored or value.__func__ is not of_class:
            yield name


def _are(cls: type, *modules: object) -> bool:
    return all(type(module) is cls for module in modules)


def _has_stock_layout(decoder: Any) -> bool:
    """Whether modules whose weights are used without calling them are where stock has them."""
    transformer_, upscaling = decoder.transformer, decoder.output_upscaling
    return (
        _are(TwoWayTransformer, transformer_)
        and len(transformer_.layers) > 0
        and all(_fits_block(layer) for layer in transformer_.layers)
        and _fits_attention(transformer_.final_attn_token_to_image)
        and _are(nn.Embedding, decoder.iou_token, decoder.mask_tokens)
        and len(decoder.output_hypernetworks_mlps) == decoder.num_mask_tokens
        and _are(nn.Sequential, upscaling)
        and _fits_upscaling(*upscaling)
    )


def _fits_block(block: Any) -> bool:
    return (
        _are(transformer.TwoWayAttentionBlock, block)
        and _fits_attention(block.self_attn)
        and _fits_attention(block.cross_attn_token_to_image)
        and _fits_attention(block.cross_attn_image_to_token)
        and _are(nn.LayerNorm, block.norm4)
        and block.norm4.bias is not None
    )


def _fits_attention(attention: Any) -> bool:
    if not _are(transformer.Attention, attention):
        return False
    projections = (attention.q_proj, attention.k_proj, attention.v_proj, attention.out_proj)
    return _are(nn.Linear, *projections) and all(p.bias is not None for p in projections)


def _fits_upscaling(*layers: Any) -> bool:
    """Two transposed convolutions of 2x2 pixels that do not overlap, a norm, and activations."""
    if len(layers) != 5:
        return False
    conv1, norm, act1, conv2, act2 = layers
    return (
        _are(nn.ConvTranspose2d, conv1, conv2)
        and _doubles(conv1)
        and _doubles(conv2)
        and _are(LayerNorm2d, norm)
        and type(act1) in _ACTIVATIONS
        and type(act2) in _ACTIVATIONS
    )


def _doubles(conv: nn.ConvTranspose2d) -> bool:
    sizes = conv.kernel_size, conv.stride, conv.padding, conv.output_padding, conv.dilation
    return sizes == ((2, 2), (2, 2), (0, 0), (0, 0), (1, 1)) and conv.groups == 1
