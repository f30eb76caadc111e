"""Small models of transformers' SAM family with random weights whose masks depend on the point."""

import math

import numpy as np
import torch
import transformers

IMAGE_SIDE = 128


def sam(seed=5):
    """Return a SamModel of 128 pixels and patch 8."""
    vision = transformers.SamVisionConfig(
        hidden_size=32, output_channels=32, num_hidden_layers=2, num_attention_heads=2,
        image_size=IMAGE_SIDE, patch_size=8, window_size=4, global_attn_indexes=[1],
        num_pos_feats=16, mlp_dim=64, initializer_range=0.2,
    )  # fmt: skip
    prompts = transformers.SamPromptEncoderConfig(
        hidden_size=32, image_size=IMAGE_SIDE, patch_size=8
    )
    decoder = transformers.SamMaskDecoderConfig(
        hidden_size=32, mlp_dim=64, num_attention_heads=2, iou_head_hidden_dim=32
    )
    config = transformers.SamConfig(
        vision_config=vision.to_dict(), prompt_encoder_config=prompts.to_dict(),
        mask_decoder_config=decoder.to_dict(),
    )  # fmt: skip
    return _with_random_decoder(transformers.SamModel, config, seed)


def sam2(seed=5):
    """Return a Sam2Model of 128 pixels whose embedding is 8 x 8."""
    backbone = transformers.Sam2HieraDetConfig(
        hidden_size=16, num_attention_heads=1, image_size=[IMAGE_SIDE, IMAGE_SIDE],
        blocks_per_stage=[1, 1, 2, 1], embed_dim_per_stage=[16, 32, 64, 128],
        num_attention_heads_per_stage=[1, 2, 2, 4], window_size_per_stage=[8, 4, 4, 4],
        global_attention_blocks=[3], window_positional_embedding_background_size=[4, 4],
        initializer_range=0.1,
    )  # fmt: skip
    vision = transformers.Sam2VisionConfig(
        backbone_config=backbone.to_dict(), backbone_channel_list=[128, 64, 32, 16],
        backbone_feature_sizes=[[32, 32], [16, 16], [8, 8]], fpn_hidden_size=32,
        initializer_range=0.1,
    )  # fmt: skip
    prompts = transformers.Sam2PromptEncoderConfig(
        hidden_size=32, image_size=IMAGE_SIDE, patch_size=16
    )
    decoder = transformers.Sam2MaskDecoderConfig(
        hidden_size=32, mlp_dim=64, num_attention_heads=2, iou_head_hidden_dim=32
    )
    config = transformers.Sam2Config(
        vision_config=vision.to_dict(), prompt_encoder_config=prompts.to_dict(),
        mask_decoder_config=decoder.to_dict(), initializer_range=0.1,
    )  # fmt: skip
    return _with_random_decoder(transformers.Sam2Model, config, seed)


def sam3(seed=5):
    """Return a Sam3TrackerModel of 112 pixels and patch 14."""
    backbone = transformers.Sam3ViTConfig(
        hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=2,
        image_size=112, pretrain_image_size=56, patch_size=14, window_size=4,
        global_attn_indexes=[1], initializer_range=0.1,
    )  # fmt: skip
    vision = transformers.Sam3VisionConfig(
        backbone_config=backbone.to_dict(), fpn_hidden_size=32,
        backbone_feature_sizes=[[32, 32], [16, 16], [8, 8]], initializer_range=0.1,
    )  # fmt: skip
    prompts = transformers.Sam3TrackerPromptEncoderConfig(
        hidden_size=32, image_size=112, patch_size=14
    )
    decoder = transformers.Sam3TrackerMaskDecoderConfig(
        hidden_size=32, mlp_dim=64, num_attention_heads=2, iou_head_hidden_dim=32
    )
    config = transformers.Sam3TrackerConfig(
        vision_config=vision.to_dict(), prompt_encoder_config=prompts.to_dict(),
        mask_decoder_config=decoder.to_dict(), initializer_range=0.1,
    )  # fmt: skip
    return _with_random_decoder(transformers.Sam3TrackerModel, config, seed)


MODELS = {"hf_sam": sam, "sam2": sam2, "sam3": sam3}


def _with_random_decoder(cls, config, seed, gain=1.6):
    """Build a model whose masks have parts and borders, as random_sam() explains."""
    torch.manual_seed(seed)
    model = cls(config).eval()
    decoder, generator = model.mask_decoder, torch.Generator().manual_seed(seed)
    for parameter in decoder.parameters():
        if parameter.dim() > 1:
            noise = torch.randn(parameter.shape, generator=generator)
            scale = gain / math.sqrt(parameter[0].numel())
            parameter.data.copy_(scale * noise)
    for convolution in (decoder.upscale_conv1, decoder.upscale_conv2):
        weight = convolution.weight.data
        weight.copy_(2 * weight.mean((2, 3), keepdim=True) + 0.03 * weight)
    for network in decoder.output_hypernetworks_mlps:
        network.proj_out.weight.data.mul_(16)
    for name in ("conv_s0", "conv_s1"):
        if hasattr(decoder, name):
            getattr(decoder, name).weight.data.mul_(0.2)
    return model


def pipeline_masks(model, image, **settings):
    """Return the pipeline's uncompressed RLEs and scores of an image (H, W, 3)."""
    from PIL import Image
    from transformers.pipelines.mask_generation import MaskGenerationPipeline

    from sfss_ray.masks.sam.transformers_model import TransformersModel

    pipeline = MaskGenerationPipeline(
        model=model, image_processor=TransformersModel(model).processor
    )
    outputs = pipeline(Image.fromarray(image), output_rle_mask=True, **settings)
    return outputs["rle_mask"], np.asarray(outputs["scores"])
