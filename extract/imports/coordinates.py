"""From a file's coordinates to spots: corners and centres, the tolerance, and why they do not meet."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.spatial import cKDTree

from mmap_st.errors import FeaturesError
from mmap_st.extract.imports.files import Features
from mmap_st.extract.imports.match import Match, match_by_coordinate

#: Corners are whole pixels, so a patch lies up to a pixel or two from its spot; no spots are so close.
DEFAULT_TOLERANCE_UM = 5.0
CORNER, CENTRE = "corner", "centre"

#: Share of the rows that must lie off by the same, to say that all do.
_CONSTANT_SHARE = 0.8


@dataclass(frozen=True)
class CoordinateOptions:
    """How a file's coordinates are understood.

    Attributes
    ----------
    tolerance_um, tolerance_px
        Largest distance between a spot and its patch, in one unit or the other; neither: 5 um.
    coords
        What the coordinates are of: the patch's ``corner`` (top left) or its ``centre``.
    patch_px
        Side of a patch in level-0 pixels, where the file does not say it.
    """

    tolerance_um: float | None = None
    tolerance_px: float | None = None
    coords: str = CORNER
    patch_px: float | None = None


def match_coordinates(
    xy: NDArray[np.float64], features: Features, options: CoordinateOptions, source_mpp: float | None
) -> Match:
    """Give the spots of a slide the rows of a file that lie there.

    Parameters
    ----------
    xy
        (n, 2) centres of the spots in level-0 pixels.
    source_mpp
        Micrometres per level-0 pixel; None if unknown.

    Raises
    ------
    FeaturesError
        If centres or the tolerance are not known, or fewer than half of the spots find a row.
    """
    assert features.coords is not None
    patch = options.patch_px or features.patch_px
    if options.coords == CORNER and patch is None:
        raise FeaturesError(
            f"{features.path} gives corners of patches and not how large they are; give --patch-px with"
            " their side in level-0 pixels, or --coords centre if its coordinates are centres."
        )
    tolerance = _tolerance_px(xy, options, source_mpp)
    half = patch / 2.0 if options.coords == CORNER and patch is not None else 0.0
    match = match_by_coordinate(xy, features.coords + half, tolerance)
    if match.enough:
        return match
    distance, _ = cKDTree(features.coords + half).query(xy)
    raise FeaturesError(
        f"only {match.matched} of {len(xy)} spots have one of the {len(features)} rows of {features.path}"
        f" within {_length(tolerance, source_mpp)}"
        f" to themselves: the nearest are {_length(float(distance.min()), source_mpp)} to"
        f" {_length(float(distance.max()), source_mpp)} away, in the median"
        f" {_length(float(np.median(distance)), source_mpp)}; "
        + (
            f"{match.contested} spots share theirs with another, or have several: keep one row a spot."
            if 2 * (match.matched + match.contested) >= len(xy)
            else _advice(xy, features.coords, half, patch, tolerance)
        )
    )


def _tolerance_px(xy: NDArray[np.float64], options: CoordinateOptions, source_mpp: float | None) -> float:
    """The tolerance in pixels; never beyond the middle between two spots, to tell them apart."""
    if options.tolerance_px is not None:
        tolerance = options.tolerance_px
    elif source_mpp is None:
        raise FeaturesError(
            "its micrometres per pixel are not known, so that a tolerance in micrometres says nothing; give"
            " --tolerance-px, or --source-mpp."
        )
    else:
        um = DEFAULT_TOLERANCE_UM if options.tolerance_um is None else options.tolerance_um
        tolerance = um / source_mpp
    middle = float(np.median(cKDTree(xy).query(xy, k=2)[0][:, 1])) / 2.0  # infinite for a single spot
    if tolerance <= middle or middle == 0:
        return tolerance
    if options.tolerance_px is None and options.tolerance_um is None:
        return middle
    raise FeaturesError(
        f"a tolerance of {_length(tolerance, source_mpp)} reaches beyond the middle between two spots; give"
        f" at most {_length(middle, source_mpp)}."
    )


def _advice(
    xy: NDArray[np.float64], coords: NDArray[np.float64], half: float, patch: float | None, tolerance: float
) -> str:
    """What to do: the way in which the coordinates would meet the spots, if there is one."""
    others = {}
    if half:
        others["its coordinates are centres, not corners: give --coords centre."] = coords
    elif patch is not None:
        others["its coordinates are corners, not centres: leave out --coords centre."] = coords + patch / 2
    others["x and y are exchanged in it: write x first."] = coords[:, ::-1] + half
    for words, centres in others.items():
        if match_by_coordinate(xy, centres, tolerance).enough:
            return words
    _, nearest = cKDTree(coords + half).query(xy)
    offset = coords[nearest] + half - xy
    shift = np.median(offset, axis=0)
    alike = np.linalg.norm(offset - shift, axis=1) <= tolerance
    if alike.mean() >= _CONSTANT_SHARE:
        side = 2.0 * (half - float(shift.mean()))
        text = f"all lie off by the same, about {shift[0]:.0f} px in x and {shift[1]:.0f} px in y"
        if abs(shift[0] - shift[1]) <= 2 * tolerance and side > 0:
            instead = "" if half else " and leave out --coords centre"
            return f"{text}, as corners of {side:.0f} level-0 px do: give --patch-px {side:.0f}{instead}."
        return f"{text}: check what its coordinates are of."
    return (
        "check that it is of this slide, made at the spots and not on a grid, and that its coordinates are"
        f" level-0 pixels: they reach from {_span(coords + half)}, the spots from {_span(xy)}."
    )


def _span(xy: NDArray[np.float64]) -> str:
    low, high = xy.min(axis=0), xy.max(axis=0)
    return f"({low[0]:.0f}, {low[1]:.0f}) to ({high[0]:.0f}, {high[1]:.0f})"


def _length(pixels: float, source_mpp: float | None) -> str:
    return f"{pixels:.3g} px" if source_mpp is None else f"{pixels * source_mpp:.3g} um"
