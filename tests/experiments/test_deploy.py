"""The image and the manifest of a cluster, and what a submitted job uploads."""

from __future__ import annotations

import json
import re
import shlex
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

import pytest
import yaml
from ray._private.ray_constants import get_runtime_env_default_excludes
from ray._private.runtime_env.packaging import create_package

from sfss_ray.cli.calls import Program, parse
from sfss_ray.cli.verbs import VERBS
from sfss_ray.storage.places import ObjectPath, to_place

ROOT = Path(__file__).resolve().parents[2]
DEPLOY = ROOT / "experiments" / "deploy"
IN_IMAGE = "/home/ray/sfss_ray"


@pytest.fixture(scope="module")
def manifest() -> dict[str, Any]:
    return yaml.safe_load((DEPLOY / "rayjob.yaml").read_text())


@pytest.fixture(scope="module")
def dockerfile() -> str:
    """The instructions, one a line."""
    text = (DEPLOY / "Dockerfile").read_text().replace("\\\n", " ")
    return "\n".join(line for line in text.splitlines() if not line.startswith("#"))


def test_the_image_installs_and_runs_what_the_readme_says(dockerfile):
    readme = (ROOT / "README.md").read_text()
    (setup,) = re.findall(
        r"^python -m venv .*(pip install -e \.) && (python .*)$", readme, re.MULTILINE
    )
    installs = [
        re.sub(r"--no-cache-dir ", "", line) for line in re.findall(r"pip install .*", dockerfile)
    ]
    assert installs[-1] == setup[0]
    command = json.loads(re.findall(r"^CMD (.*)$", dockerfile, re.MULTILINE)[0])
    assert shlex.join(command) == setup[1]


def test_the_image_has_a_build_for_each_device_and_the_pinned_ray(dockerfile):
    assert re.findall(r"^ARG (.*)$", dockerfile, re.MULTILINE) == [
        "DEVICE=cpu",
        "DEVICE",
        "TORCH_INDEX=",
    ]
    (base,) = re.findall(r"^FROM (.*)$", dockerfile, re.MULTILINE)
    version = re.fullmatch(r"rayproject/ray:(\d+\.\d+)\.\d+-py311-\$\{DEVICE\}", base)
    assert version is not None
    assert f"]>={version[1]}," in (ROOT / "pyproject.toml").read_text()


def test_the_image_has_no_weights_of_users(dockerfile):
    copies = re.findall(r"^COPY --chown=ray:users (.*) \S+$", dockerfile, re.MULTILINE)
    sources = " ".join(copies).split()
    assert all((ROOT / source).exists() for source in sources)
    tracked = subprocess.run(
        ["git", "ls-files", *sources], cwd=ROOT, capture_output=True, text=True
    ).stdout.split()
    weights = [path for path in tracked if path.endswith((".pt", ".pth", ".safetensors"))]
    assert all(path.startswith("sfss_ray/streets/weights/") for path in weights), "it ships those"


def test_the_head_has_no_gpu_and_the_gpu_group_starts_at_none(manifest):
    assert (manifest["apiVersion"], manifest["kind"]) == ("ray.io/v1", "RayJob")
    cluster = manifest["spec"]["rayClusterSpec"]
    assert cluster["authOptions"] == {"mode": "token"}
    assert cluster["enableInTreeAutoscaling"] is True
    assert "nvidia.com/gpu" not in json.dumps(cluster["headGroupSpec"])
    (group,) = cluster["workerGroupSpecs"]
    assert (group["minReplicas"], group["replicas"]) == (0, 0)
    assert group["maxReplicas"] >= 1
    assert "nvidia.com/gpu" in json.dumps(group)
    base = re.search(r"rayproject/ray:([\d.]+)", (DEPLOY / "Dockerfile").read_text())
    assert base is not None
    assert cluster["rayVersion"] == base[1]


def test_no_node_shares_a_volume_and_all_have_the_credentials_of_the_storage(manifest):
    cluster = manifest["spec"]["rayClusterSpec"]
    assert "persistentVolumeClaim" not in json.dumps(cluster)
    for group in (cluster["headGroupSpec"], *cluster["workerGroupSpecs"]):
        (container,) = group["template"]["spec"]["containers"]
        (source,) = container["envFrom"]
        assert source["secretRef"] == {"name": "sfss-ray-storage", "optional": True}


def entry_words(manifest: dict[str, Any]) -> list[str]:
    """Words of the entry command, with the script's path on this machine."""
    words = shlex.split(manifest["spec"]["entrypoint"].replace(IN_IMAGE, str(ROOT)))
    assert words[0] == "python"
    return words


def test_the_entry_command_names_files_and_settings_that_exist(manifest):
    script, *words = entry_words(manifest)[1:]
    assert Path(script).is_file()
    call = parse(Program(VERBS["tune"], "tune"), words)
    assert call.config.compute.device == "cuda"
    for name in ("source_model", "target_images", "sam_checkpoint", "output_dir"):
        assert isinstance(to_place(call.arguments[name]), ObjectPath), name
    group = manifest["spec"]["rayClusterSpec"]["workerGroupSpecs"][0]
    compute = call.config.compute
    assert compute.concurrent_trials * compute.num_workers <= group["maxReplicas"]


SMALL = {
    "tune.num_trials": 1,
    "train.num_steps": 2,
    "train.evaluate_every": 2,
    "train.statistics_images": 2,
    "train.batch_size": 2,
    "masks.points_per_side": 4,
    "evaluation.pictures": 0,
    "evaluation.held_out_max": 2,
}
OWN_DATA = {"--source-model", "--target-images", "--sam-checkpoint", "--preset"}
OF_THE_CLUSTER = {"--compute.device", "--compute.concurrent-trials", "--compute.cpus-per-worker"}


@pytest.mark.slow
def test_the_entry_command_ends_well_on_the_embedded_default(manifest, tmp_path):
    _, script, *words = entry_words(manifest)
    options = dict(zip(words[::2], words[1::2], strict=True))
    for name in OWN_DATA | OF_THE_CLUSTER:
        assert options.pop(name)
    options["--output-dir"] = options["--output-dir"].replace("s3://sfss-ray", str(tmp_path))
    options["--compute.device"] = "cpu"
    config = tmp_path / "small.json"
    config.write_text(json.dumps(SMALL))
    options["--config"] = str(config)
    pairs = [word for pair in options.items() for word in pair]
    finished = subprocess.run(
        [sys.executable, script, *pairs], capture_output=True, text=True, timeout=580, cwd=tmp_path
    )
    assert finished.returncode == 0, finished.stdout[-2000:] + finished.stderr[-2000:]
    assert (tmp_path / "runs" / "gta2cs" / "run" / "student.pt").exists()


DATA = (
    *("source.pt", "checkpoint.pth", "sam_vit_b_01ec64.pth", "gta5.pth"),
    *("images/a.png", "masks/part.parquet", "predictions/a.png", "runs/night/student.pt"),
    *("cityscapes/leftImg8bit/train/a.png", "amg_out/a.png", "day/images/a.png"),
    *(".venv/lib/a.py", "dusk/images/a.png"),
)
CODE = (
    "pyproject.toml",
    "experiments/tune_gta2cs.py",
    "sfss_ray/masks/generate.py",
    "sfss_ray/streets/weights/source.pt",
    "docs/images/pairs.png",
)


def test_a_job_uploads_the_code_and_none_of_the_data_beside_it(tmp_path):
    """The package is made by Ray's own code, as `ray job submit --working-dir .` does."""
    folder = tmp_path / "folder"
    for name in (*DATA, *CODE):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text("x")
    for name in (".gitignore", ".rayignore"):
        shutil.copy(ROOT / name, folder)
    package = tmp_path / "package.zip"
    excludes = get_runtime_env_default_excludes()
    create_package(str(folder), package, include_gitignore=True, excludes=excludes)
    uploaded = set(zipfile.ZipFile(package).namelist())
    assert uploaded >= set(CODE)
    assert not uploaded & set(DATA)


def test_the_data_that_the_readme_names_is_covered():
    """Every relative path of the README's commands that is data, not code."""
    options = r"--(?:target-images|images|labels|source-model|sam-checkpoint|output-dir) (\S+)"
    named = {name.strip("`:") for name in re.findall(options, (ROOT / "README.md").read_text())}
    assert {"images", "day/images", "gta5.pth", "runs/night"} <= named
    files = {name for name in named if "://" not in name and not name.endswith((".pt", ".pth"))}
    tops = {name.split("/")[0] for name in files}
    assert tops <= {name.split("/")[0] for name in DATA}
