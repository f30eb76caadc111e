"""Text files of Windows editors: every kind of byte order mark and of line end."""

from __future__ import annotations

import json

import pytest

from sfss_ray.config import load_config
from sfss_ray.data.class_sets import parse_classes
from sfss_ray.data.labelled import class_list
from sfss_ray.errors import DataError
from sfss_ray.models.card import card_values
from sfss_ray.storage.text import decode_text, limited_nesting, read_text

# Each mark is written out as the Unicode standard (section 23.8) has it.
SAVED = {
    "utf-8": lambda text: text.encode(),
    "utf-8 with mark": lambda text: b"\xef\xbb\xbf" + text.encode(),
    "utf-16-le": lambda text: b"\xff\xfe" + text.encode("utf-16-le"),
    "utf-16-be": lambda text: b"\xfe\xff" + text.encode("utf-16-be"),
    "utf-32-le": lambda text: b"\xff\xfe\x00\x00" + text.encode("utf-32-le"),
    "utf-32-be": lambda text: b"\x00\x00\xfe\xff" + text.encode("utf-32-be"),
}
every_encoding = pytest.mark.parametrize("save", SAVED.values(), ids=SAVED.keys())


@every_encoding
@pytest.mark.parametrize("line_end", ["\n", "\r\n", "\r"])
def test_class_list_keeps_its_first_class(save, line_end, tmp_path):
    (tmp_path / "labels").mkdir()
    text = line_end.join(["sky", "Straße", "car", ""])
    (tmp_path / "classes.txt").write_bytes(save(text))
    classes = class_list(tmp_path / "labels")
    assert classes is not None
    assert classes.classes == ("sky", "Straße", "car")


@every_encoding
def test_config_and_card_are_read(save, tmp_path):
    (tmp_path / "c.json").write_bytes(save(json.dumps({"seed": 7}, indent=1).replace("\n", "\r\n")))
    assert load_config(tmp_path / "c.json").seed == 7
    (tmp_path / "card.json").write_bytes(save('{"channel_order": "bgr"}'))
    assert card_values(tmp_path / "card.json") == {"channel_order": "bgr"}


def test_classes_pasted_from_a_windows_file_have_no_mark():
    pasted = "\ufeffsky\r,\ufeffroad\r,car\r"
    assert parse_classes(pasted).classes == ("sky", "road", "car")
    assert parse_classes("\ufeffcamvid-11\r").name == "camvid-11"


def test_another_encoding_is_refused_with_the_name_of_the_file(tmp_path):
    with pytest.raises(DataError, match="byte 4 is not UTF-8 text: save the file as UTF-8"):
        decode_text("Straße".encode("latin-1"))
    (tmp_path / "classes.txt").write_bytes("Straße".encode("latin-1"))
    with pytest.raises(DataError, match=r"classes\.txt': byte 4"):
        read_text(tmp_path / "classes.txt")


def test_endless_nesting_is_a_value_error():
    with (
        pytest.raises(ValueError, match="nested too deeply, or contains itself"),
        limited_nesting(),
    ):
        json.loads("[" * 100_000)
    with limited_nesting():
        assert json.loads("[[1]]") == [[1]]
