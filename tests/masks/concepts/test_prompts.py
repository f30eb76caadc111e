"""Prompts of classes: names, written prompts, and what is refused."""

import pytest

from sfss_ray.errors import ConfigError
from sfss_ray.masks.concepts.prompts import class_prompts

CLASSES = ("road", "traffic_sign", "pole", "void")


def test_classes_are_prompted_with_their_names():
    prompts = class_prompts("", ("road", "traffic_sign", "bi-cycle"))
    assert prompts == {
        "road": ("road",),
        "traffic_sign": ("traffic sign",),
        "bi-cycle": ("bi cycle",),
    }


def test_written_prompts_replace_the_name_in_any_order():
    written = "pole: street  lamp, pole; void: -"
    expected = {
        "road": ("road",),
        "traffic_sign": ("traffic sign",),
        "pole": ("pole", "street lamp"),
        "void": (),
    }
    assert class_prompts(written, CLASSES) == expected
    assert class_prompts("void:-;pole:pole,street lamp, pole;", CLASSES) == expected
    assert list(class_prompts(written, CLASSES)) == list(CLASSES)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("pole", "'pole' has no colon"),
        ("poles: pole", "there is no class 'poles'; allowed are road, traffic_sign, pole, void"),
        ("pole: a; pole: b", "class 'pole' is listed twice"),
        ("pole:", "class 'pole' has the prompts ''"),
        ("pole: , ", "class 'pole' has the prompts"),
        ("pole: -, lamp", "class 'pole' has the prompts '-, lamp'"),
        ("pole: road", "'road' is a prompt of 'road' and of 'pole'"),
        ("road:-; traffic_sign:-; pole:-; void:-", "no class has a prompt"),
    ],
)
def test_prompts_that_cannot_be_used_are_refused_in_one_line(text, message):
    with pytest.raises(ConfigError, match="concept_prompts") as error:
        class_prompts(text, CLASSES)
    assert message in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("name", ["3", "class_3", "label-12", "--"])
def test_a_class_without_a_name_needs_a_prompt(name):
    with pytest.raises(ConfigError, match="has no name to prompt a network with"):
        class_prompts("", ("road", name))
    assert class_prompts(f"{name}: car", ("road", name))[name] == ("car",)
    assert class_prompts(f"{name}: -", ("road", name))[name] == ()
