"""A user's own module sent to a fresh process and compared with this one."""

from __future__ import annotations

import copy
import json
import os
import pickle
import random
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from sfss_ray.models.model_file import SourceModel, save_model
from sfss_ray.models.source import Source
from sfss_ray.models.user_code import fresh_process
from sfss_ray.models.user_code.carried_module import REMEDY, CarriedModule, Payload
from sfss_ray.models.user_code.custom import WrappedSegmenter
from sfss_ray.models.user_code.user_modules import OwnCode, installed_search_path, on_every_worker

_TIMEOUT_S = 600.0
_CLOSE = 1e-3
"""Share of the largest logit by which two processes may differ."""


class RoundTrip:
    """The journey of one source model; `problem` says whether a payload of it arrives whole."""

    def __init__(self, source: Source):
        assert source.carried is not None
        self.carried: CarriedModule = source.carried
        self.model = copy.deepcopy(source.load())
        self.expected = self._logits()

    def problem(self, payload: Payload) -> str:
        """What goes wrong with the payload, in one line; empty where nothing does."""
        with tempfile.TemporaryDirectory(prefix="sfss_ray-") as name:
            folder = Path(name)
            save_model(folder / fresh_process.MODEL, self.model)
            travelling = CarriedModule(self.carried.module)
            travelling.payload = payload
            (folder / fresh_process.PAYLOAD).write_bytes(pickle.dumps(travelling))
            (folder / fresh_process.REQUEST).write_text(json.dumps(self._request()))
            failure = _run(folder)
            if failure:
                return failure
            outcome = json.loads((folder / fresh_process.OUTCOME).read_text())
            if outcome:
                return _explained(outcome, self.carried.code)
            return self._difference(torch.load(folder / fresh_process.LOGITS, weights_only=True))

    def _request(self) -> dict[str, Any]:
        return {
            "search_path": installed_search_path(),
            "pinned": on_every_worker(),
            "threads": torch.get_num_threads(),
            "modes": list(self.expected),
        }

    def _logits(self) -> dict[str, Tensor]:
        """Logits by mode, of the modes that work in this process."""
        found = {}
        for mode in ("eval", "train"):
            try:
                found[mode] = logits_of(copy.deepcopy(self.model), mode)
            except (
                Exception
            ):  # a module may work on another device alone, or train on larger images
                continue
        return found

    def _difference(self, found: dict[str, Tensor]) -> str:
        again: dict[str, Tensor] = {}
        for mode, expected in self.expected.items():
            if _agree(expected, found[mode]):
                continue
            again = again or self._logits()
            if not _agree(expected, again[mode]):
                continue  # it draws numbers that no seed decides: nothing can be compared
            return (
                "the module gives other logits in a fresh process, as on a worker, than in this one:"
                " something it uses was changed after it was imported, and that does not travel; make"
                " the change in the file that defines it, or set it in the module's __init__"
            )
        return ""


def logits_of(model: SourceModel, mode: str) -> Tensor:
    """Logits of drawn images in the mode `eval` or `train`, the same in every process."""
    network = model.network
    assert isinstance(network, WrappedSegmenter)
    generator = torch.Generator().manual_seed(0)
    images = torch.rand(2, 3, *network.example_size, generator=generator)
    with _seeded(), torch.no_grad():
        return model.train(mode == "train")(images)


@contextmanager
def _seeded() -> Iterator[None]:
    """Inside the block random numbers start from a seed; afterwards they go on as without it."""
    states = random.getstate(), np.random.get_state()
    try:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            random.seed(0)
            np.random.seed(0)
            yield
    finally:
        random.setstate(states[0])
        np.random.set_state(states[1])


def _agree(expected: Tensor, found: Tensor) -> bool:
    if expected.shape != found.shape:
        return False
    finite = expected[expected.isfinite()]
    largest = float(finite.abs().max()) if finite.numel() else 1.0
    return torch.allclose(expected, found, rtol=_CLOSE, atol=_CLOSE * largest, equal_nan=True)


def _run(folder: Path) -> str:
    """Run the fresh process; returns why it wrote no outcome."""
    # Isolated, and without site-packages' .pth files: these name folders of this machine.
    command = [sys.executable, "-I", "-S", fresh_process.__file__, str(folder)]
    environment = os.environ | {"CUDA_VISIBLE_DEVICES": ""}
    try:
        done = subprocess.run(
            command,
            env=environment,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=_TIMEOUT_S,
            check=False,
        )
    except subprocess.TimeoutExpired:
        return (
            f"the module was not built in a fresh process, as on a worker, in {_TIMEOUT_S:.0f} s:"
            " its code must not wait for anything when it is imported"
        )
    if (folder / fresh_process.OUTCOME).exists():
        return ""
    lines = done.stderr.strip().splitlines() or ["no message"]
    return (
        f"the module ends a fresh process, as on a worker, with exit code {done.returncode}"
        f" ({lines[-1][:200]}): {REMEDY}"
    )


def _explained(outcome: dict[str, Any], code: OwnCode) -> str:
    """The line for an error in the fresh process."""
    name = outcome.get("name")
    binary = next((n for n in code.binary if n in (name, *outcome["message"].split("'"))), None)
    if binary is not None:
        return (
            f"the module needs {binary!r}, which a worker cannot import ({code.binary[binary]} is no"
            f" Python source): {REMEDY}"
        )
    if outcome["type"] == "ModuleNotFoundError" and name:
        return (
            f"the module needs {name!r}, which a worker cannot import (it is no installed package, and"
            f" its source was not found): {REMEDY}"
        )
    return (
        f"the module does not work in a fresh process, as on a worker ({outcome['type']}:"
        f" {outcome['message']}): files beside its code do not travel, nor does what this process set up"
        f" for it; {REMEDY}"
    )
