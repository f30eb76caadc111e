"""A small SAM 3 with random weights that takes text prompts, and a tokenizer with a tiny vocabulary."""

from pathlib import Path

import torch
import transformers

IMAGE_SIDE = 112
WORDS = ("road", "sky", "pole", "lamp", "car", "van", "street", "tree", "building", "person")


def tokenizer():
    """Return a CLIP tokenizer whose vocabulary is single bytes and a few words."""
    letters = sorted(
        {letter for word in WORDS for letter in word} | set("abcdefghijklmnopqrstuvwxyz")
    )
    tokens = [*letters, *(f"{letter}</w>" for letter in letters)]
    merges = []
    for word in WORDS:
        parts = [*word[:-1], f"{word[-1]}</w>"]
        while len(parts) > 1:
            if (parts[0], parts[1]) not in merges:
                merges.append((parts[0], parts[1]))
            parts = [parts[0] + parts[1], *parts[2:]]
            if parts[0] not in tokens:
                tokens.append(parts[0])
    tokens += ["<|startoftext|>", "<|endoftext|>"]
    vocabulary = {token: number for number, token in enumerate(tokens)}
    return transformers.CLIPTokenizer(vocab=vocabulary, merges=merges, model_max_length=32)


def concept_model(seed=5):
    """Return a Sam3Model of 112 pixels and patch 14 whose masks and scores vary."""
    backbone = transformers.Sam3ViTConfig(
        hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=2,
        image_size=IMAGE_SIDE, pretrain_image_size=56, patch_size=14, window_size=4,
        global_attn_indexes=[1], initializer_range=0.1,
    )  # fmt: skip
    vision = transformers.Sam3VisionConfig(
        backbone_config=backbone.to_dict(), fpn_hidden_size=32,
        backbone_feature_sizes=[[32, 32], [16, 16], [8, 8]], initializer_range=0.1,
    )  # fmt: skip
    size = {"hidden_size": 32, "num_attention_heads": 2}
    layers = size | {"num_layers": 1, "intermediate_size": 64}
    config = transformers.Sam3Config(
        vision_config=vision.to_dict(),
        text_config={
            "model_type": "clip_text_model", "vocab_size": 256, "hidden_size": 32,
            "intermediate_size": 64, "projection_dim": 16, "num_hidden_layers": 2,
            "num_attention_heads": 2, "max_position_embeddings": 32, "bos_token_id": 87,
            "eos_token_id": 88, "pad_token_id": 88,
        },
        geometry_encoder_config=layers,
        detr_encoder_config=layers,
        detr_decoder_config=layers | {"num_queries": 6},
        mask_decoder_config=size,
    )  # fmt: skip
    torch.manual_seed(seed)
    model = transformers.Sam3Model(config).eval()
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in model.named_parameters():
        if parameter.dim() > 1 and not name.startswith("vision_encoder"):
            noise = torch.randn(parameter.shape, generator=generator)
            parameter.data.copy_(noise / parameter[0].numel() ** 0.5)
    return model


def save_concept_model(folder: Path, seed=5):
    """Write model, tokenizer and image processor as save_pretrained does; return the folder."""
    concept_model(seed).save_pretrained(folder)
    tokenizer().save_pretrained(folder)
    square = {"height": IMAGE_SIDE, "width": IMAGE_SIDE}
    transformers.Sam3ImageProcessor(size=square).save_pretrained(folder)
    return folder
