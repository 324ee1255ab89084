"""OME-Zarr images (NGFF 0.4 and 0.5): a folder of arrays, finest first, such as SpatialData's."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from mmap_st.errors import ImageError
from mmap_st.extract.slides.formats.pixels import ArraySlide, plausible_mpp

_MICROMETRES = {"micrometer": 1.0, "nanometer": 1e-3, "millimeter": 1e3}


class OmeZarrSlide(ArraySlide):
    """An OME-Zarr image opened by zarr."""

    def __init__(self, path: Path) -> None:
        import zarr

        try:
            group = zarr.open_group(path, mode="r")
            attributes: dict[str, Any] = dict(group.attrs)
            scales = attributes.get("ome", attributes)["multiscales"][0]
            axes = "".join(
                str(axis["name"] if isinstance(axis, dict) else axis).upper() for axis in scales["axes"]
            )
            arrays: list[Any] = [group[dataset["path"]] for dataset in scales["datasets"]]
            mpp = _mpp(scales, axes)
        except Exception as error:  # of many kinds, by what is damaged
            raise ImageError(f"{path} cannot be opened as OME-Zarr ({error}).") from error
        super().__init__(path, arrays, axes, mpp)


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
