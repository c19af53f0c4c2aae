"""The folder that a browser runs a bundle from: what is in it, and when it is not written."""

import pytest
import torch

from optimize.export.browser import RUNTIME_FILES, write_site
from optimize.export.bundle import export_bundle
from optimize.runtime.errors import DeviceError, IntegrityError, ResourceError


@pytest.fixture
def runtime(tmp_path):
    """A folder with the names of onnxruntime-web's files."""
    folder = tmp_path / "dist"
    folder.mkdir()
    for name in (*RUNTIME_FILES, "ort.webgpu.min.mjs"):
        (folder / name).write_bytes(name.encode())
    return folder


def names(folder):
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}


def test_a_site_has_the_page_the_runtime_and_what_is_read_of_the_bundle(bundle, runtime, tmp_path):
    site = write_site(bundle, tmp_path / "site", runtime=runtime)
    found = names(site)
    assert {"index.html", "page.css", "page.js", "session.js", "worker.js"} <= found
    assert {name for name in found if name.startswith("ort/")} == {
        f"ort/{name}" for name in RUNTIME_FILES
    }
    read = {"manifest.json", "graphs/step.onnx", "graphs/weights.safetensors", "tables.safetensors"}
    assert {name for name in found if name.startswith("bundle/")} == {f"bundle/{n}" for n in read}
    for name in read:
        assert (site / "bundle" / name).read_bytes() == (bundle / name).read_bytes()


def test_the_stored_example_is_copied(tiny_program, runtime, tmp_path):
    extra = {"example.safetensors": b"x", "report.json": b"{}"}
    bundle = export_bundle(tiny_program(), tmp_path / "b", extra_files=extra)
    found = names(write_site(bundle, tmp_path / "site", runtime=runtime))
    assert "bundle/example.safetensors" in found
    assert "bundle/report.json" not in found


def test_the_page_allows_nothing_from_elsewhere(bundle, runtime, tmp_path):
    page = (write_site(bundle, tmp_path / "site", runtime=runtime) / "index.html").read_text()
    policy = page.split('Content-Security-Policy" content="')[1].split('"')[0]
    assert policy.startswith("default-src 'none';")
    assert "unsafe-inline" not in policy
    assert "://" not in page


def test_a_folder_without_the_runtime_is_refused_before_anything_is_written(
    bundle, runtime, tmp_path
):
    (runtime / RUNTIME_FILES[2]).unlink()
    with pytest.raises(ResourceError, match=rf"found no {RUNTIME_FILES[2]}, expected the folder"):
        write_site(bundle, tmp_path / "site", runtime=runtime)
    assert not (tmp_path / "site").exists()


def test_a_site_that_exists_is_replaced_only_when_asked_to(bundle, runtime, tmp_path):
    site = write_site(bundle, tmp_path / "site", runtime=runtime)
    (site / "mine.txt").write_text("mine")
    with pytest.raises(ResourceError, match="exists; choose another path or pass overwrite=True"):
        write_site(bundle, site, runtime=runtime)
    assert (site / "mine.txt").exists()
    write_site(bundle, site, runtime=runtime, overwrite=True)
    assert not (site / "mine.txt").exists()


def test_a_damaged_bundle_is_refused(bundle, runtime, tmp_path):
    (bundle / "tables.safetensors").write_bytes(b"")
    with pytest.raises(IntegrityError, match="tables.safetensors"):
        write_site(bundle, tmp_path / "site", runtime=runtime)
    assert not (tmp_path / "site").exists()


def test_bfloat16_between_graphs_is_refused(tiny_program, runtime, tmp_path):
    bundle = export_bundle(tiny_program(torch.bfloat16), tmp_path / "b")
    with pytest.raises(DeviceError, match="latent: found dtype bfloat16, which browsers lack"):
        write_site(bundle, tmp_path / "site", runtime=runtime)
