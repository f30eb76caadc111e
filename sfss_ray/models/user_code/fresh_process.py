"""A script that loads a user's own module as a worker does, with only the installed packages.

It runs without `site` and without the search path of the environment. Therefore it imports this package
only after it has set the search path in its request.
"""

from __future__ import annotations

import importlib.util
import json
import os
import pickle
import sys
from pathlib import Path
from typing import Any

REQUEST, OUTCOME = "request.json", "outcome.json"
PAYLOAD, MODEL, LOGITS = "payload.pkl", "model.pt", "logits.pt"
"""Files in the folder that the calling process shares with this one."""


class _PinnedPackages:
    """An import finder for packages outside the search path, by the file of their __init__."""

    def __init__(self, files: dict[str, str]):
        self.files = files

    def find_spec(self, fullname: str, path: Any, target: Any = None) -> Any:
        """Return the spec of a pinned package, or None for any other module."""
        file = self.files.get(fullname)
        if file is None:
            return None
        folder = [str(Path(file).parent)]
        return importlib.util.spec_from_file_location(
            fullname, file, submodule_search_locations=folder
        )


def main(folder: Path) -> None:
    """Load the module in a folder, write its logits there, and write any error to OUTCOME.

    The outcome is an empty dict if everything worked.
    """
    request = json.loads((folder / REQUEST).read_text())
    sys.path[:] = request["search_path"]
    sys.meta_path.insert(0, _PinnedPackages(request["pinned"]))  # pyright: ignore[reportArgumentType]
    sys.argv[1:] = ["--node-ip-address=127.0.0.1"]  # a worker has Ray's arguments, not the user's
    empty = folder / "empty"
    empty.mkdir()
    os.chdir(empty)
    outcome: dict[str, Any] = {}
    try:
        _predict(folder, request)
    except BaseException as error:  # a user's module may even call sys.exit
        outcome = _describe_error(error)
    (folder / OUTCOME).write_text(json.dumps(outcome))


def _describe_error(error: BaseException) -> dict[str, Any]:
    # This package wraps errors in its own, whose advice does not apply here.
    while error.__cause__ is not None:
        error = error.__cause__
    message_lines = str(error).strip().splitlines() or ["no message"]
    description: dict[str, Any] = {
        "type": type(error).__name__,
        "message": message_lines[0][:200],
    }
    return description | ({"name": error.name} if isinstance(error, ImportError) else {})


def _predict(folder: Path, request: dict[str, Any]) -> None:
    """Unpickle the module, load its weights and save its logits in each requested mode."""
    import torch

    from sfss_ray.models.model_file import load_model
    from sfss_ray.models.user_code.round_trip import logits_of

    torch.set_num_threads(request["threads"])
    carried = pickle.loads((folder / PAYLOAD).read_bytes())
    model = load_model(folder / MODEL, module=carried.module)
    torch.save({mode: logits_of(model, mode) for mode in request["modes"]}, folder / LOGITS)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
