"""Files of torch.save that hold more than weights: what is read, and the ways out that errors print."""

from __future__ import annotations

import argparse
import shlex
import subprocess
import sys
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torchvision.models import segmentation

from sfss_ray import load_source_model
from sfss_ray.errors import CheckpointError

VOC_21 = ["background", *[f"thing {i}" for i in range(20)]]


def refusal(path: Path, **options: Any) -> str:
    with pytest.raises(CheckpointError) as refused:
        load_source_model(path, **options)
    assert "\n" not in str(refused.value)
    return str(refused.value)


def run_printed_command(message: str, folder: Path, **replaced: str) -> None:
    command = message[message.index("python -c") :]
    for word, other in {"python": shlex.quote(sys.executable), **replaced}.items():
        command = command.replace(word, other, 1)
    subprocess.run(command, shell=True, cwd=folder, check=True, capture_output=True)


def test_what_training_programs_keep_beside_weights_is_read(tmp_path):
    network = segmentation.lraspp_mobilenet_v3_large(weights=None, weights_backbone=None)
    content = {
        "state_dict": network.state_dict(),
        "args": argparse.Namespace(lr=1, folder=Path("a"), sub=argparse.Namespace(steps=(1, 2))),
        "best_miou": np.float64(41.5),
        "confusion": np.ones((2, 2), np.int64),
    }
    torch.save(content, tmp_path / "x.pth")
    found = load_source_model(tmp_path / "x.pth", classes=VOC_21)
    assert found.load_report.missing == ()


USERS_CODE = """
import torch
from torchvision.models.segmentation import lraspp_mobilenet_v3_large

class Net(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.model = lraspp_mobilenet_v3_large(
            weights=None, weights_backbone=None, num_classes=11
        )

class History:
    values = [1.0]

def save():
    net = Net()
    torch.save(%s, "a file's name.pth")
    torch.save(net.model.state_dict(), "plain.pth")

if __name__ == "__main__":
    save()
"""
SAVED = (
    "net",
    "torch.nn.DataParallel(net)",
    "{'epoch': 3, 'model': net, 'history': History()}",
    "{'state_dict': net.state_dict(), 'meta': {'CLASSES': ('a',) * 11, 'h': [History()]}}",
)


@pytest.mark.parametrize("saved", SAVED)
def test_the_command_that_an_error_prints_makes_a_file_that_loads(saved, tmp_path):
    """It runs where the user's code can be imported, as the error says."""
    (tmp_path / "users_code.py").write_text(USERS_CODE % saved)
    save = [sys.executable, "-c", "import users_code; users_code.save()"]
    subprocess.run(save, cwd=tmp_path, check=True)
    message = refusal(tmp_path / "a file's name.pth")
    assert "unpickling that could run code" in message
    run_printed_command(message, tmp_path)
    assert_made_from(tmp_path)


def test_the_command_for_classes_of_a_program_that_was_run(tmp_path):
    """Such a file looks for its classes among those of the running program."""
    (tmp_path / "train.py").write_text(USERS_CODE % "net")
    subprocess.run([sys.executable, "train.py"], cwd=tmp_path, check=True)
    message = refusal(tmp_path / "a file's name.pth")
    assert "SCRIPT, the name of the program that defines Net" in message
    run_printed_command(message, tmp_path, SCRIPT="train")
    assert_made_from(tmp_path)


def assert_made_from(folder: Path) -> None:
    (made,) = folder.glob("*.weights.pth")
    plain = torch.load(folder / "plain.pth", weights_only=True)
    classifier = load_source_model(made).network.classifier
    high, low = (plain[f"classifier.{part}_classifier.weight"] for part in ("high", "low"))
    assert torch.equal(classifier.weight, torch.cat([high, low], 1))


def test_a_torchscript_program_is_named_with_the_way_out(tmp_path):
    network = segmentation.lraspp_mobilenet_v3_large(weights=None, weights_backbone=None)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.jit.script(network).save(str(tmp_path / "x.pt"))
        message = refusal(tmp_path / "x.pt")
    assert "is a TorchScript program" in message
    run_printed_command(message, tmp_path)
    assert load_source_model(tmp_path / "x.weights.pth", classes=VOC_21).load_report.missing == ()
