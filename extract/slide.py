"""Slides: open an image of any kind and read regions of it at level 0."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol

from PIL import Image, UnidentifiedImageError

from mmap_st.errors import ImageError, RegionError

WHITE = (255, 255, 255)
_PLAIN_MODES = ("1", "L", "LA", "P", "RGB", "RGBA", "CMYK", "YCbCr")
_OPENING = threading.Lock()


class Slide(Protocol):
    """An open slide image.

    Attributes
    ----------
    size
        Width and height in level-0 pixels.
    mpp
        Micrometres per pixel from the image's own metadata, or None.
    """

    @property
    def size(self) -> tuple[int, int]: ...

    @property
    def mpp(self) -> float | None: ...

    def read(self, box: tuple[int, int, int, int]) -> Image.Image:
        """Read x0, y0, x1, y1 in level-0 pixels as RGB; white outside the slide. Safe to call from threads.

        Raises
        ------
        RegionError
            If this region cannot be decoded; others may be.
        ImageError
            If the image as a whole cannot be decoded.
        """
        ...

    def thumbnail(self, longest_px: int) -> Image.Image:
        """The whole slide as RGB, its longer side at most `longest_px`."""
        ...

    def close(self) -> None:
        """Free the image."""
        ...


def open_slide(path: Path) -> Slide:
    """Open a slide: with OpenSlide where it knows the format, else with Pillow, decoded once into memory.

    Raises
    ------
    ImageError
        If the file is missing, damaged or no image.
    """
    if not path.exists():
        raise ImageError(f"the image {path} does not exist; correct the path in the cohort.")
    import openslide

    if openslide.OpenSlide.detect_format(path) is not None:
        return OpenSlideSlide(path)
    return PlainSlide(path)


class PlainSlide:
    """A JPEG, PNG or TIFF without tiles: decoded once, when first read, and held in memory."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._decoding = threading.Lock()
        self._decoded: Image.Image | None = None
        with self._image() as image:
            self._size = image.size
            if image.mode not in _PLAIN_MODES:
                raise ImageError(f"{path} has pixels of kind {image.mode}; convert it to 8-bit RGB.")

    @property
    def size(self) -> tuple[int, int]:
        return self._size

    @property
    def mpp(self) -> float | None:
        return None

    def read(self, box: tuple[int, int, int, int]) -> Image.Image:
        x0, y0, x1, y1 = box
        width, height = self._size
        picture = self._picture()
        inside = (max(x0, 0), max(y0, 0), min(x1, width), min(y1, height))
        if inside == box:
            return picture.crop(box)
        region = Image.new("RGB", (x1 - x0, y1 - y0), WHITE)
        if inside[0] < inside[2] and inside[1] < inside[3]:
            region.paste(picture.crop(inside), (inside[0] - x0, inside[1] - y0))
        return region

    def thumbnail(self, longest_px: int) -> Image.Image:
        return _shrunk(self._picture(), longest_px)

    def close(self) -> None:
        self._decoded = None

    def _picture(self) -> Image.Image:
        with self._decoding:
            if self._decoded is None:
                with self._image() as image:
                    self._decoded = _flatten(image)
            return self._decoded

    @contextmanager
    def _image(self) -> Iterator[Image.Image]:
        try:
            with _any_size():
                image = Image.open(self._path)
            with image:
                yield image
        except UnidentifiedImageError as error:
            raise ImageError(f"{self._path} is no image that OpenSlide or Pillow can read.") from error
        except (OSError, SyntaxError, ValueError) as error:
            raise ImageError(
                f"{self._path} is damaged and cannot be decoded ({error}); copy it again."
            ) from error


class OpenSlideSlide:
    """A whole-slide image that OpenSlide reads tile by tile."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._lock = threading.Lock()
        self._slide = self._open()

    def _open(self) -> Any:
        import openslide

        try:
            return openslide.OpenSlide(self._path)
        except (openslide.OpenSlideError, OSError) as error:
            raise ImageError(f"{self._path} cannot be opened by OpenSlide ({error}).") from error

    @property
    def size(self) -> tuple[int, int]:
        width, height = self._slide.dimensions
        return int(width), int(height)

    @property
    def mpp(self) -> float | None:
        """Mean of both axes; None where the file does not say, or says what cannot be."""
        values = [self._slide.properties.get(f"openslide.mpp-{axis}") for axis in "xy"]
        try:
            x, y = (float(value) for value in values if value is not None)
        except ValueError:
            return None
        return (x + y) / 2 if x > 0 and y > 0 else None

    def read(self, box: tuple[int, int, int, int]) -> Image.Image:
        import openslide

        x0, y0, x1, y1 = box
        slide = self._slide
        try:
            region = slide.read_region((x0, y0), 0, (x1 - x0, y1 - y0))
        except openslide.OpenSlideError as error:
            self._reopen(slide)
            raise RegionError(f"{self._path} cannot be decoded at {box} ({error}).") from error
        return _flatten(region)

    def thumbnail(self, longest_px: int) -> Image.Image:
        import openslide

        try:
            return _flatten(self._slide.get_thumbnail((longest_px, longest_px)))
        except openslide.OpenSlideError as error:
            raise ImageError(f"{self._path} cannot be decoded ({error}).") from error

    def close(self) -> None:
        self._slide.close()

    def _reopen(self, failed: object) -> None:
        """After one error OpenSlide refuses every later read of a handle: take a fresh one, once."""
        with self._lock:
            if self._slide is failed:
                self._slide = self._open()


def _flatten(image: Image.Image) -> Image.Image:
    """RGB, decoded, transparent parts white."""
    if image.mode in ("RGBA", "LA") or "transparency" in image.info:
        rgba = image.convert("RGBA")
        flat = Image.new("RGB", image.size, WHITE)
        flat.paste(rgba, mask=rgba.getchannel("A"))
        return flat
    # convert() of an RGB image copies it; load() alone decodes.
    image.load()
    return image.copy() if image.mode == "RGB" else image.convert("RGB")


def _shrunk(image: Image.Image, longest_px: int) -> Image.Image:
    scale = min(1.0, longest_px / max(image.size))
    size = (max(round(image.width * scale), 1), max(round(image.height * scale), 1))
    return image.resize(size, Image.Resampling.BOX, reducing_gap=2.0)


@contextmanager
def _any_size() -> Iterator[None]:
    """Let Pillow open pictures as large as slides are; its limit guards web servers from strangers."""
    with _OPENING:
        limit = Image.MAX_IMAGE_PIXELS
        Image.MAX_IMAGE_PIXELS = None
        try:
            yield
        finally:
            Image.MAX_IMAGE_PIXELS = limit
