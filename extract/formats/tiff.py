"""OME-TIFF, with pyramids in sub-resolutions and scale in its XML, and TIFFs that OpenSlide refuses."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from mmap_st.errors import ImageError
from mmap_st.extract.formats.arrays import ArraySlide
from mmap_st.extract.formats.pixels import mpp_of_resolution, plausible_mpp

_MICROMETRES = {"µm": 1.0, "um": 1.0, "nm": 1e-3, "mm": 1e3, "cm": 1e4, "m": 1e6, "Å": 1e-4}
_UNITS = {2: "inch", 3: "centimeter"}


class TiffSlide(ArraySlide):
    """A TIFF opened by tifffile; regions are read chunk by chunk."""

    def __init__(self, path: Path) -> None:
        import tifffile
        import zarr

        try:
            self._file = tifffile.TiffFile(path)
            series = self._file.series[0]
            arrays = [
                zarr.open_array(series.aszarr(level=index), mode="r") for index in range(len(series.levels))
            ]
            mpp = ome_mpp(self._file.ome_metadata) or _resolution_mpp(series.keyframe)
            axes = str(series.axes)
        except Exception as error:  # of many kinds, by what is damaged
            raise ImageError(f"{path} cannot be opened as TIFF ({error}).") from error
        super().__init__(path, arrays, axes, mpp)

    def close(self) -> None:
        super().close()
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
