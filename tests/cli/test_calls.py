"""Words become the arguments of a function and a config."""

from __future__ import annotations

import functools
import importlib
import json
import re
import sys
from pathlib import Path

import pytest
import torch
import yaml
from cli_samples import one_error, words_of
from PIL import Image
from segmentation_modules import UNet

from sfss_ray import cli, save_model, wrap_model
from sfss_ray.cli.calls import Call, Program, parse
from sfss_ray.cli.options import model_argument
from sfss_ray.config import Config, flatten, load_config, override
from sfss_ray.errors import ConfigError
from sfss_ray.streets.default import SOURCE_MODEL, embedded_config
from sfss_ray.streets.scenes import write_streets

IMAGES = {"images": "@images", "labels": "@labels"}
TRAIN = ["--source-model", "m", "--target-images", "t", "--masks", "k", "--output-dir", "o"]

TUNE = ["--source-model", "m", "--target-images", "t", "--output-dir", "o"]


def parsed(verb: str, *words: str, **program) -> Call:
    return parse(Program(cli.VERBS[verb], f"sfss-ray {verb}", **program), words)


def test_arguments_have_the_types_of_the_function():
    call = parsed("export", "m.pt", "m.onnx", "--size", "64", "96")
    assert call.arguments == {
        "model": Path("m.pt"),
        "output_file": Path("m.onnx"),
        "size": (64, 96),
        "card": None,
        "class_groups": None,
    }
    assert call.config == Config()


@pytest.mark.parametrize(
    "words",
    [
        ("m.pt", "--output-file", "x.onnx"),
        ("--output-file=x.onnx", "m.pt"),
        ("--model", "m.pt", "--output-file", "x.onnx"),
    ],
)
def test_positional_arguments_may_be_named(words):
    arguments = parsed("export", *words).arguments
    assert (arguments["model"], arguments["output_file"]) == (Path("m.pt"), Path("x.onnx"))


def test_single_options_win_over_the_file_and_the_file_over_the_preset(tmp_path: Path):
    (tmp_path / "a.yaml").write_text("train: {num_steps: 7, batch_size: 6}\nseed: 5\n")
    file = ["--config", str(tmp_path / "a.yaml")]
    base = override(Config(), {"seed": 1, "tune.num_trials": 3, "train.ema_momentum": 0.5})
    words = ["--train.batch-size", "8", *file, "--preset", "cnn"]
    config = parsed("train", *TRAIN, *words, config=base).config
    assert config.train.batch_size == 8
    assert (config.train.num_steps, config.seed) == (7, 5)
    assert (config.train.optim.optimizer, config.train.ema_momentum) == ("sgd", 0.999)
    assert config.tune.num_trials == 3


def test_a_config_file_may_hold_knobs_that_the_verb_does_not_use(tmp_path: Path):
    (tmp_path / "all.json").write_text(json.dumps(flatten(embedded_config())))
    call = parsed("predict", "m", "i", "o", "--config", str(tmp_path / "all.json"))
    assert call.config == embedded_config()


@pytest.mark.parametrize(
    ("words", "name", "value"),
    [
        (["--train.loss.ramp", "0.25", "0.5"], "train.loss.ramp", [0.25, 0.5]),
        (["--train.loss.teacher-scales", "0.5", "1", "2"], "train.loss.teacher_scales", [0.5, 1, 2]),
        (["--train.augment.no-flip"], "train.augment.flip", False),
        (["--train.compile"], "train.compile", True),
        (["--train.loss.label_space=entropy"], "train.loss.label_space", "entropy"),
        (["--white-level", "1023"], "white_level", 1023.0),
        (["--white-level", "None"], "white_level", None),
        (["--train.augment.max-size", "1024"], "train.augment.max_size", 1024),
        (["--evaluation.window", "64", "96", "--evaluation.stride", "60", "90"],
         "evaluation.stride", [60, 90]),
        (["--compute.max-failures", "-1"], "compute.max_failures", -1),
    ],
)  # fmt: skip
def test_knobs_of_every_type_are_parsed(words, name, value):
    config = parsed("train", *TRAIN, *words).config
    assert flatten(config)[name] == value


def test_a_search_space_is_given_as_words():
    entries = ["train.loss.vote_weight=0.2..1", "train.batch_norm=auto,frozen"]
    config = parsed("tune", *TUNE, "--tune.space", *entries).config
    assert config.tune.space == tuple(entries)


@pytest.mark.parametrize(
    ("verb", "words", "reason"),
    [
        ("masks", [], "needs --target-images, --output-dir: sfss-ray masks --help"),
        ("predict", ["m"], "sfss-ray predict needs IMAGES, OUTPUT_DIR: sfss-ray predict --help"),
        ("predict", ["m", "i", "o", "x"], "x"),
        ("train", [*TRAIN, "--no-such-option", "1"], "unknown option --no-such-option"),
        ("train", [*TRAIN, "--seed", "many"], "invalid literal for int() with base 10: 'many'"),
        ("train", [*TRAIN, "--train.batch-norm", "off"], "'adapt', 'target', 'frozen'"),
        ("train", [*TRAIN, "--train.augment.scale-range", "0.5"], "Expected 2 values"),
        ("train", [*TRAIN, "--train.augment.crop-size", "64"], "{INT INT}"),
        ("train", [*TRAIN, "--train.augment.crop-size", "8", "8"], "each 32 to 32766 pixels"),
        ("train", [*TRAIN, "--config"], "--config has no value"),
    ],
)
def test_words_that_cannot_be_parsed_are_refused_in_one_line(verb, words, reason, capsys):
    line = one_error(cli.main([*verb.split(), *words]), capsys.readouterr().err)
    assert reason in line


def test_the_function_is_called_with_the_config(monkeypatch, data, capsys):
    configs: list = []
    module = "sfss_ray.evaluation.scoring"
    original = importlib.import_module(module).evaluate_model

    def evaluate_model(model: Path, images: Path, labels: Path, *, config: Config | None = None):
        configs.append(config)
        return original(model, images, labels, config=config)

    monkeypatch.setattr(f"{module}.evaluate_model", evaluate_model)
    options = IMAGES | {"model": "@source.pt", "evaluation.scales": "0.5 1"}
    options |= {"compute.device": "cpu", "evaluation.max-size": "64"}
    (data / "steps.json").write_text(json.dumps({"train.num_steps": 17}))
    words = words_of(options | {"config": "@steps.json"}, data, data)
    assert cli.main(["evaluate", *words]) == 0
    (config,) = configs
    assert (config.evaluation.max_size, config.train.num_steps) == (64, 17)
    assert config.evaluation.scales == (0.5, 1.0)
    page = capsys.readouterr().out
    assert "class_set: cityscapes-19" in page
    assert re.search(r"^miou: \d+\.\d\d$", page, re.MULTILINE)
    assert re.search(r"^road +\d+\.\d\d +\d+\.\d\d", page, re.MULTILINE)


@pytest.mark.parametrize("verb", cli.VERBS)
def test_print_config_prints_what_config_reads_and_starts_nothing(verb, tmp_path: Path, capsys):
    (tmp_path / "a.json").write_text('{"train.num_steps": 9, "seed": 4}')
    words = [*verb.split(), "--config", str(tmp_path / "a.json"), "--print-config"]
    assert cli.main(words) == 0
    page = capsys.readouterr().out
    (tmp_path / "b.yaml").write_text(page)
    expected = override(Config(), {"train.num_steps": 9, "seed": 4})
    assert load_config(tmp_path / "b.yaml") == expected
    assert yaml.safe_load(page) == flatten(expected)


def test_print_config_has_presets_and_options(capsys):
    words = ["adapt", "--preset", "transformer", "--train.num-steps", "5", "--print-config"]
    assert cli.main(words) == 0
    knobs = yaml.safe_load(capsys.readouterr().out)
    assert knobs["train.optim.learning_rate"] == 6e-5
    assert knobs["train.num_steps"] == 5
    assert (knobs["train.augment.max_size"], knobs["evaluation.max_size"]) == (1024, 1024)


@pytest.mark.parametrize(("verb", "has_trials"), [("adapt", False), ("tune", True)])
def test_a_dry_run_prints_the_plan_and_writes_nothing(verb, has_trials, tmp_path: Path, capsys):
    write_streets(tmp_path / "t", "camera", 5, 4, (64, 128), with_labels=False)
    words = ["--source-model", str(SOURCE_MODEL), "--target-images", str(tmp_path / "t" / "images")]
    words += ["--output-dir", str(tmp_path / "out"), "--train.num-steps", "30", "--dry-run"]
    assert cli.main([verb, *words, "--compute.device", "cpu"]) == 0
    page = capsys.readouterr().out
    assert "masks to make: 4" in page
    assert ("8 trials" in page) == has_trials
    assert not (tmp_path / "out").exists()


def test_a_dry_run_lists_missing_inputs(tmp_path: Path, capsys):
    assert cli.main(["adapt", "--dry-run", "--output-dir", str(tmp_path / "out")]) == 1
    assert capsys.readouterr().out.count("MISSING") == 2


def test_defaults_of_a_program_need_not_be_given():
    call = parsed("adapt", defaults=dict.fromkeys(("source_model", "target_images", "output_dir")))
    assert call.arguments["source_model"] is None
    with pytest.raises(ConfigError, match="needs --output-dir"):
        parsed("adapt", "--source-model", "m", "--target-images", "t")


BUILDER = """
from segmentation_modules import UNet


def build():
    return UNet(2, classes=3)
"""


@pytest.fixture
def own_network(tmp_path: Path, monkeypatch) -> Path:
    """A folder with a state dict, a model file, a card, and a file that builds their module."""
    monkeypatch.setattr(sys, "path", list(sys.path))
    (tmp_path / "own_builder.py").write_text(BUILDER)
    module = UNet(2, classes=3)
    torch.save(module.state_dict(), tmp_path / "weights.pth")
    save_model(tmp_path / "student.pt", wrap_model(module, classes=["road", "sky", "car"]))
    (tmp_path / "card.json").write_text('{"classes": ["road", "sky", "car"]}')
    for name, mode, colour in (("images", "RGB", (90, 120, 60)), ("labels", "L", 1)):
        (tmp_path / name).mkdir()
        Image.new(mode, (45, 35), colour).save(tmp_path / name / "a.png")
    yield tmp_path
    sys.modules.pop("own_builder", None)


def words_for(verb: str, folder: Path, model: str) -> list[str]:
    model = str(folder / model)
    images = str(folder / "images")
    words = {
        "verify": ["--source-model", model, "--images", images],
        "evaluate": ["--model", model, "--images", images, "--labels", str(folder / "labels")],
        "predict": [model, images, str(folder / "out")],
        "export": [model, str(folder / "out.onnx"), "--size", "36", "50"],
    }[verb]
    return [verb, *words, "--architecture", f"{folder / 'own_builder.py'}:build"]


def test_a_function_may_wrap_its_module_and_reports_name_the_checkpoint(own_network, capsys):
    code = BUILDER.replace(
        "UNet(2, classes=3)", "wrap_model(UNet(2, classes=3), classes='a,b,c', name='Mine')"
    )
    code = code.replace("import UNet\n", "import UNet\nfrom sfss_ray import wrap_model\n")
    (own_network / "own_builder.py").write_text(code)
    words = words_for("verify", own_network, "weights.pth")
    assert cli.main(words) == 0
    page = capsys.readouterr().out
    assert "network: Mine" in page
    words = words_for("evaluate", own_network, "weights.pth")
    card = ["--card", str(own_network / "card.json"), "--output-dir", str(own_network / "scores")]
    assert cli.main([*words, *card]) == 0
    record = json.loads(next((own_network / "scores").glob("*.json")).read_text())
    assert record["model"]["origin"] == str(own_network / "weights.pth")


@pytest.mark.parametrize(
    ("verb", "model"),
    [
        ("verify", "student.pt"),
        ("verify", "weights.pth"),
        ("evaluate", "student.pt"),
        ("predict", "weights.pth"),
        ("export", "weights.pth"),
    ],
)
def test_a_network_of_ones_own_is_built_by_a_function(verb, model, own_network, capsys):
    if verb == "export":
        pytest.importorskip("onnxruntime")
        pytest.importorskip("onnxscript")
    card = ["--card", str(own_network / "card.json")] if model == "weights.pth" else []
    assert cli.main([*words_for(verb, own_network, model), *card]) == 0
    page = capsys.readouterr().out
    if verb == "verify":
        assert "network: UNet" in page
        assert "features: what 'head' reads (8 channels, stride 2)" in page
        assert "sizes: the module takes multiples of 4 pixels" in page


def test_a_dry_run_takes_a_network_of_ones_own(own_network, capsys):
    words = words_for("verify", own_network, "student.pt")[1:]
    words[words.index("--images")] = "--target-images"
    knobs = ["--train.augment.crop-size", "35", "45", "--train.num-steps", "2"]
    output = ["--output-dir", str(own_network / "run"), "--compute.device", "cpu"]
    assert cli.main(["adapt", *words, *output, *knobs, "--dry-run"]) == 0
    page = capsys.readouterr().out
    assert "MISSING" not in page
    assert "UNet, custom; features: what 'head' reads" in page
    assert "crops 32x44" in page


def test_a_dry_run_lists_the_problem_of_an_architecture_among_the_others(own_network, capsys):
    missing = ["--target-images", str(own_network / "nowhere")]
    output = ["--output-dir", str(own_network / "run"), "--compute.device", "cpu", "--dry-run"]
    good, bad = (
        f"{own_network / 'own_builder.py'}:build",
        f"{own_network / 'own_builder.py'}:absent",
    )
    weights = ["--source-model", str(own_network / "weights.pth")]
    for words, problems in (
        ([*weights, "--architecture", bad], ["architecture: architecture", "target images"]),
        (["--architecture", bad], ["architecture: architecture", "source model: no source model"]),
        (
            [*weights, "--architecture", good],
            ["source model: the module has 3 outputs, and nothing"],
        ),
        (["--architecture", good], ["source model: no source model was given", "target images"]),
    ):
        assert cli.main(["adapt", *words, *missing, *output]) == 1
        page = capsys.readouterr().out
        assert all(f"MISSING  {problem}" in page for problem in problems)
        assert "MISSING  target images" in page
        assert page.count("MISSING") == 2 + (problems[1:] == ["source model: no source model"])


@pytest.mark.parametrize(
    "verb", ["adapt", "tune", "train", "evaluate", "predict", "export", "verify"]
)
def test_every_verb_with_a_source_model_takes_an_architecture(verb, own_network, monkeypatch):
    calls: list[dict] = []
    original = cli.VERBS[verb].function()

    @functools.wraps(original)  # which has the signature that the words are parsed by
    def record(**arguments):
        calls.append(arguments)

    monkeypatch.setattr(sys.modules[original.__module__], original.__name__, record)
    model, path = str(own_network / "student.pt"), str(own_network)
    words = {
        "evaluate": ["--model", model, "--images", path, "--labels", path],
        "predict": [model, path, path],
        "export": [model, path],
        "verify": ["--source-model", model, "--images", path],
    }.get(verb, ["--source-model", model, "--target-images", path, "--output-dir", path])
    words += ["--masks", path] if verb == "train" else []
    words += ["--architecture", f"{own_network / 'own_builder.py'}:build"]
    parsed(verb, *words).result()
    (arguments,) = calls
    loaded = arguments["model" if "model" in arguments else "source_model"]
    assert loaded.title == "UNet"


def test_the_verbs_with_a_source_model_are_these():
    verbs = {name for name, verb in cli.VERBS.items() if model_argument(verb)}
    assert verbs == {"adapt", "tune", "train", "evaluate", "predict", "export", "verify"}


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (("--architecture", "nowhere.py:build"), "the file 'nowhere.py' does not exist"),
        (("--architecture", "json:nowhere"), "no function 'nowhere'"),
        (("--architecture", "json:dumps"), "fails (TypeError"),
        (("--architecture", "collections:OrderedDict"), "returns OrderedDict: give a function"),
        (("--architecture", "torch.nn:Identity"), "give the module that the file was made with"),
        (("--architecture",), "--architecture has no value"),
    ],
)
def test_an_architecture_that_does_not_fit_is_refused_in_one_line(
    change, reason, own_network, capsys
):
    words = words_for("verify", own_network, "student.pt")
    line = one_error(cli.main([*words[:-2], *change]), capsys.readouterr().err)
    assert reason in line


def test_an_architecture_for_a_network_of_this_package_is_refused(own_network, capsys):
    words = words_for("verify", own_network, "student.pt")
    words[words.index("--source-model") + 1] = str(SOURCE_MODEL)
    line = one_error(cli.main(words), capsys.readouterr().err)
    assert "source.pt' holds the network compact, which this package builds: leave out" in line


def test_without_a_card_the_weights_alone_are_refused(own_network, capsys):
    line = one_error(
        cli.main(words_for("verify", own_network, "weights.pth")), capsys.readouterr().err
    )
    assert "3 outputs, and nothing says what they mean" in line


def test_verbs_without_a_source_model_have_no_architecture(capsys):
    line = one_error(cli.main(["masks", "--architecture", "a:b"]), capsys.readouterr().err)
    assert "--architecture is not an option of sfss-ray masks" in line
