"""Wrong cards of trained networks are named and right ones are not, on drawn streets and photographs."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from torch import nn

from sfss_ray import load_source_model, verify_source
from sfss_ray.data.folders import list_images
from sfss_ray.inspection.card_check import check_card
from sfss_ray.models.card import Card
from sfss_ray.streets.default import SOURCE_MODEL
from sfss_ray.streets.scenes import write_streets

IMAGENET = Card()
IMAGES = 5
WRONG_CARDS = [
    Card(value_range=255),
    Card(mean=(0, 0, 0), std=(1, 1, 1)),
    Card(mean=(0, 0, 0), std=(1, 1, 1), value_range=255),
    Card(mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5)),
    Card(mean=(104, 117, 123), std=(1, 1, 1), channel_order="bgr", value_range=255),
]


ESPNET, ESPNET_V2 = "espnet_p_2_q_8.pth", "espnetv2_s_1.0_city_1024x512.pth"
DUSK, DAY = "0001TP", "0006R0"  # drives of CamVid


@pytest.fixture(scope="module")
def streets(tmp_path_factory) -> dict[str, Path]:
    """Scenes of the domain that the shipped model was trained on, and of the other one."""
    root = tmp_path_factory.mktemp("streets")
    for domain in ("game", "camera"):
        write_streets(root / domain, domain, 102, IMAGES, with_labels=False)
    return {domain: root / domain / "images" for domain in ("game", "camera")}


def check(model, folder, current: Card, own: Card | None):
    network = model.network.use_card(current)
    result = check_card(network, list_images(folder), own, progress=str)
    assert network.card() == current
    return result


@pytest.mark.parametrize("domain", ["game", "camera"])
def test_the_right_card_of_the_shipped_model_is_never_called_wrong(domain, streets):
    for own in (IMAGENET, None):
        result = check(load_source_model(SOURCE_MODEL), streets[domain], IMAGENET, own)
        assert (result.better, result.warning) == (None, "")
        assert result.images == IMAGES
        assert "none is clearly better" in result.line()


@pytest.mark.parametrize(
    ("domain", "own"), [("game", IMAGENET), ("camera", None)], ids=["known card", "unknown card"]
)
@pytest.mark.parametrize("wrong", WRONG_CARDS, ids=["255", "plain", "plain 255", "half", "caffe"])
def test_wrong_cards_of_the_shipped_model_are_named(wrong, domain, own, streets):
    result = check(load_source_model(SOURCE_MODEL), streets[domain], wrong, own)
    assert result.better == IMAGENET
    assert "ImageNet's mean and std" in result.warning
    assert "\n" not in result.warning
    entries = json.loads(result.warning[result.warning.rindex("{") :])
    assert wrong.replaced(entries) == IMAGENET


def test_swapped_channels_are_named_where_the_model_was_trained(streets):
    swapped = Card(channel_order="bgr", mean=IMAGENET.mean[::-1], std=IMAGENET.std[::-1])
    result = check(load_source_model(SOURCE_MODEL), streets["game"], swapped, IMAGENET)
    assert result.better == IMAGENET
    assert "nats of information" in result.warning


def test_without_batch_norm_regions_name_the_better_card(streets):
    model = load_source_model(SOURCE_MODEL)
    _replace_batch_norm(model.network)
    right = check(model, streets["game"], IMAGENET, None)
    assert right.warning == ""
    assert check(model, streets["game"], WRONG_CARDS[2], IMAGENET).better == IMAGENET


class Affine(nn.Module):
    """What BatchNorm computes in eval mode, as a scale and an offset."""

    def __init__(self, norm: nn.BatchNorm2d):
        super().__init__()
        assert norm.running_mean is not None
        assert norm.running_var is not None
        scale = norm.weight / (norm.running_var + norm.eps).sqrt()
        self.scale = nn.Parameter(scale.detach())
        self.offset = nn.Parameter((norm.bias - norm.running_mean * scale).detach())

    def forward(self, x):
        return x * self.scale[:, None, None] + self.offset[:, None, None]


def _replace_batch_norm(module: nn.Module) -> None:
    for name, child in module.named_children():
        if isinstance(child, nn.BatchNorm2d):
            setattr(module, name, Affine(child))
        else:
            _replace_batch_norm(child)


def test_weights_that_fit_no_likely_card_are_reported(streets):
    model = load_source_model(SOURCE_MODEL)
    with torch.no_grad():
        model.network.body.get_parameter("stem.0.weight").mul_(1e4)
    result = check(model, streets["game"], IMAGENET, None)
    assert result.better is None
    assert "nor any of" in result.warning
    assert "look up mean, std, channel_order and value_range" in result.warning
    assert "not the best" in result.line()


def test_too_few_images_allow_no_judgement_by_predictions(streets, tmp_path):
    for path in sorted(streets["game"].iterdir())[:2]:
        (tmp_path / path.name).write_bytes(path.read_bytes())
    model = load_source_model(SOURCE_MODEL)
    half, plain = WRONG_CARDS[3], WRONG_CARDS[0]
    assert check(model, tmp_path, half, IMAGENET).better is None
    assert check(model, tmp_path, plain, IMAGENET).better == IMAGENET


def test_the_line_gives_the_distances_of_the_card_in_use_and_of_the_nearest(streets):
    model = load_source_model(SOURCE_MODEL)
    right, wrong = (
        check(model, streets["camera"], card, IMAGENET) for card in (IMAGENET, WRONG_CARDS[0])
    )
    for result in (right, wrong):
        assert f"are {result.distance:.2f} from those of the training" in result.line()
        assert f"{result.best_distance:.2f} with the nearest card" in result.line()
    assert right.best_distance == wrong.best_distance <= right.distance < 1 < wrong.distance


def test_few_images_for_a_network_without_statistics_are_no_evidence(streets, tmp_path):
    for path in sorted(streets["game"].iterdir())[:3]:
        (tmp_path / path.name).write_bytes(path.read_bytes())
    model = load_source_model(SOURCE_MODEL)
    _replace_batch_norm(model.network)
    result = check(model, tmp_path, WRONG_CARDS[2], IMAGENET)
    assert (result.better, result.distance) == (None, None)
    assert result.line().startswith("card check: not possible with 3 readable images")


def test_unreadable_images_are_skipped(streets, tmp_path):
    (tmp_path / "a.png").write_bytes(b"no image")
    model = load_source_model(SOURCE_MODEL)
    result = check(model, tmp_path, IMAGENET, None)
    assert (result.compared, result.images, result.warnings) == (0, 0, ())
    assert result.line() == "card check: not possible: no image of the sample can be read"


PLAIN = {"mean": [0.0, 0.0, 0.0], "std": [1.0, 1.0, 1.0]}


@pytest.mark.parametrize("is_stated", [True, False], ids=["a checkpoint's", "of a user's module"])
@pytest.mark.parametrize(
    ("file", "drive", "changes"),
    [
        pytest.param(ESPNET, DUSK, {}, id="ESPNet by dusk"),
        pytest.param(ESPNET, DUSK, {"value_range": 1}, id="ESPNet, another range"),
        pytest.param(ESPNET, DAY, {"channel_order": "rgb"}, id="ESPNet, RGB"),
        pytest.param(ESPNET_V2, DAY, {}, id="ESPNetv2 by day"),
        pytest.param(ESPNET_V2, DUSK, {}, id="ESPNetv2 by dusk"),
        pytest.param(ESPNET_V2, DUSK, {"value_range": 255}, id="ESPNetv2, forgotten division"),
        pytest.param(ESPNET_V2, DAY, PLAIN, id="ESPNetv2, no normalisation"),
        pytest.param(ESPNET_V2, DUSK, {"channel_order": "bgr"}, id="ESPNetv2, BGR"),
    ],
)
def test_models_of_others_on_photographs(file, drive, changes, is_stated, shared_data, tmp_path):
    """Models trained by day keep their own card by day and at dusk, and lose a wrong one.

    A file of a known family states its card. Of a user's own module only the card in use is known.
    """
    model = load_source_model(shared_data("models") / file)
    own = model.network.card()
    photographs = four_of(shared_data("camvid"), drive, tmp_path)
    result = check(model, photographs, own.replaced(changes), own if is_stated else None)
    assert result.better == (own if changes else None)
    assert bool(result.warning) == bool(changes)


def four_of(camvid: Path, drive: str, folder: Path) -> Path:
    """Link four evenly spread frames of a drive into a folder, and return it."""
    paths = sorted(camvid.glob(f"images/train/{drive}*"))
    for path in paths[:: len(paths) // 4][:4]:
        (folder / path.name).symlink_to(path)
    return folder


def test_a_user_who_forgets_the_unusual_card_of_espnet_is_told(shared_data, tmp_path):
    """No common card fits these weights, so only the file's own family could name the right one."""
    model = load_source_model(shared_data("models") / ESPNET)
    result = check(model, four_of(shared_data("camvid"), DUSK, tmp_path), Card(), None)
    assert result.better is None
    assert "nor any of" in result.warning


def test_verify_names_the_checkpoints_own_card(streets):
    wrong = {"value_range": 255, "mean": [104, 117, 123]}
    result = verify_source(SOURCE_MODEL, streets["camera"], card=wrong, progress=str)
    assert result.card_check is not None
    assert result.card_check.better == IMAGENET
    assert result.lines()[-1].startswith("WARNING: ")
    assert any("does not fit these weights" in warning for warning in result.warnings)
    right = verify_source(SOURCE_MODEL, streets["camera"], progress=str)
    assert right.warnings == ()
    assert any(line.startswith("card check: ") for line in right.lines())
