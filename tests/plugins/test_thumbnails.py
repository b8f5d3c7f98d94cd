"""The example plugin, installed as a stranger's would be and run on real images."""

from __future__ import annotations

import io
import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import importlib_metadata
import pytest
from PIL import Image

from taskyard.plugins import load_plugins
from taskyard.testing import HandlerRun, assert_plugin_conforms, run_handler

from .conftest import Answer, Site

Start = Callable[..., Site]


@pytest.fixture
def plugin(example_site: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[ModuleType]:
    monkeypatch.syspath_prepend(example_site)
    (entry,) = importlib_metadata.entry_points(group="taskyard.plugins", name="thumbnails")
    module = entry.load()
    assert Path(module.__file__).is_relative_to(example_site)
    yield module
    del sys.modules[module.__name__]


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    folder = tmp_path / "pictures"
    folder.mkdir()
    return folder


@pytest.fixture
def make(plugin: ModuleType, pictures: Path, tmp_path: Path) -> Callable[..., HandlerRun]:
    """Run image.thumbnail with a configuration that a test may change."""

    def run(payload: dict[str, Any], **config: Any) -> HandlerRun:
        chosen = plugin.Config(**{"source_folders": [pictures], "output_folder": tmp_path / "out", **config})
        return run_handler(plugin.thumbnail, payload, config=chosen)

    return run


def _picture(path: Path, size: tuple[int, int] = (800, 400), mode: str = "RGB", **options: Any) -> str:
    Image.linear_gradient("L").resize(size).convert(mode).save(path, **options)
    return str(path)


@pytest.mark.parametrize(
    ("name", "mode"), [("a.jpg", "RGB"), ("a.jpg", "CMYK"), ("a.png", "RGBA"), ("a.png", "P"), ("a.gif", "L"), ("a.webp", "RGB"), ("a.tiff", "1")]
)
@pytest.mark.parametrize("format", ["jpeg", "png", "webp"])
def test_a_picture_becomes_a_small_one_of_the_same_shape(make: Callable[..., HandlerRun], pictures: Path, name: str, mode: str, format: str) -> None:
    run = make({"path": _picture(pictures / name, mode=mode), "width": 100, "height": 100, "format": format})
    assert run.status == "succeeded", run.error
    assert (run.result["width"], run.result["height"]) == (100, 50)
    written = Path(run.result["path"])
    assert written.stat().st_size == run.result["bytes"]
    with Image.open(written) as image:
        assert (image.size, image.format) == ((100, 50), format.upper())
    assert list(written.parent.iterdir()) == [written]


def test_progress_goes_from_nothing_to_all(make: Callable[..., HandlerRun], pictures: Path) -> None:
    fractions = [fraction for fraction, _ in make({"path": _picture(pictures / "a.png")}).progress]
    assert fractions[0] == 0
    assert fractions[-1] == 1
    assert fractions == sorted(fractions, key=lambda fraction: fraction or 0)


def test_a_photo_taken_sideways_is_turned_upright(make: Callable[..., HandlerRun], pictures: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    run = make({"path": _picture(pictures / "a.jpg", (800, 400), exif=exif), "width": 100, "height": 100})
    assert (run.result["width"], run.result["height"]) == (50, 100)


def test_clear_parts_become_white_in_a_jpeg(make: Callable[..., HandlerRun], pictures: Path) -> None:
    Image.new("RGBA", (10, 10), (0, 0, 0, 0)).save(pictures / "clear.png")
    with Image.open(make({"path": str(pictures / "clear.png")}).result["path"]) as image:
        assert image.getpixel((5, 5)) == (255, 255, 255)


def test_a_url_is_fetched(make: Callable[..., HandlerRun], pictures: Path, serve_site: Start) -> None:
    _picture(pictures / "a.png")
    site = serve_site({"/a.png": Answer(body=(pictures / "a.png").read_bytes()), "/busy": Answer(503)})
    assert make({"url": site.url("/a.png"), "width": 80}, allow_private_networks=True).result["width"] == 80
    assert make({"url": site.url("/none")}, allow_private_networks=True).code == "source-refused"
    assert make({"url": site.url("/busy")}, allow_private_networks=True).status == "scheduled"
    assert make({"url": site.url("/a.png")}).code == "source-refused"


def test_files_outside_the_allowed_folders_are_refused_however_they_are_named(make: Callable[..., HandlerRun], pictures: Path, tmp_path: Path) -> None:
    outside = _picture(tmp_path / "secret.png")
    (tmp_path / "pictures-not").mkdir()
    (pictures / "link.png").symlink_to(outside)
    os.mkfifo(pictures / "pipe")
    sibling = _picture(tmp_path / "pictures-not" / "a.png")
    for path in (outside, f"{pictures}/../secret.png", f"{pictures}/link.png", sibling, "/etc/passwd", "/no/such/file", str(pictures), f"{pictures}/pipe"):
        run = make({"path": path})
        assert (run.status, run.code) == ("failed", "source-refused"), path


def test_a_small_file_that_unpacks_to_a_huge_picture_is_refused(make: Callable[..., HandlerRun], pictures: Path) -> None:
    _picture(pictures / "bomb.png", (1, 1))
    packed = io.BytesIO()
    Image.new("1", (20_000, 20_000)).save(packed, format="PNG")
    (pictures / "bomb.png").write_bytes(packed.getvalue())
    assert make({"path": str(pictures / "bomb.png")}).code == "image-too-large"
    assert make({"path": _picture(pictures / "a.png")}, max_pixels=800 * 400 - 1).code == "image-too-large"
    assert make({"path": _picture(pictures / "a.png")}, max_bytes=10).code == "image-too-large"


@pytest.mark.parametrize("content", [b"", b"no image", b"\x89PNG\r\n\x1a\n", b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n"])
def test_a_file_that_is_no_image_fails_for_good(make: Callable[..., HandlerRun], pictures: Path, content: bytes) -> None:
    (pictures / "a.png").write_bytes(content)
    run = make({"path": str(pictures / "a.png")})
    assert (run.status, run.code) == ("failed", "not-an-image")


def test_a_picture_that_breaks_off_fails_and_leaves_nothing(make: Callable[..., HandlerRun], pictures: Path, tmp_path: Path) -> None:
    whole = Path(_picture(pictures / "a.jpg")).read_bytes()
    (pictures / "a.jpg").write_bytes(whole[: len(whole) // 2])
    assert make({"path": str(pictures / "a.jpg")}).code == "not-an-image"
    assert not (tmp_path / "out").exists()


def test_it_is_found_by_its_entry_point_and_conforms(plugin: ModuleType, tmp_path: Path) -> None:
    assert_plugin_conforms("thumbnails", {"output_folder": str(tmp_path)})
    assert "image.thumbnail" not in load_plugins(only=["thumbnails"]).handlers
    (found,) = [p for p in load_plugins(only=["thumbnails"], options={"thumbnails": {"output_folder": str(tmp_path)}}).plugins if p.name == "thumbnails"]
    assert (found.state, found.distribution, [h.type for h in found.handlers]) == ("enabled", "taskyard-thumbnails", ["image.thumbnail"])
