"""Offline runs of Weights & Biases, read back from their files."""

import json
import struct
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from tracked_runs import LOSSES, send_run, write_files

from sfss_ray.tracking.wandb_tracker import WandbTracker

wandb = pytest.importorskip("wandb", reason="wandb is not installed: pip install 'sfss-ray[wandb]'")

BLOCK = 32 * 1024
FULL, FIRST, LAST = 1, 2, 4


@pytest.fixture(scope="module")
def offline():
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("WANDB_MODE", "offline")
        patch.setenv("WANDB_SILENT", "true")
        patch.delenv("WANDB_PROJECT", raising=False)
        yield


def chunks(content: bytes) -> Iterator[tuple[int, bytes]]:
    """(kind, bytes) of a .wandb file, which is laid out as a LevelDB log.

    A block of 32 KiB holds chunks of 4 bytes checksum, 2 length and 1 kind. The file begins with 7
    bytes of its own.
    """
    position = 7
    while position < len(content):
        room = BLOCK - position % BLOCK
        if room < 7:
            position += room
            continue
        length, kind = struct.unpack_from("<HB", content, position + 4)
        yield kind, content[position + 7 : position + 7 + length]
        position += 7 + length


def parse(content: bytes) -> list:
    """The records of a .wandb file."""
    from wandb.proto import wandb_internal_pb2

    records, message = [], b""
    for kind, part in chunks(content):
        message = part if kind in (FULL, FIRST) else message + part
        if kind in (FULL, LAST):
            records.append(wandb_internal_pb2.Record.FromString(message))
    return records


def read(folder: Path) -> list:
    """The records of the one run in a folder; W&B's process may still write them after `finish`."""
    (file,) = folder.glob("wandb/offline-run-*/*.wandb")
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline:
        records = parse(file.read_bytes())
        if any(record.WhichOneof("record_type") == "exit" for record in records):
            return records
        time.sleep(0.05)
    raise AssertionError(f"{file} has no end")


def history(records) -> list[dict]:
    """The logged dictionaries, without W&B's own keys."""
    lines = []
    for record in records:
        if record.WhichOneof("record_type") != "history":
            continue
        pairs = {item.key or "/".join(item.nested_key): item for item in record.history.item}
        lines.append({k: json.loads(i.value_json) for k, i in pairs.items() if k[0] != "_"})
    return lines


@pytest.fixture(scope="module")
def sent(offline, tmp_path_factory):
    root = tmp_path_factory.mktemp("run")
    send_run(WandbTracker(root / "tracking"), write_files(root))
    return root / "tracking"


def test_a_run_has_its_name_project_and_config(sent):
    (run,) = [r.run for r in read(sent) if r.WhichOneof("record_type") == "run"][:1]
    assert (run.display_name, run.project) == ("night", "sfss_ray")
    assert run.run_id == (sent / "wandb_run_id").read_text()
    config = {update.key: json.loads(update.value_json) for update in run.config.update}
    assert config["train.loss.temperature"] == 0.1
    assert config["train.augment.crop_size"] == [64, 128]


def test_each_prefix_has_its_own_steps(sent):
    lines = history(read(sent))
    losses = {line["train/step"]: line["train/loss"] for line in lines if "train/loss" in line}
    assert losses == LOSSES
    assert {"trial-b/loss": 1.5, "trial-b/step": 10} in lines
    metrics = [r.metric for r in read(sent) if r.WhichOneof("record_type") == "metric"]
    assert ("train/*", "train/step") in {(m.glob_name, m.step_metric) for m in metrics}


def test_pictures_page_and_files_are_saved(sent):
    (files,) = sent.glob("wandb/offline-run-*/files")
    assert len(list(files.glob("media/images/pictures/01_a_*.png"))) == 1
    (page,) = files.glob("media/html/report_*.html")
    assert "<h1>report</h1>" in page.read_text()
    assert (files / "report.json").read_text() == '{"schema_version": 1}'


def test_the_exit_code_says_how_the_run_ended(offline, tmp_path):
    for failed in (False, True):
        tracker = WandbTracker(tmp_path / str(failed))
        send_run(tracker, [], failed)
        exits = [r.exit for r in read(tracker.folder) if r.WhichOneof("record_type") == "exit"]
        assert [end.exit_code for end in exits] == [int(failed)]


def test_a_resumed_run_keeps_its_id(offline, tmp_path):
    for _ in range(2):
        tracker = WandbTracker(tmp_path)
        tracker.start("night", {})
        tracker.finish(failed=False)
    run_id = (tmp_path / "wandb_run_id").read_text()
    files = list(tmp_path.glob("wandb/offline-run-*/*.wandb"))
    assert [file.stem for file in files] == [f"run-{run_id}"] * len(files)
