"""OME-Zarr of versions 0.1 to 0.5, alone or in the layout of bioformats2raw."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from mmap_st.errors import ImageError, UnsuitableImageError, first_line
from mmap_st.extract.slides.formats.notes import Sides, shape_notes
from mmap_st.extract.slides.formats.pixels import ArraySlide, plausible_mpp
from mmap_st.extract.slides.formats.tiff import ome_image, ome_sides
from mmap_st.extract.slides.formats.units import micrometres_of

#: Of versions that do not name their axes.
_AXES_OF_OLD = ["t", "c", "z", "y", "x"]
_BIOFORMATS = "bioformats2raw.layout"
_XML = "METADATA.ome.xml"


class OmeZarrSlide(ArraySlide):
    """An OME-Zarr image opened by zarr; of several images, the largest."""

    def __init__(self, path: Path) -> None:
        import zarr

        try:
            group = zarr.open_group(path, mode="r")
            number, image = _largest_image(group)
            scales = _attributes(image)["multiscales"][0]
            named = scales.get("axes", _AXES_OF_OLD)
            axes = "".join(str(axis["name"] if isinstance(axis, dict) else axis).upper() for axis in named)
            arrays: list[Any] = [image[dataset["path"]] for dataset in scales["datasets"]]
            sides = _sides(scales, axes)
            if sides[0] is None:
                sides = ome_sides(ome_image(_xml(path), number))
        except UnsuitableImageError as error:
            raise UnsuitableImageError(f"{path} {error}") from error
        except Exception as error:  # of many kinds, by what is damaged
            raise ImageError(f"{path} cannot be opened as OME-Zarr ({first_line(error)}).") from error
        super().__init__(path, arrays, axes, plausible_mpp(*sides) if sides[0] is not None else None)
        self._notes += shape_notes(*sides)


def is_ome_zarr(path: Path) -> bool:
    """Whether a folder looks like a Zarr group."""
    return path.is_dir() and any((path / name).is_file() for name in ("zarr.json", ".zattrs", ".zgroup"))


def _attributes(group: Any) -> dict[str, Any]:
    """What a group says of itself; from version 0.5 on below the key ``ome``."""
    attributes = dict(group.attrs)
    ome = attributes.get("ome")
    return ome if isinstance(ome, dict) else attributes


def _largest_image(group: Any) -> tuple[int, Any]:
    """The group of an image, with its number among those of the file.

    Raises
    ------
    UnsuitableImageError
        If there is none; the sentence lacks the file's name.
    """
    about = _attributes(group)
    if "multiscales" in about:
        return 0, group
    if "plate" in about or "well" in about:
        raise UnsuitableImageError("holds a plate of many images; name the folder of one.")
    series = _attributes(group["OME"]).get("series") if _BIOFORMATS in about and "OME" in group else None
    names = series or sorted((name for name in group.group_keys() if name.isdecimal()), key=int)
    images = [(number, group[name]) for number, name in enumerate(names)]
    images = [one for one in images if "multiscales" in _attributes(one[1])]
    if not images:
        raise UnsuitableImageError("is a Zarr group without an image (it has no multiscales).")
    return max(images, key=lambda one: _pixels(one[1]))


def _pixels(image: Any) -> int:
    """Width times height: in all versions the last two axes are y and x."""
    height, width = image[_attributes(image)["multiscales"][0]["datasets"][0]["path"]].shape[-2:]
    return int(height) * int(width)


def _xml(path: Path) -> str | None:
    """The OME-XML that bioformats2raw writes beside its images."""
    file = path / "OME" / _XML
    return file.read_text("utf-8") if file.is_file() else None


def _sides(scales: dict[str, Any], axes: str) -> Sides:
    """Micrometres that a pixel is wide and high, where the axes are in a unit of length.

    The scale of the finest level, and then what applies to all levels, one after the other.
    """
    named = scales.get("axes", ())
    units = {str(axis["name"]).upper(): axis.get("unit") for axis in named if isinstance(axis, dict)}
    steps = (
        *scales["datasets"][0].get("coordinateTransformations", ()),
        *scales.get("coordinateTransformations", ()),
    )
    factors = [step["scale"] for step in steps if step.get("type") == "scale"]
    unit_x, unit_y = (micrometres_of(units.get(axis)) for axis in "XY")
    if not factors or unit_x is None or unit_y is None:
        return None, None
    for factor in factors:
        unit_x *= float(factor[axes.index("X")])
        unit_y *= float(factor[axes.index("Y")])
    return unit_x, unit_y
