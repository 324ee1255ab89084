"""JPEG, PNG and TIFF without tiles: decoded once and held in memory."""

from __future__ import annotations

import math
import threading
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path

from PIL import Image, UnidentifiedImageError

from mmap_st.errors import ImageError, UnsuitableImageError, first_line
from mmap_st.extract.slides.formats.memory import refuse_too_large
from mmap_st.extract.slides.formats.notes import ORIENTATION, orientation_notes, plane_notes, shape_notes
from mmap_st.extract.slides.formats.pixels import (
    Pyramid,
    any_size,
    flatten,
    has_alpha,
    levels_of,
    on_white,
    pasted,
    plausible_mpp,
    shrunk,
    um_of_resolution,
)

_PLAIN_MODES = ("1", "L", "LA", "P", "RGB", "RGBA", "CMYK", "YCbCr")
#: Compressions of TIFF that Pillow opens, and cannot decode as it is built.
_NOT_OF_PILLOW = ("webp",)
_TIFF_WIDTH, _TIFF_HEIGHT = 256, 257
_TIFF_X, _TIFF_Y, _TIFF_UNIT = 282, 283, 296
_TIFF_UNITS = {2: "inch", 3: "centimeter"}


class PlainSlide(Pyramid):
    """An image that Pillow decodes as a whole, when it is first read."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._decoding = threading.Lock()
        self._decoded: Image.Image | None = None
        self._frame = 0
        with self._image() as image:
            if image.info.get("compression") in _NOT_OF_PILLOW:
                raise ImageError(f"{path} is compressed in a way that Pillow does not know.")
            self._frame, alike = _largest_frame(image)
            image.seek(self._frame)
            size = _stored_size(image)
            # Decoded, converted, and on white ground.
            refuse_too_large(path, size, 2 * len(image.getbands()) + 3)
            self._levels = levels_of([size])
            sides = _tiff_sides(image)
            self._mpp = plausible_mpp(*sides)
            self._notes = (
                # PNG's own getexif decodes all of it.
                *plane_notes({"I": alike}, None),
                *orientation_notes(Image.Image.getexif(image).get(ORIENTATION)),
                *shape_notes(*sides),
                *shape_notes(*_printed_sides(image), " units"),
            )
            if image.mode not in _PLAIN_MODES:
                raise UnsuitableImageError(
                    f"{path} has pixels of kind {image.mode}; convert it to 8-bit RGB."
                )
            # Pillow would take the upper 8 of 16 bits, and a camera that fills 12 of them gives black.
            if any(";16" in str(arguments) for *_, arguments in getattr(image, "tile", ())):
                raise UnsuitableImageError(f"{path} has 16 bits a channel; convert it to 8-bit RGB.")

    @property
    def notes(self) -> tuple[str, ...]:
        return self._notes

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
                    # Of TIFF alone Pillow would turn the pixels as this tag asks.
                    Image.Image.getexif(image)[ORIENTATION] = 1
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
                image.seek(self._frame)
                yield image
        except UnidentifiedImageError as error:
            raise ImageError(
                f"{self._path} is not an image that OpenSlide, tifffile or Pillow can read."
            ) from error
        except ImageError:
            raise
        except Exception as error:  # of many kinds, by what is damaged
            raise ImageError(
                f"{self._path} is damaged and cannot be decoded ({first_line(error)}); copy it again."
            ) from error


def _largest_frame(image: Image.Image) -> tuple[int, int]:
    """The page of a TIFF that is the slide, and how many there are of its size.

    Scanners may put a label or an overview first.
    """
    if image.format != "TIFF":
        return 0, 1
    sizes = []
    for number in range(getattr(image, "n_frames", 1)):
        image.seek(number)
        sizes.append(_stored_size(image))
    largest = max(sizes, key=math.prod)
    return sizes.index(largest), sizes.count(largest)


def _stored_size(image: Image.Image) -> tuple[int, int]:
    """Width and height as stored; Pillow says those of a TIFF as its orientation tag asks."""
    tags = getattr(image, "tag_v2", {})
    return (int(tags[_TIFF_WIDTH]), int(tags[_TIFF_HEIGHT])) if _TIFF_WIDTH in tags else image.size


def _tiff_sides(image: Image.Image) -> tuple[float | None, float | None]:
    """Micrometres that a pixel of a TIFF is wide and high."""
    tags = getattr(image, "tag_v2", {})
    try:
        unit, across = _TIFF_UNITS[int(tags[_TIFF_UNIT])], tags[_TIFF_X]
        x, y = (um_of_resolution(float(per_unit), unit) for per_unit in (across, tags.get(_TIFF_Y, across)))
    except (KeyError, TypeError, ValueError, ZeroDivisionError):
        return None, None
    return x, y


def _printed_sides(image: Image.Image) -> tuple[float | None, float | None]:
    """How wide and high a pixel of a JPEG or PNG is, to each other: their scale is a printer's."""
    if image.format == "TIFF":
        return None, None
    per_unit = image.info.get("jfif_density") or image.info.get("dpi") or image.info.get("aspect")
    try:
        across, down = (float(value) for value in per_unit or ())
        return 1 / across, 1 / down
    except (TypeError, ValueError, ZeroDivisionError):
        return None, None
