"""TensorBoard's event files, read back with TensorBoard."""

import io
import tempfile

import numpy as np
import pytest
from object_storage import bucket_address, s3_options  # noqa: F401
from PIL import Image
from tracked_runs import LOSSES, send_run, write_files

from sfss_ray.storage.places import ObjectPath, to_place
from sfss_ray.tracking.tensorboard_tracker import TensorBoardTracker

pytest.importorskip(
    "tensorboard", reason="tensorboard is not installed: pip install 'sfss-ray[tensorboard]'"
)


def read(folder):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(folder))
    events.Reload()
    return events


def text(events, name: str) -> str:
    return events.Tensors(f"{name}/text_summary")[0].tensor_proto.string_val[0].decode()


@pytest.fixture(scope="module")
def events(tmp_path_factory):
    root = tmp_path_factory.mktemp("run")
    send_run(TensorBoardTracker(root / "events"), write_files(root))
    return read(root / "events")


def test_scalars_have_their_steps(events):
    assert {e.step: e.value for e in events.Scalars("train/loss")} == LOSSES
    assert [(e.step, e.value) for e in events.Scalars("trial-b/loss")] == [(10, 1.5)]


def test_config_and_texts_are_there(events):
    assert "| train.loss.temperature | 0.1 |" in text(events, "config")
    assert text(events, "results") == "mIoU 50.0"
    assert '"schema_version": 1' in text(events, "report.json")
    assert text(events, "report.html").endswith("/report.html")


def test_pictures_are_images(events):
    (image,) = events.Images("01_a")
    pixels = np.asarray(Image.open(io.BytesIO(image.encoded_image_string)))
    assert pixels.shape == (4, 6, 3)
    assert (pixels == (200, 10, 30)).all()


def test_a_resumed_run_continues_in_the_same_folder(tmp_path):
    for steps in ((1, 2), (3,)):
        tracker = TensorBoardTracker(tmp_path)
        tracker.start("night", {})
        for step in steps:
            tracker.log_metrics({"train/loss": LOSSES[step]}, step)
        tracker.finish(failed=False)
    assert {e.step: e.value for e in read(tmp_path).Scalars("train/loss")} == LOSSES


@pytest.fixture
def temporary(tmp_path, monkeypatch):
    """The folder of temporary files."""
    folder = tmp_path / "temporary"
    folder.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    return folder


def test_no_folder_stays_behind_after_an_upload(temporary, tmp_path, bucket_address):  # noqa: F811
    address = to_place(bucket_address.format("run/events"))
    assert isinstance(address, ObjectPath)
    send_run(TensorBoardTracker(address), write_files(tmp_path))
    assert list(temporary.iterdir()) == []
    for place in address.iterdir():
        (tmp_path / "events").mkdir(exist_ok=True)
        place.download(tmp_path / "events" / place.name)
    assert {e.step: e.value for e in read(tmp_path / "events").Scalars("train/loss")} == LOSSES


def test_event_files_stay_where_their_upload_fails(
    temporary,
    tmp_path,
    bucket_address,  # noqa: F811
    monkeypatch,
):
    def fail(*_):
        raise OSError("no connection")

    monkeypatch.setattr(ObjectPath, "upload", fail)
    address = to_place(bucket_address.format("run/events"))
    with pytest.raises(OSError, match="no connection"):
        send_run(TensorBoardTracker(address), write_files(tmp_path))
    (folder,) = temporary.iterdir()
    assert list(folder.iterdir())
