"""`verify`: properties and predictions of a source checkpoint, and warnings of nonsense."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn
from torchvision.models import segmentation

import sfss_ray
from sfss_ray import cli
from sfss_ray.config import Config
from sfss_ray.errors import DataError, SfssError
from sfss_ray.evaluation import inference

SIZE = (48, 64)
CLASSES = tuple(f"thing {i}" for i in range(5))


class Colours(nn.Module):
    """Five classes that differ in colour; the logits can be computed by hand."""

    def __init__(self):
        super().__init__()
        self.features = nn.Conv2d(3, 5, 1)
        self.out = nn.Conv2d(5, 5, 1)
        with torch.no_grad():
            self.features.weight.copy_(
                torch.tensor([[1.0, 0, 0], [0, 1, 0], [0, 0, 1], [0.6, 0.6, 0], [-1, -1, -1]]).view(
                    5, 3, 1, 1
                )
            )
            self.features.bias.zero_()
            self.out.weight.copy_(torch.eye(5).view(5, 5, 1, 1))
            self.out.bias.zero_()

    def forward(self, x):
        return self.out(self.features(x))


PLAIN = {"mean": [0, 0, 0], "std": [1, 1, 1]}


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("data")
    rng = np.random.default_rng(0)
    for folder in ("images", "labels", "small_labels"):
        (root / folder).mkdir()
    for name in ("a.png", "b.png", "c.png"):
        pixels = rng.integers(0, 256, (*SIZE, 3)).astype(np.uint8)
        Image.fromarray(pixels).save(root / "images" / name)
        labels = rng.integers(0, 5, SIZE).astype(np.uint8)
        Image.fromarray(labels).save(root / "labels" / name)
        Image.fromarray(labels[:-4]).save(root / "small_labels" / name)
    torch.manual_seed(0)
    network = segmentation.lraspp_mobilenet_v3_large(
        weights=None, weights_backbone=None, num_classes=19
    )
    torch.save({"model": network.state_dict()}, root / "weights.pth")
    return root


def colours():
    return sfss_ray.wrap_model(Colours(), classes=CLASSES, feature_layer="features", card=PLAIN)


def test_entropy_and_histogram_are_those_computed_by_hand(data):
    shares, entropies = np.zeros(5), []
    for path in sorted((data / "images").iterdir()):
        pixels = np.array(Image.open(path)).astype(np.float64) / 255
        weights = np.array([[1, 0, 0], [0, 1, 0], [0, 0, 1], [0.6, 0.6, 0], [-1, -1, -1]])
        logits = pixels @ weights.T
        probabilities = np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)
        entropies.append(-(probabilities * np.log(probabilities)).sum(-1).mean())
        shares += np.bincount(logits.argmax(-1).ravel(), minlength=5)
    result = sfss_ray.verify_source(colours(), data / "images", progress=str)
    assert result.entropy == pytest.approx(np.mean(entropies), abs=1e-4)
    assert list(result.predicted.values()) == pytest.approx(100 * shares / shares.sum(), abs=0.05)
    assert (result.images, result.warnings, result.load_report) == (3, (), None)
    assert math.isnan(result.miou)
    assert result.per_class is None


def test_an_image_too_large_for_the_memory_is_one_line(data, monkeypatch):
    def fail(*_):
        raise RuntimeError("DefaultCPUAllocator: can't allocate memory")

    monkeypatch.setattr(inference, "_average_views", fail)
    with pytest.raises(DataError, match=r"^image '.*a.png': 64x48 pixels are too many"):
        sfss_ray.verify_source(colours(), data / "images", progress=str)


def test_miou_is_that_of_an_evaluation(data):
    images, labels = data / "images", data / "labels"
    result = sfss_ray.verify_source(colours(), images, labels, progress=str)
    score = sfss_ray.evaluate_model(colours(), images, labels)
    assert result.miou == pytest.approx(score.miou)
    assert result.per_class == pytest.approx(score.per_class)
    assert 0 < result.miou < 100


def test_a_collapsed_model_gets_a_warning_in_the_last_line(data):
    module = Colours()
    with torch.no_grad():
        module.out.bias[3] += 100
    model = sfss_ray.wrap_model(module, classes=CLASSES, feature_layer="features", card=PLAIN)
    result = sfss_ray.verify_source(model, data / "images", progress=str)
    (warning,) = result.warnings
    assert "100.0 % of all pixels are predicted as 'thing 3'" in warning
    assert result.lines()[-1] == f"WARNING: {warning}"


def test_weights_with_nan_get_a_warning(data):
    module = Colours()
    with torch.no_grad():
        module.out.bias[3] = torch.nan
    model = sfss_ray.wrap_model(module, classes=CLASSES, feature_layer="features", card=PLAIN)
    result = sfss_ray.verify_source(model, data / "images", progress=str)
    assert "NaN or Inf" in result.warnings[0]


def test_the_given_card_is_used(data):
    plain = sfss_ray.verify_source(colours(), data / "images", progress=str)
    card = {"channel_order": "bgr"}
    swapped = sfss_ray.verify_source(colours(), data / "images", card=card, progress=str)
    assert swapped.card.channel_order == "bgr"
    assert swapped.card.mean == (0, 0, 0)
    # Red and blue are exchanged, and so are thing 0 and thing 2, apart from ties.
    assert swapped.predicted["thing 0"] != plain.predicted["thing 0"]


def test_the_verb_prints_family_classes_card_and_score(data, tmp_path, capsys):
    card = tmp_path / "card.json"
    card.write_text(json.dumps({"value_range": 255, "mean": [104, 117, 123], "std": [1, 1, 1]}))
    words = ["--source-model", str(data / "weights.pth"), "--images", str(data / "images")]
    assert cli.main(["verify", *words]) == 0
    page = capsys.readouterr().out
    assert "family: torchvision" in page
    assert "network: lraspp_mobilenet_v3_large" in page
    assert "classes: cityscapes-19 (19: road, sidewalk" in page
    assert "from the number of outputs, 19" in page
    assert "317 tensors matched, 0 missing, 0 unexpected, 0 of wrong shape" in page
    assert "channel_order rgb, value_range 1.0, align_corners False" in page
    assert "mean entropy" in page
    assert "source-only mIoU" not in page
    words += ["--labels", str(data / "labels"), "--card", str(card)]
    assert cli.main(["verify", *words]) == 0
    page = capsys.readouterr().out
    assert "mean [104.0, 117.0, 123.0]" in page
    assert "source-only mIoU: " in page


def test_untrained_weights_get_a_warning_on_the_command_line(data, capsys, tmp_path):
    content = torch.load(data / "weights.pth", weights_only=True)
    content["model"]["classifier.low_classifier.bias"][7] += 1e3
    torch.save(content, tmp_path / "weights.pth")
    words = ["--source-model", str(tmp_path / "weights.pth"), "--images", str(data / "images")]
    assert cli.main(["verify", *words]) == 0
    last = capsys.readouterr().out.splitlines()[-1]
    assert last.startswith("WARNING: 100.0 % of all pixels are predicted as 'traffic sign'")


def test_bad_input_is_one_error(data, tmp_path):
    weights = data / "weights.pth"
    (tmp_path / "images").mkdir()
    for arguments, message in [
        ((tmp_path / "nowhere.pth", data / "images"), "does not exist"),
        ((weights, tmp_path / "images"), "no image in"),
        ((weights, data / "images", data / "small_labels"), "give pairs of one size"),
    ]:
        with pytest.raises(SfssError, match=message):
            sfss_ray.verify_source(*arguments, progress=str)
    (tmp_path / "images" / "a.png").write_bytes(b"no image")
    with pytest.raises(SfssError, match="none of the 1 images can be read"):
        sfss_ray.verify_source(weights, tmp_path / "images", progress=str)


GROUPS = {"all": list(CLASSES[:3]), "thing 3": ["thing 3"], "dropped": ["thing 4"]}


def test_class_groups_are_listed_and_their_predictions_counted(data):
    plain = sfss_ray.verify_source(colours(), data / "images", progress=str)
    images, labels = data / "images", data / "labels"
    options = {"class_groups": GROUPS, "config": Config(labels_classes=",".join(CLASSES))}
    result = sfss_ray.verify_source(colours(), images, labels, progress=str, **options)
    score = sfss_ray.evaluate_model(colours(), images, labels, **options)
    lines = result.lines()
    assert lines[2] == "classes: custom (2: all, thing 3), groups of the 5 outputs"
    assert lines[3:6] == ["  all = thing 0 + thing 1 + thing 2", "  thing 3", "  dropped: thing 4"]
    assert list(result.predicted) == ["all", "thing 3"]
    assert result.predicted["all"] >= sum(plain.predicted[name] for name in CLASSES[:3])
    assert result.card.classes == CLASSES
    assert result.miou == pytest.approx(score.miou)


def test_predicted_classes_that_labels_cannot_show_are_warned_of(data):
    config = Config(labels_classes="thing 0, thing 1, thing 2, other, more")
    result = sfss_ray.verify_source(
        colours(), data / "images", data / "labels", config=config, progress=str
    )
    (warning,) = result.warnings
    assert "without a counterpart in the labels' custom: thing 3" in warning
    assert "class groups can join them" in warning


def test_class_groups_are_given_on_the_command_line(data, capsys, tmp_path):
    words = ["--source-model", str(data / "weights.pth"), "--images", str(data / "images")]
    assert cli.main(["verify", *words, "--class-groups", "camvid-11"]) == 0
    page = capsys.readouterr().out
    assert "classes: camvid-11 (11: sky, building" in page
    assert "groups of the 19 outputs, from the number of outputs, 19" in page
    assert "  car = car + truck + bus + train\n" in page
    groups = tmp_path / "groups.yaml"
    groups.write_text("all: [road]\n")
    assert cli.main(["verify", *words, "--class-groups", str(groups)]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "class groups 'groups' leave out 'sidewalk' and 17 more of the model's classes" in line
