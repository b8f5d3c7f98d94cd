"""A Taskyard plugin: ``image.thumbnail`` makes a small picture of a large one, from a file or a URL.

It is written as anybody would write one: it imports `taskyard`, Pillow and httpx2, and nothing else. The handler is a plain
``def``, because decoding images keeps a processor busy: Taskyard gives each such run a process of its own.
"""

from __future__ import annotations

import asyncio
import io
import struct
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import httpx2
from PIL import Image, ImageOps
from pydantic import BaseModel, ConfigDict, Field, HttpUrl, model_validator

from taskyard import AddressRefused, Context, Handler, Retry, RetryLater, TaskFailed, handler, hookimpl, http_client, read_limited

# Only these are decoded: some of Pillow's other formats run outside programs, or are rarely used and little tested.
FORMATS = ("BMP", "GIF", "JPEG", "PNG", "TIFF", "WEBP")


class Config(BaseModel):
    """The section ``[plugins.thumbnails]`` of taskyard.toml."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    output_folder: Path | None = Field(None, description="Folder that thumbnails are written to. Unset: image.thumbnail does not exist.")
    source_folders: tuple[Path, ...] = Field((), description="Folders that images may be read from. Empty: only URLs.")
    max_pixels: int = Field(50_000_000, ge=1, description="Largest image, in pixels: a small file can unpack to a huge picture.")
    max_bytes: int = Field(20 * 1024 * 1024, ge=1, description="Largest file, in bytes.")
    allow_private_networks: bool = Field(False, description="Let URLs point into private networks too.")


class Thumbnail(BaseModel):
    """Which image to make small, and how small."""

    # The schema can't say that one of two is needed: without an example, whoever reads it would try neither.
    model_config = ConfigDict(extra="forbid", json_schema_extra={"examples": [{"url": "https://example.com/cat.jpg", "width": 200, "format": "webp"}]})

    path: Path | None = Field(None, description="The image's file, inside a folder that the operator allows.")
    url: HttpUrl | None = Field(None, description="The image's address. Give a path or a URL.")
    width: int = Field(256, ge=1, le=4096, description="Largest width, in pixels. The picture keeps its shape.")
    height: int = Field(256, ge=1, le=4096, description="Largest height, in pixels.")
    format: Literal["jpeg", "png", "webp"] = "jpeg"

    @model_validator(mode="after")
    def _one_source(self) -> Thumbnail:
        if (self.path is None) == (self.url is None):
            raise ValueError("give `path` or `url`, one of them")
        return self


class Made(BaseModel):
    """The thumbnail."""

    path: Path
    width: int = Field(description="Pixels.")
    height: int = Field(description="Pixels.")
    bytes: int = Field(description="Size of the file.")


@handler("image.thumbnail", retry=Retry(max_attempts=3), timeout=120)
def thumbnail(payload: Thumbnail, ctx: Context) -> Made:
    """Make a thumbnail of an image."""
    config = ctx.config
    ctx.progress(0.0, "reading")
    content = _read(payload.path, config) if payload.path else asyncio.run(_download(str(payload.url), config))
    ctx.raise_if_cancelled()
    ctx.progress(0.3, "decoding")
    small = _shrink(content, payload, config)
    ctx.raise_if_cancelled()
    ctx.progress(0.8, "writing")
    # Named by the task: a second attempt writes the same file again.
    target = config.output_folder / f"{ctx.task_id}.{payload.format}"
    size = _write(small, target, payload.format)
    ctx.progress(1.0, "done")
    return Made(path=target, width=small.width, height=small.height, bytes=size)


def _read(path: Path, config: Config) -> bytes:
    """The file's content, if it really is inside a folder that the operator allows: links and `..` are followed first."""
    real = path
    try:
        real = path.resolve(strict=True)
        allowed = any(real.is_relative_to(folder.resolve()) for folder in config.source_folders)
    except (OSError, RuntimeError, ValueError):  # not there, not for us, a loop of links, a NUL
        allowed = False
    # One sentence for both, so that nobody learns which files exist elsewhere.
    if not allowed or not real.is_file():
        raise TaskFailed(f"{path} is not a file in one of the folders of [plugins.thumbnails] source_folders", code="source-refused")
    with real.open("rb") as file:
        content = file.read(config.max_bytes + 1)
    return _checked_size(content, config)


async def _download(url: str, config: Config) -> bytes:
    """The image at a URL. Taskyard's client reaches no private network unless the operator says so."""
    try:
        async with http_client(allow_private_networks=config.allow_private_networks, max_redirects=5) as client, client.stream("GET", url) as response:
            if response.status_code == 429 or response.status_code >= 500:
                raise RetryLater(f"{url} answered {response.status_code}")
            if not response.is_success:
                raise TaskFailed(f"{url} answered {response.status_code}", code="source-refused")
            content, _ = await read_limited(response, config.max_bytes + 1)
    except (AddressRefused, httpx2.InvalidURL, httpx2.TooManyRedirects, httpx2.DecodingError) as error:
        raise TaskFailed(f"{url}: {error}", code="source-refused") from error
    except httpx2.TransportError as error:
        raise RetryLater(f"{url}: {error or type(error).__name__}") from error
    return _checked_size(content, config)


def _checked_size(content: bytes, config: Config) -> bytes:
    if len(content) > config.max_bytes:
        raise TaskFailed(f"the file is larger than {config.max_bytes} bytes", code="image-too-large")
    return content


def _shrink(content: bytes, payload: Thumbnail, config: Config) -> Image.Image:
    """Decode and scale. Opening reads the header only, so that a picture that is too large is refused before it is unpacked."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            with Image.open(io.BytesIO(content), formats=FORMATS) as image:
                if image.width * image.height > config.max_pixels:
                    raise TaskFailed(f"the image has {image.width} x {image.height} pixels, more than {config.max_pixels}", code="image-too-large")
                image.draft("RGB", (payload.width, payload.height))
                small = ImageOps.exif_transpose(image).convert("RGBA" if image.has_transparency_data else "RGB")
                small.thumbnail((payload.width, payload.height))
                return _on_white(small) if payload.format == "jpeg" and small.mode == "RGBA" else small
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise TaskFailed(str(error), code="image-too-large") from error
    except (OSError, SyntaxError, ValueError, EOFError, struct.error) as error:  # what Pillow's decoders raise for broken files
        raise TaskFailed(f"not an image that can be read ({', '.join(FORMATS)}): {error}", code="not-an-image") from error


def _on_white(image: Image.Image) -> Image.Image:
    """JPEG knows no transparency; what was clear becomes white, not black."""
    paper = Image.new("RGBA", image.size, "white")
    paper.alpha_composite(image)
    return paper.convert("RGB")


def _write(image: Image.Image, target: Path, format: str) -> int:
    """Write beside the target and rename, so that nobody ever reads half a picture; answers its size in bytes."""
    target.parent.mkdir(parents=True, exist_ok=True)
    half = target.with_suffix(".part")
    try:
        image.save(half, format=format)
        size = half.stat().st_size
        half.replace(target)
    finally:
        half.unlink(missing_ok=True)
    return size


@hookimpl
def taskyard_config() -> type[BaseModel]:
    return Config


@hookimpl
def taskyard_handlers(config: Config) -> Sequence[Handler[Any, Any]]:
    return [thumbnail] if config.output_folder else []
