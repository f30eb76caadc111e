"""The command line and the main recipe: bad input ends in one line, before a cluster starts."""

from __future__ import annotations

import errno
import importlib
import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch
from PIL import Image

import sfss_ray
from sfss_ray import cli
from sfss_ray.config import Config, flatten
from sfss_ray.data.class_sets import CITYSCAPES_19
from sfss_ray.errors import DataError
from sfss_ray.masks.bank.schema import write_shard
from sfss_ray.models.architectures.catalogue import build_network
from sfss_ray.models.model_file import SourceModel, save_model
from sfss_ray.runtime import cluster
from sfss_ray.runtime.run_folder import claim
from sfss_ray.streets.default import SOURCE_MODEL
from sfss_ray.streets.scenes import write_streets

ROOT = Path(__file__).resolve().parents[1]
RECIPE = ROOT / "experiments" / "tune_gta2cs.py"
SIZE = (32, 48)


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    """A folder with everything the cases below point to."""
    root = tmp_path_factory.mktemp("data")
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


@pytest.fixture(autouse=True)
def no_cluster(monkeypatch):
    """Starting Ray fails the test; SIGTERM is given back."""

    def started() -> None:
        raise AssertionError("a cluster would have been started")

    handler = signal.getsignal(signal.SIGTERM)
    monkeypatch.setattr(cluster, "prepare_environment", started)
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    yield
    signal.signal(signal.SIGTERM, handler)


def load_recipe(name: str = "tune_gta2cs") -> ModuleType:
    sys.path.insert(0, str(RECIPE.parent))  # as Python does for a script
    try:
        return importlib.import_module(name)
    finally:
        sys.path.remove(str(RECIPE.parent))


def run_recipe(words: list[str]) -> int:
    recipe = load_recipe()
    arguments = recipe.parse_arguments(words)
    return cli.run_guarded(lambda: recipe.run(arguments))


def one_error(code: int, stderr: str) -> str:
    """The one line that a refused command leaves."""
    assert code == 2
    lines = stderr.splitlines()
    assert len(lines) == 1, stderr
    assert lines[0].startswith("error: ")
    assert "Traceback" not in stderr
    return lines[0]


def words_of(options: dict[str, str], data: Path, output: Path) -> list[str]:
    """Options -> words; `@name` is a file of the data, `@` alone the output folder."""
    words = []
    for name, value in options.items():
        place = str(output) if value == "@" else str(data / value[1:])
        words += [f"--{name}", place if value.startswith("@") else value]
    return words


TARGET = {"source-model": "@source.pt", "target-images": "@images"}
VAL = {"val-images": "@images", "val-labels": "@labels"}
no_cuda = pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has CUDA")

SHARED_CASES = {
    "missing folder": ({"target-images": "@nowhere"}, r"nowhere' does not exist; give"),
    "empty folder": ({"target-images": "@empty"}, r"no image in '.*empty'; expected"),
    "a file, no folder": ({"target-images": "@letter.txt"}, r"letter\.txt' is a file; give"),
    "missing model": ({"source-model": "@nowhere.pt"}, r"nowhere\.pt' does not exist; give"),
    "no checkpoint": ({"source-model": "@letter.txt"}, r"letter\.txt' .*(no checkpoint|be read)"),
    "images without labels": ({"val-images": "@images"}, "without val_labels: give both"),
    "labels without images": ({"val-labels": "@labels"}, "without val_images: give both"),
    "strange labels": (VAL | {"val-labels": "@strange_labels"}, "contain id 40, but .* 19 classes"),
    "empty labels": (VAL | {"val-labels": "@empty"}, "no label map in"),
    "missing SAM": ({"sam-checkpoint": "@nowhere.pt"}, r"nowhere\.pt"),
    "no SAM": ({"sam-checkpoint": "@letter.txt"}, r"letter\.txt"),
    "a model, no SAM": ({"sam-checkpoint": "@source.pt"}, r"source\.pt"),
}
VERB_CASES = SHARED_CASES | {
    "temperature 0": (
        {"train.loss.temperature": "0"},
        r"temperature is 0\.0: allowed is \(0, 100\]",
    ),
    "crop": ({"train.augment.crop-size": "8 8"}, "crop_size is .* 32 or more"),
    "cold config file": ({"config-file": "@cold.json"}, "temperature is 0.0: allowed"),
    "unknown name": ({"config-file": "@typo.json"}, "unknown setting 'train.loss.temprature'"),
    "config of words": ({"config-file": "@letter.txt"}, r"cannot read config '.*letter\.txt'"),
    "no cluster": ({"compute.address": "127.0.0.1:1"}, "'127.0.0.1:1' cannot be reached"),
    "no address": ({"compute.address": "somewhere"}, "allowed is auto, local or HOST:PORT"),
    "wrong card": ({"card": "@card.json"}, "channel_order is 'gbr': allowed is rgb or bgr"),
    "missing card": ({"card": "@nowhere.json"}, "cannot read card .*nowhere"),
    "card of words": ({"card": "@letter.txt"}, "cannot read card .*letter.*it is not JSON"),
    "uneven batch": ({"train.batch-size": "3", "compute.num-workers": "2"}, "choose a multiple"),
    "another run": ({"output-dir": "@another_run"}, "another_run' holds another run"),
    "foreign files": ({"output-dir": "@images"}, "holds files of something else"),
    "masks and SAM": (
        {"masks": "@images", "sam-checkpoint": "@source.pt"},
        "masks and a SAM checkpoint were given: give",
    ),
    "no masks": ({"masks": "@empty"}, "no masks in '.*empty'"),
    "masks of others": (
        {"masks": "@masks"},
        r"1 of 3 images have no masks in '.*masks': 'c'; make them",
    ),
    "sam without weights": ({"masks.regions": "sam"}, "no SAM checkpoint was given"),
}
RECIPE_CASES = SHARED_CASES | {
    "temperature 0": ({"config": "@cold.json"}, r"temperature is 0\.0: allowed is \(0, 100\]"),
    "unknown name": ({"config": "@typo.json"}, "unknown setting 'train.loss.temprature'"),
    "no trials": ({"num-trials": "0"}, "num_trials is 0: allowed"),
    "no cluster": ({"address": "127.0.0.1:1"}, "'127.0.0.1:1' cannot be reached"),
    "another run": ({"output": "@another_run"}, "another_run' holds another run"),
}


@pytest.mark.parametrize(
    ("verb", "case"),
    [("adapt", case) for case in VERB_CASES]
    + [
        ("tune", case)
        for case in ("empty folder", "temperature 0", "no cluster", "another run", "no masks")
    ],
)
def test_bad_input_of_a_verb_is_one_line(verb, case, data, tmp_path, capsys):
    changes, reason = VERB_CASES[case]
    options = TARGET | {"output-dir": "@"} | changes
    words = [w for word in words_of(options, data, tmp_path / "out") for w in _split(word)]
    assert re.search(reason, one_error(cli.main([verb, *words]), capsys.readouterr().err))
    assert not (tmp_path / "out").exists()


def _split(word: str) -> list[str]:
    return word.split() if word == "8 8" else [word]


@pytest.mark.parametrize("case", RECIPE_CASES)
def test_bad_input_of_the_recipe_is_one_line(case, data, tmp_path, capsys):
    changes, reason = RECIPE_CASES[case]
    options = TARGET | {"output": "@"} | changes
    code = run_recipe(words_of(options, data, tmp_path / "out"))
    assert re.search(reason, one_error(code, capsys.readouterr().err))
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("given", "reason"),
    [
        ({"source-model": "@source.pt"}, "--target-images is missing"),
        ({"target-images": "@images"}, "--source-model is missing"),
        (VAL, "--source-model and --target-images are missing"),
        ({"sam-checkpoint": "@source.pt"}, "--source-model and --target-images are missing"),
    ],
)
def test_half_of_the_recipes_data_is_refused(given, reason, data, tmp_path, capsys):
    code = run_recipe(words_of(given | {"output": "@"}, data, tmp_path / "out"))
    assert reason in one_error(code, capsys.readouterr().err)
    assert not (tmp_path / "out").exists()


IMAGES = {"images": "@images", "labels": "@labels"}
OTHER_CASES = [
    ("masks", {"target-images": "@empty", "output-dir": "@"}, "no image in"),
    ("masks", {"target-images": "@images", "output-dir": "@"}, "cannot be reached"),
    ("pretrain", IMAGES | {"images": "@nowhere", "output-dir": "@"}, "does not exist"),
    ("pretrain", IMAGES | {"labels": "@strange_labels", "output-dir": "@"}, "contain id 40"),
    ("pretrain", IMAGES | {"classes": "ade20k", "output-dir": "@"}, "unknown class set 'ade20k'"),
    (
        "pretrain",
        IMAGES | {"pretrain.network": "unet", "output-dir": "@"},
        "unknown network 'unet'",
    ),
    ("pretrain", IMAGES | {"output-dir": "@another_run"}, "holds another run"),
    ("pretrain", IMAGES | {"output-dir": "@"}, "cannot be reached"),
    ("evaluate", IMAGES | {"model": "@letter.txt"}, "letter.txt"),
    ("evaluate", IMAGES | {"model": "@source.pt", "labels": "@empty"}, "no label map in"),
    ("verify", {"source-model": "@letter.txt", "images": "@images"}, "letter.txt"),
    ("verify", {"source-model": "@source.pt", "images": "@empty"}, "no image in"),
    ("verify", IMAGES | {"source-model": "@source.pt", "card": "@card.json"}, "channel_order"),
]


@pytest.mark.parametrize(("verb", "options", "reason"), OTHER_CASES)
def test_bad_input_of_the_other_verbs_is_one_line(verb, options, reason, data, tmp_path, capsys):
    words = [*words_of(options, data, tmp_path / "out"), "--compute.address", "127.0.0.1:1"]
    assert reason in one_error(cli.main([verb, *words]), capsys.readouterr().err)


@pytest.mark.parametrize(
    ("words", "reason"),
    [
        (("predict", "@source.pt", "@empty", "@"), "no image in"),
        (("predict", "@letter.txt", "@images", "@"), "letter.txt"),
        (("predict", "@source.pt", "@images", "@another_run"), "holds another run"),
        (("predict", "@source.pt", "@images", "@labels"), "holds files of something else"),
        (("predict", "@source.pt", "@images", "@", "--compute.address", "here"), "HOST:PORT"),
        (("export", "@letter.txt", "@"), "letter.txt"),
        (("export", "@source.pt", "@", "--size", "8", "8"), "size is (8, 8): allowed"),
    ],
)
def test_verbs_with_paths_alone_refuse_bad_input_in_one_line(words, reason, data, tmp_path, capsys):
    places = [data / w[1:] if w[1:] else tmp_path / "out" for w in words if w.startswith("@")]
    rest = [word for word in words[1:] if not word.startswith("@")]
    code = cli.main([words[0], *map(str, places), *rest])
    assert reason in one_error(code, capsys.readouterr().err)
    assert not (tmp_path / "out").exists()


def test_a_search_without_images_to_score_on_stops_before_masks(data, tmp_path, capsys):
    options = TARGET | {"output-dir": "@", "evaluation.held-out-share": "0"}
    code = cli.main(["tune", *words_of(options, data, tmp_path / "out")])
    assert "no target images are held out" in one_error(code, capsys.readouterr().err)
    assert not (tmp_path / "out").exists()


@no_cuda
def test_cuda_is_refused_where_there_is_none(data, tmp_path, capsys):
    words = words_of(TARGET | {"output-dir": "@"}, data, tmp_path / "out")
    code = cli.main(["adapt", *words, "--compute.device", "cuda"])
    assert "device is 'cuda' but this machine has no CUDA" in one_error(
        code, capsys.readouterr().err
    )
    words = words_of(TARGET | {"output": "@", "config": "@cuda.json"}, data, tmp_path / "out")
    assert "device is 'cuda'" in one_error(run_recipe(words), capsys.readouterr().err)


@pytest.mark.parametrize("words", [[], ["--help"], ["-h"]])
def test_the_usage_names_every_verb(words, capsys):
    assert cli.main(words) == 0
    page = capsys.readouterr().out
    assert page.startswith("usage: sfss-ray VERB")
    assert all(f"  {verb} " in page for verb in cli.VERBS)


def test_unknown_verbs_are_refused_with_the_known_ones(capsys):
    code = cli.main(["fly"])
    line = one_error(code, capsys.readouterr().err)
    assert line == f"error: unknown verb 'fly': known are {', '.join(cli.VERBS)}"


@pytest.mark.parametrize("verb", cli.VERBS)
def test_every_verb_shows_its_options(verb, capsys):
    with pytest.raises(SystemExit) as end:
        cli.main([*verb.split(), "--help"])
    assert end.value.code == 0
    page = capsys.readouterr().out
    assert f"usage: sfss-ray {verb}" in page
    assert "--progress" not in page
    for name in flatten(Config()):
        assert re.search(rf"--{name.replace('_', '-')}[ ,]", page), name


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ([], "target-images"),
        (["--target-images", "x", "--output-dir", "y", "--no-such-option", "1"], "no-such-option"),
        (["--target-images", "x", "--output-dir", "y", "--seed", "many"], "many"),
        (["--target-images", "x", "--output-dir", "y", "--masks.regions", "best"], "felzenszwalb"),
    ],
)
def test_words_that_cannot_be_parsed_exit_with_2(words, said, capsys):
    with pytest.raises(SystemExit) as end:
        cli.main(["masks", *words])
    assert end.value.code == 2
    assert said in capsys.readouterr().err


def test_knobs_and_config_file_reach_the_function(monkeypatch, data, capsys):
    seen: list = []
    module = "sfss_ray.evaluation.scoring"
    original = importlib.import_module(module).evaluate_model

    def evaluate_model(model: Path, images: Path, labels: Path, *, config: Config | None = None):
        seen.append(config)
        return original(model, images, labels, config=config)

    monkeypatch.setattr(f"{module}.evaluate_model", evaluate_model)
    options = IMAGES | {"model": "@source.pt", "seed": "5", "train.loss.ramp": "0.25"}
    options |= {"compute.device": "cpu", "evaluation.max-size": "64"}
    (data / "steps.json").write_text(json.dumps({"train.num_steps": 17}))
    words = words_of(options | {"config-file": "@steps.json"}, data, data)
    words.insert(words.index("0.25") + 1, "0.5")
    assert cli.main(["evaluate", *words]) == 0
    (config,) = seen
    assert (config.seed, config.train.num_steps, config.train.loss.ramp) == (5, 17, (0.25, 0.5))
    shown = capsys.readouterr().out
    assert "class_set: cityscapes-19" in shown
    assert re.search(r"^miou: \d+\.\d\d$", shown, re.MULTILINE)
    assert re.search(r"^road +\d+\.\d\d +\d+\.\d\d", shown, re.MULTILINE)


def test_predict_writes_what_it_says(data, tmp_path, capsys):
    words = [str(data / "source.pt"), str(data / "images"), str(tmp_path / "out")]
    assert cli.main(["predict", *words]) == 0
    ids = np.array(Image.open(tmp_path / "out" / "train_ids" / "a.png"))
    assert ids.shape == SIZE
    assert ids.max() < 19
    assert "images: 3" in capsys.readouterr().out


def raising(error: BaseException) -> Callable[[], None]:
    def work() -> None:
        raise error

    return work


def test_errors_of_ours_are_one_line_and_others_are_shown_whole(capsys):
    code = cli.run_guarded(raising(DataError("nothing there: give more")))
    assert one_error(code, capsys.readouterr().err) == "error: nothing there: give more"
    with pytest.raises(ZeroDivisionError):
        cli.run_guarded(raising(ZeroDivisionError()))


def test_an_interrupt_says_how_to_go_on(capsys):
    assert cli.run_guarded(raising(KeyboardInterrupt())) == 130
    assert capsys.readouterr().err == "interrupted: run the same command again to go on\n"
    assert cli.run_guarded(lambda: signal.raise_signal(signal.SIGTERM)) == 130


def in_a_shell(*words: str | Path) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, *map(str, words)], cwd=ROOT, capture_output=True, text=True, timeout=300
    )


def test_in_a_shell_bad_input_is_one_line_too(data, tmp_path):
    options = TARGET | {"target-images": "@empty", "output": "@"}
    done = in_a_shell(RECIPE, *words_of(options, data, tmp_path / "out"))
    assert "no image in" in one_error(done.returncode, done.stderr)
    assert done.stdout == ""


def test_the_recipes_help_loads_nothing_heavy():
    done = in_a_shell("-X", "importtime", RECIPE, "--help")
    assert done.returncode == 0
    assert "--source-model" in done.stdout
    assert "embedded default" in done.stdout
    loaded = {line.rpartition("|")[2].strip() for line in done.stderr.splitlines()}
    assert "sfss_ray.cli" in loaded
    assert not loaded & {"torch", "ray", "cv2", "pyarrow", "torchvision", "tyro"}


@pytest.mark.parametrize("word", ["--version", "-V"])
def test_the_version_is_said(word, capsys):
    assert cli.main([word]) == 0
    assert capsys.readouterr().out == f"sfss-ray {sfss_ray.__version__}\n"


@pytest.mark.parametrize("words", [["data"], ["data", "--help"], ["data", "-h"]])
def test_a_group_of_verbs_shows_its_verbs(words, capsys):
    assert cli.main(words) == 0
    page = capsys.readouterr().out
    assert page.startswith("usage: sfss-ray data VERB")
    assert "data check" in page
    assert "predict" not in page


@pytest.mark.parametrize(
    ("words", "near"),
    [
        (["adpt"], "'adapt'"),
        (["data", "chek", "folder"], "'data check'"),
        (["masks", "inspekt", "folder"], "'masks inspect'"),
        (["Evaluate", "--model", "x"], "'evaluate'"),
    ],
)
def test_a_misspelt_verb_names_its_neighbour(words, near, capsys):
    assert cli.main(words) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: unknown verb ")
    assert f"did you mean {near}" in line


def test_presets_and_config_files_are_explained(capsys):
    with pytest.raises(SystemExit):
        cli.main(["predict", "--help"])
    page = " ".join(capsys.readouterr().out.replace("│", " ").split())
    assert "--preset {None,cnn,transformer,paper_like,recommended} Named settings" in page
    assert "JSON file of settings by dotted name, such as best_config.json" in page


@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "cp1252"])
def test_a_terminal_that_lacks_a_character_is_no_error(encoding, tmp_path):
    """Work whose names cannot be shown is done, and told with escapes."""
    images = tmp_path / "東京"
    write_streets(tmp_path / "drawn", "camera", 0, 1, (32, 64), with_labels=False)
    (tmp_path / "drawn" / "images").rename(images)
    (images / "broken-夜.png").write_bytes(b"")
    words = ["predict", str(SOURCE_MODEL), str(images), str(tmp_path / "out-東")]
    done = subprocess.run(
        [sys.executable, "-m", "sfss_ray.cli", *words, "--compute.device", "cpu"],
        env=os.environ | {"PYTHONIOENCODING": encoding, "PYTHONUTF8": "0"},
        capture_output=True,
    )
    assert done.returncode == 0, done.stderr.decode()
    assert done.stderr == b""
    page = done.stdout.decode(encoding)
    assert r"broken-\u591c" in page
    assert r"out-\u6771" in page


def test_a_full_disk_below_any_work_is_one_line(capsys):
    """Of libraries whose writes are none of ours: Ray's own files, for instance."""

    def work() -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "/tmp/ray/x")

    assert cli.run_guarded(work) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "No space left on device: '/tmp/ray/x'" in line
    assert "free some space and run again" in line
