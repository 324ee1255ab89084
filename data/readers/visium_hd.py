"""Space Ranger's bins of Visium HD: ``outs/binned_outputs/square_008um`` or another size.

Each folder of bins has the layout of Visium's ``outs/``, with ``spatial/tissue_positions.parquet``. Cells
segmented by Space Ranger 4 (``segmented_outputs``) are not read. Bins can be joined to larger squares.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from mmap_st.data.bins import Squares, place_of, squares_of
from mmap_st.data.cohort import CohortSlide, LocalSlide
from mmap_st.data.counts import Counts
from mmap_st.data.readers import visium
from mmap_st.data.readers.annotated import positive
from mmap_st.data.readers.finding import refuse_lognorm
from mmap_st.data.readers.visium import POSITIONS, SCALE_FACTORS, read_scale_factors, sample_name, slide_of
from mmap_st.data.spots import Spots
from mmap_st.errors import CohortError, SpotsError, first_line
from mmap_st.files import absolute

BINNED = "binned_outputs"
_DEFAULT = "square_008um"
#: By how much of a bin a square may differ from a whole number of them.
_WHOLE = 1e-6


def find_slides(path: Path, bin_um: float | None = None) -> tuple[CohortSlide, ...]:
    """The folder of one bin size; or ``outs/``, or a folder of samples, of which 8 um bins are preferred.

    Parameters
    ----------
    path
        The folder.
    bin_um
        Side of the squares to join bins to, in micrometres: then the finest bins are preferred. None: bins
        stay as they are.

    Raises
    ------
    CohortError
        If there is none, or the user has to choose the bin size.
    """
    if _is_bins(path):
        outs = absolute(path).parent
        name = sample_name(outs.parent if outs.name == BINNED else path)
        return (_binned(slide_of(path, name, "visium-hd"), bin_um),)
    samples = [p for p in (path, path / "outs") if (p / BINNED).is_dir()]
    if path.name == BINNED and path.is_dir():
        samples = [path.parent]
    if not samples and path.is_dir():
        inner = sorted(p for p in path.iterdir() if p.is_dir())
        samples = [p for folder in inner for p in (folder, folder / "outs") if (p / BINNED).is_dir()]
    if not samples:
        raise CohortError(
            f"{path} holds no bins of Visium HD: neither spatial/{POSITIONS[0]} nor a folder {BINNED}."
        )
    return tuple(
        _binned(slide_of(_one_size(outs / BINNED, bin_um), sample_name(outs), "visium-hd"), bin_um)
        for outs in samples
    )


def read_spots(slide: LocalSlide) -> Spots:
    """Bins as `visium.read_spots` reads them; or the squares that they are joined to.

    Raises
    ------
    SlideError
        If they cannot be read, or not be joined.
    """
    spots = visium.read_spots(slide)
    if slide.bin_um is None:
        return spots
    squares = _joined(slide, spots)
    assert spots.array is not None
    # Of a square that is partly beside the tissue, the middle is not that of its bins.
    beside = squares.centres_um / _own_um(slide) - 0.5 - squares.means(spots.array)
    lost = spots.positions_without_counts
    return replace(
        spots,
        ids=squares.names,
        xy=squares.means(spots.xy) + beside @ _pixels_per_bin(slide, spots),
        array=squares.place.astype(np.float64),
        pitch_um=slide.bin_um,
        technology=f"{spots.technology} joined to {slide.bin_um:g} um",
        positions_without_counts=0,
        counts_without_position=0,
        notes=(*spots.notes, *_notes(slide, lost, spots.counts_without_position)),
    )


def read_counts(slide: LocalSlide) -> Counts:
    """Counts of the genes in each bin; or their sums over squares.

    Raises
    ------
    SlideError
        If they cannot be read, or not be summed.
    """
    if slide.bin_um is None:
        return visium.read_counts(slide)
    refuse_lognorm(slide)
    spots = visium.read_spots(slide)
    return visium.read_counts(slide).joined(spots.ids, _joined(slide, spots))


def _joined(slide: LocalSlide, spots: Spots) -> Squares:
    """The squares that bins lie in by their middle, in micrometres from the array's corner."""
    assert slide.bin_um is not None
    assert spots.array is not None
    own = _own_um(slide)
    if own > slide.bin_um:
        raise SpotsError(
            f"{slide.spots} has bins of {own:g} um, and they cannot be joined to squares of"
            f" {slide.bin_um:g} um; ask for larger ones, or name finer bins."
        )
    try:
        return squares_of(place_of((spots.array + 0.5) * own, slide.bin_um), slide.bin_um)
    except ValueError as error:
        raise SpotsError(f"{slide.spots}: {first_line(error)}.") from error


def _own_um(slide: LocalSlide) -> float:
    assert slide.spots is not None
    own = positive(read_scale_factors(slide.spots.parent).get("bin_size_um"))
    if own is None:
        raise SpotsError(
            f"{slide.spots.parent / SCALE_FACTORS} does not say how large its bins are (bin_size_um), so they"
            " cannot be joined; copy it again."
        )
    return own


def _pixels_per_bin(slide: LocalSlide, spots: Spots) -> NDArray[np.float64]:
    """(2, 2) pixels that a step along the array's x, and along its y, leads to."""
    assert spots.array is not None
    design = np.column_stack([spots.array, np.ones(len(spots))])
    steps, _, rank, _ = np.linalg.lstsq(design, spots.xy, rcond=None)
    if rank < design.shape[1]:
        raise SpotsError(
            f"{slide.spots}: all bins on tissue lie in one line, so they cannot be joined to squares; leave"
            " bin_um (--bin-um) out."
        )
    return np.asarray(steps[:2], np.float64)


def _notes(slide: LocalSlide, uncounted: int, unplaced: int) -> list[str]:
    notes = []
    own = _own_um(slide)
    assert slide.bin_um is not None
    if abs(slide.bin_um / own - round(slide.bin_um / own)) > _WHOLE:
        notes.append(
            f"squares of {slide.bin_um:g} um are no whole number of bins of {own:g} um, and hold different"
            " numbers of them; finer bins fill them better"
        )
    for number, what in ((uncounted, "bins without counts"), (unplaced, "counts without a bin")):
        if number:
            notes.append(f"{what}, left out: {number}")
    return notes


def _binned(slide: CohortSlide, bin_um: float | None) -> CohortSlide:
    return slide if bin_um is None else replace(slide, bin_um=bin_um)


def _one_size(binned: Path, bin_um: float | None) -> Path:
    sizes = sorted(p for p in binned.iterdir() if _is_bins(p))
    if bin_um is not None and sizes:  # square_002um before square_008um
        return sizes[0]
    # By default Space Ranger writes 2, 8 and 16 um, and analyses 8 um.
    default = [p for p in sizes if p.name == _DEFAULT]
    if len(sizes) > 1 and default:
        return default[0]
    if len(sizes) != 1:
        names = ", ".join(p.name for p in sizes) or "none"
        raise CohortError(
            f"{binned} holds {len(sizes)} bin sizes ({names}); name the folder of one, such as"
            f" visium-hd:{binned / 'square_008um'}."
        )
    return sizes[0]


def _is_bins(path: Path) -> bool:
    return any((path / "spatial" / name).is_file() for name in POSITIONS)
