"""The HTTP example, asked over real connections."""

import base64
import http.client
import io
import json
import os
import signal
import subprocess
import sys
import threading
import urllib.request
from pathlib import Path

import numpy as np
import pytest

from optimize.export.bundle import export_bundle
from optimize.runtime import load
from optimize.runtime.image import grid, png_bytes, to_uint8
from tests.loading import module_at
from tests.runtime import toy_language as toy

ROOT = Path(__file__).parents[2]
FILE = ROOT / "docs" / "examples" / "http_server.py"


example = module_at(FILE)


@pytest.fixture(scope="module")
def pictures(tiny_bundle):
    with load(tiny_bundle, threads=1) as session:
        yield session


@pytest.fixture(scope="module")
def language(tmp_path_factory):
    folder = export_bundle(toy.colours(picture=True), tmp_path_factory.mktemp("seeing") / "b")
    with load(folder, threads=1) as session:
        yield session


@pytest.fixture
def serve(monkeypatch):
    """Starts a server for a session; gives what asks it."""
    monkeypatch.setattr(example.Handler, "log_message", lambda *_: None)
    servers = []

    def start(session, **options):
        server = example.Server(("127.0.0.1", 0), session, **options)
        threading.Thread(target=server.serve_forever, args=(0.01,)).start()
        servers.append(server)
        return lambda *request, **more: ask(server.server_address[1], *request, **more)

    yield start
    for server in servers:
        server.shutdown()
        server.server_close()


def ask(port, path, body=None, accept="application/json", headers=None):
    """Status, headers and content of the answer to one request."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
    data = body if isinstance(body, bytes | None) else json.dumps(body).encode()
    method = "GET" if body is None else "POST"
    connection.request(method, path, data, {"Accept": accept} | (headers or {}))
    response = connection.getresponse()
    content = response.read()
    connection.close()
    if response.headers["Content-Type"] == "application/json":
        content = json.loads(content)
    return response.status, response.headers, content


def npy(array):
    file = io.BytesIO()
    np.save(file, array)
    return {"npy": base64.b64encode(file.getvalue()).decode()}


def test_runs_equal_the_sessions_own_as_lists_and_as_npy(serve, pictures):
    get = serve(pictures)
    expected = pictures(seed=7, labels=[1, 2])["image"]
    status, _, content = get("/v1/run", {"inputs": {"seed": 7, "labels": [1, 2]}})
    found = content["results"]["image"]
    assert (status, found["dtype"], found["shape"]) == (200, "float32", [2, 1, 8, 8])
    np.testing.assert_array_equal(np.array(found["data"], np.float32), expected)
    inputs = {"seed": 7, "labels": npy(np.array([1, 2]))}
    _, _, content = get("/v1/run", {"inputs": inputs, "arrays": "npy"})
    raw = base64.b64decode(content["results"]["image"]["npy"])
    np.testing.assert_array_equal(np.load(io.BytesIO(raw)), expected)


def test_pictures_come_as_png(serve, pictures, language):
    get = serve(pictures)
    body = {"inputs": {"seed": 7, "labels": [1, 2]}}
    status, headers, content = get("/v1/run", body, accept="image/png")
    assert (status, headers["Content-Type"]) == (200, "image/png")
    assert content == png_bytes(grid(to_uint8(pictures(seed=7, labels=[1, 2])["image"])))
    body = {"inputs": {"prompt": "what", "image": npy(np.zeros((4, 6, 3), np.uint8))}}
    status, _, content = serve(language)("/v1/run", body, accept="image/png")
    assert status == 406 and "none of them pictures" in content["error"]["message"]


def test_answers_are_streamed_as_events(serve, language):
    get = serve(language)
    image = np.full((4, 6, 3), 255, np.uint8)
    body = {"inputs": {"prompt": "what colour", "image": npy(image)}}
    assert get("/v1/run", body)[2]["results"]["text"] == "it is blue"
    status, headers, content = get("/v1/stream", body)
    assert (status, headers["Content-Type"]) == (200, "text/event-stream")
    *events, done, rest = content.decode().split("\n\n")
    parts = [json.loads(event.removeprefix("data: "))["part"] for event in events]
    assert parts == list(language.stream(prompt="what colour", image=image))
    assert (done, rest) == ("event: done\ndata: {}", "")


def test_an_error_while_streaming_ends_the_stream(serve, language, monkeypatch):
    def breaking(self, **_):
        yield "it"
        raise example.ResourceError("memory: found none")

    monkeypatch.setattr(type(language), "stream", breaking)
    _, _, content = serve(language)("/v1/stream", {"inputs": {}})
    assert content.decode().endswith(
        'event: error\ndata: {"code": "resource", "message": "memory: found none"}\n\n'
    )


def test_health_and_metadata(serve, pictures):
    get = serve(pictures)
    assert get("/health")[::2] == (200, {"status": "ok"})
    status, _, content = get("/metadata")
    assert (status, content["outputs"], content["prompts"]) == (200, ["image"], False)
    assert [item["name"] for item in content["inputs"]] == ["labels"]
    assert [item["name"] for item in content["noise"]] == ["latent"]
    assert content["dimensions"] == {"batch": [1, 16]}


@pytest.mark.parametrize(
    ("path", "body", "status", "code", "message"),
    [
        ("/v1/run", {"inputs": {"labels": [99], "seed": 0}}, 400, "input", "labels: found values"),
        ("/v1/run", {"inputs": {"labels": [1]}}, 400, "input", "found neither `seed`"),
        ("/v1/run", {"inputs": {"labels": "3", "seed": 0}}, 400, "input", "labels: expected num"),
        ("/v1/run", {"inputs": {"labels": [[1], [2, 3]]}}, 400, "input", "no array that can be"),
        ("/v1/run", {"inputs": {"labels": [10**30], "seed": 0}}, 400, "input", "labels: expected"),
        ("/v1/run", {"inputs": {"labels": {"npy": "!"}}}, 400, "input", "no array that can be"),
        (
            "/v1/run",
            {"inputs": {"image": "/etc/hostname"}},
            400,
            "input",
            "image: expected numbers",
        ),
        ("/v1/run", {"inputs": {"prompt": "x"}}, 400, "input", "there is no tokenizer here"),
        ("/v1/run", {"inputs": {"labels": [1], "seed": "0"}}, 400, "input", "seed: found '0'"),
        ("/v1/run", {"labels": [1]}, 400, "json", 'found no object {"inputs"'),
        ("/v1/run", b"{", 400, "json", "no JSON that can be read"),
        ("/v1/run", b"[" * 200_000, 400, "json", "no JSON that can be read"),
        ("/v1/stream", {"inputs": {"labels": [1], "seed": 0}}, 400, "input", "no result growing"),
        ("/v2", {"inputs": {}}, 404, "path", "found no /v2"),
        ("/v2", None, 404, "path", "found no /v2"),
    ],
)
def test_bad_requests_are_named(serve, pictures, path, body, status, code, message):
    found, _, content = serve(pictures)(path, body)
    assert (found, content["error"]["code"]) == (status, code)
    assert message in content["error"]["message"]


def test_pickles_are_not_loaded(serve, pictures):
    file = io.BytesIO()
    np.save(file, np.array([print], dtype=object), allow_pickle=True)
    pickled = {"npy": base64.b64encode(file.getvalue()).decode()}
    status, _, content = serve(pictures)("/v1/run", {"inputs": {"labels": pickled}})
    assert status == 400 and "labels: found no array" in content["error"]["message"]


def test_requests_without_or_beyond_a_length_are_refused_unread(serve, pictures):
    get = serve(pictures, largest=100)
    status, _, content = get("/v1/run", b" " * 101)
    assert (status, content["error"]["code"]) == (413, "size")
    status, _, content = get("/v1/run", b"", headers={"Content-Length": "-1"})
    assert (status, content["error"]["code"]) == (411, "length")


def test_defects_are_not_shown_to_clients(serve, pictures, monkeypatch, capfd):
    def broken(self, **_):
        raise KeyError("secret")

    monkeypatch.setattr(type(pictures), "__call__", broken)
    status, _, content = serve(pictures)("/v1/run", {"inputs": {}})
    assert (status, content["error"]["code"]) == (500, "internal")
    assert "secret" not in json.dumps(content) and "secret" in capfd.readouterr().err


def test_requests_beyond_the_limit_are_told_to_come_back(serve, pictures, monkeypatch):
    running, go_on = threading.Event(), threading.Event()
    plain = type(pictures).__call__

    def waiting(self, **request):
        running.set()
        assert go_on.wait(30)
        return plain(self, **request)

    monkeypatch.setattr(type(pictures), "__call__", waiting)
    get = serve(pictures, concurrency=1)
    body = {"inputs": {"seed": 7, "labels": [1]}}
    answers = []
    first = threading.Thread(target=lambda: answers.append(get("/v1/run", body)[0]))
    first.start()
    assert running.wait(30)
    status, headers, content = get("/v1/run", body)
    assert (status, headers["Retry-After"], content["error"]["code"]) == (503, "1", "busy")
    go_on.set()
    first.join(30)
    assert answers == [200] and get("/v1/run", body)[0] == 200


def test_a_signal_ends_the_server_after_the_requests_that_run(tiny_bundle):
    command = [sys.executable, str(FILE), str(tiny_bundle), "--port", "0", "--threads", "1"]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=environment) as process:
        line = process.stderr.readline()
        port = int(line.rsplit(":", 1)[1])
        labels = [1] * 16
        body = json.dumps({"inputs": {"labels": labels, "seed": 0}}).encode()
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/v1/run", body, timeout=30) as answer:
            assert json.load(answer)["results"]["image"]["shape"] == [16, 1, 8, 8]
        # A connection that is open when the signal comes is answered before the process ends.
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
        connection.putrequest("POST", "/v1/run")
        connection.putheader("Content-Length", str(len(body)))
        connection.endheaders(body[:10])
        ask(port, "/health")
        process.send_signal(signal.SIGTERM)
        connection.send(body[10:])
        assert connection.getresponse().status == 200
        connection.close()
        assert process.wait(30) == 0
