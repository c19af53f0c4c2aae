"""A bundle in headless Chromium against the Python session: error, and seconds per image.

    python benchmarks/browser.py BUNDLE --request '{"class_labels": [0, 1]}' --seed 0

Needs node's npm (it installs the pinned onnxruntime-web once, in build/browser), Chromium, and the
package playwright. The parts are used by tests/runtime/test_browser.py, too.
"""

import argparse
import json
import shutil
import statistics
import subprocess
import tempfile
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from optimize.export.browser import write_site
from optimize.runtime import load

ROOT = Path(__file__).resolve().parent.parent
MODULES = ROOT / "runtime" / "browser"
RUNTIME_VERSION = json.loads((MODULES / "package.json").read_text())["dependencies"][
    "onnxruntime-web"
]
"""The version of onnxruntime-web that is measured and tested."""
NPM_FOLDER = ROOT / "build" / "browser"
CHROMIUM_NAMES = ("chromium", "chromium-browser", "google-chrome")
ISOLATION = {
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Embedder-Policy": "require-corp",
}
"""Headers with which a page may share memory between threads."""


class Missing(RuntimeError):
    """Something outside this project that is not on this machine; the message names it."""


def runtime_folder() -> Path:
    """The folder `dist` of the pinned onnxruntime-web, installed where it is not yet.

    Raises:
        Missing: npm, or its registry.
    """
    package = NPM_FOLDER / "node_modules" / "onnxruntime-web"
    if not _has_version(package):
        npm = shutil.which("npm")
        if npm is None:
            raise Missing("npm is not on PATH")
        NPM_FOLDER.mkdir(parents=True, exist_ok=True)
        wanted = f"onnxruntime-web@{RUNTIME_VERSION}"
        command = [npm, "install", "--ignore-scripts", "--no-audit", "--prefix", str(NPM_FOLDER)]
        done = subprocess.run([*command, wanted], capture_output=True, text=True, timeout=300)
        if done.returncode or not _has_version(package):
            raise Missing(f"npm cannot install {wanted}: {done.stderr.strip()[-300:]}")
    return package / "dist"


def _has_version(package: Path) -> bool:
    try:
        found = json.loads((package / "package.json").read_text())["version"]
    except FileNotFoundError:
        return False
    return bool(found == RUNTIME_VERSION)


def chromium_path() -> str:
    """The browser.

    Raises:
        Missing: there is none.
    """
    for name in CHROMIUM_NAMES:
        if path := shutil.which(name):
            return path
    raise Missing(f"none of {', '.join(CHROMIUM_NAMES)} is on PATH")


class _Handler(SimpleHTTPRequestHandler):
    """Serves a folder without a log line for each file."""

    headers_sent: Mapping[str, str] = {}

    def end_headers(self) -> None:
        for name, text in self.headers_sent.items():
            self.send_header(name, text)
        super().end_headers()

    def log_message(self, format: str, *args: Any) -> None:
        return


@contextmanager
def served(folder: Path, *, isolated: bool = False) -> Iterator[str]:
    """Serves a folder on this machine; gives its address."""
    handler = type("Handler", (_Handler,), {"headers_sent": ISOLATION if isolated else {}})
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(handler, directory=str(folder)))
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://localhost:{server.server_port}/"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


@contextmanager
def browser() -> Iterator[Any]:
    """Headless Chromium, driven by playwright.

    Raises:
        Missing: either is not installed.
    """
    try:
        from playwright.sync_api import sync_playwright
    except ImportError as error:
        raise Missing("the Python package playwright is not installed") from error
    path = chromium_path()
    with sync_playwright() as driver:
        # Containers without user namespaces have no sandbox; only our own pages are opened.
        opened = driver.chromium.launch(executable_path=path, args=["--no-sandbox"])
        try:
            yield opened
        finally:
            opened.close()


RUN_IN_PAGE = """async ({ request, seed, repeats }) => {
    const { load } = await import("./session.js");
    const ort = await import("./ort/ort.wasm.min.mjs");
    ort.env.wasm.numThreads = 1;
    ort.env.wasm.wasmPaths = new URL("./ort/", location.href).href;
    const session = await load("bundle/", { ort });
    const seconds = [];
    let results;
    for (let index = 0; index < repeats; index++) {
        const start = performance.now();
        results = await session.run(request, { seed: BigInt(seed) });
        seconds.push((performance.now() - start) / 1000);
    }
    await session.close();
    const plain = Object.entries(results).map(([name, { dtype, shape, data }]) =>
        [name, { dtype, shape, data: Array.from(data, String) }]);
    return { results: Object.fromEntries(plain), seconds };
}"""


def run_in_page(
    page: Any, request: Mapping[str, Any], seed: int, repeats: int = 1
) -> tuple[dict[str, NDArray[Any]], list[float]]:
    """Runs a request in an open page of a site: results by name, and the seconds of each repeat.

    Args:
        page: of playwright, at the address of a site.
        request: fields as numbers and nested lists.
        seed: in [0, 2**64).
        repeats: how often; loading is not timed.
    """
    asked = {"request": dict(request), "seed": str(seed), "repeats": repeats}
    answer = page.evaluate(RUN_IN_PAGE, asked)
    return arrays_of(answer["results"]), answer["seconds"]


def arrays_of(results: Mapping[str, Any]) -> dict[str, NDArray[Any]]:
    """Results as JavaScript gives them, elements as text, as arrays."""
    return {
        name: np.array(item["data"], dtype="float64" if "float" in item["dtype"] else "int64")
        .astype(item["dtype"])
        .reshape(item["shape"])
        for name, item in results.items()
    }


def browser_figures(
    bundle: str | Path,
    request: Mapping[str, Any],
    seed: int,
    repeats: int = 3,
    within: Any = None,
) -> dict[str, float]:
    """Runs a request in headless Chromium, one thread, and in the Python session.

    Args:
        bundle: the folder of a bundle of images [B, ...].
        request: fields as numbers and nested lists.
        seed: in [0, 2**64).
        repeats: of the request in the browser after one to warm up; the median counts.
        within: an open browser; None opens one.
    Returns:
        error: greatest absolute difference of a result; seconds_per_image: in the browser.
    Raises:
        Missing: npm, onnxruntime-web, Chromium or playwright.
    """
    runtime = runtime_folder()
    with load(bundle, threads=1) as session:
        expected = session(seed=seed, **request)
    using = browser() if within is None else nullcontext(within)
    with tempfile.TemporaryDirectory() as folder, using as opened:
        site = write_site(bundle, Path(folder) / "site", runtime=runtime)
        with served(site) as address:
            page = opened.new_page()
            page.goto(address)
            # The page loads the bundle, too, in a worker that would take time from the measurement.
            page.wait_for_selector("#request:not([hidden])")
            results, seconds = run_in_page(page, request, seed, repeats + 1)
            page.close()
    return {
        "error": max(greatest_difference(results[name], expected[name]) for name in expected),
        "seconds_per_image": statistics.median(seconds[1:]) / len(next(iter(expected.values()))),
    }


def greatest_difference(found: NDArray[Any], expected: NDArray[Any]) -> float:
    """The greatest absolute difference; infinite where shapes differ."""
    if found.shape != expected.shape:
        return float("inf")
    return float(np.abs(found.astype(np.float64) - expected.astype(np.float64)).max(initial=0.0))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--request", type=json.loads, required=True, help="fields, as JSON")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    figures = browser_figures(arguments.bundle, arguments.request, arguments.seed)
    print(json.dumps(figures, indent=1))


if __name__ == "__main__":
    main()
