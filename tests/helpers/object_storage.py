"""An S3 server on this machine, with the environment of the clients that use it."""

from __future__ import annotations

import logging
from collections.abc import Iterator

import pyarrow.fs
import pytest
from moto.server import ThreadedMotoServer

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


@pytest.fixture
def bucket_address(s3_options, request) -> str:
    """Address format of a fresh folder in the bucket: '{}' takes the name inside it."""
    folder = request.node.name.replace("[", "-").rstrip("]")
    return f"s3://user:secret@{BUCKET}/{folder}/{{}}?{s3_options}"
