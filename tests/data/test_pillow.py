"""Opening of image files without Pillow's limit of pixels."""

from __future__ import annotations

import io
import threading
from pathlib import Path

import numpy as np
import pytest
from image_files import encode, noise, put
from PIL import Image, UnidentifiedImageError

from sfss_ray.data.pillow import open_image


def test_images_above_pillows_limit_are_opened_without_a_warning(monkeypatch, recwarn):
    data = encode(noise(40, 50))
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)  # twice as many pixels are an error
    with pytest.raises(Image.DecompressionBombError):
        Image.open(io.BytesIO(data))
    with open_image(io.BytesIO(data)) as image:
        assert np.array_equal(np.asarray(image), noise(40, 50))
    assert not recwarn.list


def test_pillows_limit_is_restored_after_success_and_failure(monkeypatch, tmp_path: Path):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 12345)
    open_image(put(tmp_path / "a.png")).close()
    assert Image.MAX_IMAGE_PIXELS == 12345
    with pytest.raises(UnidentifiedImageError):
        open_image(put(tmp_path / "letter.png", b"a letter"))
    assert Image.MAX_IMAGE_PIXELS == 12345


def test_the_limit_survives_many_threads(monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 12345)
    data = encode(noise())

    def open_often() -> None:
        for _ in range(50):
            open_image(io.BytesIO(data)).close()

    threads = [threading.Thread(target=open_often) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert Image.MAX_IMAGE_PIXELS == 12345
