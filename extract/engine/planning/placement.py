"""Where a slide's windows are centred: its own spots, or a grid on its tissue."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from mmap_st.data import Cohort, CohortSlide, Spots
from mmap_st.data.readers import read_spots
from mmap_st.errors import ImageError, RequestError, SlideRecipeError, SpotsError, counted
from mmap_st.extract.slides import (
    FEWEST_SPOTS,
    GridRequest,
    Slide,
    SourceMpp,
    Tissue,
    better_orientation,
    find_tissue,
    grid_spots,
    open_slide,
    resolve_source_mpp,
    share_on_tissue,
    stored_grid,
)
from mmap_st.extract.store import FeatureStore, undamaged_slide

#: Of the spots: what another orientation must bring onto tissue to be plainly the right one.
_LEAST_GAIN = 0.2


@dataclass(frozen=True)
class Placement:
    """Spots of one slide, and what their places depend on.

    Attributes
    ----------
    size_px
        Width and height of the image.
    source
        Micrometres per level-0 pixel.
    spots
        Where windows are centred.
    made_by
        How a grid was placed; None where the spots are those of its spot table.
    tissue
        Where it has tissue; None where that was not needed.
    """

    size_px: tuple[int, int]
    source: SourceMpp
    spots: Spots
    made_by: dict[str, object] | None = None
    tissue: Tissue | None = None


def has_spots(row: CohortSlide, grid: GridRequest | None) -> bool:
    """Whether a row of a cohort has an image and, of its own or by a grid, spots."""
    return row.image is not None and (row.spots is not None or grid is not None)


def check_some_spots(cohort: Cohort, grid: GridRequest | None) -> None:
    """Refuse a cohort of which no slide can be used, for want of cells and not of files.

    Raises
    ------
    RequestError
        Saying what its table lacks.
    """
    images = [row for row in cohort.slides if row.image is not None]
    if not images:
        raise RequestError(
            f"{cohort.source} names no image for any slide; fill in the column `image` (or give `mmap cohort"
            " --image`)."
        )
    if not any(has_spots(row, grid) or lacks_image(row) for row in images):
        raise RequestError(
            f"{cohort.source} names no spots for any slide with an image; --spots grid:100 lays some on the"
            " tissue, or fill in the column `spots`."
        )


def lacks_image(row: CohortSlide) -> bool:
    """Whether the image that a row names is not there: its slide fails, whatever else it lacks."""
    return isinstance(row.image, Path) and not os.path.exists(row.image)


def place_spots(row: CohortSlide, store: FeatureStore | None, grid: GridRequest | None) -> Placement:
    """Open a slide's image and place its spots, see `place_spots_on`."""
    if row.image is None:
        raise ImageError("the cohort names no image for it.")
    assert isinstance(row.image, Path)  # of a URL, its copy is placed on
    slide = open_slide(row.image)
    try:
        return place_spots_on(slide, row, store, grid)
    finally:
        slide.close()


def place_spots_on(
    slide: Slide, row: CohortSlide, store: FeatureStore | None, grid: GridRequest | None
) -> Placement:
    """Read a slide's spots; lay a grid where it has none.

    A grid that the store has already is taken from there: it stays the same for all magnifications and
    encoders, also when a later version of this program finds tissue otherwise.

    Raises
    ------
    SlideError
        If the slide cannot be used; the reason is for the user.
    """
    placed = place_spots_by(slide.size, slide.mpp, row, store, grid)
    if placed is not None:
        return placed
    assert grid is not None
    source = resolve_source_mpp(row, slide.mpp, None)
    tissue = find_tissue(slide, source.mpp)
    spots = grid_spots(tissue, slide.size, source.mpp, grid.pitch_um, grid.layout)
    return Placement(slide.size, source, spots, grid.made_by(), tissue)


def place_spots_by(
    size_px: tuple[int, int],
    image_mpp: float | None,
    row: CohortSlide,
    store: FeatureStore | None,
    grid: GridRequest | None,
) -> Placement | None:
    """Place a slide's spots without its pixels: its own, or the grid of the store; None for a new grid.

    Parameters
    ----------
    size_px, image_mpp
        Width and height of the image, and what its metadata say of its scale.

    Raises
    ------
    SlideError
        If the slide cannot be used; the reason is for the user.
    """
    if row.spots is not None or grid is None:
        spots = read_spots(row)
        check_inside(spots, size_px)
        return Placement(size_px, resolve_source_mpp(row, image_mpp, spots), spots)
    source = resolve_source_mpp(row, image_mpp, None)
    return _stored_placement(row.slide, size_px, source, store, grid)


def check_inside(spots: Spots, size_px: tuple[int, int]) -> None:
    """Refuse spots of which more than half lie outside the image: it cannot be theirs.

    Raises
    ------
    SpotsError
        Saying how far they reach.
    """
    outside = int(count_outside(spots, size_px))
    if outside > len(spots) / 2:
        x, y = spots.xy.max(axis=0)
        raise SpotsError(
            f"{outside} of {counted(len(spots), 'spot lies', 'spots lie')} outside the image ({size_px[0]} x"
            f" {size_px[1]} px; spots reach {x:.0f}, {y:.0f}): it is not the image that they were placed on,"
            " or not at full resolution; name that image, or give the cohort's column scale."
        )


def check_orientation(spots: Spots, tissue: Tissue, size_px: tuple[int, int]) -> None:
    """Refuse spots that would fit the tissue far better turned, mirrored or scaled.

    Raises
    ------
    SpotsError
        Saying how they would fit.
    """
    own = share_on_tissue(tissue, spots.xy)
    if len(spots) < FEWEST_SPOTS or own > 1 - _LEAST_GAIN:
        return
    _, better = better_orientation(tissue, spots.xy, size_px)
    if better is not None and better.on_tissue - own >= _LEAST_GAIN:
        raise SpotsError(
            f"{own:.0%} of its spots lie on tissue as they are, and {better.on_tissue:.0%} if {better.name}:"
            " correct the positions, or name the image that they were placed on; --unchecked embeds them as"
            " they are."
        )


def count_outside(spots: Spots, size_px: tuple[int, int]) -> int:
    """How many spots have their centre outside an image of `size_px` (width, height)."""
    return int(((spots.xy < 0) | (spots.xy >= np.asarray(size_px))).any(axis=1).sum())


def _stored_placement(
    name: str, size_px: tuple[int, int], source: SourceMpp, store: FeatureStore | None, grid: GridRequest
) -> Placement | None:
    """The grid that the store has of a slide; None where it has none."""
    stored = None if store is None else undamaged_slide(store, name)
    if stored is not None and stored.has_spots():
        recorded = stored.spots_made_by()
        made_by = None if recorded is None else dict(recorded)
        there = stored_grid(made_by)
        if there is None:
            raise SlideRecipeError(
                f"the store has it with {counted(len(stored.spot_ids()), 'spot')} of a spot table, and"
                f" --spots {grid} asks for a grid; use another store, or name the spot table in the cohort."
            )
        if there != grid:
            raise SlideRecipeError(
                f"the store has it with the spots of {there}, and those of {grid} are wanted now;"
                f" use another store, or --spots {there}."
            )
        if (stored.size_px, stored.source_mpp) != (size_px, source.mpp):
            raise SlideRecipeError(
                f"the store has its grid for an image of {_shape(stored.size_px, stored.source_mpp)}, and now"
                f" it has {_shape(size_px, source.mpp)};"
                " use another store, or restore the image and its um/px."
            )
        return Placement(size_px, source, Spots(stored.spot_ids(), stored.spot_xy()), made_by)
    return None


def _shape(size_px: tuple[int, int] | None, mpp: float | None) -> str:
    width, height = size_px or (0, 0)
    return f"{width} x {height} px at {mpp or 0:.6g} um/px"
