"""A local server with the JSON interface of Google Cloud Storage: a folder as a read-only bucket.

Run it as a program, `python google_storage.py FOLDER BUCKET`. It prints its port and serves until it
is terminated. It must be a separate process: pyarrow holds Python's lock while it opens a file of a
bucket, so a server in a thread of the same process would never answer.
"""

from __future__ import annotations

import json
import sys
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit


class Bucket(BaseHTTPRequestHandler):
    """Answers the requests of Google's client: a listing, an object's metadata, a range of its bytes."""

    protocol_version = "HTTP/1.1"
    folder: Path
    name: str

    def do_GET(self) -> None:
        address = urlsplit(self.path)
        query = parse_qs(address.query)
        objects = f"/storage/v1/b/{self.name}/o"
        if address.path == objects:
            self.list(query.get("prefix", [""])[0])
        elif address.path.startswith(f"{objects}/"):
            self.object(unquote(address.path.removeprefix(f"{objects}/")), "media" in str(query))
        else:
            self.answer(404, {"error": {"code": 404, "message": "no such bucket"}})

    def list(self, prefix: str) -> None:
        names = sorted(
            p.relative_to(self.folder).as_posix() for p in self.folder.rglob("*") if p.is_file()
        )
        entries = [self.metadata(name) for name in names if name.startswith(prefix)]
        self.answer(200, {"kind": "storage#objects", "items": entries})

    def object(self, name: str, wants_bytes: bool) -> None:
        if not (self.folder / name).is_file():
            self.answer(404, {"error": {"code": 404, "message": "no such object"}})
        elif wants_bytes:
            self.send_part((self.folder / name).read_bytes())
        else:
            self.answer(200, self.metadata(name))

    def metadata(self, name: str) -> dict[str, Any]:
        status = (self.folder / name).stat()
        return {
            "kind": "storage#object",
            "bucket": self.name,
            "name": name,
            "size": str(status.st_size),
            "generation": str(status.st_mtime_ns),
            "updated": "2024-01-01T00:00:00.000Z",
        }

    def send_part(self, content: bytes) -> None:
        """Send the bytes of `Range: bytes=FIRST-[LAST]`, or all."""
        byte_range = self.headers.get("Range")
        first, last = 0, len(content) - 1
        if byte_range:
            begin, _, end = byte_range.removeprefix("bytes=").partition("-")
            first, last = int(begin), min(last, int(end or last))
        self.send_response(206 if byte_range else 200)
        if byte_range:
            self.send_header("Content-Range", f"bytes {first}-{last}/{len(content)}")
        self.finish_with(content[first : last + 1])

    def answer(self, status: int, body: dict[str, Any]) -> None:
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.finish_with(json.dumps(body).encode())

    def finish_with(self, content: bytes) -> None:
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, format: str, *args: object) -> None:
        """Print nothing."""


def main() -> None:
    Bucket.folder, Bucket.name = Path(sys.argv[1]), sys.argv[2]
    server = ThreadingHTTPServer(("127.0.0.1", 0), Bucket)
    print(server.server_port, flush=True)
    server.serve_forever()


if __name__ == "__main__":
    main()
