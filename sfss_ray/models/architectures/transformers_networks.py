"""Segmentation networks of Hugging Face's transformers, built from the entries of their config.json.

Two kinds are known: those of AutoModelForSemanticSegmentation, which end in a convolution, and
universal ones (MaskFormer, Mask2Former, OneFormer, EoMT), whose masks are converted to class scores.
Their code is that of the installed transformers, so a model file needs their configuration only.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from sfss_ray.errors import ConfigError
from sfss_ray.models.architectures.mask_scores import class_logits
from sfss_ray.models.segmenter import Segmenter, SegmenterOutput

TRANSFORMERS = "transformers"
"""Their key in NETWORKS."""
UNIVERSAL = (
    "EomtDinov3ForUniversalSegmentation",
    "EomtForUniversalSegmentation",
    "Mask2FormerForUniversalSegmentation",
    "MaskFormerForInstanceSegmentation",
    "OneFormerForUniversalSegmentation",
)
"""Networks that predict masks with a class each."""
_SEMANTIC_SUFFIX = "ForSemanticSegmentation"
_FIXED_SIZE = ("beit", "data2vec-vision", "dpt", "eomt", "eomt_dinov3")
"""Model types that take one size of images, the `image_size` of their config.json: their positions are
for it alone, or, as in DPT, their code is for square images only."""
_HEADS = (
    *("decode_head", "segmentation_head", "head", "class_predictor"),
    "model.transformer_module.decoder.class_embed",
)
"""Parts that train at the head's learning rate."""
_SEMANTIC_TASK = (49406, 518, 10549, 533, 29119, 1550, 49407)
"""`the task is semantic` in CLIP's byte pair encoding between its start and end token, the task that
OneFormer (Jain et al., CVPR 2023) was trained with. Padding is 0."""
_IDLE_TEST_SIDE = 64


def is_supported(architecture: str) -> bool:
    """Whether a class of transformers is one of the two kinds."""
    return architecture in UNIVERSAL or architecture.endswith(_SEMANTIC_SUFFIX)


def transformers_network(
    num_classes: int,
    architecture: str,
    configuration: Mapping[str, Any],
    outputs: list[int] | None = None,
) -> Segmenter:
    """Build a network of transformers with random weights.

    Args:
        num_classes: Number of outputs.
        architecture: Name of its class in transformers.
        configuration: The entries of its config.json.
        outputs: Indices of the network's own classes that are its outputs here; None for all.

    Raises:
        ConfigError: transformers is missing or too old, or cannot use the configuration.
    """
    model = build_model(architecture, configuration)
    network = TransformersSegmenter(model, tuple(outputs) if outputs is not None else None)
    if network.num_outputs != num_classes:
        raise ConfigError(
            f"{architecture} with this configuration has {network.num_outputs} classes, not"
            f" {num_classes}: set num_labels or id2label"
        )
    one_line_errors(architecture, network.freeze_idle_weights)
    return network


def build_model(architecture: str, configuration: Mapping[str, Any]) -> Any:
    """Return the model of transformers itself with random weights, in eval mode.

    Raises:
        ConfigError: see `transformers_network`.
    """
    config = model_config(architecture, configuration)
    return one_line_errors(architecture, lambda: model_class(architecture)(config)).eval()


def model_class(architecture: str) -> Any:
    """Return a class of transformers by name.

    Raises:
        ConfigError: transformers is missing or has no such class.
    """
    transformers = _transformers()
    network = getattr(transformers, architecture, None) if is_supported(architecture) else None
    if network is None:
        raise ConfigError(
            f"transformers {transformers.__version__} has no segmentation network {architecture!r}:"
            " run `pip install -U 'sfss-ray[transformers]'`, or give the module itself with"
            " sfss_ray.wrap_model"
        )
    return network


def model_config(architecture: str, configuration: Mapping[str, Any]) -> Any:
    """Return the configuration of transformers for the entries of a config.json.

    Auxiliary heads and text encoders are left out, because they serve the original training only.

    Raises:
        ConfigError: transformers is missing, or refuses an entry.
    """
    entries = _without_downloads(configuration)
    config_class = model_class(architecture).config_class
    config = one_line_errors(architecture, lambda: config_class.from_dict(entries))
    for name in ("use_auxiliary_head", "is_training"):
        if hasattr(config, name):
            setattr(config, name, False)
    return config


def fixed_input_size(config: Any) -> tuple[int, int] | None:
    """Return the only (height, width) of images that a network takes, or None for any size."""
    return _pair(config.image_size) if config.model_type in _FIXED_SIZE else None


def _transformers() -> Any:
    try:
        import transformers
    except ImportError as error:
        raise ConfigError(
            "networks of Hugging Face are built with transformers, which is not installed: run"
            " `pip install 'sfss-ray[transformers]'`"
        ) from error
    return transformers


def _without_downloads(configuration: Mapping[str, Any]) -> dict[str, Any]:
    """Return a deep copy in which no backbone asks for pretrained weights."""
    entries = copy.deepcopy(dict(configuration))
    if "use_pretrained_backbone" in entries:
        entries["use_pretrained_backbone"] = False
    return entries


def one_line_errors(architecture: str, build: Any) -> Any:
    """Return what `build` returns; ConfigError of one line for whatever transformers raises."""
    try:
        return build()
    except ConfigError:
        raise
    except ImportError as error:
        missing = getattr(error, "name", None) or str(error).strip().splitlines()[0]
        raise ConfigError(
            f"{architecture} needs a package that is not installed ({missing}): install it and try"
            " again"
        ) from error
    except Exception as error:  # configurations are checked by code of many authors
        text = str(error).strip().splitlines()
        raise ConfigError(
            f"transformers cannot build {architecture} from its config.json ({type(error).__name__}:"
            f" {text[0] if text else 'no message'}): copy config.json again, or give the module itself"
            " with sfss_ray.wrap_model"
        ) from error


class TransformersSegmenter(Segmenter):
    """A network of transformers as a segmenter.

    The features are those that the last convolution reads, which has an output for each class. In a
    universal network they are the mask features of its pixel decoder (EoMT: its upscaled patch tokens),
    from which every mask is the scalar product with a query.

    Args:
        model: The model of transformers.
        outputs: Indices of the model's classes that are the outputs, or None for all.
    """

    def __init__(self, model: Any, outputs: tuple[int, ...] | None = None):
        super().__init__(model, nn.Identity())
        self.model_config = model.config
        self.outputs = outputs
        self.num_outputs = model.config.num_labels if outputs is None else len(outputs)
        self.is_universal = type(model).__name__ in UNIVERSAL
        self.feature_layer = _feature_layer(model, self.is_universal)
        self.input_size = fixed_input_size(model.config)

    @property
    def feature_width(self) -> int:
        """F, the number of channels of the features."""
        layer = self.body.get_submodule(self.feature_layer)
        if not isinstance(layer, nn.Conv2d):
            return self.model_config.hidden_size
        return layer.out_channels if self.is_universal else layer.in_channels

    @property
    def heads(self) -> list[nn.Module]:
        """The decode head of a semantic network, or the class predictor of a universal one."""
        return [part for name, part in self.body.named_modules() if name in _HEADS]

    def output_grid(self, images: Tensor) -> SegmenterOutput:
        """Return features and logits on the network's own grids for images (B, 3, H, W) in [0, 1]."""
        pixels = self.prepare(images)
        if self.input_size is not None and pixels.shape[-2:] != self.input_size:
            # As the image processors of these models do: the whole image, whatever its proportions.
            pixels = F.interpolate(pixels, self.input_size, mode="bilinear", antialias=True)
        features, logits = self._run(pixels)
        if self.outputs is not None:
            logits = logits[:, list(self.outputs)]
        return SegmenterOutput(features, logits)

    def freeze_idle_weights(self) -> None:
        """Stop training the weights that influence neither logits nor features.

        Data-parallel training would wait forever for their gradients.
        """
        weights = [p for p in self.parameters() if p.requires_grad]
        side = _IDLE_TEST_SIDE
        image = self.mean.new_zeros(1, 3, *(self.input_size or (side, side)))
        self.eval()  # a pass in training mode would move BatchNorm's statistics
        with torch.enable_grad():
            features, logits = self(image)
            total = features.sum() + logits.sum()
            gradients = torch.autograd.grad(total, weights, allow_unused=True)
        for weight, gradient in zip(weights, gradients, strict=True):
            weight.requires_grad_(gradient is not None)

    def _run(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        """Return features and logits of all classes for prepared images."""
        records: list[tuple[Any, Any]] = []
        layer = self.body.get_submodule(self.feature_layer)
        hook = layer.register_forward_hook(
            lambda _layer, inputs, output: records.append((inputs[0], output))
        )
        try:
            output = self.body(**self._inputs(pixels))
        finally:
            hook.remove()
        # EoMT predicts after each of its last layers. The last prediction counts.
        layer_input, layer_output = records[-1]
        if self.is_universal:
            logits = class_logits(output.class_queries_logits, output.masks_queries_logits)
            return layer_output, logits
        # UPerNet scales its logits up to the image, as `upsample` does. They are taken before that.
        if type(self.body).__name__.startswith("UperNet"):
            return layer_input, layer_output
        return layer_input, output.logits

    def _inputs(self, pixels: Tensor) -> dict[str, Any]:
        """Return the arguments of the model."""
        inputs: dict[str, Any] = {"pixel_values": pixels, "return_dict": True}
        if self.model_config.model_type == "mask2former":
            inputs["output_hidden_states"] = True  # it needs them for its class predictions
        if self.model_config.model_type == "oneformer":
            inputs["task_inputs"] = self._semantic_task(pixels)
        return inputs

    def _semantic_task(self, pixels: Tensor) -> Tensor:
        """Return OneFormer's task tokens (B, L), those of `the task is semantic`."""
        length = self.model_config.task_seq_len
        tokens = [*_SEMANTIC_TASK, *[0] * (length - len(_SEMANTIC_TASK))][:length]
        return pixels.new_tensor(tokens).expand(len(pixels), -1)


def _feature_layer(model: nn.Module, is_universal: bool) -> str:
    """Return the name of the last convolution, or of the layer that returns the mask features.

    Raises:
        ConfigError: there is no such layer.
    """
    if is_universal:
        candidates = ["model.pixel_level_module.decoder.mask_projection", "upscale_block"]
    else:
        outputs = model.config.num_labels  # pyright: ignore[reportAttributeAccessIssue]
        candidates = [
            name
            for name, layer in model.named_modules()
            if isinstance(layer, nn.Conv2d)
            and layer.out_channels == outputs
            and not name.startswith("auxiliary")
        ][::-1]
    layer_names = dict(model.named_modules())
    for name in candidates:
        if name in layer_names:
            return name
    raise ConfigError(
        f"{type(model).__name__} has no layer that its features can be read from: give the module"
        " itself with sfss_ray.wrap_model"
    )


def _pair(size: Any) -> tuple[int, int]:
    return (size, size) if isinstance(size, int) else (int(size[0]), int(size[1]))
