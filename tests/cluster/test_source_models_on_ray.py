"""Foreign checkpoints and users' own modules through every stage on a real cluster."""

import importlib
import json

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn
from torchvision.models import segmentation
from user_projects import FILES, on_path, write_files

import sfss_ray
from sfss_ray.config import override
from sfss_ray.errors import CheckpointError, ConfigError, ResumeError
from sfss_ray.models.source import open_source

__all__ = ["on_path"]

pytestmark = [pytest.mark.ray, pytest.mark.usefixtures("shared_cluster")]
CARD = {"channel_order": "bgr", "value_range": 255, "mean": [104, 117, 123], "std": [60, 60, 60]}


class Own(nn.Module):
    """A user's network: features at stride 8, logits at full size, a head that takes no part."""

    def __init__(self, width: int = 12):
        super().__init__()
        layers = [nn.Conv2d(3, width, 3, 4, 1), nn.BatchNorm2d(width), nn.ReLU()]
        self.encoder = nn.Sequential(*layers, nn.Conv2d(width, width, 3, 2, 1))
        self.classifier = nn.Conv2d(width, 19, 1)
        self.auxiliary = nn.Conv2d(width, 19, 1)

    def forward(self, x):
        features = self.encoder(x)
        if self.training:
            self.auxiliary(features)
        logits = self.classifier(features)
        return {"out": nn.functional.interpolate(logits, x.shape[-2:], mode="bilinear")}


def own() -> Own:
    torch.manual_seed(0)
    return Own().eval()


def wrapped():
    return sfss_ray.wrap_model(own(), classes="cityscapes-19", feature_layer="encoder.3")


@pytest.fixture
def foreign(tmp_path):
    torch.manual_seed(0)
    network = segmentation.lraspp_mobilenet_v3_large(
        weights=None, weights_backbone=None, num_classes=19
    )
    torch.save(network.state_dict(), tmp_path / "GTA5.pth")
    return tmp_path / "GTA5.pth"


def test_a_foreign_checkpoint_is_adapted_and_keeps_its_card(
    foreign, streets, tiny_config, tmp_path
):
    images = streets / "target" / "images"
    run = tmp_path / "run"
    options = {"config": tiny_config, "progress": str}
    result = sfss_ray.adapt(foreign, images, run, card=CARD, **options)
    student = sfss_ray.load_model(result.student_path)
    assert student.name == "lraspp_mobilenet_v3_large"
    assert student.card == sfss_ray.load_source_model(foreign, card=CARD).card
    assert sfss_ray.load_source_model(result.student_path).card == student.card
    report = json.loads((run / "report.json").read_text())
    assert report["source_model"]["path"] == str(foreign)
    assert report["source_model"]["card"]["channel_order"] == "bgr"
    assert report["title"].startswith("GTA5 adapted")
    again = sfss_ray.adapt(foreign, images, run, card=CARD, **options)
    assert again.student_path.stat().st_mtime_ns == result.student_path.stat().st_mtime_ns
    with pytest.raises(ResumeError, match=r"inputs\.card"):
        sfss_ray.adapt(foreign, images, run, **options)

    val = streets / "val"
    score = sfss_ray.evaluate_model(result.student_path, val / "images", val / "labels")
    assert score.miou >= 0
    predicted = sfss_ray.predict(
        result.student_path, val / "images", tmp_path / "out", progress=str
    )
    ids = np.array(Image.open(next((predicted.output_dir / "train_ids").rglob("*.png"))))
    assert ids.max() < 19


@pytest.mark.parametrize("workers", [1, 2])
def test_a_users_own_module_is_adapted(workers, streets, tiny_config, tmp_path):
    config = override(tiny_config, {"compute.num_workers": workers})
    module = own()
    before = {name: value.clone() for name, value in module.state_dict().items()}
    model = sfss_ray.wrap_model(module, classes="cityscapes-19", feature_layer="encoder.3")
    images = streets / "target" / "images"
    result = sfss_ray.adapt(model, images, tmp_path / "run", config=config, progress=str)
    assert all(torch.equal(before[name], value) for name, value in module.state_dict().items())
    assert [point["step"] for point in result.report.curves[0].points] == [3, 6]
    with pytest.raises(CheckpointError, match="a module of your own"):
        sfss_ray.load_model(result.student_path)
    student = sfss_ray.load_model(result.student_path, module=Own())
    pixels = torch.rand(1, 3, 32, 32)
    with torch.no_grad():
        assert torch.equal(student(pixels), result.student.logits(pixels))
        assert not torch.equal(student(pixels), model(pixels))
    assert torch.equal(student.network.body.auxiliary.weight, module.auxiliary.weight)


def test_a_search_takes_a_users_own_module(streets, tiny_config, tmp_path):
    config = override(tiny_config, {"tune.num_trials": 2, "tune.early_stopping": False})
    images = streets / "target" / "images"
    result = sfss_ray.tune_hyperparameters(
        wrapped(), images, tmp_path / "run", config=config, progress=str
    )
    assert [trial.status for trial in result.search.trials] == ["finished", "finished"]
    assert result.student.logits(torch.rand(1, 3, 32, 32)).shape == (1, 19, 32, 32)
    for trial in result.search.trials:
        assert sfss_ray.load_model(trial.folder / "student.pt", module=Own()).classes


def test_actors_predict_with_a_users_own_module(streets, tiny_config, tmp_path):
    images = streets / "val" / "images"
    on_ray = override(tiny_config, {"compute.predict_on_ray_from": 1, "compute.predict_actors": 2})
    model = wrapped()
    there = sfss_ray.predict(model, images, tmp_path / "ray", config=on_ray, progress=str)
    here = sfss_ray.predict(model, images, tmp_path / "one", config=tiny_config, progress=str)
    assert there.made == here.made == len(list(images.iterdir()))
    for one in sorted((tmp_path / "one" / "train_ids").rglob("*.png")):
        other = tmp_path / "ray" / one.relative_to(tmp_path / "one")
        assert np.array_equal(np.array(Image.open(one)), np.array(Image.open(other)))
    assert sfss_ray.predict(model, images, tmp_path / "ray", config=on_ray, progress=str).made == 0


@pytest.fixture
def of_helpers(tmp_path, on_path):
    """A network whose code lies in several top-level modules, in a folder that no worker knows."""
    on_path(write_files(tmp_path / "project", FILES))
    torch.manual_seed(0)
    module = importlib.import_module("model").Net()
    return sfss_ray.wrap_model(module, classes="cityscapes-19", feature_layer="encoder.1")


@pytest.mark.parametrize("workers", [1, 2])
def test_a_module_with_helper_modules_is_searched_and_predicted_with(
    workers, of_helpers, streets, tiny_config, tmp_path
):
    config = override(
        tiny_config,
        {
            "compute.num_workers": workers,
            "compute.cpus_per_worker": 0.4,
            "compute.predict_on_ray_from": 1,
            "tune.num_trials": 1,
        },
    )
    images = streets / "target" / "images"
    result = sfss_ray.tune_hyperparameters(
        of_helpers, images, tmp_path / "run", config=config, progress=str
    )
    assert [trial.status for trial in result.search.trials] == ["finished"]
    predicted = sfss_ray.predict(
        result.student, images, tmp_path / "out", config=config, progress=str
    )
    assert predicted.made == 12
    pixels = torch.rand(1, 3, 64, 64)
    with torch.no_grad():
        assert not torch.equal(result.student.logits(pixels), of_helpers(pixels))


def test_a_module_that_cannot_travel_is_refused_before_masks_are_made(
    of_helpers, streets, tiny_config, tmp_path
):
    (tmp_path / "project" / "reading.py").write_text(
        "from pathlib import Path\nfrom model import Net as Base\n\n\nclass Net(Base):\n"
        "    def forward(self, x):\n"
        "        return super().forward(x) * int(Path('factor.txt').read_text())\n"
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(tmp_path)
        (tmp_path / "factor.txt").write_text("2")
        module = importlib.import_module("reading").Net()
        model = sfss_ray.wrap_model(module, classes="cityscapes-19", feature_layer="encoder.1")
        images = streets / "target" / "images"
        with pytest.raises(ConfigError, match=r"FileNotFoundError.*factor\.txt.*are not sent"):
            sfss_ray.adapt(model, images, tmp_path / "run", config=tiny_config, progress=str)
        on_ray = override(tiny_config, {"compute.predict_on_ray_from": 1})
        with pytest.raises(ConfigError, match=r"FileNotFoundError.*factor\.txt.*are not sent"):
            sfss_ray.predict(model, images, tmp_path / "out", config=on_ray, progress=str)
    assert not (tmp_path / "run").exists()


def test_a_student_is_adapted_again(streets, tiny_config, tmp_path):
    images = streets / "target" / "images"
    options = {"config": tiny_config, "progress": str}
    once = sfss_ray.adapt(wrapped(), images, tmp_path / "once", **options)
    masks = once.masks_dir
    twice = sfss_ray.adapt(once.student, images, tmp_path / "twice", masks=masks, **options)
    source = twice.report.source_model
    assert source.sha256 == open_source(once.student).sha256
    pixels = torch.rand(1, 3, 32, 32)
    with torch.no_grad():
        assert not torch.equal(once.student.logits(pixels), twice.student.logits(pixels))
