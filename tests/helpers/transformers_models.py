"""Small networks of transformers with random weights, made with its own classes."""

from __future__ import annotations

from typing import Any

import torch
import transformers

CLASSES = ("red", "green", "blue", "yellow", "grey")
LABELS: dict[str, Any] = {
    "id2label": dict(enumerate(CLASSES)),
    "label2id": {name: i for i, name in enumerate(CLASSES)},
}
_VIT = {
    "hidden_size": 24,
    "num_hidden_layers": 4,
    "num_attention_heads": 2,
    "intermediate_size": 32,
    "image_size": 64,
}


def _swin(**options: Any) -> Any:
    return transformers.SwinConfig(
        embed_dim=8,
        depths=[1, 1, 1, 1],
        num_heads=[1, 1, 2, 2],
        window_size=4,
        image_size=64,
        out_features=["stage1", "stage2", "stage3", "stage4"],
        **options,
    )


def upernet_swin() -> Any:
    config = transformers.UperNetConfig(
        backbone_config=_swin(), hidden_size=16, auxiliary_channels=8, **LABELS
    )
    return transformers.UperNetForSemanticSegmentation(config)


def upernet_convnext() -> Any:
    backbone = transformers.ConvNextConfig(
        hidden_sizes=[8, 12, 16, 24],
        depths=[1, 1, 1, 1],
        out_features=["stage1", "stage2", "stage3", "stage4"],
    )
    config = transformers.UperNetConfig(
        backbone_config=backbone, hidden_size=16, use_auxiliary_head=False, **LABELS
    )
    return transformers.UperNetForSemanticSegmentation(config)


def beit() -> Any:
    config = transformers.BeitConfig(
        **_VIT, out_indices=[1, 2, 3, 4], use_relative_position_bias=True, **LABELS
    )
    return transformers.BeitForSemanticSegmentation(config)


def data2vec() -> Any:
    config = transformers.Data2VecVisionConfig(**_VIT, out_indices=[1, 2, 3, 4], **LABELS)
    return transformers.Data2VecVisionForSemanticSegmentation(config)


def dpt() -> Any:
    config = transformers.DPTConfig(
        **_VIT,
        backbone_out_indices=[0, 1, 2, 3],
        neck_hidden_sizes=[8, 12, 16, 20],
        fusion_hidden_size=12,
        **LABELS,
    )
    return transformers.DPTForSemanticSegmentation(config)


def mobilevit() -> Any:
    config = transformers.MobileViTConfig(
        hidden_sizes=[12, 16, 20],
        neck_hidden_sizes=[8, 8, 12, 16, 20, 24, 32],
        num_attention_heads=2,
        aspp_out_channels=16,
        image_size=64,
        **LABELS,
    )
    return transformers.MobileViTForSemanticSegmentation(config)


def mobilenet_v2() -> Any:
    config = transformers.MobileNetV2Config(depth_multiplier=0.35, image_size=64, **LABELS)
    return transformers.MobileNetV2ForSemanticSegmentation(config)


def segformer() -> Any:
    config = transformers.SegformerConfig(
        hidden_sizes=[8, 16, 24, 32],
        depths=[1, 1, 1, 1],
        num_attention_heads=[1, 1, 2, 2],
        decoder_hidden_size=16,
        **LABELS,
    )
    return transformers.SegformerForSemanticSegmentation(config)


def mask2former() -> Any:
    config = transformers.Mask2FormerConfig(
        backbone_config=_swin(),
        feature_size=32,
        mask_feature_size=12,
        hidden_dim=32,
        num_queries=7,
        num_attention_heads=2,
        encoder_layers=1,
        decoder_layers=2,
        encoder_feedforward_dim=16,
        dim_feedforward=16,
        **LABELS,
    )
    return transformers.Mask2FormerForUniversalSegmentation(config)


def maskformer() -> Any:
    decoder = transformers.DetrConfig(
        d_model=32,
        decoder_layers=2,
        decoder_attention_heads=2,
        decoder_ffn_dim=16,
        num_queries=7,
        encoder_layers=1,
        encoder_attention_heads=2,
        encoder_ffn_dim=16,
    )
    config = transformers.MaskFormerConfig(
        backbone_config=_swin(),
        decoder_config=decoder,
        fpn_feature_size=32,
        mask_feature_size=12,
        **LABELS,
    )
    return transformers.MaskFormerForInstanceSegmentation(config)


def oneformer() -> Any:
    config = transformers.OneFormerConfig(
        backbone_config=_swin(),
        conv_dim=32,
        mask_dim=32,
        hidden_dim=32,
        num_queries=7,
        num_attention_heads=2,
        encoder_layers=1,
        decoder_layers=3,
        encoder_feedforward_dim=16,
        dim_feedforward=16,
        task_seq_len=77,
        is_training=False,
        **LABELS,
    )
    return transformers.OneFormerForUniversalSegmentation(config)


def eomt() -> Any:
    config = transformers.EomtConfig(
        hidden_size=24,
        num_hidden_layers=3,
        num_attention_heads=2,
        image_size=64,
        patch_size=16,
        num_queries=7,
        num_blocks=1,
        num_register_tokens=1,
        num_upscale_blocks=1,
        **LABELS,
    )
    return transformers.EomtForUniversalSegmentation(config)


SEMANTIC = (
    upernet_swin,
    upernet_convnext,
    beit,
    data2vec,
    dpt,
    mobilevit,
    mobilenet_v2,
    segformer,
)
UNIVERSAL = (mask2former, maskformer, oneformer, eomt)


def make(builder: Any) -> Any:
    """Return a model of transformers with random weights of useful size, in eval mode."""
    torch.manual_seed(0)
    model = builder()
    # transformers starts weights so small that the logits of an untrained network hardly differ.
    generator = torch.Generator().manual_seed(1)
    for layer in model.modules():
        if isinstance(layer, torch.nn.BatchNorm2d):
            layer.momentum = 1.0  # a single pass sets the statistics
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:
                scale = parameter[0].numel() ** -0.5
                parameter.copy_(scale * torch.randn(parameter.shape, generator=generator))
        if any(isinstance(layer, torch.nn.BatchNorm2d) for layer in model.modules()):
            model.train()(torch.randn(4, 3, 64, 64, generator=generator))
    return model.eval()


def mask_pipeline() -> Any:
    """Return a mask-generation pipeline with a small SamModel."""
    torch.manual_seed(0)
    vision = {
        **{"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "mlp_dim": 64},
        **{"image_size": 64, "patch_size": 8, "output_channels": 32, "window_size": 4},
        **{"global_attn_indexes": [1], "num_pos_feats": 16},
    }
    decoder = {
        **{"hidden_size": 32, "mlp_dim": 64, "iou_head_hidden_dim": 32},
        **{"num_hidden_layers": 2, "num_attention_heads": 2},
    }
    config = transformers.SamConfig(
        vision_config=vision,
        prompt_encoder_config={"hidden_size": 32, "image_size": 64, "patch_size": 8},
        mask_decoder_config=decoder,
    )
    processor = transformers.SamImageProcessor(
        size={"longest_edge": 64},
        pad_size={"height": 64, "width": 64},
        mask_size={"longest_edge": 16},
        mask_pad_size={"height": 16, "width": 16},
    )
    model = transformers.SamModel(config).eval()
    return transformers.pipeline("mask-generation", model=model, image_processor=processor)
