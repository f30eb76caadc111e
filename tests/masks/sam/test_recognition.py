"""The promptable model of a network in memory."""

import pytest
import torch
from random_sam import drawn_image, random_sam

from sfss_ray.errors import ConfigError
from sfss_ray.masks.sam.generator import AutomaticMaskGenerator
from sfss_ray.masks.sam.recognition import promptable_model


def test_a_sam_needs_no_other_model_than_its_predictor():
    assert promptable_model(random_sam()) is None


def test_a_model_of_transformers_is_wrapped_once():
    pytest.importorskip("transformers")
    from family_models import sam2

    wrapped = promptable_model(sam2())
    assert wrapped.kind == "sam2"
    assert promptable_model(wrapped) is wrapped


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (lambda sam: sam.half(), r"the weights of the Sam are torch\.float16 and must be float32"),
        (lambda sam: sam.to("meta"), r"the Sam is on the meta device, where it has no weights"),
    ],
)
def test_weights_that_cannot_be_used_are_refused_in_one_line(change, expected):
    with pytest.raises(ConfigError, match=expected) as error:
        AutomaticMaskGenerator(change(random_sam())).generate(drawn_image())
    assert "\n" not in str(error.value)


def test_another_network_is_refused_in_one_line():
    with pytest.raises(ConfigError, match=r"model is a Conv2d; allowed are segment_anything's Sam"):
        AutomaticMaskGenerator(torch.nn.Conv2d(3, 3, 1))
