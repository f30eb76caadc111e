"""Places in object storage, on an S3 server on this machine, beside pathlib's answers on a disk."""

from __future__ import annotations

import os
import pickle
from pathlib import Path

import pytest
from object_storage import bucket_address, s3_options  # noqa: F401

from sfss_ray.errors import DataError, OutputError
from sfss_ray.storage.files import whole_file, write_text, write_torch
from sfss_ray.storage.places import ObjectPath, Place, to_place


@pytest.fixture(params=["disk", "bucket"])
def place(request, tmp_path) -> Place:
    """A new folder, on a disk and in a bucket."""
    if request.param == "disk":
        return tmp_path
    return to_place(request.getfixturevalue("bucket_address").format("run"))


def test_text_and_bytes_come_back(place):
    write_text(place / "notes" / "first.txt", "täglich")
    assert (place / "notes" / "first.txt").read_text() == "täglich"
    assert (place / "notes" / "first.txt").read_bytes() == "täglich".encode()
    assert (place / "notes" / "first.txt").stat().st_size == 8


def test_files_folders_and_what_is_missing(place):
    write_text(place / "a" / "b.json", "{}")
    assert (place / "a").exists()
    assert (place / "a").is_dir()
    assert not (place / "a").is_file()
    assert (place / "a" / "b.json").is_file()
    assert not (place / "a" / "b.json").is_dir()
    assert not (place / "a" / "c").exists()
    with pytest.raises(FileNotFoundError):
        (place / "a" / "c").read_bytes()
    with pytest.raises(FileNotFoundError):
        (place / "a" / "c").stat()


def test_names_are_those_of_pathlib(place):
    file = place / "day" / "image.one.png"
    assert (file.name, file.stem, file.suffix) == ("image.one.png", "image.one", ".png")
    assert file.parent == place / "day"
    assert file.with_name("b.png") == place / "day" / "b.png"
    assert file.absolute() == file


def test_a_folder_lists_its_children_only(place):
    for name in ("b.txt", "a.txt", "c.bin", "deep/d.txt"):
        write_text(
            place.joinpath(*name.split("/")) if isinstance(place, Path) else place / name, "x"
        )
    assert sorted(child.name for child in place.iterdir()) == ["a.txt", "b.txt", "c.bin", "deep"]
    assert sorted(child.name for child in place.glob("*.txt")) == ["a.txt", "b.txt"]
    assert list((place / "absent").glob("*")) == []


def test_all_objects_from_one_listing(bucket_address):  # noqa: F811
    folder = to_place(bucket_address.format("images"))
    assert isinstance(folder, ObjectPath)
    for name in ("b.png", "day/a.png", "day/one more.png"):
        write_text(folder / name, name)
    listing = list(folder.files())
    assert [place.key.partition("/images/")[2] for place, _ in listing] == [
        "b.png",
        "day/a.png",
        "day/one more.png",
    ]
    assert [status.st_size for _, status in listing] == [5, 9, 16]
    assert listing[0][0].read_text() == "b.png"


def test_an_object_is_read_at_any_position(bucket_address):  # noqa: F811
    place = to_place(bucket_address.format("numbers"))
    assert isinstance(place, ObjectPath)
    write_text(place, "0123456789")
    with place.open_input() as file:
        file.seek(6)
        assert file.read(3) == b"678"


def test_deletion(place):
    write_text(place / "a.txt", "x")
    write_text(place / "b.txt", "x")
    (place / "a.txt").unlink()
    assert [child.name for child in place.iterdir()] == ["b.txt"]
    (place / "a.txt").unlink(missing_ok=True)
    with pytest.raises(FileNotFoundError):
        (place / "a.txt").unlink()


def test_upload_and_download(bucket_address, tmp_path):  # noqa: F811
    place = to_place(bucket_address.format("big.bin"))
    assert isinstance(place, ObjectPath)
    content = os.urandom(3 * 2**20 + 7)
    (tmp_path / "in").write_bytes(content)
    place.upload(tmp_path / "in")
    place.download(tmp_path / "out")
    assert (tmp_path / "out").read_bytes() == content


def test_a_failed_write_leaves_the_object_as_it_was(place):
    write_text(place / "a.txt", "before")

    def stop_halfway() -> None:
        with whole_file(place / "a.txt") as temporary:
            temporary.write_text("half")
            raise RuntimeError

    with pytest.raises(RuntimeError):
        stop_halfway()
    assert (place / "a.txt").read_text() == "before"
    assert [child.name for child in place.iterdir()] == ["a.txt"]


def test_tensors_in_a_bucket(bucket_address, tmp_path):  # noqa: F811
    import torch

    place = to_place(bucket_address.format("state.pt"))
    assert isinstance(place, ObjectPath)
    write_torch(place, {"step": 3, "weights": torch.arange(4)})
    place.download(tmp_path / "state.pt")
    state = torch.load(tmp_path / "state.pt", weights_only=True)
    assert state["step"] == 3
    assert state["weights"].tolist() == [0, 1, 2, 3]


def test_a_place_travels_to_other_processes(bucket_address):  # noqa: F811
    place = to_place(bucket_address.format("a.txt"))
    write_text(place, "x")
    copy = pickle.loads(pickle.dumps(place))
    assert copy == place
    assert copy.read_text() == "x"


def test_a_missing_bucket_cannot_be_written_in_one_line(s3_options):  # noqa: F811
    place = to_place(f"s3://user:secret@absent/run/a.txt?{s3_options}")
    with pytest.raises(
        OutputError, match=r"^'s3://absent/run/a.txt' cannot be written .*credentials"
    ):
        write_text(place, "x")


@pytest.mark.parametrize(
    ("address", "text"),
    [
        ("s3://fleet/runs/first", "s3://fleet/runs/first"),
        ("s3://fleet", "s3://fleet"),
        ("s3://fleet/", "s3://fleet"),
        ("s3://user:secret@fleet/runs/first/", "s3://fleet/runs/first"),
        ("s3://fleet/runs/my%20run?region=eu-1", "s3://fleet/runs/my run"),
        (Path("s3://fleet/runs"), "s3://fleet/runs"),
        ("gs://fleet//runs", "gs://fleet/runs"),
        (
            "abfss://box@account.dfs.core.windows.net/runs",
            "abfss://box@account.dfs.core.windows.net/runs",
        ),
        (
            "abfss://box:secret@account.dfs.core.windows.net/runs",
            "abfss://box@account.dfs.core.windows.net/runs",
        ),
    ],
)
def test_addresses_in_messages(address, text):
    assert str(to_place(address)) == text


@pytest.mark.parametrize(
    "address", ["s3://fleet/a b/c", "s3://u:s@fleet/x?region=eu-1&scheme=http", "gs://fleet"]
)
def test_an_address_is_read_back(address):
    place = to_place(address)
    assert isinstance(place, ObjectPath)
    assert to_place(place.address) == place == to_place(place)


def test_paths_and_file_addresses_lie_on_a_disk(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert to_place("runs/first") == tmp_path / "runs" / "first"
    assert to_place(f"file://{tmp_path}/my%20run") == tmp_path / "my run"
    assert to_place(Path(f"file://{tmp_path}/run")) == tmp_path / "run"
    assert to_place(tmp_path) == tmp_path


def test_addresses_that_name_nothing():
    with pytest.raises(DataError, match="names no bucket: write an address as s3://bucket/folder"):
        to_place("s3://")
    with pytest.raises(DataError, match="'ftp://fleet': unknown kind of address"):
        to_place("ftp://fleet/a").exists()


@pytest.mark.parametrize(
    "address",
    [
        "s3a://AKIA:SECRET@fleet/a",
        "S3://AKIA:SECRET@fleet?secret_key=SECRET",
        "s3://AKIA:SEC/RET@fleet?secret_key=SECRET",
        "s3://AKIA:SEC@RET@fleet?secret_key=SECRET",
    ],
)
def test_secrets_do_not_show(address):
    """pyarrow repeats the address in its errors."""
    place = to_place(address)
    with pytest.raises(DataError, match="unknown kind of address") as refused:
        place.exists()
    for text in (str(refused.value), str(place), repr(place)):
        assert "AKIA" not in text
        assert "SEC" not in text
        assert "RET" not in text


def test_a_password_with_a_slash_reaches_the_storage():
    place = to_place("s3://AKIA:SEC/RET+x=@fleet/a?region=eu-1")
    assert isinstance(place, ObjectPath)
    assert place.has_password
    options = place.filesystem.__reduce__()[1]
    assert "'secret_key': 'SEC/RET+x='" in str(options)
