"""The example of an HTTP server, asked by real requests."""

import importlib.util
import json
import threading
import urllib.error
import urllib.request
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest

from optimize.runtime import load
from tests.runtime.toy_language import colours

EXAMPLE = Path(__file__).parents[2] / "docs" / "examples" / "http_server.py"


@pytest.fixture(scope="module")
def example() -> ModuleType:
    spec = importlib.util.spec_from_file_location("http_server", EXAMPLE)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def serve(example):
    """bundle → address of a server that runs until the test is over."""
    servers = []

    def start(bundle: Path, at_once: int = 4) -> Any:
        server = example.BundleServer(("127.0.0.1", 0), load(bundle), at_once)
        threading.Thread(target=server.serve_forever, daemon=True).start()
        servers.append(server)
        return server, f"http://127.0.0.1:{server.server_port}"

    yield start
    for server in servers:
        server.shutdown()
        server.server_close()
        server.session.close()


def ask(url: str, body: Any = None, **headers: str) -> tuple[int, bytes]:
    data = body if body is None or isinstance(body, bytes) else json.dumps(body).encode()
    request = urllib.request.Request(url, data=data, headers=headers)
    try:
        with urllib.request.urlopen(request, timeout=30) as response:
            return response.status, response.read()
    except urllib.error.HTTPError as error:
        return error.code, error.read()


def test_answers_like_the_session(serve, tiny_bundle):
    server, url = serve(tiny_bundle)
    assert json.loads(ask(f"{url}/health")[1]) == {"status": "ok"}
    signature = json.loads(ask(f"{url}/metadata")[1])["signature"]
    fields = {
        item["name"]: np.zeros(
            [size if isinstance(size, int) else 2 for size in item["shape"]], item["dtype"]
        ).tolist()
        for item in signature["inputs"]
    }
    status, body = ask(f"{url}/run", {"seed": 3, **fields})
    found = json.loads(body)
    assert status == 200
    arrays = {
        item["name"]: np.asarray(fields[item["name"]], item["dtype"])
        for item in signature["inputs"]
    }
    for name, array in server.session(seed=3, **arrays).items():
        np.testing.assert_array_equal(np.asarray(found[name], array.dtype), array)


def test_bad_requests_get_our_message(serve, tiny_bundle):
    _, url = serve(tiny_bundle)
    assert ask(f"{url}/nothing")[0] == 404 and ask(f"{url}/nothing", {})[0] == 404
    for body, message in (
        (b"{", "found no JSON"),
        ([1], "expected an object"),
        ({"labels": [0], "seed": -1}, "found -1, expected a whole number"),
        ({"colour": 1}, "found unknown field 'colour'"),
    ):
        status, text = ask(f"{url}/run", body)
        assert status == 400 and message in json.loads(text)["error"]


def test_more_requests_than_allowed_are_told_to_come_again(serve, tiny_bundle):
    server, url = serve(tiny_bundle, at_once=1)
    with server.slots:
        assert ask(f"{url}/run", {"seed": 0})[0] == 503
    assert ask(f"{url}/run", {"seed": 0})[0] in (200, 400)


def test_text_is_streamed(serve, tmp_path):
    server, url = serve(colours().export(tmp_path / "colours"))
    status, body = ask(f"{url}/stream", {"prompt": "what colour", "seed": 0})
    events = [line.removeprefix("data: ") for line in body.decode().split("\n\n") if line]
    assert status == 200 and events[-1] == "[DONE]"
    text = "".join(json.loads(event) for event in events[:-1])
    assert text == server.session(prompt="what colour", seed=0)["text"]
