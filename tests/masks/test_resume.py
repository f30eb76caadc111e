"""Going on in a folder of masks: what counts, what is left alone, and who may write. No cluster."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas
import pyarrow.parquet as pq
import pytest
from amg_samples import MASKS, put_images, put_masks, take, write_json
from PIL import Image

from sfss_ray import cli
from sfss_ray.config import Config, MaskConfig, override
from sfss_ray.data.folders import list_images
from sfss_ray.errors import DataError, ResumeError
from sfss_ray.masks import generate
from sfss_ray.masks.actor import MaskActor, actor_spec
from sfss_ray.masks.bank.claims import claimed
from sfss_ray.masks.bank.schema import shard_paths, write_shard
from sfss_ray.masks.bank.store import MaskStore
from sfss_ray.masks.generate import generate_masks
from sfss_ray.masks.regions import make_recipe
from sfss_ray.masks.resume import find_rows
from sfss_ray.masks.summary import MaskSummary
from sfss_ray.runtime.crash_guard import CRASH_REASON
from sfss_ray.runtime.resources import Resources


@pytest.fixture(autouse=True)
def in_this_process(monkeypatch):
    """Stage 1 without a cluster: one actor, here."""

    def results(pool, items, spec):
        actor = pool.actor(spec | {"threads": 1, "pool": 1})
        for item in items:
            facts = actor({"shard": [item["shard"]]})
            yield {name: values[0] for name, values in facts.items()}

    monkeypatch.setattr(generate.Pool, "results", results)
    monkeypatch.setattr(generate, "_shard_length", lambda images, pool, config: 2)
    monkeypatch.setattr(
        generate.cluster, "connected", lambda compute: contextlib.nullcontext(Resources(1, 0))
    )


def put(folder: Path, *names: str, size: tuple[int, int] = (24, 40), seed: int = 0) -> Path:
    """Noise of (height, width)."""
    rng = np.random.default_rng(seed)
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 256, (*size, 3), dtype=np.uint8)).save(folder / name)
    return folder


def make(images: Path, out: Path) -> MaskSummary:
    return generate_masks(images, out, progress=str)


@pytest.fixture
def images(tmp_path: Path) -> Path:
    return put(tmp_path / "images", "a.png", "b.png", "c.png")


def rows_in(out: Path) -> list[str]:
    return sorted(i for f in shard_paths(out) for i in pq.read_table(f)["image_id"].to_pylist())


def other_makers_files(folder: Path) -> list[Path]:
    """A user's own table under a name like ours, another, one that is no Parquet, and a folder."""
    folder.mkdir(exist_ok=True)
    names = ("masks-train.parquet", "other.parquet", f"masks-{'0' * 16}.parquet")
    for name in names:
        pandas.DataFrame({"image_id": ["a"], "x": [1]}).to_parquet(folder / name)
    (folder / "junk.parquet").write_bytes(b"no table")
    (folder / "masks-half.parquet").write_bytes(b"PAR1")
    (folder / "folder.parquet").mkdir()
    return sorted(p for p in folder.iterdir() if p.name.endswith(".parquet"))


@pytest.mark.parametrize("before", [True, False], ids=["before the masks", "beside them"])
def test_files_of_others_are_left_alone_and_hinder_nothing(before, images: Path, tmp_path: Path):
    out = tmp_path / "masks"
    if not before:
        make(images, out)
    foreign = other_makers_files(out)
    assert make(images, out).made == (3 if before else 0)
    assert make(images, out).made == 0
    (images / "d.png").write_bytes(b"")
    assert make(images, out).errors.keys() == {"d"}
    assert make(images, out).made == 0
    assert all(path.exists() for path in foreign)
    assert rows_in(out) == ["a", "b", "c", "d"]


@pytest.mark.parametrize("before", [True, False], ids=["before the masks", "beside them"])
def test_files_of_others_do_not_hinder_an_import(before, tmp_path: Path):
    put_images(tmp_path / "images", *MASKS)
    source = put_masks(tmp_path / "sam", write_json, "frame1", "frame2")
    out = tmp_path / "masks"
    if not before:
        take(source, tmp_path / "images", out)
    foreign = other_makers_files(out)
    take(source, tmp_path / "images", out)
    put_masks(source, write_json, "frame3")
    again = take(source, tmp_path / "images", out)
    assert (again.made, set(again.errors)) == (1, {"frame0", "frame4"})
    assert all(path.exists() for path in foreign)


def test_half_a_shard_of_ours_is_made_again(images: Path, tmp_path: Path):
    out = tmp_path / "masks"
    make(images, out)
    first = shard_paths(out)[0]
    lost = len(pq.read_table(first))
    for data in (first.read_bytes()[:300], b"", b"PAR1" + b"\xff" * 40 + b"\x10\0\0\0PAR1"):
        first.write_bytes(data)
        assert make(images, out).made == lost
        assert rows_in(out) == ["a", "b", "c"]


def test_a_shard_that_cannot_be_read_is_kept_and_named(images: Path, tmp_path: Path, monkeypatch):
    out = tmp_path / "masks"
    make(images, out)
    first = shard_paths(out)[0]

    def refused(path, **options):
        if path == str(first):
            raise PermissionError(13, "Permission denied")
        return parquet_file(path, **options)

    parquet_file = pq.ParquetFile
    monkeypatch.setattr("sfss_ray.masks.bank.shards.pq.ParquetFile", refused)
    for work in (lambda: make(images, out), lambda: MaskStore(out)):
        with pytest.raises(
            DataError, match=r"cannot be read \(.*Permission denied\): make it read"
        ):
            work()
    assert first.exists()


def test_masks_of_other_images_with_the_same_names_are_refused(images: Path, tmp_path: Path):
    out = tmp_path / "masks"
    make(images, out)
    other = put(tmp_path / "other", "a.png", "b.png", "c.png", "d.png", size=(30, 20))
    with pytest.raises(ResumeError, match=r"masks of other images: .*'a'.*40x24.*20x30.*another"):
        make(other, out)
    take_source = put_masks(tmp_path / "sam", write_json, "frame1")
    frames = put_images(tmp_path / "frames", "frame1")
    take(take_source, frames, tmp_path / "imported")
    with pytest.raises(ResumeError, match="masks of other images"):
        take(take_source, put(tmp_path / "new", "frame1.png", size=(9, 9)), tmp_path / "imported")


def test_a_data_set_that_was_moved_goes_on(images: Path, tmp_path: Path):
    out = tmp_path / "masks"
    make(images, out)
    moved = images.rename(tmp_path / "elsewhere")
    put(moved, "d.png", size=(9, 9))
    assert make(moved, out).made == 1
    put(moved, "a.png", seed=5)
    again = make(moved, out)
    assert (again.made, again.errors) == (1, {}), "one of four is new: the same data set"


def test_errors_are_tried_where_the_image_is_now(images: Path, tmp_path: Path):
    out = tmp_path / "masks"
    (images / "x.jpg").write_bytes(b"")
    (images / "y.png").write_bytes(b"")
    assert set(make(images, out).errors) == {"x", "y"}
    (images / "x.jpg").unlink()
    moved = put(images, "x.png").rename(tmp_path / "elsewhere")
    put(moved, "y.png")
    again = make(moved, out)
    assert (again.made, again.errors) == (2, {})
    assert MaskStore(out).load("y")["path"] == str(moved / "y.png")


def test_an_image_that_killed_its_process_waits_for_a_new_file(
    images: Path, tmp_path: Path, monkeypatch
):
    """It is not even decoded by the command, which would die of it too."""
    out = tmp_path / "masks"
    (images / "c.png").write_bytes(b"")
    make(images, out)
    recipe = make_recipe(MaskConfig(), None)[0].as_dict()
    shard = next(
        path for path in shard_paths(out) if "c" in pq.read_table(path)["image_id"].to_pylist()
    )
    rows = [row | {"error": CRASH_REASON} for row in pq.read_table(shard).to_pylist()]
    put(images, "c.png")
    write_shard(shard, rows, recipe)
    with monkeypatch.context() as patched:
        patched.setattr("sfss_ray.data.folders.ImageFile.read", None)
        again = make(images, out)
    assert (again.made, again.errors) == (0, {"c": CRASH_REASON})
    made = shard.stat().st_mtime_ns
    os.utime(images / "c.png", ns=(made + 1, made + 1))
    assert (again := make(images, out)).made == 1
    assert again.errors == {}


def test_names_that_are_no_utf8_have_masks_too(images: Path, tmp_path: Path):
    out = tmp_path / "masks"
    try:
        (images / "a.png").rename(images / "caf\udce9.png")
    except OSError:
        pytest.skip("this file system takes names of UTF-8 alone")
    for made in (3, 0):
        summary = make(images, out)
        assert (summary.made, summary.errors) == (made, {})
    assert rows_in(out) == ["b", "c", r"caf\xe9"]
    assert MaskStore(out).load(r"caf\xe9")["path"] == str(images / r"caf\xe9.png")
    assert MaskStore(out).id_map(r"caf\xe9").shape == (24, 40)


def test_a_second_run_on_the_folder_is_refused_in_one_line(images: Path, tmp_path: Path, capsys):
    out = tmp_path / "masks"
    source = put_masks(tmp_path / "sam", write_json, "frame1")
    frames = put_images(tmp_path / "frames", "frame1")
    (out := out.absolute()).mkdir()
    leftover = out / f".masks-{'0' * 16}.parquet.77"
    leftover.touch()
    with claimed(out):
        for words in (["masks", "--target-images", images, "--output-dir", out],
                      ["masks", "import", source, frames, out]):  # fmt: skip
            assert cli.main([str(word) for word in words]) == 2
            (line,) = capsys.readouterr().err.splitlines()
            assert "another run is making masks in" in line
        assert leftover.exists(), "it may be the other run's"
    assert make(images, out).made == 3
    assert not leftover.exists()


def test_a_run_ends_once_another_has_its_folder(images: Path, tmp_path: Path, monkeypatch):
    """On a disk without locks nothing keeps the second one out."""
    monkeypatch.setattr("sfss_ray.masks.bank.claims._lock", lambda handle: True)
    out, work = tmp_path / "masks", MaskActor.__call__

    def begin_another(actor, batch):
        with claimed(out):
            return work(actor, batch)

    with monkeypatch.context() as patched:
        patched.setattr(MaskActor, "__call__", begin_another)
        with pytest.raises(ResumeError, match=r"another run has begun.*run again"):
            make(images, out)
    assert shard_paths(out) == []
    assert make(images, out).made == 3


HOLD = """
import sys, time
from pathlib import Path
from sfss_ray.masks.bank.claims import claimed
with claimed(Path(sys.argv[1])):
    print("locked", flush=True)
    time.sleep(300)
"""


def test_the_lock_goes_with_a_process_that_was_killed(tmp_path: Path):
    with subprocess.Popen([sys.executable, "-c", HOLD, tmp_path], stdout=subprocess.PIPE) as holder:
        assert holder.stdout
        assert holder.stdout.readline() == b"locked\n"
        with pytest.raises(ResumeError, match="another run"), claimed(tmp_path):
            pass
        holder.kill()
    with claimed(tmp_path):
        pass


def test_an_output_folder_that_is_a_file_is_one_line(images: Path, tmp_path: Path, capsys):
    (tmp_path / "out").touch()
    source = put_masks(tmp_path / "sam", write_json, "frame1")
    put_images(images, "frame1")
    for out in (tmp_path / "out", tmp_path / "out" / "below"):
        for words in (["masks", "--target-images", images, "--output-dir", out],
                      ["masks", "import", source, images, out]):  # fmt: skip
            assert cli.main([str(word) for word in words]) == 2
            (line,) = capsys.readouterr().err.splitlines()
            assert f"output folder {str(out)!r}" in line
            assert "give a folder that you may write" in line


def test_of_two_rows_the_one_with_masks_counts(images: Path, tmp_path: Path):
    out = tmp_path / "masks"
    make(images, out)
    good = shard_paths(out)
    recipe = make_recipe(MaskConfig(), None)[0]
    whole = MaskStore(out)
    bad = [whole.load("a") | {"masks": [], "error": "unreadable", "height": 0, "width": 0}]
    for name in ("masks-0.parquet", "masks-z.parquet"):  # before and after the good one
        write_shard(out / name, bad, recipe.as_dict())
        copied = out / f"copy-{name}"
        copied.write_bytes(good[0].read_bytes())
        store = MaskStore(out)
        assert store.errors == {}
        assert store.num_masks == whole.num_masks
        assert store.load("a")["masks"]
        assert not find_rows(out, recipe)["a"].failed


def test_an_actor_of_a_killed_run_leaves_nothing_in_a_folder_that_is_another_runs(
    images: Path, tmp_path: Path
):
    """Its driver's lock is gone while it still works: the next run has grouped images anew."""
    out = tmp_path / "masks"
    recipe, checkpoint = make_recipe(MaskConfig(), None)
    spec = actor_spec(recipe, checkpoint, out, MaskConfig()) | {"threads": 1, "pool": 1}
    shard = {"shard": [json.dumps([(i.image_id, str(i.path)) for i in list_images(images)][:1])]}
    with claimed(out) as former:
        orphan = MaskActor(spec | {"claim": former})
    with claimed(out) as present:
        orphan(shard)
        assert shard_paths(out) == []
        assert not list(out.glob(".*.parquet.*"))
        MaskActor(spec | {"claim": present})(shard)
        assert len(shard_paths(out)) == 1


def test_masks_by_other_weights_are_refused_by_name(images: Path, tmp_path: Path):
    config = MaskConfig(regions="small_sam")
    recipe, _ = make_recipe(config, None)
    out = tmp_path / "masks"
    out.mkdir()
    row = {"image_id": "a", "path": "a", "height": 24, "width": 40, "masks": [], "error": None}
    other = recipe.as_dict() | {"sam_sha256": "0" * 64}
    write_shard(out / f"masks-{'0' * 16}.parquet", [row], other)
    with pytest.raises(ResumeError, match=f"sam_sha256: {'0' * 64} -> {recipe.sam_sha256}"):
        find_rows(out, recipe)


def counts_of(out: Path, image_id: str) -> list[str]:
    return [mask["counts"] for mask in MaskStore(out).load(image_id)["masks"]]


def test_images_replaced_under_their_names_get_new_masks(images: Path, tmp_path: Path):
    out, lines = tmp_path / "masks", []
    make(images, out)
    before = {i: counts_of(out, i) for i in "abc"}
    put(images, "b.png", seed=9)
    summary = generate_masks(images, out, progress=lines.append)
    assert summary.made == 1
    assert "1 of 3 images to do (1 changed since their masks were made), 2 are done" in lines[-2]
    after = {i: counts_of(out, i) for i in "abc"}
    assert [i for i in "abc" if before[i] != after[i]] == ["b"]
    assert rows_in(out) == ["a", "b", "c"]
    assert make(images, out).made == 0


def test_an_image_of_equal_size_and_another_time_is_told_by_its_hash(tmp_path: Path):
    """Uncompressed: each file has as many bytes as the others."""
    out, images = tmp_path / "masks", put(tmp_path / "images", "a.bmp", "b.bmp")
    make(images, out)
    os.utime(images / "a.bmp", ns=(5, 5))
    assert make(images, out).made == 0, "touched, not changed"
    put(images, "b.bmp", seed=4)
    assert make(images, out).made == 1


def test_masks_of_a_former_release_are_made_again_where_the_image_is_newer(
    images: Path, tmp_path: Path
):
    out = tmp_path / "masks"
    make(images, out)
    for shard in shard_paths(out):
        table = pq.read_table(shard)
        first = [n for n in table.column_names if not n.startswith("image_") or n == "image_id"]
        pq.write_table(table.select([n for n in first if n != "imported_from"]), shard)
    assert make(images, out).made == 0
    put(images, "c.png", seed=3)
    newest = max(shard.stat().st_mtime_ns for shard in shard_paths(out)) + 10**9
    os.utime(images / "c.png", ns=(newest, newest))
    assert make(images, out).made == 1


def test_masks_imported_again_follow_their_files(tmp_path: Path):
    frames = put_images(tmp_path / "frames", *MASKS)
    source = put_masks(tmp_path / "sam", write_json)
    out = tmp_path / "masks"
    assert take(source, frames, out).made == 5
    assert take(source, frames, out).made == 0
    former = MaskStore(out).load("frame2")["masks"]
    (source / "frame2.json").write_text((source / "frame4.json").read_text())
    assert take(source, frames, out).made == 1
    store = MaskStore(out)
    assert store.load("frame2")["masks"] == store.load("frame4")["masks"] != former
    (source / "frame1.json").touch()
    assert take(source, frames, out).made == 0, "written again with the same masks"
    put(frames, "frame3.png", seed=8)
    assert take(source, frames, out).made == 0
    assert MaskStore(out).contents["frame3"].size == (frames / "frame3.png").stat().st_size


def test_another_white_is_another_recipe(tmp_path: Path):
    """A folder of 12 bits whose masks were made with 16 bits is not resumed silently."""
    images, out = tmp_path / "images", tmp_path / "masks"
    images.mkdir()
    values = np.random.default_rng(0).integers(0, 4096, (24, 40), dtype=np.uint16)
    values[0, 0] = 4095
    Image.fromarray(values).save(images / "a.png")
    lines: list[str] = []
    first = generate_masks(images, out, progress=lines.append)
    assert first.made == 1
    assert lines[0].startswith("images of more than 8 bits: white is 4095")
    assert MaskStore(out).recipe["white_level"] == 4095
    config = override(Config(), {"white_level": 65535.0})
    with pytest.raises(ResumeError, match=r"white_level: 4095.0 -> 65535.0"):
        generate_masks(images, out, config=config, progress=str)
