"""OME-TIFF, with pyramids in sub-resolutions and scale in its XML, and TIFFs that OpenSlide refuses."""

from __future__ import annotations

import threading
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from mmap_st.errors import ImageError, RegionError
from mmap_st.extract.formats.pixels import (
    Level,
    as_rgb,
    levels_of,
    mpp_of_resolution,
    on_white,
    pasted,
    plausible_mpp,
    shrunk,
)

_MICROMETRES = {"µm": 1.0, "um": 1.0, "nm": 1e-3, "mm": 1e3, "cm": 1e4, "m": 1e6, "Å": 1e-4}
_UNITS = {2: "inch", 3: "centimeter"}


class TiffSlide:
    """A TIFF opened by tifffile; regions are read chunk by chunk."""

    def __init__(self, path: Path) -> None:
        import tifffile
        import zarr

        self._path = path
        self._reading = threading.Lock()
        try:
            self._file = tifffile.TiffFile(path)
            series = self._file.series[0]
            self._axes = str(series.axes)
            self._arrays: list[Any] = []
            sizes = []
            for index, level in enumerate(series.levels):
                self._arrays.append(zarr.open_array(series.aszarr(level=index), mode="r"))
                shape = dict(zip(str(level.axes), level.shape, strict=True))
                sizes.append((int(shape["X"]), int(shape["Y"])))
            self._mpp = ome_mpp(self._file.ome_metadata) or _resolution_mpp(series.keyframe)
        except Exception as error:  # of many kinds, by what is damaged
            raise ImageError(f"{path} cannot be opened as TIFF ({error}).") from error
        if self._arrays[0].dtype != np.uint8:
            raise ImageError(f"{path} has pixels of type {self._arrays[0].dtype}; convert it to 8-bit RGB.")
        self._levels = levels_of(sizes)
        # One pixel tells whether the compression can be decoded here, and whether the colours are RGB.
        with suppress(RegionError):  # others may be whole
            self.read((0, 0, 1, 1))

    @property
    def size(self) -> tuple[int, int]:
        return self._levels[0].size

    @property
    def mpp(self) -> float | None:
        return self._mpp

    @property
    def levels(self) -> tuple[Level, ...]:
        return self._levels

    def read(self, box: tuple[int, int, int, int], level: int = 0) -> Image.Image:
        inside = on_white(box, self._levels[level].size)
        if inside is None:
            return pasted(None, None, box)
        x0, y0, x1, y1 = inside
        where = tuple(
            slice(x0, x1) if axis == "X" else slice(y0, y1) if axis == "Y" else slice(None)
            for axis in self._axes
        )
        try:
            with self._reading:
                pixels = np.asarray(self._arrays[level][where])
        except ImportError as error:
            raise ImageError(
                f"{self._path}: its compression needs imagecodecs, which is not installed:"
                " pip install 'mmap-st[tiff]'."
            ) from error
        except Exception as error:  # of many kinds, by the codec
            if "imagecodecs" in str(error):
                raise ImageError(
                    f"{self._path}: its compression needs imagecodecs, which is not installed:"
                    " pip install 'mmap-st[tiff]'."
                ) from error
            raise RegionError(f"{self._path} cannot be decoded at {box} ({error}).") from error
        return pasted(as_rgb(pixels, self._axes, str(self._path)), inside, box)

    def thumbnail(self, longest_px: int) -> Image.Image:
        fine_enough = [i for i, level in enumerate(self._levels) if max(level.size) >= longest_px]
        level = fine_enough[-1] if fine_enough else 0
        width, height = self._levels[level].size
        return shrunk(self.read((0, 0, width, height), level), longest_px)

    def close(self) -> None:
        self._file.close()


def ome_mpp(xml: str | None) -> float | None:
    """Micrometres per pixel of the first image of an OME-XML; None where it does not say."""
    import tifffile

    try:
        images = tifffile.xml2dict(xml or "")["OME"]["Image"]
        pixels = (images[0] if isinstance(images, list) else images)["Pixels"]
        sizes = [
            float(pixels[f"PhysicalSize{axis}"]) * _MICROMETRES[pixels.get(f"PhysicalSize{axis}Unit", "µm")]
            for axis in "XY"
        ]
    except (SyntaxError, KeyError, TypeError, ValueError, IndexError, AttributeError):
        return None
    return plausible_mpp(*sizes)


def ome_mpp_of(path: Path) -> float | None:
    """Micrometres per pixel that the OME-XML of a file states; None where there is none."""
    import tifffile

    with tifffile.TiffFile(path) as file:
        return ome_mpp(file.ome_metadata)


def is_ome(path: Path) -> bool:
    """Whether a file is a TIFF with an OME-XML."""
    import tifffile

    try:
        with tifffile.TiffFile(path) as file:
            return bool(file.is_ome)
    except (tifffile.TiffFileError, OSError, ValueError, KeyError, TypeError, IndexError, AttributeError):
        return False


def _resolution_mpp(page: Any) -> float | None:
    """From the resolution tags."""
    x, unit = page.tags.get("XResolution"), page.tags.get("ResolutionUnit")
    if x is None or unit is None:
        return None
    numerator, denominator = x.value
    return mpp_of_resolution(numerator / max(denominator, 1), _UNITS.get(int(unit.value), ""))
