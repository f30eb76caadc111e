"""Tests of what passes of small images tell about a module: sizes, precision, outputs."""

from __future__ import annotations

import contextlib
import math

import pytest
import torch
from hiding_networks import HIDDEN_METHODS, HidingNet
from segmentation_modules import NUM_CLASSES, OneSize, Patches, UNet
from torch import nn

from sfss_ray.errors import ConfigError
from sfss_ray.models.card import Card
from sfss_ray.models.user_code.probing import SIZE_MULTIPLES, Probe, in_eval_mode, in_full_precision


def probe(module: nn.Module) -> Probe:
    return Probe(module, Card(), NUM_CLASSES)


@pytest.mark.parametrize(
    ("module", "multiple"),
    [
        (nn.Conv2d(3, NUM_CLASSES, 3, 4, 1), 1),
        *((UNet(depth), 2**depth) for depth in (2, 3, 4, 5)),
        *(
            (Patches(patch), patch)
            for patch in (2, 10, 12, 14, 16, 18, 20, 28, 36, 40, 56, 64, 128)
        ),
    ],
)
def test_the_smallest_multiple_that_works_is_found(module, multiple):
    result, size = probe(module).find_sizes((128, 128))
    assert result == multiple
    assert all(side % multiple == 0 for side in size)
    module.eval()(torch.zeros(1, 3, *size))
    if 128 % multiple == 0:
        assert size == (128, 128)


@pytest.mark.parametrize(
    ("example_size", "patch"),
    [((120, 160), 20), ((120, 160), 40), ((352, 1210), 11), ((448, 224), 112), ((224, 448), 224)],
)
def test_common_divisors_of_the_example_are_tried(example_size, patch):
    assert probe(Patches(patch)).find_sizes(example_size) == (patch, example_size)


def test_an_example_that_rounding_up_lets_pass_does_not_hide_the_multiple():
    """Halvings of 127 give 64, 32, 16 and 8, so only other sizes fail."""

    class RoundsUp(UNet):
        def forward(self, x):
            return nn.functional.interpolate(super().forward(x), x.shape[-2:])

    module = RoundsUp(4).eval()
    module(torch.zeros(1, 3, 127, 127))
    assert probe(module).find_sizes((127, 127)) == (16, (127, 127))


def test_a_module_of_one_size_needs_no_multiple():
    assert probe(OneSize((96, 64))).find_sizes((96, 64)) == (1, (96, 64))


def test_few_passes_find_the_multiple(monkeypatch):
    """Without a match, every multiple costs one pass, at a size near the example."""
    sizes = []
    original = Probe._failure

    def count(self, size):
        sizes.append(size)
        return original(self, size)

    monkeypatch.setattr(Probe, "_failure", count)
    for module, example_size, passes in (
        (nn.Conv2d(3, NUM_CLASSES, 1), (128, 128), 3),
        (UNet(5), (128, 128), 8),
        (OneSize((512, 1024)), (512, 1024), 10),
        (OneSize((96, 64)), (128, 128), 1 + len(SIZE_MULTIPLES)),
    ):
        sizes.clear()
        with contextlib.suppress(ConfigError):
            probe(module).find_sizes(example_size)
        assert len(sizes) == passes
        assert max(height * width for height, width in sizes) <= 4 * math.prod(example_size)


def test_a_module_that_works_at_no_size_is_refused_in_one_line():
    with pytest.raises(
        ConfigError, match=r"failed on an image of 128x128 pixels \(AssertionError: not my size\)"
    ) as error:
        probe(OneSize((96, 64))).find_sizes((128, 128))
    assert "\n" not in str(error.value)
    assert "sides are multiples of 2, 3, 4, 5, 6, 7, 8, 9, 10, 12, 14, 15, 16, 18," in str(
        error.value
    )


def test_probabilities_are_refused():
    with pytest.raises(ConfigError, match=r"returns probabilities.*return the logits"):
        probe(nn.Sequential(UNet(2), nn.Softmax(1))).logits((64, 64))
    assert probe(nn.Sequential(UNet(2), nn.LogSoftmax(1))).logits((64, 64)).shape[1] == NUM_CLASSES


def test_a_module_in_half_precision_is_copied_to_float32():
    module = UNet(2).half()
    full = in_full_precision(module)
    assert {t.dtype for t in full.state_dict().values() if t.is_floating_point()} == {torch.float32}
    assert module.head.weight.dtype == torch.float16
    assert in_full_precision(full) is full
    assert in_full_precision(UNet(2).double()).head.weight.dtype == torch.float32


@pytest.mark.parametrize("name", HIDDEN_METHODS)
def test_modules_with_attributes_that_hide_methods(name):
    module = HidingNet(name)
    assert probe(module).find_sizes((64, 64)) == (1, (64, 64))
    assert probe(module).find_feature_layer((64, 64)) == "classifier:input"
    in_full_precision(module)


def test_the_module_keeps_its_modes_and_statistics():
    module = UNet(2).train()
    module.down[0].eval()
    modes = [layer.training for layer in module.modules()]
    before = {name: tensor.clone() for name, tensor in module.state_dict().items()}
    tested = probe(module)
    tested.find_sizes((64, 64))
    tested.logits((64, 64))
    tested.find_feature_layer((64, 64))
    assert [layer.training for layer in module.modules()] == modes
    assert all(torch.equal(before[name], t) for name, t in module.state_dict().items())
    with pytest.raises(KeyError), in_eval_mode(module):
        raise KeyError
    assert [layer.training for layer in module.modules()] == modes
