"""Where the spots of a predicted slide lie, as scanpy, squidpy and other tools of scverse draw them."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from mmap_st.data import CohortSlide, Spots, Thumbnail, ThumbnailReader, are_squares, array_indices
from mmap_st.data.readers import read_spots
from mmap_st.errors import of_one_slide
from mmap_st.extract.store import StoredSlide, encode_name
from mmap_st.head.neighbourhood import spot_pitch

_LOG = logging.getLogger(__name__)

# Widths of printed spots in micrometres by the distance between them; all others touch their neighbours.
_PRINTED = {100.0: 55.0, 200.0: 100.0}  # Visium, legacy ST
_NEAR = 0.1
_UNSCALED = 0.55  # of the pitch, where no scale says what printed them


@dataclass(frozen=True)
class SpatialMetadata:
    """Where the spots of one slide lie.

    Attributes
    ----------
    diameter_px
        Width of a spot in level-0 pixels.
    array
        (n, 2) int32 row and column on the array that printed them; None where they are not known.
    in_bounds
        (n,) share of each spot's windows inside the slide, the least of all magnifications.
    thumbnail
        Of the slide; None where there is no image.
    """

    diameter_px: float
    array: NDArray[np.int32] | None
    in_bounds: NDArray[np.float32]
    thumbnail: Thumbnail | None

    def library(self) -> dict[str, object] | None:
        """What ``uns["spatial"]`` holds of the slide, as Space Ranger's output is read by scanpy.

        None where there is no image: scanpy and squidpy take no library without one.
        """
        if self.thumbnail is None:
            return None
        return {
            "images": {"hires": self.thumbnail.pixels},
            "scalefactors": {
                "tissue_hires_scalef": self.thumbnail.scale,
                "spot_diameter_fullres": self.diameter_px,
            },
            "metadata": {},
        }


def library_name(slide: str) -> str:
    """Name of a slide in ``uns["spatial"]``: its own, or percent-encoded where HDF5 would split it."""
    return encode_name(slide) if "/" in slide or slide == "." else slide


def spatial_metadata_of(
    stored: StoredSlide,
    row: CohortSlide | None,
    encoders: Sequence[str],
    mpps: Sequence[float],
    thumbnail_of: ThumbnailReader,
) -> SpatialMetadata:
    """Find out where a slide's spots lie.

    Parameters
    ----------
    row
        Of the cohort, which names its image and its spot table; None: neither is known.
    encoders, mpps
        Of the embeddings that were predicted from.
    thumbnail_of
        Reads the slide's image.
    """
    ids, xy = stored.spot_ids(), stored.spot_xy()
    array = array_indices(ids)
    if array is None and row is not None and row.spots is not None:
        array = array_indices(ids, _spots_of(row))
    if array is not None and (stored.spots_made_by() or {}).get("layout") == "hexagonal":
        array = np.column_stack([array[:, 0], 2 * array[:, 1] + array[:, 0] % 2]).astype(np.int32)
    shares = [
        magnification.in_bounds()
        for encoder in encoders
        for mpp, magnification in stored.complete(encoder).items()
        if mpp in mpps
    ]
    thumbnail = None if row is None or row.image is None else thumbnail_of(row.image)
    fills = stored.spots_made_by() is not None or are_squares(ids)
    diameter = spot_diameter(xy, stored.source_mpp, fills=fills)
    return SpatialMetadata(diameter, array, np.fmin.reduce(shares).astype(np.float32), thumbnail)


def spot_diameter(xy: NDArray[np.float64], mpp: float | None, *, fills: bool = False) -> float:
    """Width of a spot in level-0 pixels.

    Visium's are 55 um wide, those of legacy ST 100 um; the squares of grids and bins fill the pitch.

    Parameters
    ----------
    xy
        (n, 2) centres in level-0 pixels.
    mpp
        Micrometres per level-0 pixel; None: a little more than half of the pitch is taken.
    fills
        Whether the spots fill the pitch: a grid that was laid on the tissue, or bins.
    """
    pitch = spot_pitch(xy)
    if mpp is None:
        return pitch * _UNSCALED
    if len(xy) < 2:
        return _PRINTED[100.0] / mpp
    printed = None if fills else _PRINTED.get(nominal_pitch(pitch * mpp))
    return pitch if printed is None else printed / mpp


def nominal_pitch(pitch_um: float) -> float:
    """The distance that spots were printed at, of the distance found between them, in micrometres.

    Legacy ST's 200 um are found a little short, since its spots lie beside their places now and then.
    """
    near = (nominal for nominal in _PRINTED if abs(pitch_um / nominal - 1) <= _NEAR)
    return next(near, pitch_um)


def _spots_of(row: CohortSlide) -> Spots | None:
    try:
        return read_spots(row)
    except Exception as error:  # noqa: BLE001 - whatever it is, predictions are worth having without
        _LOG.info("no places on the array: %s", of_one_slide(error))
        return None
