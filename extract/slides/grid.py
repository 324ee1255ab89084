"""Spots against the image: grids laid on the tissue, and whether given spots fit it better when turned."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage
from scipy.spatial import KDTree

from mmap_st.data import Spots
from mmap_st.errors import RequestError, TissueError
from mmap_st.extract.slides.tissue import METHOD, Tissue, on_tissue, share_on_tissue

Points = NDArray[np.float64]

#: Reported only where it is clear: most spots lie off the tissue as they are, and almost none otherwise.
_WELL_PLACED = 0.9
#: Fewer spots are no evidence of an orientation.
FEWEST_SPOTS = 20
_LEAST_GAIN = 0.1
_MASK_POINTS = 4000
_LEAST_RESCALING = 1.1
#: Spots reach less far than the tissue that they lie on, by part of the distance between them.
_NEARLY = (0.85, 0.88, 0.91, 0.94, 0.97, 1.0, 1.03)
_REACH_OF_A_SPOT = 1.5  # times the distance between neighbouring spots
#: Side of the mask on which shifts are tried, at most.
_SHIFT_PX = 256

TRANSFORMS: dict[str, Callable[[Points, float, float], Points]] = {
    "as they are": lambda xy, w, h: xy,
    "x and y swapped": lambda xy, w, h: xy[:, ::-1],
    "mirrored left to right": lambda xy, w, h: np.column_stack([w - xy[:, 0], xy[:, 1]]),
    "mirrored top to bottom": lambda xy, w, h: np.column_stack([xy[:, 0], h - xy[:, 1]]),
    "turned by 180 degrees": lambda xy, w, h: np.column_stack([w - xy[:, 0], h - xy[:, 1]]),
    "turned by 90 degrees clockwise": lambda xy, w, h: np.column_stack([w - xy[:, 1], xy[:, 0]]),
    "turned by 90 degrees counter-clockwise": lambda xy, w, h: np.column_stack([xy[:, 1], h - xy[:, 0]]),
    "x and y swapped and turned by 180 degrees": lambda xy, w, h: np.column_stack(
        [w - xy[:, 1], h - xy[:, 0]]
    ),
}


@dataclass(frozen=True)
class Orientation:
    """How well spots fit the tissue.

    Attributes
    ----------
    name
        What was done to them: a key of `TRANSFORMS`, or by what they were multiplied.
    on_tissue
        Share of the spots that lie on tissue.
    covered
        Share of the tissue that has a spot near it.
    """

    name: str
    on_tissue: float
    covered: float

    @property
    def fit(self) -> float:
        """Both shares in one: 1 where spots and tissue are the same area."""
        return self.on_tissue * self.covered


def better_orientation(
    tissue: Tissue, xy: NDArray[np.float64], size_px: tuple[int, int]
) -> tuple[Orientation, Orientation | None]:
    """How spots fit as they are, and another orientation where one fits so much better that it is plain.

    Parameters
    ----------
    tissue
        Of the slide.
    xy
        (n, 2) spots in level-0 pixels.
    size_px
        Width and height of the slide.
    """
    width, height = size_px
    points = _points_of(tissue)
    own = _fit("as they are", xy, tissue, points)
    if own.on_tissue >= _WELL_PLACED:
        return own, None
    found = [own]
    found += [
        _fit(name, turn(xy, width, height), tissue, points) for name, turn in list(TRANSFORMS.items())[1:]
    ]
    rough = _spread(points) / max(_spread(xy), 1e-9)
    if not 1 / _LEAST_RESCALING < rough < _LEAST_RESCALING:
        factors = [rough * nearly for nearly in _NEARLY]
        found += [_fit(f"multiplied by about {by:.2g}", xy * by, tissue, points) for by in factors]
    best = max(found, key=lambda one: one.fit)
    return own, best if _plainly_better(best, own) else None


def better_shift(tissue: Tissue, xy: Points) -> Orientation | None:
    """The shift that brings spots onto the tissue, where one fits so much better that it is plain.

    Parameters
    ----------
    tissue
        Of the slide.
    xy
        (n, 2) spots in level-0 pixels.
    """
    points = _points_of(tissue)
    own = _fit("as they are", xy, tissue, points)
    if own.on_tissue >= _WELL_PLACED:
        return None
    x, y = shift = _best_shift(tissue, xy)
    best = _fit(f"shifted by about {x:+.0f} px in x and {y:+.0f} px in y", xy + shift, tissue, points)
    return best if _plainly_better(best, own) else None


def _plainly_better(best: Orientation, own: Orientation) -> bool:
    return (
        own.on_tissue < _WELL_PLACED and best.on_tissue >= _WELL_PLACED and best.fit - own.fit >= _LEAST_GAIN
    )


def _best_shift(tissue: Tissue, xy: Points) -> Points:
    """(2,) level-0 pixels by which spots fit best: every shift at once, by correlation on a coarse mask."""
    from scipy.signal import fftconvolve  # a quarter of a second, which other commands need not wait

    step = max(-(-max(tissue.mask.shape) // _SHIFT_PX), 1)
    pixel = np.asarray(tissue.scale) * step
    mask = tissue.mask[step // 2 :: step, step // 2 :: step].astype(np.float32)
    reach = _REACH_OF_A_SPOT * _pitch(xy) / float(pixel.min())
    pad = math.ceil(reach)
    corner = np.floor(xy.min(axis=0) / pixel).astype(np.int64) - pad
    column, row = (np.floor(xy / pixel).astype(np.int64) - corner).T
    shape = int(row.max()) + pad + 1, int(column.max()) + pad + 1
    if max(shape) > 4 * _SHIFT_PX:  # so much larger than the image that no shift brings them onto it
        return np.zeros(2)
    spots = np.zeros(shape, np.float32)
    np.add.at(spots, (row, column), 1.0)
    near = ndimage.distance_transform_edt(spots == 0) <= reach
    on_it = fftconvolve(mask, spots[::-1, ::-1]) / len(xy)
    covered = fftconvolve(mask, near[::-1, ::-1].astype(np.float32)) / max(float(mask.sum()), 1.0)
    down, across = np.unravel_index(np.argmax(on_it * covered), on_it.shape)
    place = np.array([across - (shape[1] - 1), down - (shape[0] - 1)])
    return np.asarray((place - corner) * pixel, dtype=np.float64)


def _pitch(xy: Points) -> float:
    """Median distance to the nearest other spot."""
    return float(np.median(KDTree(xy).query(xy, k=2)[0][:, 1])) if len(xy) > 1 else 1.0


def _fit(name: str, xy: Points, tissue: Tissue, points: Points) -> Orientation:
    near = KDTree(xy).query(points)[0] <= _REACH_OF_A_SPOT * _pitch(xy)
    return Orientation(name, share_on_tissue(tissue, xy), float(near.mean()))


def _spread(points: Points) -> float:
    """Side of the area that points lie on, single strays apart."""
    low, high = np.quantile(points, [0.02, 0.98], axis=0)
    return float(np.sqrt(np.prod(np.maximum(high - low, 1e-9))))


def _points_of(tissue: Tissue) -> Points:
    """Evenly chosen points of the tissue, in level-0 pixels."""
    rows, columns = np.nonzero(tissue.mask)
    chosen = np.unique(np.linspace(0, len(rows) - 1, min(len(rows), _MASK_POINTS)).astype(np.int64))
    points: Points = (np.column_stack([columns[chosen], rows[chosen]]) + 0.5) * np.asarray(tissue.scale)
    return points


_FORMS = {"grid": "square", "hex": "hexagonal"}
_ACCEPTED = "grid:100 (a square grid, 100 um apart) or hex:100 (rows shifted by half, as Visium's)"
_TECHNOLOGY = {"square": "grid", "hexagonal": "hexagonal grid"}
_SMALLEST_PITCH_UM = 1.0
_LARGEST_PITCH_UM = 10_000.0
_MOST_SPOTS = 5_000_000


@dataclass(frozen=True)
class GridRequest:
    """The grid that a user asks for.

    Attributes
    ----------
    layout
        ``square`` or ``hexagonal``.
    pitch_um
        Distance between neighbouring spots in micrometres.
    """

    layout: str
    pitch_um: float

    def __str__(self) -> str:
        form = next(form for form, layout in _FORMS.items() if layout == self.layout)
        return f"{form}:{self.pitch_um:.10g}"

    def made_by(self) -> dict[str, object]:
        """What a store records of how these spots were made."""
        return {"layout": self.layout, "pitch_um": self.pitch_um, "tissue": METHOD}


def parse_grid(text: str) -> GridRequest:
    """Read ``--spots grid:100`` or ``--spots hex:100``.

    Raises
    ------
    RequestError
        If it is neither, or the pitch is not a distance between 1 um and 10 mm.
    """
    form, _, number = text.strip().lower().partition(":")
    if form not in _FORMS:
        raise RequestError(f"--spots {text}: give {_ACCEPTED}.")
    try:
        pitch_um = float(number.removesuffix("um"))
    except ValueError:
        raise RequestError(f"--spots {text}: {number!r} is not a number; give {_ACCEPTED}.") from None
    if not _SMALLEST_PITCH_UM <= pitch_um <= _LARGEST_PITCH_UM:
        raise RequestError(
            f"--spots {text}: spots may lie {_SMALLEST_PITCH_UM:g} to {_LARGEST_PITCH_UM:g} um apart;"
            f" give {_ACCEPTED}."
        )
    return GridRequest(_FORMS[form], pitch_um)


def stored_grid(made_by: dict[str, object] | None) -> GridRequest | None:
    """The grid that made a store's spots; None where they are from a spot table."""
    return GridRequest(str(made_by["layout"]), float(str(made_by["pitch_um"]))) if made_by else None


def grid_spots(
    tissue: Tissue, size_px: tuple[int, int], source_mpp: float, pitch_um: float, layout: str
) -> Spots:
    """Lay a grid over a slide and keep the spots whose centre lies on tissue.

    The first spot of a square grid lies half a pitch from the slide's upper and left edge. In a hexagonal one
    rows are ``sqrt(3) / 2`` of the pitch apart and odd ones shifted by half a pitch, so that every spot has
    six neighbours. Places are exact, not rounded to pixels, and depend on nothing but these arguments.

    Parameters
    ----------
    tissue
        Where there is tissue.
    size_px
        Width and height of the slide in level-0 pixels.
    source_mpp
        Micrometres per level-0 pixel.
    pitch_um
        Distance between neighbouring spots in micrometres.
    layout
        ``square`` or ``hexagonal``.

    Returns
    -------
    Spots named by row and column of the grid, such as ``r0012c0034``, row by row. Their `pitch_um` is None:
    it was made from `source_mpp`, and so is not evidence for it.

    Raises
    ------
    TissueError
        If no spot falls on tissue, or more do than can be embedded.
    """
    pitch = pitch_um / source_mpp
    row_step = 1.0 if layout == "square" else math.sqrt(3.0) / 2.0
    shift = 0.0 if layout == "square" else 0.5
    _check_number(tissue, pitch, pitch**2 * row_step, pitch_um)
    width, height = size_px
    # Only rows that cross tissue are looked at: a fine grid over a whole slide would not fit in memory.
    tissue_rows = np.flatnonzero(tissue.mask.any(axis=1))
    top, bottom = tissue_rows[0] * tissue.scale[1], (tissue_rows[-1] + 1) * tissue.scale[1]
    first = max(math.floor(top / (pitch * row_step) - 0.5), 0)
    last = math.ceil(min(bottom, height) / (pitch * row_step) - 0.5)
    columns = np.arange(math.ceil(width / pitch))
    ids: list[str] = []
    array, xy = [], []
    for row in range(first, last + 1):
        across = columns + shift * (row % 2)
        centre = np.column_stack(
            [(across + 0.5) * pitch, np.full(len(across), (row + 0.5) * row_step * pitch)]
        )
        kept = on_tissue(tissue, centre) & (centre < size_px).all(axis=1)
        ids += [f"r{row:04d}c{column:04d}" for column in columns[kept]]
        array.append(np.column_stack([across[kept], np.full(int(kept.sum()), row * row_step)]))
        xy.append(centre[kept])
    if not ids:
        raise TissueError(
            f"no spot of a grid {pitch_um:g} um apart falls on its tissue; ask for a finer grid."
        )
    return Spots(
        tuple(ids),
        np.concatenate(xy),
        array=np.concatenate(array).astype(np.float64),
        technology=_TECHNOLOGY[layout],
    )


def _check_number(tissue: Tissue, pitch_px: float, cell_px2: float, pitch_um: float) -> None:
    """Refuse a grid of more spots than can be embedded, before any is made."""
    area = float(np.count_nonzero(tissue.mask)) * tissue.scale[0] * tissue.scale[1]
    spots = area / cell_px2
    if spots > _MOST_SPOTS:
        coarser = pitch_um * math.sqrt(spots / _MOST_SPOTS)
        raise TissueError(
            f"a grid {pitch_um:g} um apart would have about {spots / 1e6:.0f} million spots on it;"
            f" ask for at least {math.ceil(coarser)} um."
        )
