"""Variants of SAM, such as SAM-HQ, whose encoder returns more outputs for the decoder."""

import pytest
from sam_variants import FeatureDecoder, FeaturePredictor, ManyFeatures
from stock_pairs import (
    build,
    image,
    results,
    run_quietly,
    unchanged,
)

from sfss_ray.errors import ConfigError
from sfss_ray.masks.sam.generator import AutomaticMaskGenerator


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
