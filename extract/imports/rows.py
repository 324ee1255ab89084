"""The rows of a file, in the order of a slide's spots."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from mmap_st.errors import FeaturesError
from mmap_st.extract.imports.coordinates import CoordinateOptions, match_coordinates
from mmap_st.extract.imports.files import Features
from mmap_st.extract.imports.match import Match, check_same_slide, match_by_id, match_by_order
from mmap_st.extract.imports.slides import ImportSlide
from mmap_st.extract.windows import share_in_bounds


def match_rows(slide: ImportSlide, features: Features, options: CoordinateOptions) -> Match:
    """Find the row of each spot: by id if the file has ids, else by coordinate, else by order.

    Raises
    ------
    FeaturesError
        If fewer than half of the spots have one, or they have one of another slide.
    """
    if features.ids is not None:
        match = match_by_id(slide.spots.ids, features.ids, features.path)
        if features.coords is not None:
            check_same_slide(slide.spots.xy, features.coords, match.rows, features.path)
        return match
    if features.coords is not None:
        return match_coordinates(slide.spots.xy, features, options, slide.info.source_mpp)
    return match_by_order(slide.spots, len(features), features.path)


def rows_of_spots(features: Features, match: Match) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
    """(n, d) embeddings in the spots' order, and (n,) which of them can be used."""
    # Beyond float32 a number becomes infinite, and its row is then marked as what it is.
    with np.errstate(over="ignore"):
        embedding = features.embedding[match.rows].astype(np.float32)
    # No encoder gives a row of zeros: it is what other tools leave where a window could not be read.
    usable = np.isfinite(embedding).all(axis=1) & embedding.any(axis=1)
    valid = (match.rows >= 0) & usable
    if 2 * int(valid.sum()) < len(valid):
        raise FeaturesError(
            f"only {int(valid.sum())} of {len(valid)} spots would have an embedding: {match.matched} have a"
            f" row of {features.path}, and {match.matched - int(valid.sum())} of these are all zero or not"
            " finite; make the file again."
        )
    return embedding, valid


def in_bounds_of(slide: ImportSlide, features: Features, options: CoordinateOptions) -> NDArray[np.float32]:
    """(n,) share of each patch inside the slide; NaN where patch or image size is unknown."""
    patch = options.patch_px or features.patch_px
    if patch is None or slide.size_px is None:
        return np.full(len(slide.spots), np.nan, np.float32)
    boxes = np.concatenate([slide.spots.xy - patch / 2, slide.spots.xy + patch / 2], axis=1)
    return share_in_bounds(boxes, slide.size_px)
