"""A trial that sends a user's own module to a fresh process and compares its logits with this one."""

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
from sfss_ray.models.user_code.user_modules import (
    UserCode,
    installed_search_path,
    uninstalled_dependencies,
)

_TIMEOUT_S = 600.0
_TOLERANCE = 1e-3
"""Share of the largest logit by which the logits of two processes may differ."""


class RoundTrip:
    """The trial of one source model: `problem` says whether a payload of its module works elsewhere."""

    def __init__(self, source: Source):
        assert source.carried is not None
        self.carried: CarriedModule = source.carried
        self.model = copy.deepcopy(source.load())
        self.expected = self._logits_by_mode()
        self.missing_module = ""
        """Python module that the last payload lacked, if that was its problem."""

    def problem(self, payload: Payload) -> str:
        """Return what goes wrong with a payload in one line, or an empty string if it works."""
        self.missing_module = ""
        with tempfile.TemporaryDirectory(prefix="sfss_ray-") as name:
            folder = Path(name)
            save_model(folder / fresh_process.MODEL, self.model)
            carried = CarriedModule(self.carried.module)
            carried.payload = payload
            (folder / fresh_process.PAYLOAD).write_bytes(pickle.dumps(carried))
            (folder / fresh_process.REQUEST).write_text(json.dumps(self._request()))
            failure = _run_fresh_process(folder)
            if failure:
                return failure
            outcome = json.loads((folder / fresh_process.OUTCOME).read_text())
            if outcome:
                if outcome["type"] == "ModuleNotFoundError":
                    self.missing_module = outcome.get("name") or ""
                return _explain(outcome, self.carried.code)
            logits = torch.load(folder / fresh_process.LOGITS, weights_only=True)
            return self._difference(logits)

    def _request(self) -> dict[str, Any]:
        return {
            "search_path": installed_search_path(),
            "pinned": uninstalled_dependencies(),
            "threads": torch.get_num_threads(),
            "modes": list(self.expected),
        }

    def _logits_by_mode(self) -> dict[str, Tensor]:
        """Return the logits of this process in each mode that works here."""
        logits = {}
        for mode in ("eval", "train"):
            try:
                logits[mode] = logits_of(copy.deepcopy(self.model), mode)
            except Exception:  # a module may need another device, or larger images in training mode
                continue
        return logits

    def _difference(self, logits: dict[str, Tensor]) -> str:
        """Return the message for logits that differ from those of this process, or an empty string."""
        repeated: dict[str, Tensor] = {}
        for mode, expected in self.expected.items():
            if _agree(expected, logits[mode]):
                continue
            # A module whose random numbers no seed controls cannot be compared.
            repeated = repeated or self._logits_by_mode()
            if not _agree(expected, repeated[mode]):
                continue
            return (
                "the module gives other logits in a fresh process, as on a worker, than in this one:"
                " something it uses was changed after it was imported, and such changes are not sent;"
                " make the change in the file that defines it, or set it in the module's __init__"
            )
        return ""


def logits_of(model: SourceModel, mode: str) -> Tensor:
    """Return the logits of random images, which are the same in every process.

    Args:
        model: A wrapped module.
        mode: `eval` or `train`.
    """
    network = model.network
    assert isinstance(network, WrappedSegmenter)
    generator = torch.Generator().manual_seed(0)
    images = torch.rand(2, 3, *network.example_size, generator=generator)
    with _seeded(), torch.no_grad():
        return model.train(mode == "train")(images)


@contextmanager
def _seeded() -> Iterator[None]:
    """Seed all random numbers inside the block, and restore their states afterwards."""
    python_state, numpy_state = random.getstate(), np.random.get_state()
    try:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            random.seed(0)
            np.random.seed(0)
            yield
    finally:
        random.setstate(python_state)
        np.random.set_state(numpy_state)


def _agree(expected: Tensor, logits: Tensor) -> bool:
    """Whether logits are equal up to rounding; NaN equals NaN."""
    if expected.shape != logits.shape:
        return False
    finite = expected[expected.isfinite()]
    largest = float(finite.abs().max()) if finite.numel() else 1.0
    tolerance = _TOLERANCE * largest
    return torch.allclose(expected, logits, rtol=_TOLERANCE, atol=tolerance, equal_nan=True)


def _run_fresh_process(folder: Path) -> str:
    """Run the script on a folder; return why it wrote no outcome, or an empty string if it did."""
    # -I isolates the interpreter. -S skips the .pth files of site-packages, which name local folders.
    command = [sys.executable, "-I", "-S", fresh_process.__file__, str(folder)]
    environment = os.environ | {"CUDA_VISIBLE_DEVICES": ""}
    try:
        process = subprocess.run(
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
            f"the module could not be built in a fresh process, as on a worker, within {_TIMEOUT_S:.0f}"
            " s: its code must not wait for anything when it is imported"
        )
    if (folder / fresh_process.OUTCOME).exists():
        return ""
    error_lines = process.stderr.strip().splitlines() or ["no message"]
    return (
        f"the module ends a fresh process, as on a worker, with exit code {process.returncode}"
        f" ({error_lines[-1][:200]}): {REMEDY}"
    )


def _explain(outcome: dict[str, Any], code: UserCode) -> str:
    """Return the message for an error in the fresh process."""
    name = outcome.get("name")
    mentioned = (name, *outcome["message"].split("'"))
    binary = next((module for module in code.binary if module in mentioned), None)
    if binary is not None:
        return (
            f"the module needs {binary!r}, which a worker cannot import ({code.binary[binary]} is not"
            f" Python source): {REMEDY}"
        )
    if outcome["type"] == "ModuleNotFoundError" and name:
        return (
            f"the module needs {name!r}, which a worker cannot import (it is not an installed package,"
            f" and its source was not found): {REMEDY}"
        )
    return (
        f"the module does not work in a fresh process, as on a worker ({outcome['type']}:"
        f" {outcome['message']}): files beside its code are not sent to workers, nor is anything that"
        f" this process set up for it; {REMEDY}"
    )
