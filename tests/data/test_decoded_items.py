"""Items of decoded images: errors and crashes fail one image, and memory is limited."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from mask_runs import put_noise

from sfss_ray.data.content import Content
from sfss_ray.data.decoded_items import DecodedImage, decode_images, images_that_fit, run_network
from sfss_ray.data.decoding import MAX_PIXELS
from sfss_ray.data.folders import ImageFile, list_images
from sfss_ray.runtime.crash_guard import MAX_CRASHES, Attempts

SIZE = (24, 40)
IMAGE_BYTES = 24 * 40 * 3


def explain(file: ImageFile, error: Exception) -> str:
    return f"{file.image_id}: {error}"


def decode(image: DecodedImage) -> DecodedImage:
    return image.decode(MAX_PIXELS, explain)


@pytest.fixture
def files(tmp_path: Path) -> list[ImageFile]:
    return list_images(put_noise(tmp_path / "images", "a.png", "b.png", "c.png", size=SIZE))


def decoded(files: list[ImageFile], folder: Path, max_bytes: int = 2**20) -> list[DecodedImage]:
    attempts = Attempts(folder, [file.image_id for file in files], "decode")
    return decode_images(files, attempts, max_bytes, decode, "crashed")


def test_images_come_with_their_pixels_and_content(files, tmp_path: Path):
    images = decoded(files, tmp_path)
    assert [image.file for image in images] == files
    for image in images:
        assert image.pixels is not None
        np.testing.assert_array_equal(image.pixels, image.file.read())
        assert image.content == Content.of_file(image.file.path)
        assert not image.is_pending
    assert not list(tmp_path.glob(".*"))


def test_an_image_that_cannot_be_read_fails_alone(files, tmp_path: Path):
    files[0].path.write_bytes(b"a letter")
    files[1].path.unlink()
    broken, gone, good = decoded(files, tmp_path)
    assert broken.error is not None
    assert broken.error.startswith("a: cannot be read as an image")
    assert broken.content == Content.of_file(files[0].path), "a repaired file is another one"
    assert gone.error is not None
    assert (gone.content, good.error) == (None, None)


@pytest.mark.parametrize(("max_bytes", "count"), [(1, 1), (IMAGE_BYTES, 1), (IMAGE_BYTES + 1, 2)])
def test_images_without_room_are_left_pending(max_bytes, count, files, tmp_path: Path):
    images = decoded(files, tmp_path, max_bytes)
    assert [image.is_pending for image in images] == [k >= count for k in range(3)]


class Killed(BaseException):
    """In place of a signal."""


def test_an_image_that_kills_its_decoder_is_given_up(files, tmp_path: Path):
    def deadly(image: DecodedImage) -> DecodedImage:
        if image.file.image_id == "b":
            raise Killed
        return decode(image)

    for _ in range(MAX_CRASHES):
        with pytest.raises(Killed):
            decode_images(files, Attempts(tmp_path, "abc", "decode"), 2**20, deadly)
    images = decode_images(files, Attempts(tmp_path, "abc", "decode"), 2**20, deadly, "crashed")
    assert [image.error for image in images] == [None, "crashed", None]
    assert not list(tmp_path.glob(".begun*"))


def test_sizes_decide_how_many_images_an_item_holds(files):
    assert images_that_fit(files, 10 * IMAGE_BYTES) == 10
    assert images_that_fit(files, IMAGE_BYTES - 1) == 1
    put_noise(files[0].path.parent, "b.png", size=(48, 40))
    assert images_that_fit(files, 10 * IMAGE_BYTES) == 5, "the largest counts"
    for file in files:
        file.path.write_bytes(b"no image")
    assert images_that_fit(files, 10) == 10


def test_an_image_that_crashed_too_many_networks_is_left_out_alone(files, tmp_path: Path):
    images = decoded(files, tmp_path)

    class Killed(BaseException):
        """Stands for a process that dies: nothing after it runs."""

    def die_on_b(image: DecodedImage) -> str:
        if image.file.image_id == "b":
            raise Killed
        return f"masks of {image.file.image_id}"

    for _ in range(MAX_CRASHES):
        with pytest.raises(Killed):
            run_network(images, tmp_path, die_on_b, lambda _: "left out")
    results = run_network(
        images, tmp_path, die_on_b, lambda image: f"{image.file.image_id} left out"
    )
    assert results == ["masks of a", "b left out", "masks of c"]
    assert not list(tmp_path.glob(".*")), "the counts of a finished item are removed"
