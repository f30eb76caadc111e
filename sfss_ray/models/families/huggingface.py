"""Recogniser of SegFormer checkpoints of Hugging Face's transformers, as a file or a whole folder."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from sfss_ray.errors import CheckpointError
from sfss_ray.models.architectures.segformer import SIZES
from sfss_ray.models.families.keys import State, has_prefix, subtree
from sfss_ray.models.families.mit_names import from_transformers, size_of
from sfss_ray.models.families.mix_transformers import decoder_width, num_outputs
from sfss_ray.models.families.mmseg import unknown_tensors
from sfss_ray.models.families.preprocessors import class_labels, mapping_entry, preprocessor_card
from sfss_ray.models.families.recognised_file import RecognisedFile
from sfss_ray.models.huggingface_folder import CONFIG, PREPROCESSOR

_SUPPORTED_CONFIG = {
    "hidden_act": "gelu",
    "mlp_ratios": [4, 4, 4, 4],
    "num_attention_heads": [1, 2, 5, 8],
    "num_channels": 3,
    "num_encoder_blocks": 4,
    "patch_sizes": [7, 3, 3, 3],
    "reshape_last_stage": True,
    "sr_ratios": [8, 4, 2, 1],
    "strides": [4, 2, 2, 2],
}
"""Entries of config.json that no tensor reveals, with the values that this package builds."""


def huggingface_segformer(state: State, content: Any) -> RecognisedFile | None:
    """Recognise `segformer.*` and `decode_head.*` with the names of transformers 4 or 5."""
    config = mapping_entry(content, CONFIG)
    if not has_prefix(state, "segformer.") or not _is_built_here(config):
        return None
    if not has_prefix(state, "decode_head."):
        raise CheckpointError(
            "the file holds a SegFormer encoder alone, its decode_head is missing: give a checkpoint"
            " that was trained to segment"
        )

    # The names used here are those of version 5, in which `linear_c` became `linear_projections`.
    renamed = from_transformers(subtree(state, "segformer."))
    head = subtree(state, "decode_head.")
    for key, tensor in head.items():
        if key.startswith("classifier."):
            renamed[key] = tensor
        else:
            key = re.sub(r"^linear_c\.", "linear_projections.", key)
            renamed[f"body.decode_head.{key}"] = tensor
    preprocessor = mapping_entry(content, PREPROCESSOR)
    size, outputs = size_of(renamed), num_outputs(renamed, "decode_head.classifier")
    return RecognisedFile(
        family="SegFormer (Hugging Face)",
        network=f"segformer_{size}",
        num_classes=outputs,
        state=renamed | unknown_tensors(state, ("segformer.", "decode_head.")),
        options=decoder_width(head.get("linear_fuse.weight"), size),
        card=preprocessor_card(preprocessor, class_labels(config, outputs)),
    )


def _is_built_here(config: Mapping[str, Any]) -> bool:
    """Whether a config.json, which may be empty, is that of a SegFormer that this package builds."""
    if config.get("model_type", "segformer") != "segformer":
        return False
    sizes = [(list(size.widths), list(size.depths)) for size in SIZES.values()]
    first = sizes[0]
    if (config.get("hidden_sizes", first[0]), config.get("depths", first[1])) not in sizes:
        return False
    return all(config.get(name, value) == value for name, value in _SUPPORTED_CONFIG.items())
