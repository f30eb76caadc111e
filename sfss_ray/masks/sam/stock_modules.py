"""Checks whether the modules of a Sam are segment_anything's own, so that their algebra may change.

A module is not stock if it is of a subclass, has a hook or a replaced method, or if a method of its
class is replaced: it may compute something else. The first difference is described in words.
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
_SHARED_CLASSES = (
    MLPBlock, LayerNorm2d, nn.Linear, nn.LayerNorm, nn.Sequential, nn.ModuleList, *_ACTIVATIONS,
)  # fmt: skip
_DECODER_CLASSES = (
    *_SHARED_CLASSES, MaskDecoder, TwoWayTransformer, transformer.TwoWayAttentionBlock,
    transformer.Attention, MLP, nn.Embedding, nn.ConvTranspose2d,
)  # fmt: skip
_PROMPT_CLASSES = (PromptEncoder, PositionEmbeddingRandom, nn.Embedding, nn.ModuleList)
_ENCODER_CLASSES = (
    *_SHARED_CLASSES, ImageEncoderViT, image_encoder.PatchEmbed, image_encoder.Block,
    image_encoder.Attention, nn.Conv2d,
)  # fmt: skip
_ENCODER_FUNCTIONS = ("get_rel_pos", "add_decomposed_rel_pos")
_USED_PROMPT_PARTS = ("pe_layer", "point_embeddings", "not_a_point_embed", "no_mask_embed")
_TRANSPARENT_MODULE = "torch.utils._contextlib"  # has wrappers such as that of no_grad


def is_stock_encoder(encoder: nn.Module) -> bool:
    """Return whether every module of an image encoder is segment_anything's."""
    return next(_encoder_changes(encoder), None) is None


def is_stock(sam: Sam) -> bool:
    """Return whether mask decoder and prompt encoder are segment_anything's."""
    return next(changes(sam), None) is None


def changes(sam: Sam, name: str = "sam") -> Iterator[str]:
    """Yield a clause for each part of mask decoder and prompt encoder that is not segment_anything's.

    Args:
        sam: the model.
        name: of the model in the clauses.
    """
    decoder, prompts = sam.mask_decoder, sam.prompt_encoder
    yield from _changed_classes((*_DECODER_CLASSES, *_PROMPT_CLASSES))
    yield from _changed_root(decoder, MaskDecoder, f"{name}.mask_decoder")
    yield from _changed_modules(_named(decoder, f"{name}.mask_decoder"), _DECODER_CLASSES)
    if not _has_stock_layout(decoder):
        yield f"{name}.mask_decoder has other layers than segment_anything's"
    yield from _changed_root(prompts, PromptEncoder, f"{name}.prompt_encoder")
    prompt_modules = _named_prompt_modules(prompts, f"{name}.prompt_encoder")
    yield from _changed_modules(prompt_modules, _PROMPT_CLASSES)


def origin(function: object) -> tuple[str, str]:
    """Return the module and the qualified name under which a function's code was written.

    Unlike __module__ and __qualname__, functools.wraps does not copy them. Wrappers that do not change
    values, such as that of no_grad, are ignored. Both are empty for an object that is not a function.
    """
    if isinstance(function, MethodType | staticmethod | classmethod):
        function = function.__func__
    if not isinstance(function, FunctionType):
        return "", ""
    module = function.__globals__.get("__name__", "")
    if module == _TRANSPARENT_MODULE and hasattr(function, "__wrapped__"):
        return origin(function.__wrapped__)
    return module, function.__code__.co_qualname


def is_method_of(owner: type, method: object, name: str) -> bool:
    """Return whether a method is the one in the source code of its class."""
    return origin(method) == (owner.__module__, f"{owner.__qualname__}.{name}")


def _encoder_changes(encoder: nn.Module) -> Iterator[str]:
    yield from _changed_classes(_ENCODER_CLASSES)
    for name in _ENCODER_FUNCTIONS:
        if origin(getattr(image_encoder, name, None)) != (image_encoder.__name__, name):
            yield f"{image_encoder.__name__}.{name} was replaced"
    yield from _changed_root(encoder, ImageEncoderViT, "image_encoder")
    yield from _changed_modules(_named(encoder, "image_encoder"), _ENCODER_CLASSES)
    for block in cast("Any", encoder).blocks:
        if not _all_are(image_encoder.Block, block) or not _all_are(
            image_encoder.Attention, block.attn
        ):
            yield "image_encoder has other layers than segment_anything's"


def _changed_classes(classes: Iterable[type[nn.Module]]) -> Iterator[str]:
    """Yield a clause for each method or hook that changes all modules of a class."""
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
    """Yield the methods that a forward pass may run, as the class itself defines them."""
    if cls.__module__.startswith("torch."):
        yield from ((n, m) for n, m in vars(cls).items() if n == "forward")
        return
    for name, method in vars(cls).items():
        if callable(method) and (name == "__call__" or not name.startswith("__")):
            yield name, method


def _named(root: nn.Module, name: str) -> Iterator[tuple[str, nn.Module]]:
    """Yield a module and all its submodules with their full names."""
    for path, module in root.named_modules():
        yield f"{name}.{path}" if path else name, module


def _named_prompt_modules(prompts: nn.Module, name: str) -> Iterator[tuple[str, nn.Module]]:
    """Yield the prompt encoder's modules without the layers for masks, which points do not use."""
    yield name, prompts
    for part in _USED_PROMPT_PARTS:
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
        yield from (f"{name}.{method} was replaced" for method in _instance_methods(module))


def _instance_methods(module: nn.Module) -> Iterator[str]:
    """Yield the names of methods that an instance overrides.

    A bound method of the class itself does not count: pytest's monkeypatch leaves one behind.
    """
    cls = type(module)
    for name, attribute in vars(module).items():
        class_method = getattr(cls, name, None)
        if not callable(class_method):
            continue
        is_bound_here = isinstance(attribute, MethodType) and attribute.__self__ is module
        if not is_bound_here or attribute.__func__ is not class_method:
            yield name


def _all_are(cls: type, *modules: object) -> bool:
    return all(type(module) is cls for module in modules)


def _has_stock_layout(decoder: Any) -> bool:
    """Return whether the modules whose weights are used without a call are laid out as in stock."""
    transformer_, upscaling = decoder.transformer, decoder.output_upscaling
    return (
        _all_are(TwoWayTransformer, transformer_)
        and len(transformer_.layers) > 0
        and all(_fits_block(layer) for layer in transformer_.layers)
        and _fits_attention(transformer_.final_attn_token_to_image)
        and _all_are(nn.Embedding, decoder.iou_token, decoder.mask_tokens)
        and len(decoder.output_hypernetworks_mlps) == decoder.num_mask_tokens
        and _all_are(nn.Sequential, upscaling)
        and _fits_upscaling(*upscaling)
    )


def _fits_block(block: Any) -> bool:
    return (
        _all_are(transformer.TwoWayAttentionBlock, block)
        and _fits_attention(block.self_attn)
        and _fits_attention(block.cross_attn_token_to_image)
        and _fits_attention(block.cross_attn_image_to_token)
        and _all_are(nn.LayerNorm, block.norm4)
        and block.norm4.bias is not None
    )


def _fits_attention(attention: Any) -> bool:
    if not _all_are(transformer.Attention, attention):
        return False
    projections = (attention.q_proj, attention.k_proj, attention.v_proj, attention.out_proj)
    return _all_are(nn.Linear, *projections) and all(p.bias is not None for p in projections)


def _fits_upscaling(*layers: Any) -> bool:
    """Return whether the layers are two non-overlapping 2x2 transposed convolutions with a norm."""
    if len(layers) != 5:
        return False
    conv1, norm, act1, conv2, act2 = layers
    return (
        _all_are(nn.ConvTranspose2d, conv1, conv2)
        and _doubles(conv1)
        and _doubles(conv2)
        and _all_are(LayerNorm2d, norm)
        and type(act1) in _ACTIVATIONS
        and type(act2) in _ACTIVATIONS
    )


def _doubles(conv: nn.ConvTranspose2d) -> bool:
    sizes = conv.kernel_size, conv.stride, conv.padding, conv.output_padding, conv.dilation
    return sizes == ((2, 2), (2, 2), (0, 0), (0, 0), (1, 1)) and conv.groups == 1
