"""JPEG, PNG and TIFF without tiles: decoded once and held in memory."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path

from PIL import Image, UnidentifiedImageError

from mmap_st.errors import ImageError, UnsuitableImageError
from mmap_st.extract.slides.formats.pixels import (
    Pyramid,
    any_size,
    flatten,
    has_alpha,
    levels_of,
    mpp_of_resolution,
    on_white,
    pasted,
    shrunk,
)

_PLAIN_MODES = ("1", "L", "LA", "P", "RGB", "RGBA", "CMYK", "YCbCr")
_TIFF_X_RESOLUTION, _TIFF_UNIT = 282, 296
_TIFF_UNITS = {2: "inch", 3: "centimeter"}


class PlainSlide(Pyramid):
    """An image that Pillow decodes as a whole, when it is first read."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._decoding = threading.Lock()
        self._decoded: Image.Image | None = None
        with self._image() as image:
            self._levels = levels_of([image.size])
            self._mpp = _tiff_mpp(image)
            if image.mode not in _PLAIN_MODES:
                raise UnsuitableImageError(
                    f"{path} has pixels of kind {image.mode}; convert it to 8-bit RGB."
                )
            # Pillow would take the upper 8 of 16 bits, and a camera that fills 12 of them gives black.
            if any(";16" in str(arguments) for *_, arguments in getattr(image, "tile", ())):
                raise UnsuitableImageError(f"{path} has 16 bits a channel; convert it to 8-bit RGB.")

    def read(self, box: tuple[int, int, int, int], level: int = 0) -> Image.Image:
        inside = on_white(box, self.size)
        return pasted(self._picture().crop(inside) if inside else None, inside, box)

    def thumbnail(self, longest_px: int) -> Image.Image:
        return shrunk(self._picture(), longest_px)

    def is_transparent(self) -> bool:
        """See `Slide`; decoded once more, since what is held has no alpha."""
        with self._image() as image, any_size() if self._is_large else nullcontext():
            if not has_alpha(image):
                return False
            return image.convert("RGBA").getchannel("A").getextrema() == (0, 0)

    def close(self) -> None:
        self._decoded = None

    def _picture(self) -> Image.Image:
        with self._decoding:
            if self._decoded is None:
                # Pillow looks at its limit once more when it decodes a TIFF in strips.
                with self._image() as image, any_size() if self._is_large else nullcontext():
                    self._decoded = flatten(image)
            return self._decoded

    @property
    def _is_large(self) -> bool:
        """Whether Pillow would refuse it: its limit is the whole process's, and lifted only for these."""
        limit = Image.MAX_IMAGE_PIXELS
        return limit is None or self.size[0] * self.size[1] > limit

    @contextmanager
    def _image(self) -> Iterator[Image.Image]:
        try:
            with any_size():
                image = Image.open(self._path)
            with image:
                yield image
        except UnidentifiedImageError as error:
            raise ImageError(
                f"{self._path} is not an image that OpenSlide, tifffile or Pillow can read."
            ) from error
        except ImageError:
            raise
        except Exception as error:  # of many kinds, by what is damaged
            raise ImageError(
                f"{self._path} is damaged and cannot be decoded ({error}); copy it again."
            ) from error


def _tiff_mpp(image: Image.Image) -> float | None:
    """From a TIFF's resolution; that of JPEG and PNG is a printer's and says nothing of tissue."""
    if image.format != "TIFF":
        return None
    tags = getattr(image, "tag_v2", {})
    try:
        return mpp_of_resolution(float(tags[_TIFF_X_RESOLUTION]), _TIFF_UNITS[int(tags[_TIFF_UNIT])])
    except (KeyError, TypeError, ValueError, ZeroDivisionError):
        return None
