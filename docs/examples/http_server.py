"""A small HTTP server for one bundle, with nothing but the standard library and the runtime.

    python http_server.py BUNDLE --port 8000
    curl localhost:8000/metadata
    curl -d '{"class_labels": [7], "seed": 0}' localhost:8000/run
    curl -d '{"class_labels": [7], "seed": 0}' -H 'Accept: image/png' localhost:8000/run > seven.png
    curl -N -d '{"prompt": "12 + 30 ="}' localhost:8000/stream

An example to start from: no encryption, no users, one machine. Requests run side by side on one
session, at most as many as `--at-once`; the rest are told to come again.
"""

import argparse
import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import numpy as np

from optimize.runtime import load
from optimize.runtime.errors import OptimizeError, RuntimeInputError
from optimize.runtime.image import png_bytes, to_uint8
from optimize.runtime.session import Session

MAX_BODY = 16 * 2**20
STATUS = {2: 400, 4: 503, 5: 500}
"""Exit code of an error of ours → HTTP status."""


class Handler(BaseHTTPRequestHandler):
    """Answers one connection; the server has the session."""

    server: "BundleServer"
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        if self.path == "/health":
            self._json(200, {"status": "ok"})
        elif self.path == "/metadata":
            manifest = self.server.session.manifest
            data = {"signature": manifest.signature.model_dump(mode="json")}
            self._json(200, data | {"target": self.server.session.target})
        else:
            self._json(404, {"error": "not found: /health, /metadata, POST /run, POST /stream"})

    def do_POST(self) -> None:
        if not self.server.slots.acquire(blocking=False):
            self._json(503, {"error": "busy; ask again"})
            return
        try:
            fields = self._fields()
            if self.path == "/run":
                self._answer(self.server.session(**fields))
            elif self.path == "/stream":
                self._stream(self.server.session.stream(**fields))
            else:
                self._json(404, {"error": "not found: POST /run or /stream"})
        except OptimizeError as error:
            self._json(STATUS.get(error.exit_code, 500), {"error": str(error), "code": error.code})
        except (BrokenPipeError, ConnectionResetError):
            self.close_connection = True
        finally:
            self.server.slots.release()

    def _fields(self) -> dict[str, Any]:
        """The request: numbers and lists of the body as arrays in the dtype of their field."""
        size = self.headers.get("Content-Length", "")
        if not size.isdecimal() or int(size) > MAX_BODY:
            self.close_connection = True
            raise RuntimeInputError(f"body: expected a Content-Length of at most {MAX_BODY}")
        try:
            given = json.loads(self.rfile.read(int(size)))
        except ValueError as error:
            raise RuntimeInputError(f"body: found no JSON ({error})") from error
        if not isinstance(given, dict):
            raise RuntimeInputError("body: expected an object of request fields")
        dtypes = {item.name: item.dtype for item in self.server.session.signature.inputs}
        try:
            return {
                name: np.asarray(item, dtypes[name]) if name in dtypes else item
                for name, item in given.items()
            }
        except (ValueError, TypeError, OverflowError) as error:
            raise RuntimeInputError(f"body: {error}") from error

    def _answer(self, results: dict[str, Any]) -> None:
        picture = next((a for a in results.values() if getattr(a, "ndim", 0) == 4), None)
        if picture is not None and "image/png" in self.headers.get("Accept", ""):
            self._send(200, "image/png", png_bytes(to_uint8(picture[:1])[0]))
        else:
            self._json(200, {name: _plain(item) for name, item in results.items()})

    def _stream(self, parts: Any) -> None:
        """Server-sent events: a line of JSON for each part, then [DONE]."""
        self.send_response(200)
        self.send_header("Content-Type", "text/event-stream")
        self.send_header("Connection", "close")
        self.end_headers()
        self.close_connection = True
        for part in parts:
            self.wfile.write(f"data: {json.dumps(_plain(part))}\n\n".encode())
            self.wfile.flush()
        self.wfile.write(b"data: [DONE]\n\n")

    def _json(self, status: int, data: dict[str, Any]) -> None:
        self._send(status, "application/json", json.dumps(data).encode())

    def _send(self, status: int, kind: str, body: bytes) -> None:
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)


class BundleServer(ThreadingHTTPServer):
    """Serves one session, with so many requests at once."""

    daemon_threads = True

    def __init__(self, address: tuple[str, int], session: Session, at_once: int) -> None:
        super().__init__(address, Handler)
        self.session = session
        self.slots = threading.BoundedSemaphore(at_once)


def _plain(item: Any) -> Any:
    return item.tolist() if hasattr(item, "tolist") else item


def main() -> None:
    """Serves until interrupted."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("bundle")
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=8000)
    parser.add_argument("--at-once", type=int, default=8)
    given = parser.parse_args()
    with load(given.bundle) as session:
        server = BundleServer((given.host, given.port), session, given.at_once)
        print(f"{session!r} at http://{given.host}:{server.server_port}", flush=True)
        try:
            server.serve_forever()
        except KeyboardInterrupt:
            server.server_close()


if __name__ == "__main__":
    main()
