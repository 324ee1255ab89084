"""What an image's file says beside its pixels that users should know: how it is to be turned, and its planes.

One rule for all formats: pixels, and the positions of spots, are as they are stored. Nothing is turned.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeAlias

#: Micrometres that a pixel is wide and high, where known.
Sides: TypeAlias = tuple[float | None, float | None]

ORIENTATION = 274
_TURNS = {
    2: "mirrored left to right",
    3: "turned by 180 degrees",
    4: "mirrored top to bottom",
    5: "with x and y swapped",
    6: "turned by 90 degrees clockwise",
    7: "with x and y swapped and turned by 180 degrees",
    8: "turned by 90 degrees counter-clockwise",
}
#: What the axes of a stack are, by the letters of OME and tifffile.
_PLANES = {"Z": "focal planes", "T": "time points", "C": "groups of channels"}
#: Pixels whose sides differ by no more count as square.
_SQUARE = 1.05


def orientation_notes(tag: object) -> tuple[str, ...]:
    """What to say of an orientation tag, of TIFF or EXIF; nothing where it asks for no turn."""
    turn = _TURNS.get(tag) if isinstance(tag, int) else None
    if turn is None:
        return ()
    return (
        f"its orientation tag ({tag}) asks to show it {turn}, which is not done: its pixels are read as they"
        " are stored, and its spots must have been placed on them as stored",
    )


def are_square(x: float | None, y: float | None) -> bool:
    """Whether pixels are as high as they are wide, as far as is known; sides are in any unit."""
    sides = [side for side in (x, y) if side is not None and math.isfinite(side) and side > 0]
    return len(sides) < 2 or max(sides) / min(sides) <= _SQUARE


def shape_notes(x: float | None, y: float | None, unit: str = " um") -> tuple[str, ...]:
    """What to say of pixels that are not square."""
    if x is None or y is None or are_square(x, y):
        return ()
    return (
        f"its metadata says that pixels are {x:.4g} x {y:.4g}{unit}, which are not square: no scale is taken"
        " from it; resample the image, or give the cohort's column mpp if the metadata is wrong",
    )


def plane_notes(sizes: Mapping[str, int], colour: str | None) -> tuple[str, ...]:
    """What to say of an image of several planes.

    Parameters
    ----------
    sizes
        Of each axis that is neither x nor y, by its letter.
    colour
        The axis whose values are colours.
    """
    stacked = [(_PLANES.get(axis, "pages"), n) for axis, n in sizes.items() if axis != colour and n > 1]
    if not stacked:
        return ()
    kinds = " and ".join(f"{n} {kind}" for kind, n in stacked)
    return (f"it has {kinds}; the first {'of each ' if len(stacked) > 1 else ''}is read",)


def orientation_of(path: Path) -> int | None:
    """The orientation tag of a TIFF's first page; None where there is none, or it is no TIFF."""
    import tifffile

    try:
        with tifffile.TiffFile(path) as file:
            return orientation_of_page(file.pages.first)
    except (tifffile.TiffFileError, OSError, ValueError, KeyError, TypeError, IndexError, AttributeError):
        return None


def pages_alike(path: Path) -> int:
    """How many pages of a TIFF are as large as its first; 1 where it is no TIFF."""
    import tifffile

    try:
        with tifffile.TiffFile(path) as file:
            shapes = [page.shape for page in file.pages]
            return max(shapes.count(shapes[0]), 1)
    except (tifffile.TiffFileError, OSError, ValueError, KeyError, TypeError, IndexError, AttributeError):
        return 1


def orientation_of_page(page: Any) -> int | None:
    """The orientation tag of a page of tifffile."""
    tag = page.tags.get(ORIENTATION)
    return None if tag is None else int(tag.value)
