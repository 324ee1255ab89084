"""OME-Zarr images (NGFF 0.4 and 0.5): a folder of arrays, finest first, such as SpatialData's."""

from __future__ import annotations

import threading
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from mmap_st.errors import ImageError, RegionError
from mmap_st.extract.formats.pixels import Level, as_rgb, levels_of, on_white, pasted, plausible_mpp, shrunk

_MICROMETRES = {"micrometer": 1.0, "nanometer": 1e-3, "millimeter": 1e3}


class OmeZarrSlide:
    """An OME-Zarr image opened by zarr."""

    def __init__(self, path: Path) -> None:
        import zarr

        self._path = path
        self._reading = threading.Lock()
        try:
            group = zarr.open_group(path, mode="r")
            attributes: dict[str, Any] = dict(group.attrs)
            scales = attributes.get("ome", attributes)["multiscales"][0]
            self._axes = "".join(
                str(axis["name"] if isinstance(axis, dict) else axis).upper() for axis in scales["axes"]
            )
            self._arrays: list[Any] = [group[dataset["path"]] for dataset in scales["datasets"]]
            sizes = [
                (int(array.shape[self._axes.index("X")]), int(array.shape[self._axes.index("Y")]))
                for array in self._arrays
            ]
            self._mpp = _mpp(scales, self._axes)
        except Exception as error:  # of many kinds, by what is damaged
            raise ImageError(f"{path} cannot be opened as OME-Zarr ({error}).") from error
        if self._arrays[0].dtype != np.uint8:
            raise ImageError(f"{path} has pixels of type {self._arrays[0].dtype}; convert it to 8-bit RGB.")
        self._levels = levels_of(sizes)
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
        except Exception as error:  # of many kinds, by the codec
            raise RegionError(f"{self._path} cannot be decoded at {box} ({error}).") from error
        return pasted(as_rgb(pixels, self._axes, str(self._path)), inside, box)

    def thumbnail(self, longest_px: int) -> Image.Image:
        fine_enough = [i for i, level in enumerate(self._levels) if max(level.size) >= longest_px]
        level = fine_enough[-1] if fine_enough else 0
        width, height = self._levels[level].size
        return shrunk(self.read((0, 0, width, height), level), longest_px)

    def close(self) -> None:
        self._arrays = []


def is_ome_zarr(path: Path) -> bool:
    """Whether a folder looks like a Zarr group."""
    return path.is_dir() and ((path / "zarr.json").is_file() or (path / ".zattrs").is_file())


def _mpp(scales: dict[str, Any], axes: str) -> float | None:
    """From the first dataset's scale, where its axes are in a unit of length."""
    units = {str(axis["name"]).upper(): axis.get("unit") for axis in scales["axes"] if isinstance(axis, dict)}
    steps = scales["datasets"][0].get("coordinateTransformations", [])
    scale = next((step["scale"] for step in steps if step.get("type") == "scale"), None)
    factors = [_MICROMETRES.get(str(units.get(axis))) for axis in "XY"]
    if scale is None or factors[0] is None or factors[1] is None:
        return None
    return plausible_mpp(
        float(scale[axes.index("X")]) * factors[0], float(scale[axes.index("Y")]) * factors[1]
    )
