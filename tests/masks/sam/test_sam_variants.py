"""Variants of SAM, such as SAM-HQ, whose encoder returns more outputs for the decoder."""

import pytest
import torch
from segment_anything import SamPredictor
from segment_anything.modeling import ImageEncoderViT, MaskDecoder
from stock_pairs import (
    build,
    image,
    results,
    run_quietly,
    unchanged,
)

from sfss_ray.errors import ConfigError
from sfss_ray.masks.sam.generator import AutomaticMaskGenerator


class ManyFeatures(ImageEncoderViT):
    """Returns an embedding and intermediate features, like the encoder of SAM-HQ."""

    def forward(self, x):
        embedding = super().forward(x)
        return embedding, [self.patch_embed(x)]


class FeatureDecoder(MaskDecoder):
    def forward(self, image_embeddings, interm_embeddings, hq_token_only, **inputs):
        assert hq_token_only is False
        masks, quality = super().forward(image_embeddings, **inputs)
        return masks + interm_embeddings[0].mean(), quality


class FeaturePredictor(SamPredictor):
    """A predictor that passes the features of ManyFeatures to a FeatureDecoder."""

    def set_torch_image(self, transformed_image, original_image_size):
        super().set_torch_image(transformed_image, original_image_size)
        self.features, self.interm_features = self.features

    @torch.no_grad()
    def predict_torch(self, coords, labels, multimask_output=True, return_logits=False):
        sparse, dense = self.model.prompt_encoder((coords, labels), None, None)
        low, quality = self.model.mask_decoder(
            image_embeddings=self.features,
            image_pe=self.model.prompt_encoder.get_dense_pe(),
            sparse_prompt_embeddings=sparse,
            dense_prompt_embeddings=dense,
            multimask_output=multimask_output,
            hq_token_only=False,
            interm_embeddings=self.interm_features,
        )
        masks = self.model.postprocess_masks(low, self.input_size, self.original_size)
        return masks, quality, low


def set_variant(generator, decoder=True):
    model = generator.predictor.model
    model.image_encoder.__class__ = ManyFeatures
    if decoder:
        model.mask_decoder.__class__ = FeatureDecoder


def set_variant_and_predictor(generator):
    set_variant(generator)
    generator.predictor = FeaturePredictor(generator.predictor.model)


def test_a_variant_with_more_features_works_with_its_own_predictor():
    expected, ours, warning_texts = results(set_variant_and_predictor)
    assert expected == ours
    assert expected not in ([], unchanged())
    assert len(warning_texts) == 1


@pytest.mark.parametrize("decoder", [True, False], ids=["its decoder", "stock decoder"])
def test_an_encoder_of_several_outputs_needs_another_predictor(decoder):
    generator = build(AutomaticMaskGenerator)
    set_variant(generator, decoder)
    with pytest.raises(
        ConfigError, match=r"\(ManyFeatures\) returns a tuple.* set generator\.predic"
    ):
        run_quietly(generator, image())


def test_a_decoder_of_other_arguments_needs_another_predictor():
    generator = build(AutomaticMaskGenerator)
    generator.predictor.model.mask_decoder.__class__ = FeatureDecoder
    with pytest.raises(
        ConfigError, match=r"\(FeatureDecoder\) cannot be called.*interm_embeddings"
    ):
        run_quietly(generator, image())
