"""Tests of reading files of torch.save and safetensors, and of the commands that errors print."""

from __future__ import annotations

import argparse
import hashlib
import pickle
import shlex
import subprocess
import sys
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from checkpoint_files import refusal
from torchvision.models import segmentation

from sfss_ray import load_source_model
from sfss_ray.models.reading import checkpoint_sha256, file_sha256, read_checkpoint

VOC_21 = ["background", *[f"thing {i}" for i in range(20)]]


def run_printed_command(message: str, folder: Path, **replacements: str) -> None:
    """Run the command at the end of an error message in a folder."""
    command = message[message.index("python -c") :]
    for word, replacement in {"python": shlex.quote(sys.executable), **replacements}.items():
        command = command.replace(word, replacement, 1)
    subprocess.run(command, shell=True, cwd=folder, check=True, capture_output=True)


def test_objects_that_training_programs_save_beside_weights_are_read(tmp_path):
    network = segmentation.lraspp_mobilenet_v3_large(weights=None, weights_backbone=None)
    content = {
        "state_dict": network.state_dict(),
        "args": argparse.Namespace(lr=1, folder=Path("a"), sub=argparse.Namespace(steps=(1, 2))),
        "best_miou": np.float64(41.5),
        "confusion": np.ones((2, 2), np.int64),
    }
    torch.save(content, tmp_path / "x.pth")
    read = read_checkpoint(tmp_path / "x.pth")
    assert read["best_miou"] == 41.5
    assert read["args"].sub.steps == (1, 2)
    model = load_source_model(tmp_path / "x.pth", classes=VOC_21)
    assert model.load_report.missing == ()


def test_safetensors_are_recognised_by_content(tmp_path):
    safetensors = pytest.importorskip("safetensors.torch")
    state = {"a": torch.arange(3.0), "b": torch.ones(2, 2)}
    safetensors.save_file(state, tmp_path / "renamed.pth")
    read = read_checkpoint(tmp_path / "renamed.pth")
    assert set(read) == {"a", "b"}
    assert torch.equal(read["a"], state["a"])


def test_missing_files_are_named(tmp_path: Path):
    assert "nowhere.pt' does not exist; give" in refusal(tmp_path / "nowhere.pt")
    assert "is a folder without config.json" in refusal(tmp_path)


@pytest.mark.parametrize("data", [b"", b"garbage, no weights", bytes(range(256)) * 40])
def test_garbage_is_refused(data, tmp_path: Path):
    path = tmp_path / "garbage.pt"
    path.write_bytes(data)
    assert "garbage.pt" in refusal(path)


class _Intruder:
    """An object that creates a file when it is unpickled."""

    def __init__(self, path: Path):
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


def test_code_in_a_file_is_not_run(tmp_path: Path):
    proof = tmp_path / "intruder was here"
    plain = tmp_path / "plain.pt"
    plain.write_bytes(pickle.dumps({"x": _Intruder(proof)}, protocol=2))
    torch.save({"x": _Intruder(proof)}, tmp_path / "zip.pt")
    for path in (plain, tmp_path / "zip.pt"):
        assert path.name in refusal(path)
    assert not proof.exists()


USER_CODE = """
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
SAVED_OBJECTS = (
    "net",
    "torch.nn.DataParallel(net)",
    "{'epoch': 3, 'model': net, 'history': History()}",
    "{'state_dict': net.state_dict(), 'meta': {'CLASSES': ('a',) * 11, 'h': [History()]}}",
)


@pytest.mark.parametrize("saved", SAVED_OBJECTS)
def test_the_printed_command_extracts_weights_that_load(saved, tmp_path):
    """The command runs where the user's code can be imported, as the error says."""
    (tmp_path / "users_code.py").write_text(USER_CODE % saved)
    save = [sys.executable, "-c", "import users_code; users_code.save()"]
    subprocess.run(save, cwd=tmp_path, check=True)
    message = refusal(tmp_path / "a file's name.pth")
    assert "unpickling that could run code" in message
    run_printed_command(message, tmp_path)
    assert_weights_extracted(tmp_path)


def test_the_printed_command_imports_the_classes_of_a_script(tmp_path):
    """pickle looks for the classes of a script in the running program."""
    (tmp_path / "train.py").write_text(USER_CODE % "net")
    subprocess.run([sys.executable, "train.py"], cwd=tmp_path, check=True)
    message = refusal(tmp_path / "a file's name.pth")
    assert "SCRIPT, the name of the program that defines Net" in message
    run_printed_command(message, tmp_path, SCRIPT="train")
    assert_weights_extracted(tmp_path)


def assert_weights_extracted(folder: Path) -> None:
    (extracted,) = folder.glob("*.weights.pth")
    plain = torch.load(folder / "plain.pth", weights_only=True)
    classifier = load_source_model(extracted).network.classifier
    high, low = (plain[f"classifier.{part}_classifier.weight"] for part in ("high", "low"))
    assert torch.equal(classifier.weight, torch.cat([high, low], 1))


def test_the_printed_command_extracts_the_weights_of_a_torchscript_program(tmp_path):
    network = segmentation.lraspp_mobilenet_v3_large(weights=None, weights_backbone=None)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.jit.script(network).save(str(tmp_path / "x.pt"))
        message = refusal(tmp_path / "x.pt")
    assert "is a TorchScript program" in message
    run_printed_command(message, tmp_path)
    assert load_source_model(tmp_path / "x.weights.pth", classes=VOC_21).load_report.missing == ()


def test_file_sha256_is_that_of_the_bytes(tmp_path: Path):
    path = tmp_path / "a"
    path.write_bytes(b"abc" * 100_000)
    expected = hashlib.sha256(b"abc" * 100_000).hexdigest()
    assert file_sha256(path) == checkpoint_sha256(path) == expected


def test_the_hash_of_a_folder_covers_config_and_weights(tmp_path: Path):
    for name in ("config.json", "model.safetensors", "README.md"):
        (tmp_path / name).write_text(name)
    before = checkpoint_sha256(tmp_path)
    lines = [
        f"{name} {file_sha256(tmp_path / name)}\n" for name in ("config.json", "model.safetensors")
    ]
    assert before == hashlib.sha256("".join(lines).encode()).hexdigest()
    (tmp_path / "README.md").write_text("changed")
    assert checkpoint_sha256(tmp_path) == before
    (tmp_path / "config.json").write_text("changed")
    assert checkpoint_sha256(tmp_path) != before
