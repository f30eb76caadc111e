"""Networks of users' own as the guide shows them, in Python and on the command line."""

from __future__ import annotations

import importlib
import json
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from PIL import Image
from test_readme import blocks
from torch import nn
from user_projects import FILES, on_path, write_files

import sfss_ray
from sfss_ray import cli
from sfss_ray.config import flatten, override

__all__ = ["on_path"]

pytestmark = [pytest.mark.ray, pytest.mark.usefixtures("shared_cluster")]
GUIDE = Path(__file__).resolve().parents[2] / "docs" / "your-own-model.md"
EDGE_NETS = """
from torch import nn


class ESPNetv2Segmentation(nn.Module):
    def __init__(self, args, classes=21, dataset="pascal"):
        super().__init__()
        width = int(8 * args.s)
        self.base_net = nn.Sequential(
            nn.Conv2d(args.channels, width, 3, 2, 1), nn.BatchNorm2d(width), nn.ReLU()
        )
        self.bu_dec_l4 = nn.Conv2d(width, classes, 1)

    def forward(self, x):
        logits = self.bu_dec_l4(self.base_net(x))
        return nn.functional.interpolate(logits, x.shape[-2:], mode="bilinear", align_corners=True)
"""
"""A network that is called as the authors' class is."""


def test_the_eight_lines_of_the_guide_run(streets, tiny_config, tmp_path, on_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    files = {"model/segmentation/espnetv2.py": EDGE_NETS}
    on_path(write_files(tmp_path / "EdgeNets", files))
    names: dict = {}
    exec(EDGE_NETS, names)
    torch.manual_seed(0)
    network: nn.Module = names["ESPNetv2Segmentation"](
        type("Options", (), {"s": 1.0, "channels": 3}), classes=20
    )
    torch.save(network.state_dict(), "espnetv2_s_1.0_city_1024x512.pth")
    Path("dusk").mkdir()
    Path("dusk/images").symlink_to(streets / "target" / "images")
    in_full = sfss_ray.adapt

    def adapt(*arguments, **options):
        return in_full(*arguments, **options, config=tiny_config, progress=str)

    monkeypatch.setattr(sfss_ray, "adapt", adapt)
    lines: dict = {}
    exec(compile(blocks(GUIDE, "python")[0], GUIDE.name, "exec"), lines)
    result = lines["result"]
    assert result.student_path == tmp_path / "runs" / "dusk" / "student.pt"
    pixels = torch.rand(1, 3, 40, 56)
    with torch.no_grad():
        before, after = lines["model"](pixels), result.student.logits(pixels)
    assert before.shape == (1, 20, 40, 56)
    assert after.shape == (1, 11, 40, 56)  # grouped to the classes of CamVid
    changed = result.student.state_dict()["body.base_net.0.weight"]
    assert not torch.equal(changed, network.state_dict()["base_net.0.weight"])


@pytest.fixture
def project(tmp_path) -> Path:
    """A network in several files that no worker knows."""
    folder = write_files(tmp_path / "project", FILES)
    (folder / "networks.py").write_text("from model import Net\n\n\ndef net():\n    return Net()\n")
    return folder


def test_a_network_is_adapted_searched_and_used_by_command_line(
    project, streets, tiny_config, tmp_path, on_path, capsys
):
    on_path(project)
    torch.manual_seed(0)
    torch.save(importlib.import_module("model").Net().state_dict(), tmp_path / "net.pth")
    (tmp_path / "card.json").write_text(json.dumps({"classes": "cityscapes-19"}))
    config = override(tiny_config, {"tune.num_trials": 1, "evaluation.max_size": 128})
    (tmp_path / "few.yaml").write_text(yaml.safe_dump(flatten(config)))
    own = ["--architecture", f"{project / 'networks.py'}:net"]
    model = [
        *own,
        "--source-model",
        str(tmp_path / "net.pth"),
        "--card",
        str(tmp_path / "card.json"),
    ]
    images = ["--target-images", str(streets / "target" / "images")]
    few = ["--config", str(tmp_path / "few.yaml")]
    for verb in ("adapt", "tune"):
        output = tmp_path / verb
        words = [verb, *model, *images, "--output-dir", str(output), *few]
        assert cli.main(words) == 0, capsys.readouterr().err
        assert (output / "report.html").is_file()
        student = str(output / "student.pt")
        val = streets / "val"
        labelled = ["--images", str(val / "images"), "--labels", str(val / "labels")]
        assert cli.main(["evaluate", *own, "--model", student, *labelled]) == 0
        predictions = output / "predictions"
        assert cli.main(["predict", student, str(val / "images"), str(predictions), *own]) == 0
        ids = next((predictions / "train_ids").rglob("*.png"))
        assert np.array(Image.open(ids)).max() < 19
        assert cli.main(["export", student, str(output / "student.onnx"), *own]) == 0
        assert (output / "student.onnx").stat().st_size > 0
