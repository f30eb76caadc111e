"""Tests of names on the Hugging Face Hub, which are looked up in the local cache only."""

from __future__ import annotations

import builtins
import socket
from pathlib import Path
from typing import Any

import pytest
from checkpoint_files import refusal

from sfss_ray.errors import CheckpointError, ConfigError
from sfss_ray.models.hub_cache import resolve_source
from sfss_ray.models.source import open_source

NAME = "someone/net-b0"


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache, and no network."""
    constants = pytest.importorskip("huggingface_hub.constants", reason="pip install transformers")
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))

    def refuse(*_: Any, **__: Any) -> Any:
        raise AssertionError("a name must not reach the network")

    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    monkeypatch.setattr(socket.socket, "connect", refuse)
    return tmp_path / "hub"


def fill(cache: Path, name: str = NAME) -> Path:
    """Write a cached model as the Hub's own client lays it out."""
    repository = cache / f"models--{name.replace('/', '--')}"
    commit = "a" * 40
    (repository / "refs").mkdir(parents=True)
    (repository / "refs" / "main").write_text(commit)
    folder = repository / "snapshots" / commit
    folder.mkdir(parents=True)
    (folder / "config.json").write_text("{}")
    return folder


def test_a_name_in_the_cache_is_its_folder(cache):
    folder = fill(cache)
    assert resolve_source(NAME) == folder
    assert "holds config.json but no weights" in refusal(Path(NAME))


@pytest.mark.parametrize("name", ["run--a/student", "runs..old/student", "a/" + 100 * "b"])
def test_a_text_that_the_hub_allows_no_name_is_a_missing_path(name, cache):
    with pytest.raises(CheckpointError, match="does not exist") as error:
        resolve_source(name)
    assert "\n" not in str(error.value)


def test_a_name_that_is_not_in_the_cache_is_refused(cache):
    with pytest.raises(CheckpointError) as error:
        resolve_source(NAME)
    message = str(error.value)
    assert "\n" not in message
    assert f"source model '{NAME}' is no path" in message
    assert f"is not in the local cache ({cache}): run `hf download {NAME}`" in message
    assert "not in the local cache" in refusal(Path(NAME))


def test_a_source_keeps_the_name_as_its_origin(cache):
    models = pytest.importorskip("transformers_models", reason="pip install transformers")
    folder = fill(cache)
    models.make(models.upernet_convnext).save_pretrained(folder)
    source = open_source(NAME)
    assert source.origin == NAME
    assert source.network == "UperNetForSemanticSegmentation"
    assert source.classes.classes == models.CLASSES


def test_paths_stay_paths(cache, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "runs").mkdir()
    paths = ["runs/net", "model.pt", "elsewhere/student.pt", "/a/b", "a/b/c", "./a/b", "~/b"]
    for path in paths:
        assert resolve_source(path) == Path(path)
    assert "does not exist" in refusal(Path("runs/net"))
    (tmp_path / NAME).mkdir(parents=True)
    fill(cache)
    assert resolve_source(NAME) == Path(NAME)


def test_a_missing_package_is_named(monkeypatch):
    plain_import = builtins.__import__

    def refuse(name: str, *args: Any, **kwargs: Any) -> Any:
        if name.startswith("huggingface_hub"):
            raise ImportError(name)
        return plain_import(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", refuse)
    with pytest.raises(ConfigError, match=r"run `pip install 'sfss-ray\[transformers\]'`"):
        resolve_source(NAME)
