"""Which row of a file belongs to which spot: by id, by coordinate or, where it has neither, by order."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from scipy.spatial import cKDTree

from mmap_st.data import Spots, duplicates, some
from mmap_st.errors import FeaturesError, agreeing, counted
from mmap_st.extract.imports.files import Features

BY_ID, BY_COORDINATE, BY_ORDER = "by id", "by nearest coordinate", "by order"

#: Rows that are this near to each other are equally near to a spot, in pixels: rounding makes no choice.
_TIE_PX = 1e-6
# How far coordinates may be from the spots of the same ids, in distances between spots: within a slide, and
# all of them together (a patch's corner is half its side from its centre).
_FEWEST_PLACED = 6
_LARGEST_STRAY = 0.25
_LARGEST_OFFSET = 2.0


@dataclass(frozen=True)
class Match:
    """Rows of a file given to spots, each row to one spot at most.

    Attributes
    ----------
    how
        `BY_ID`, `BY_COORDINATE` or `BY_ORDER`.
    rows
        (n,) int64, row of the file for each spot; -1 for none.
    spare
        Rows of the file that no spot has.
    contested
        Spots without a row, though one is near enough: it is nearer to another spot, or two are equally near.
    largest_px
        Largest distance between a spot and its row; None if matched otherwise.
    """

    how: str
    rows: NDArray[np.int64]
    spare: int
    contested: int = 0
    largest_px: float | None = None

    @property
    def matched(self) -> int:
        """Number of spots that have a row."""
        return int((self.rows >= 0).sum())

    @property
    def enough(self) -> bool:
        """Whether at least half of the spots have a row."""
        return 2 * self.matched >= len(self.rows)


def check_same_slide(
    xy: NDArray[np.float64], coords: NDArray[np.float64], rows: NDArray[np.int64], path: Path
) -> None:
    """Refuse rows that were matched by id and lie elsewhere: barcodes of Visium are the same on every slide.

    Parameters
    ----------
    xy, coords
        (n, 2) of the spots and (m, 2) of the file's rows, level-0 pixels; corners or centres, x or y first.
    rows
        (n,) row of each spot, -1 for none.

    Raises
    ------
    FeaturesError
        If the coordinates are not those of the spots, the same distance from a corner to its centre apart.
    """
    placed = rows >= 0
    if placed.sum() < _FEWEST_PLACED or not np.ptp(coords, axis=0).any():
        return
    pitch = float(np.median(cKDTree(xy).query(xy, k=2)[0][:, 1]))
    for order in (slice(None), slice(None, None, -1)):
        away = coords[rows[placed]][:, order] - xy[placed]
        offset = np.median(away, axis=0)
        strays = float(np.median(np.hypot(*(away - offset).T)))
        if strays <= _LARGEST_STRAY * pitch and np.abs(offset).max() <= _LARGEST_OFFSET * pitch:
            return
    raise FeaturesError(
        f"{path} has the ids of the spots and coordinates of other places, as of another slide or another"
        " resolution; give the file of this slide, or leave coordinates out if the ids are right."
    )


def match_by_order(spots: Spots, n_rows: int, path: Path) -> Match:
    """Row i is spot i: for files that name neither their rows nor a place.

    Raises
    ------
    FeaturesError
        If there are not as many rows as spots.
    """
    n = len(spots)
    if n_rows != n:
        raise FeaturesError(
            f"{path} has {counted(n_rows, 'row')} without ids or coordinates and the slide has"
            f" {counted(n, 'spot')}, so that it is not known which belongs to"
            f" which{_why_another_number(spots, n_rows)}; write one row a spot, in the spots' order."
        )
    return Match(BY_ORDER, np.arange(n, dtype=np.int64), spare=0)


def _why_another_number(spots: Spots, n_rows: int) -> str:
    """The likely reason: rows were written for the whole count table, or the whole spot table."""
    n, unplaced, uncounted = len(spots), spots.counts_without_position, spots.positions_without_counts
    if unplaced and n_rows == n + unplaced:
        return f" (the count table has {counted(n_rows, 'row')} too, {unplaced} of them without a position)"
    if uncounted and n_rows == n + uncounted:
        return f" (the spot table has {counted(n_rows, 'row')} too, {uncounted} of them without counts)"
    return ""


def match_by_id(spot_ids: Sequence[str], row_ids: Sequence[str], path: Path) -> Match:
    """Give every spot the row of its name.

    Raises
    ------
    FeaturesError
        If the file repeats an id, or fewer than half of the spots are in it.
    """
    repeated = duplicates(row_ids)
    if repeated:
        raise FeaturesError(f"{path} repeats ids: {some(repeated)}; each spot needs one row of its own name.")
    row_of = {name: row for row, name in enumerate(row_ids)}
    rows = np.array([row_of.get(name, -1) for name in spot_ids], dtype=np.int64)
    match = Match(BY_ID, rows, spare=len(row_ids) - int((rows >= 0).sum()))
    if not match.enough:
        raise FeaturesError(
            f"only {match.matched} of {counted(len(spot_ids), 'spot')} (such as {some(spot_ids)})"
            f" {agreeing(match.matched, 'is', 'are')} among the {counted(len(row_ids), 'id')} of {path} (such"
            f" as {some(row_ids)}); check that it is of this slide and that its ids are written as the spots'"
            " are."
        )
    return match


def match_by_coordinate(xy: NDArray[np.float64], centres: NDArray[np.float64], tolerance_px: float) -> Match:
    """Give every spot its nearest row, if that is near enough and its nearest spot is this one.

    A row that lies between two spots goes to the nearer; the other has none, rather than its second nearest,
    which would be another spot's.

    Parameters
    ----------
    xy
        (n, 2) centres of the spots, in pixels.
    centres
        (m, 2) centres of the file's patches.
    tolerance_px
        Largest distance between the two.

    Returns
    -------
    The match, whatever the number of spots that have a row.
    """
    to_row, row = _nearest(xy, centres)
    _, spot = _nearest(centres, xy)
    near = to_row[:, 0] <= tolerance_px
    mutual = near & (row >= 0) & (spot[row] == np.arange(len(xy)))
    rows = np.where(mutual, row, -1)
    return Match(
        BY_COORDINATE,
        rows.astype(np.int64),
        spare=len(centres) - int(mutual.sum()),
        contested=int((near & ~mutual).sum()),
        largest_px=float(to_row[mutual, 0].max()) if mutual.any() else None,
    )


def _nearest(
    points: NDArray[np.float64], others: NDArray[np.float64]
) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """Distances (n, 2) to the two nearest of `others`, and (n,) which is nearest; -1 where two are."""
    distance, index = cKDTree(others).query(points, k=2)
    tied = distance[:, 1] - distance[:, 0] <= _TIE_PX
    return distance, np.where(tied, -1, index[:, 0])


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
        f"only {match.matched} of {counted(len(xy), 'spot')} {agreeing(match.matched, 'has', 'have')} one of"
        f" the {counted(len(features), 'row')} of {features.path} within {_length(tolerance, source_mpp)} to"
        f" themselves: the nearest are {_length(float(distance.min()), source_mpp)} to"
        f" {_length(float(distance.max()), source_mpp)} away, in the median"
        f" {_length(float(np.median(distance)), source_mpp)}; "
        + (
            f"{counted(match.contested, 'spot shares', 'spots share')} theirs with another, or have several:"
            " keep one row a spot."
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
