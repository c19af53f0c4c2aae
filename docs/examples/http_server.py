"""Serves a bundle over HTTP with the standard library alone: an example to start from.

    python docs/examples/http_server.py BUNDLE --port 8080
    curl localhost:8080/metadata
    curl -d '{"inputs": {"labels": [3], "seed": 0}}' localhost:8080/v1/run
    curl -d '{"inputs": {"labels": [3], "seed": 0}}' -H 'Accept: image/png' \
        localhost:8080/v1/run > three.png
    curl -N -d '{"inputs": {"prompt": "Hello"}}' localhost:8080/v1/stream

An array is a nested list, or {"npy": base64 of an .npy file}; with `"arrays": "npy"` results come
back that way, too. An error is {"error": {"code", "message"}}. There is no encryption and no login:
put a proxy in front that has both.
"""

import argparse
import base64
import io
import json
import signal
import sys
import threading
import traceback
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import numpy as np

from optimize.runtime import Session, load
from optimize.runtime.errors import OptimizeError, ResourceError, RuntimeInputError
from optimize.runtime.image import Range, grid, png_bytes, to_uint8


class Refused(Exception):
    """A request answered with an HTTP status, a stable code and a message."""

    def __init__(self, status: int, code: str, message: str) -> None:
        super().__init__(message)
        self.status, self.code = status, code


class Server(ThreadingHTTPServer):
    """One session for all requests, each in its own thread.

    Args:
        address: host and port; port 0 takes a free one.
        session: answers the requests.
        concurrency: requests that run at once; more are refused with 503.
        largest: most bytes of a request.
        values: which range the floats of pictures span.
    """

    # Closing the server waits for the requests that run.
    daemon_threads = False

    def __init__(
        self,
        address: tuple[str, int],
        session: Session,
        *,
        concurrency: int = 4,
        largest: int = 16 * 2**20,
        values: Range = "-1..1",
    ) -> None:
        super().__init__(address, Handler)
        self.session, self.largest, self.values = session, largest, values
        self._free = threading.BoundedSemaphore(concurrency)

    @contextmanager
    def place(self) -> Iterator[None]:
        """A place for one request, given back before its answer is sent where that is whole."""
        if not self._free.acquire(blocking=False):
            raise Refused(503, "busy", "found all places taken; try again in a second")
        try:
            yield
        finally:
            self._free.release()


class Handler(BaseHTTPRequestHandler):
    """Answers one connection, which is one request."""

    server: Server
    timeout = 30  # seconds for each read and write, so that slow clients do not hold threads

    def do_GET(self) -> None:
        """`/health` and `/metadata`."""
        session = self.server.session
        if self.path == "/health":
            self._send_json(200, {"status": "ok"})
        elif self.path == "/metadata":
            self._send_json(
                200,
                session.signature.model_dump()
                | {
                    "noise": [item.model_dump() for item in session.manifest.loop.noise],
                    "prompts": session.manifest.prompting is not None,
                    "target": session.target,
                    "providers": session.providers,
                },
            )
        else:
            self._send_error(Refused(404, "path", f"found no {self.path}; see /metadata"))

    def do_POST(self) -> None:
        """`/v1/run` and `/v1/stream`."""
        routes: dict[str, Callable[[dict[str, Any]], None]] = {
            "/v1/run": self._run,
            "/v1/stream": self._stream,
        }
        try:
            if self.path not in routes:
                known = ", ".join(routes)
                raise Refused(404, "path", f"found no {self.path}, known: {known}")
            routes[self.path](self._body())
        except (ConnectionError, TimeoutError):
            self.close_connection = True  # nobody is left to tell
        except Exception as error:
            self._send_error(error)

    def _body(self) -> dict[str, Any]:
        length = self.headers.get("Content-Length", "")
        if not length.isdecimal():
            raise Refused(411, "length", "found no Content-Length, expected one")
        if int(length) > self.server.largest:
            raise Refused(
                413, "size", f"found {length} bytes, expected at most {self.server.largest}"
            )
        try:
            body = json.loads(self.rfile.read(int(length)))
        except (ValueError, RecursionError) as error:
            raise Refused(400, "json", f"found no JSON that can be read: {error}") from error
        if not isinstance(body, dict) or not isinstance(body.get("inputs"), dict):
            raise Refused(400, "json", 'found no object {"inputs": {...}}, expected one')
        return body

    def _run(self, body: dict[str, Any]) -> None:
        with self.server.place():
            results = self.server.session(**read_inputs(body["inputs"]))
        if "image/png" in self.headers.get("Accept", ""):
            self._send(200, "image/png", picture(results, self.server.values))
        else:
            packed = {name: packed_value(item, body) for name, item in results.items()}
            self._send_json(200, {"results": packed})

    def _stream(self, body: dict[str, Any]) -> None:
        with self.server.place():
            # What is wrong with the request is raised here, before the first byte is sent.
            parts = self.server.session.stream(**read_inputs(body["inputs"]))
            self.send_response(200)
            self.send_header("Content-Type", "text/event-stream")
            self.send_header("Cache-Control", "no-store")
            self.end_headers()
            for event in events(parts, body):
                self.wfile.write(event.encode())
                self.wfile.flush()

    def _send_error(self, error: Exception) -> None:
        refused = as_refused(error)
        headers = {"Retry-After": "1"} if refused.status == 503 else {}
        content = {"error": {"code": refused.code, "message": str(refused)}}
        self._send_json(refused.status, content, headers)

    def _send_json(
        self, status: int, content: Any, headers: Mapping[str, str] | None = None
    ) -> None:
        self._send(status, "application/json", json.dumps(content).encode(), headers)

    def _send(
        self, status: int, kind: str, content: bytes, headers: Mapping[str, str] | None = None
    ) -> None:
        self.send_response(status)
        given = {"Content-Type": kind, "Content-Length": str(len(content))} | dict(headers or {})
        for name, value in given.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(content)


def read_inputs(inputs: Mapping[str, Any]) -> dict[str, Any]:
    """Request fields from JSON. Only prompts are text: a session would read an image's path."""
    return {name: read_value(name, value) for name, value in inputs.items()}


def read_value(name: str, value: Any) -> Any:
    """A field from JSON: a number, nested lists of numbers, or an .npy file in base64."""
    if name in ("prompt", "seed") or isinstance(value, (bool, int, float)):
        return value
    try:
        if isinstance(value, dict) and set(value) == {"npy"}:
            file = io.BytesIO(base64.b64decode(value["npy"], validate=True))
            return np.load(file, allow_pickle=False)
        if isinstance(value, list) and np.asarray(value).dtype.kind in "bif":
            return value
    except (ValueError, TypeError, OSError, EOFError, MemoryError) as error:
        raise Refused(400, "input", f"{name}: found no array that can be read: {error}") from error
    raise Refused(400, "input", f'{name}: expected numbers in nested lists, or {{"npy": base64}}')


def packed_value(value: Any, body: Mapping[str, Any]) -> Any:
    """A result as JSON: text as it is, arrays as lists or as an .npy file in base64."""
    if not isinstance(value, np.ndarray):
        return value
    if body.get("arrays") != "npy":
        return {"dtype": str(value.dtype), "shape": value.shape, "data": value.tolist()}
    file = io.BytesIO()
    np.save(file, value, allow_pickle=False)
    return {"npy": base64.b64encode(file.getvalue()).decode()}


def picture(results: Mapping[str, Any], values: Range) -> bytes:
    """The first result that is pictures [B, C, H, W], as a PNG file; several as a grid."""
    for value in results.values():
        if isinstance(value, np.ndarray) and value.ndim == 4 and value.dtype.kind == "f":
            return png_bytes(grid(to_uint8(value, values)))
    raise Refused(406, "accept", f"found results {', '.join(results)}, none of them pictures")


def events(parts: Iterator[Any], body: Mapping[str, Any]) -> Iterator[str]:
    """Server-sent events: `data` with each part, then `done`, or `error` where it ends early."""
    try:
        for part in parts:
            yield f"data: {json.dumps({'part': packed_value(part, body)})}\n\n"
    except Exception as error:
        refused = as_refused(error)
        content = {"code": refused.code, "message": str(refused)}
        yield f"event: error\ndata: {json.dumps(content)}\n\n"
    else:
        yield "event: done\ndata: {}\n\n"


def as_refused(error: Exception) -> Refused:
    """The status, code and message of an error; of our own defects only that there was one."""
    if isinstance(error, Refused):
        return error
    if isinstance(error, OptimizeError):
        kinds = {RuntimeInputError: 400, ResourceError: 503}
        status = next((kinds[kind] for kind in kinds if isinstance(error, kind)), 500)
        return Refused(status, error.code, str(error))
    traceback.print_exception(error)
    return Refused(500, "internal", "found an error inside the server; its log has more")


def serve(server: Server) -> None:
    """Serves until SIGTERM or SIGINT, then finishes the requests that run."""

    def stop(*_: Any) -> None:
        # `shutdown` waits for the loop that this handler interrupts.
        threading.Thread(target=server.shutdown).start()

    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, stop)
    host, port = server.server_address[:2]
    print(f"serving on http://{host!s}:{port}", file=sys.stderr, flush=True)
    with server:
        server.serve_forever()


def main() -> None:
    """Reads the command line."""
    parser = argparse.ArgumentParser(description="Serve a bundle over HTTP.")
    parser.add_argument("bundle", help="folder of a bundle")
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=8080)
    parser.add_argument("--concurrency", type=int, default=4, help="requests that run at once")
    parser.add_argument("--largest", type=int, default=16 * 2**20, help="bytes of a request")
    parser.add_argument("--threads", type=int, help="CPU threads of one operator")
    parser.add_argument("--values", choices=("-1..1", "0..1"), default="-1..1")
    given = parser.parse_args()
    with load(given.bundle, threads=given.threads) as session:
        address = (given.host, given.port)
        options = {name: getattr(given, name) for name in ("concurrency", "largest", "values")}
        serve(Server(address, session, **options))


if __name__ == "__main__":
    main()
