"""SAM weights in a bucket: a file, and a folder that save_pretrained wrote."""

from __future__ import annotations

from pathlib import Path

import pytest
from mask_runs import put_noise, run_pools_in_process
from object_storage import bucket_address, s3_options, upload  # noqa: F401

from sfss_ray.config import Config, override
from sfss_ray.errors import CheckpointError
from sfss_ray.masks.bank.store import MaskStore
from sfss_ray.masks.generate import generate_masks
from sfss_ray.masks.sam.networks import shipped_small_sam
from sfss_ray.storage.places import to_place

CONFIG = override(
    Config(),
    {
        "compute.device": "cpu",
        "masks.regions": "sam",
        "masks.points_per_side": 4,
        "masks.pred_iou_thresh": 0.0,
        "masks.stability_score_thresh": 0.2,
    },
)


def saved_sam2(folder: Path) -> Path:
    """A network with random weights."""
    pytest.importorskip("transformers")
    from family_models import MODELS

    MODELS["sam2"]().save_pretrained(folder)
    return folder


@pytest.mark.parametrize("weights", ["file", "folder"])
def test_the_masks_are_those_of_weights_on_a_disk(weights, bucket_address, tmp_path, monkeypatch):  # noqa: F811
    run_pools_in_process(monkeypatch)
    images = put_noise(tmp_path / "images", "a.png", "b.png", size=(48, 64))
    checkpoint = shipped_small_sam() if weights == "file" else saved_sam2(tmp_path / "sam2")
    remote = to_place(bucket_address.format("models")) / checkpoint.name
    if weights == "file":
        remote.write_bytes(checkpoint.read_bytes())
    else:
        upload(checkpoint, remote)
    lines: list[str] = []
    options = {"sam_checkpoint": remote.address, "config": CONFIG, "progress": lines.append}
    there = generate_masks(images, tmp_path / "there", **options)
    options |= {"sam_checkpoint": checkpoint}
    here = generate_masks(images, tmp_path / "here", **options)
    assert there.masks == here.masks > 0
    assert (there.source, there.note, there.errors) == (here.source, here.note, {})
    stores = MaskStore(tmp_path / "there"), MaskStore(tmp_path / "here")
    assert stores[0].recipe == stores[1].recipe
    for image_id in ("a", "b"):
        assert stores[0].load(image_id)["masks"] == stores[1].load(image_id)["masks"]
    assert not any("secret" in line for line in lines)


def test_absent_weights_are_one_line(bucket_address, tmp_path):  # noqa: F811
    images = put_noise(tmp_path / "images", "a.png")
    options = {"sam_checkpoint": bucket_address.format("absent.pth"), "config": CONFIG}
    with pytest.raises(
        CheckpointError, match=r"'s3://fleet/.*/absent.pth' does not exist"
    ) as error:
        generate_masks(images, tmp_path / "masks", **options, progress=str)
    assert "secret" not in str(error.value)
    assert not (tmp_path / "masks").exists()
