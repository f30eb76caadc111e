"""Inputs of command lines, good and bad, and the one line that a refused command prints."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from sfss_ray.data.class_sets import CITYSCAPES_19
from sfss_ray.masks.bank.schema import write_shard
from sfss_ray.models.architectures.catalogue import build_network
from sfss_ray.models.model_file import SourceModel, save_model
from sfss_ray.runtime.run_folder import claim

SIZE = (32, 48)
TARGET = {"source-model": "@source.pt", "target-images": "@images"}
VAL = {"val-images": "@images", "val-labels": "@labels"}
SHARED_CASES = {
    "missing folder": ({"target-images": "@nowhere"}, r"nowhere' does not exist; give"),
    "empty folder": ({"target-images": "@empty"}, r"no image in '.*empty'; (looked for|expected)"),
    "a file, no folder": ({"target-images": "@letter.txt"}, r"letter\.txt' is a file; give"),
    "missing model": ({"source-model": "@nowhere.pt"}, r"nowhere\.pt' does not exist; give"),
    "no checkpoint": (
        {"source-model": "@letter.txt"},
        r"letter\.txt' .*(no checkpoint|not a checkpoint|be read)",
    ),
    "images without labels": ({"val-images": "@images"}, "without val_labels: give both"),
    "labels without images": ({"val-labels": "@labels"}, "without val_images: give both"),
    "strange labels": (VAL | {"val-labels": "@strange_labels"}, "id 40, .*19 classes"),
    "empty labels": (VAL | {"val-labels": "@empty"}, "no label map in"),
    "missing SAM": ({"sam-checkpoint": "@nowhere.pt"}, r"nowhere\.pt"),
    "no SAM": ({"sam-checkpoint": "@letter.txt"}, r"letter\.txt"),
    "a model, no SAM": ({"sam-checkpoint": "@source.pt"}, r"source\.pt"),
    "cold config file": ({"config": "@cold.json"}, r"temperature is 0\.0: allowed is \(0, 100\]"),
    "unknown name": ({"config": "@typo.json"}, "unknown setting 'train.loss.temprature'"),
    "no cluster": ({"compute.address": "127.0.0.1:1"}, "'127.0.0.1:1' cannot be reached"),
    "another run": ({"output-dir": "@another_run"}, "another_run' holds another run"),
    "unknown preset": ({"preset": "vit"}, "unknown preset 'vit': known are cnn, transformer"),
}
"""Bad inputs of the verbs adapt and tune and of the recipes: changed options, and the reason."""


def write_cli_data(root: Path) -> Path:
    """Write a folder with every file that the cases name with an @."""
    rng = np.random.default_rng(0)
    for folder in ("images", "labels", "strange_labels", "empty", "another_run"):
        (root / folder).mkdir()
    for name in ("a.png", "b.png", "c.png"):
        _write(root / "images" / name, rng.integers(0, 256, (*SIZE, 3)))
        _write(root / "labels" / name, rng.integers(0, 19, SIZE))
        _write(root / "strange_labels" / name, np.full(SIZE, 40))
    torch.manual_seed(0)
    save_model(
        root / "source.pt", SourceModel(build_network("compact", 19), "compact", CITYSCAPES_19)
    )
    (root / "letter.txt").write_text("no checkpoint")
    (root / "cold.json").write_text(json.dumps({"train.loss.temperature": 0}))
    (root / "typo.json").write_text(json.dumps({"train.loss.temprature": 1}))
    (root / "card.json").write_text(json.dumps({"channel_order": "gbr"}))
    (root / "groups.json").write_text(json.dumps({"all": ["boat"]}))
    (root / "cuda.json").write_text(json.dumps({"compute.device": "cuda"}))
    claim(root / "another_run", {"seed": 99})
    (root / "masks").mkdir()
    write_shard(root / "masks" / "masks-0.parquet", [_row("a"), _row("b")], {"source": "sam"})
    return root


def _row(image_id: str) -> dict:
    size = {"height": SIZE[0], "width": SIZE[1]}
    return {"image_id": image_id, "path": "", "masks": [], "error": None} | size


def _write(path: Path, pixels: np.ndarray) -> None:
    Image.fromarray(pixels.astype(np.uint8)).save(path)


def one_error(code: int, stderr: str) -> str:
    """Return the one line that a refused command prints."""
    assert code == 2
    lines = stderr.splitlines()
    assert len(lines) == 1, stderr
    assert lines[0].startswith("error: ")
    assert "Traceback" not in stderr
    return lines[0]


def words_of(options: dict[str, str], data: Path, output_dir: Path) -> list[str]:
    """Return options as words; `@name` is a file of the data, `@` alone the output folder."""
    words = []
    for name, value in options.items():
        if value.startswith("@"):
            words += [f"--{name}", str(output_dir if value == "@" else data / value[1:])]
        else:
            words += [f"--{name}", *value.split()]
    return words
