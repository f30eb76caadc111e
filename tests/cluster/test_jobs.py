"""The main job submitted to a real cluster with token authentication, as the README prints it."""

import json
import os
import secrets
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path

import pytest

from sfss_ray.config import flatten

pytestmark = pytest.mark.slow
ROOT = Path(__file__).resolve().parents[2]
PATIENCE_S = 420


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@pytest.fixture(scope="module")
def head(tmp_path_factory):
    """(address of the dashboard, environment with the token) of a cluster of its own."""
    token = tmp_path_factory.mktemp("head") / "token"
    token.write_text(secrets.token_hex(32))
    token.chmod(0o600)
    port, dashboard, agent = free_port(), free_port(), free_port()
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    env = os.environ | {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN_PATH": str(token), "PATH": path}
    env.pop("RAY_ADDRESS", None)
    words = ["ray", "start", "--head", "--block", "--port", port, "--num-cpus", 2]
    words += ["--dashboard-host", "127.0.0.1", "--dashboard-port", dashboard]
    # The agent's usual port belongs to the cluster that other tests share.
    words += ["--dashboard-agent-listen-port", agent]
    words += ["--disable-usage-stats", "--include-dashboard", "true"]
    process = subprocess.Popen(
        list(map(str, words)), env=env, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    address = f"http://127.0.0.1:{dashboard}"
    wait_until_it_answers(f"{address}/api/version", process)
    yield address, env
    process.send_signal(signal.SIGTERM)
    process.wait(60)


def wait_until_it_answers(url: str, process: subprocess.Popen) -> None:
    end = time.monotonic() + 120
    while time.monotonic() < end:
        assert process.poll() is None, "the head node ended"
        try:
            urllib.request.urlopen(url, timeout=5).close()
            return
        except urllib.error.HTTPError:
            return  # it answers; without a token it says 401
        except OSError:
            time.sleep(0.5)
    pytest.fail("the dashboard does not answer")


def submit(address: str, env: dict[str, str], *words: object) -> subprocess.CompletedProcess:
    """Submits once the head node has an agent for jobs: the dashboard answers some seconds earlier."""
    command = ["ray", "job", "submit", "--address", address, "--working-dir", str(ROOT), "--"]
    end = time.monotonic() + 120
    while True:
        result = subprocess.run(
            [*command, "python", "experiments/tune_gta2cs.py", *map(str, words)],
            env=env,
            capture_output=True,
            text=True,
            timeout=PATIENCE_S,
            cwd=ROOT,
        )
        if "No available agent" not in result.stderr + result.stdout or time.monotonic() > end:
            return result
        time.sleep(2)


def test_the_main_job_runs_as_a_submitted_job(head, source_model, streets, tiny_config, tmp_path):
    address, env = head
    config = tmp_path / "config.json"
    config.write_text(json.dumps(flatten(tiny_config) | {"tune.num_trials": 2}))
    out = tmp_path / "run"
    words = ["--source-model", source_model, "--target-images", streets / "target" / "images"]
    words += [
        "--val-images",
        streets / "val" / "images",
        "--val-labels",
        streets / "val" / "labels",
    ]
    result = submit(address, env, *words, "--output-dir", out, "--config", config)
    assert result.returncode == 0, result.stdout + result.stderr
    assert "source-only" in result.stdout
    assert "best: trial" in result.stdout
    assert (out / "student.pt").exists()
    assert (out / "report.html").exists()


def test_a_relative_output_of_a_job_is_refused(head):
    """The recipe's default lies in Ray's package cache, which goes with the job."""
    address, env = head
    result = submit(address, env)
    assert result.returncode != 0
    assert "lies in the folder that Ray unpacked for this job" in result.stdout + result.stderr
    assert "Traceback" not in result.stdout


def test_without_the_token_nobody_submits(head):
    address, env = head
    stranger = env | {"RAY_AUTH_TOKEN_PATH": os.devnull}
    result = submit(address, stranger, "--help")
    assert result.returncode != 0
