"""OME-TIFF, with pyramids in sub-resolutions and scale in its XML, and TIFFs that OpenSlide refuses."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mmap_st.errors import ImageError
from mmap_st.extract.slides.formats.jpeg_tiles import JpegTiles, jpeg_pages
from mmap_st.extract.slides.formats.pixels import ArraySlide, mpp_of_resolution, plausible_mpp

_MICROMETRES = {"µm": 1.0, "um": 1.0, "nm": 1e-3, "mm": 1e3, "cm": 1e4, "m": 1e6, "Å": 1e-4}
_COLOURS = frozenset({"red", "green", "blue", "alpha", "r", "g", "b", "a", "rgb"})
_UNITS = {2: "inch", 3: "centimeter"}


class TiffSlide(ArraySlide):
    """A TIFF opened by tifffile; regions are read chunk by chunk."""

    def __init__(self, path: Path) -> None:
        import tifffile
        import zarr

        try:
            self._file = tifffile.TiffFile(path)
            # Scanners may put the label or an overview first.
            number, series = max(enumerate(self._file.series), key=lambda one: _pixels(one[1]))
            about = _ome_image(self._file.ome_metadata, number)
            _refuse_stains(about)
            arrays = [
                zarr.open_array(series.aszarr(level=index), mode="r") for index in range(len(series.levels))
            ]
            mpp = _ome_mpp(about) or _resolution_mpp(series.keyframe)
            axes = str(series.axes)
        except ImageError as error:
            raise ImageError(f"{path} {error}") from error
        except Exception as error:  # of many kinds, by what is damaged
            raise ImageError(f"{path} cannot be opened as TIFF ({error}).") from error
        super().__init__(path, arrays, axes, mpp)
        own = [level.keyframe for level in series.levels if len(level) == 1]
        pages = jpeg_pages([page for page in own if page.parent is self._file], self.levels)
        self._tiles = None if pages is None else JpegTiles(path, pages)

    def read_tile(self, level: int, column: int, row: int) -> NDArray[np.uint8]:
        tile = self._tiles.read(level, column, row) if self._tiles is not None else None
        return super().read_tile(level, column, row) if tile is None else tile

    def close(self) -> None:
        super().close()
        self._file.close()
        if self._tiles is not None:
            self._tiles.close()


def _pixels(series: Any) -> int:
    """Width times height of a series; 0 for one that is not a picture."""
    sizes = dict(zip(series.axes, series.shape, strict=True))
    return int(sizes.get("X", 0)) * int(sizes.get("Y", 0))


def _ome_image(xml: str | None, number: int) -> dict[str, Any]:
    """What an OME-XML says of the pixels of one of its images; nothing where there is none."""
    import tifffile

    try:
        images = tifffile.xml2dict(xml or "")["OME"]["Image"]
        pixels = (images[number] if isinstance(images, list) else images)["Pixels"]
    except (SyntaxError, KeyError, TypeError, ValueError, IndexError):
        return {}
    return pixels if isinstance(pixels, dict) else {}


def _refuse_stains(pixels: dict[str, Any]) -> None:
    """Refuse images whose channels have names of their own: those of fluorescence are not H&E.

    Raises
    ------
    ImageError
        If so; the sentence lacks the file's name.
    """
    channels = pixels.get("Channel", [])
    channels = channels if isinstance(channels, list) else [channels]
    names = [str(c["Name"]) for c in channels if isinstance(c, dict) and c.get("Name")]
    if len(names) > 1 and not {name.strip().lower() for name in names} <= _COLOURS:
        raise ImageError(f"has the channels {', '.join(names)}; an H&E image has red, green and blue.")


def _ome_mpp(pixels: dict[str, Any]) -> float | None:
    try:
        sizes = [
            float(pixels[f"PhysicalSize{axis}"]) * _MICROMETRES[pixels.get(f"PhysicalSize{axis}Unit", "µm")]
            for axis in "XY"
        ]
    except (KeyError, TypeError, ValueError):
        return None
    return plausible_mpp(*sizes)


def ome_mpp_of(path: Path) -> float | None:
    """Micrometres per pixel that the OME-XML of a file states of its first image; None if it does not."""
    import tifffile

    with tifffile.TiffFile(path) as file:
        return _ome_mpp(_ome_image(file.ome_metadata, 0))


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
