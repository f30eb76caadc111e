"""`masks inspect`: what it reports on a folder of masks, and the folders that it refuses."""

from __future__ import annotations

from pathlib import Path

import pytest
from rectangle_masks import RECIPE, mask_row

from sfss_ray import __version__, cli
from sfss_ray.config import Config, MaskConfig, override
from sfss_ray.data.decoding import read_image
from sfss_ray.data.folders import list_images
from sfss_ray.errors import ConfigError, DataError, OutputError
from sfss_ray.inspection.mask_folder import inspect_masks
from sfss_ray.inspection.mask_report import MaskReport, Spread
from sfss_ray.masks.bank.schema import shard_paths, write_shard
from sfss_ray.masks.regions import build_region_source, make_recipe


def inspect(folder: Path, **options) -> MaskReport:
    return inspect_masks(folder, progress=str, **options)


def test_the_report_counts_images_masks_and_errors(mask_folder: Path):
    report = inspect(mask_folder)
    assert (report.images, report.masks, report.source) == (4, 4, "sam")
    assert report.errors == {"broken": "the file is empty (0 bytes)"}
    assert (report.damaged, report.without_masks) == ({}, ["drive/c"])
    assert not report.sound
    assert report.spreads["masks_per_image"] == Spread(0.0, 1.0, 3.0)


def test_the_command_prints_the_whole_report(mask_folder: Path, capsys):
    assert cli.main(["masks", "inspect", str(mask_folder), "--pictures", "2"]) == 0
    page = capsys.readouterr().out
    assert "4 images, 4 masks" in page
    assert "regions: sam (segment-anything, vit_b)" in page
    assert f"made with: code_version {__version__}, sam_type vit_b, points_per_side 32" in page
    assert "images with an error: 1\n  broken: the file is empty (0 bytes)" in page
    assert "images without a mask: 1\n  drive/c" in page
    assert "unreadable files: none" in page
    assert "masks_per_image            0         1         3" in page
    assert f"contact sheet: {mask_folder / 'inspect.png'}" in page


def test_images_with_errors_only_have_no_contact_sheet(tmp_path: Path):
    rows = [mask_row(f"{i:02}", tmp_path / "no.png", [], error="gone") for i in range(7)]
    write_shard(tmp_path / "masks-0.parquet", rows, RECIPE)
    report = inspect(tmp_path)
    assert len(report.errors) == 7
    assert report.sheet is None
    lines = report.lines()
    assert "  and 2 more" in lines
    assert "  06: gone" not in lines
    assert lines[-1] == "contact sheet: none: no image could be drawn"


def test_images_of_the_sheet_are_chosen_by_the_seed(mask_folder: Path):
    def sheet(seed: int) -> bytes:
        config = override(Config(), {"seed": seed})
        report = inspect(mask_folder, pictures=1, config=config)
        assert report.sheet is not None
        return report.sheet.read_bytes()

    assert sheet(0) == sheet(0)
    assert len({sheet(seed) for seed in range(8)}) > 1


def test_no_sheet_is_drawn_with_zero_pictures(mask_folder: Path):
    report = inspect(mask_folder, pictures=0)
    assert report.sheet is None
    assert "contact sheet" not in "\n".join(report.lines())
    assert not (mask_folder / "inspect.png").exists()
    for number in (-1, 201):
        with pytest.raises(ConfigError, match=f"pictures is {number}: allowed is 0 to 200, and 0"):
            inspect(mask_folder, pictures=number)


def test_no_contact_sheet_is_put_among_the_images(mask_folder: Path, tmp_path: Path, capsys):
    inside = mask_folder.rename(tmp_path / "images" / "masks")
    assert cli.main(["masks", "inspect", str(inside)]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert f"inspect.png' lies in the folder of the images, '{tmp_path / 'images'}'" in line
    assert len(list_images(tmp_path / "images")) == 3
    assert inspect(inside, output_file=tmp_path / "sheet.png").sheet == tmp_path / "sheet.png"
    assert inspect(inside, pictures=0).sheet is None


def test_the_contact_sheet_replaces_no_shard(mask_folder: Path):
    shard = shard_paths(mask_folder)[0]
    before = shard.read_bytes()
    with pytest.raises(OutputError, match=r"masks-0.parquet' has another suffix: .* ends in .png"):
        inspect(mask_folder, output_file=shard)
    (mask_folder / "notes.png").write_text("no picture")
    with pytest.raises(OutputError, match=r"notes.png' exists and is a file of another kind"):
        inspect(mask_folder, output_file=mask_folder / "notes.png")
    assert shard.read_bytes() == before
    assert inspect(mask_folder).sheet == inspect(mask_folder).sheet == mask_folder / "inspect.png"


def test_a_truncated_shard_is_named(mask_folder: Path):
    whole = (mask_folder / "masks-1.parquet").read_bytes()
    (mask_folder / "masks-1.parquet").write_bytes(whole[: len(whole) // 2])
    report = inspect(mask_folder)
    assert (report.images, report.unreadable_files) == (2, ["masks-1.parquet"])
    assert not report.sound
    assert "unreadable files: 1" in report.lines()
    (mask_folder / "masks-0.parquet").write_bytes(b"PAR1")
    with pytest.raises(DataError, match=r"no readable masks .* 2 files, .*'masks-0.parquet'"):
        inspect(mask_folder)


def test_damaged_bytes_inside_a_shard_are_named(mask_folder: Path):
    file = shard_paths(mask_folder)[0]
    data = bytearray(file.read_bytes())
    data[4:400] = bytes(396)  # the first column chunk, behind the magic number
    file.write_bytes(data)
    with pytest.raises(DataError, match=r"masks-0.parquet' is damaged \(.*remove it"):
        inspect(mask_folder)


@pytest.mark.parametrize(
    ("path", "reason"),
    [
        ("nowhere", "nowhere' does not exist"),
        ("images", "no masks in '.*images'"),
        ("images/drive/a.png", "a.png' is a file"),
    ],
)
def test_bad_folders_are_one_line(path, reason, mask_folder: Path, tmp_path: Path, capsys):
    assert cli.main(["masks", "inspect", str(tmp_path / path)]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: ")
    with pytest.raises(DataError, match=reason):
        inspect(tmp_path / path)


def test_real_images_are_covered_once_by_the_classical_segmenter(shared_data, tmp_path: Path):
    files = list_images(shared_data("camvid") / "images" / "val")[:2]
    recipe, _ = make_recipe(MaskConfig(regions="felzenszwalb"), None)
    region_source, rows = build_region_source(recipe, None, 1, "cpu"), []
    for file in files:
        image = read_image(file.path)
        masks = {"height": image.shape[0], "width": image.shape[1], "masks": region_source(image)}
        rows.append(mask_row(file.image_id, file.path, []) | masks)
    write_shard(tmp_path / "masks-0.parquet", rows, recipe.as_dict())
    report = inspect(tmp_path)
    assert report.sound
    assert report.masks == sum(len(r["masks"]) for r in rows)
    assert report.spreads["coverage"] == Spread(1.0, 1.0, 1.0)
    assert report.spreads["overlap"] == Spread(0.0, 0.0, 0.0)
    assert "predicted_iou" not in report.spreads
    assert report.sheet is not None
    assert read_image(report.sheet).shape[0] > 220
