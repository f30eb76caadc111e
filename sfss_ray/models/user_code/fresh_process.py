"""What a worker does with a user's own module, in a process that has the installed packages alone.

The file is run as a script, without `site` and without the environment's search path, so it imports
this package only once it has set the search path that it was given.
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


class _Pinned:
    """Finds packages whose folder is on no search path, by the file of their __init__."""

    def __init__(self, files: dict[str, str]):
        self.files = files

    def find_spec(self, fullname: str, path: Any, target: Any = None) -> Any:
        """The spec of a pinned package."""
        file = self.files.get(fullname)
        if file is None:
            return None
        folder = [str(Path(file).parent)]
        return importlib.util.spec_from_file_location(
            fullname, file, submodule_search_locations=folder
        )


def main(folder: Path) -> None:
    """Do what the request says, and write how it went."""
    request = json.loads((folder / REQUEST).read_text())
    sys.path[:] = request["search_path"]
    sys.meta_path.insert(0, _Pinned(request["pinned"]))  # pyright: ignore[reportArgumentType]
    sys.argv[1:] = ["--node-ip-address=127.0.0.1"]  # a worker has Ray's arguments, not the user's
    empty = folder / "empty"
    empty.mkdir()
    os.chdir(empty)
    outcome: dict[str, Any] = {}
    try:
        _predict(folder, request)
    except BaseException as error:  # a user's module may even call sys.exit
        outcome = _described(error)
    (folder / OUTCOME).write_text(json.dumps(outcome))


def _described(error: BaseException) -> dict[str, Any]:
    while error.__cause__ is not None:  # what this package says of an error names another remedy
        error = error.__cause__
    lines = str(error).strip().splitlines() or ["no message"]
    described: dict[str, Any] = {"type": type(error).__name__, "message": lines[0][:200]}
    return described | ({"name": error.name} if isinstance(error, ImportError) else {})


def _predict(folder: Path, request: dict[str, Any]) -> None:
    import torch

    from sfss_ray.models.model_file import load_model
    from sfss_ray.models.user_code.round_trip import logits_of

    torch.set_num_threads(request["threads"])
    carried = pickle.loads((folder / PAYLOAD).read_bytes())
    model = load_model(folder / MODEL, module=carried.module)
    torch.save({mode: logits_of(model, mode) for mode in request["modes"]}, folder / LOGITS)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
