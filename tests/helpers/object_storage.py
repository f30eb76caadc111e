"""An S3 server on this machine, with the environment of the clients that use it."""

from __future__ import annotations

import logging
import threading
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pyarrow.fs
import pytest
from moto.server import DomainDispatcherApplication, ThreadedMotoServer, create_backend_app
from werkzeug.serving import make_server

from sfss_ray.storage.object_cache import FOLDER_VARIABLE
from sfss_ray.storage.places import ObjectPath, Place

BUCKET = "fleet"


@pytest.fixture(scope="module")
def s3_options() -> Iterator[str]:
    """Options of an address, which lead it to an S3 server on this machine."""
    logging.getLogger("werkzeug").setLevel(logging.ERROR)  # a line per request
    server = ThreadedMotoServer("127.0.0.1", 0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    filesystem = pyarrow.fs.S3FileSystem(
        access_key="user",
        secret_key="secret",
        endpoint_override=f"{host}:{port}",
        scheme="http",
        allow_bucket_creation=True,
    )
    filesystem.create_dir(BUCKET)
    yield f"endpoint_override={host}:{port}&scheme=http"
    server.stop()


def upload(folder: Path, location: Place) -> ObjectPath:
    """Copy all files of a folder to an address."""
    assert isinstance(location, ObjectPath)
    for file in sorted(folder.rglob("*")):
        if file.is_file():
            (location / file.relative_to(folder).as_posix()).write_bytes(file.read_bytes())
    return location


@pytest.fixture
def bucket_address(s3_options, request, tmp_path, monkeypatch) -> str:
    """Address format of a fresh folder in the bucket: '{}' takes the name inside it.

    Copies of its objects are kept in a folder of the test.
    """
    monkeypatch.setenv(FOLDER_VARIABLE, str(tmp_path / "object cache"))
    folder = request.node.name.replace("[", "-").rstrip("]")
    return f"s3://user:secret@{BUCKET}/{folder}/{{}}?{s3_options}"


class FailingStorage:
    """An S3 server on this machine that answers 503 while `is_away` is set, and counts uploads.

    `uploads` has how often each object was written, by its path on the server.
    """

    def __init__(self) -> None:
        self.is_away = False
        self.uploads: Counter[str] = Counter()
        logging.getLogger("werkzeug").setLevel(logging.ERROR)
        self._backend = DomainDispatcherApplication(create_backend_app)
        self._server = make_server("127.0.0.1", 0, self._answer, threaded=True)
        self._thread = threading.Thread(target=self._server.serve_forever, daemon=True)
        self._thread.start()

    @property
    def options(self) -> str:
        """Options of an address in the bucket of this server."""
        return f"endpoint_override=127.0.0.1:{self._server.port}&scheme=http"

    def create_bucket(self) -> None:
        """Create the bucket, with the user and the password that the tests use."""
        filesystem, _ = pyarrow.fs.FileSystem.from_uri(
            f"s3://user:secret@{BUCKET}?{self.options}&allow_bucket_creation=true"
        )
        filesystem.create_dir(BUCKET)

    def close(self) -> None:
        """Stop the server."""
        self._server.shutdown()
        self._thread.join()

    def _answer(self, environ, start_response):
        if self.is_away:
            start_response("503 Slow Down", [("Content-Type", "text/plain")])
            return [b"the storage is away"]
        answer = self._backend(environ, start_response)
        request = environ["REQUEST_METHOD"], environ.get("QUERY_STRING", "")
        is_whole = request[0] == "PUT" and "partNumber" not in request[1]
        if is_whole or (request[0] == "POST" and "uploadId" in request[1]):
            self.uploads[environ["PATH_INFO"]] += 1
        return answer
