"""Modules built like a Sam: another class, another encoder, another decoder."""

import warnings

import pytest
import torch
from random_sam import LOOSE, assert_nearly_same_masks, drawn_image, random_sam
from sam_variants import FeatureDecoder, FeaturePredictor, ManyFeatures
from segment_anything import SamAutomaticMaskGenerator
from segment_anything.modeling import Sam

from sfss_ray.errors import ConfigError
from sfss_ray.masks.sam.generator import AutomaticMaskGenerator
from sfss_ray.masks.sam.recognition import promptable_model
from sfss_ray.masks.sam.sam_like_model import SamLikeModel

SETTINGS = {**LOOSE, "pred_iou_thresh": 1.0, "output_mode": "coco_rle"}


class SmallEncoder(torch.nn.Module):
    """A convolutional encoder, as MobileSAM has one."""

    img_size = 256

    def __init__(self):
        super().__init__()
        self.layers = torch.nn.Sequential(
            torch.nn.Conv2d(3, 64, 8, 8), torch.nn.GELU(), torch.nn.Conv2d(64, 64, 1)
        )

    def forward(self, x):
        return 3 * self.layers(x)


class OtherSam(torch.nn.Module):
    """A class of another package with the code of Sam, as MobileSAM and SAM-HQ have one."""

    mask_threshold, image_format = 0.0, "RGB"
    device, preprocess = Sam.device, Sam.preprocess
    postprocess_masks = Sam.postprocess_masks

    def __init__(self, sam):
        super().__init__()
        self.image_encoder, self.prompt_encoder = sam.image_encoder, sam.prompt_encoder
        self.mask_decoder = sam.mask_decoder
        self.register_buffer("pixel_mean", sam.pixel_mean, False)
        self.register_buffer("pixel_std", sam.pixel_std, False)


class SharperDecoder(type(random_sam().mask_decoder)):
    """Another decoder with the inputs of the stock one."""

    def forward(self, **inputs):
        masks, quality = super().forward(**inputs)
        return 1.5 * masks, quality


def other_sam(decoder=None):
    torch.manual_seed(0)
    model = OtherSam(random_sam())
    model.image_encoder = SmallEncoder()
    if decoder is not None:
        model.mask_decoder.__class__ = decoder
    return model.eval()


def stock_records(model, predictor=None):
    generator = SamAutomaticMaskGenerator(model, **SETTINGS)
    generator.predictor = predictor or generator.predictor
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch warns about how the stock generator uses it
        return generator.generate(drawn_image())


@pytest.mark.parametrize("decoder", [None, SharperDecoder])
def test_masks_are_those_of_segment_anythings_generator(decoder):
    model = other_sam(decoder)
    kind = promptable_model(model).kind
    assert kind == ("sam" if decoder is None else "sam_like")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        ours = AutomaticMaskGenerator(model, **SETTINGS).generate(drawn_image())
    assert_nearly_same_masks([(stock_records(model), ours)])


@pytest.mark.parametrize("is_sam", [True, False])
def test_features_of_the_encoder_reach_a_decoder_that_takes_them(is_sam):
    """The masks are those that the variant's own predictor gives the stock generator."""
    model = random_sam()
    model.image_encoder.__class__, model.mask_decoder.__class__ = ManyFeatures, FeatureDecoder
    if not is_sam:
        model = OtherSam(model).eval()
    expected = stock_records(model, FeaturePredictor(model))
    assert isinstance(promptable_model(model), SamLikeModel)
    ours = AutomaticMaskGenerator(model, **SETTINGS).generate(drawn_image())
    assert_nearly_same_masks([(expected, ours)])


class BestOfThree(FeatureDecoder):
    """Returns one mask for each point, as SAM-HQ's decoder does."""

    def forward(self, image_embeddings, interm_embeddings, hq_token_only, **inputs):
        masks, quality = super().forward(
            image_embeddings, interm_embeddings, hq_token_only, **inputs
        )
        best = quality.argmax(dim=1)
        return masks[range(len(best)), best][:, None], quality.amax(dim=1, keepdim=True)


def test_a_decoder_may_return_one_mask_for_each_point():
    model = random_sam()
    model.image_encoder.__class__, model.mask_decoder.__class__ = ManyFeatures, BestOfThree
    expected = stock_records(model, FeaturePredictor(model))
    ours = AutomaticMaskGenerator(model, **SETTINGS).generate(drawn_image())
    assert_nearly_same_masks([(expected, ours)], at_least=3)


class OtherInputs(type(random_sam().mask_decoder)):
    def forward(self, image, tokens):
        raise AssertionError


def test_a_decoder_with_other_inputs_is_refused_in_one_line():
    with pytest.raises(ConfigError, match=r"\(OtherInputs\) cannot be called with image_emb") as e:
        AutomaticMaskGenerator(other_sam(OtherInputs))
    assert "\n" not in str(e.value)


def test_a_module_without_an_input_size_is_refused_in_one_line():
    model = other_sam(SharperDecoder)
    model.image_encoder.img_size = None
    with pytest.raises(ConfigError, match=r"OtherSam .* lacks image_encoder\.img_size"):
        AutomaticMaskGenerator(model)


def test_bgr_images_and_the_threshold_are_the_models():
    model = other_sam(SharperDecoder)
    model.image_format, model.mask_threshold = "BGR", 0.5
    ours = AutomaticMaskGenerator(model, **SETTINGS).generate(drawn_image())
    assert_nearly_same_masks([(stock_records(model), ours)])


def test_bfloat16_gives_about_the_same_scores():
    model, points = SamLikeModel(other_sam(SharperDecoder)), 190 * torch.rand(6, 2)
    with torch.no_grad():
        exact, fast = (
            model.encode(drawn_image(), dtype).decoder.decode(points, None)
            for dtype in (torch.float32, torch.bfloat16)
        )
    assert fast.logits.dtype == fast.predicted_iou.dtype == torch.float32
    assert (exact.logits - fast.logits).abs().mean() < 0.1 * exact.logits.std()
