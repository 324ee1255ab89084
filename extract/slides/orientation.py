"""Whether spots fit a slide better when turned, mirrored or scaled: the commonest mistakes of positions."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.spatial import KDTree

from mmap_st.extract.slides.tissue import Tissue, share_on_tissue

Points = NDArray[np.float64]

#: Reported only where it is clear: most spots lie off the tissue as they are, and almost none otherwise.
_WELL_PLACED = 0.9
_LEAST_GAIN = 0.1
_MASK_POINTS = 4000
_LEAST_RESCALING = 1.1
_REACH_OF_A_SPOT = 1.5  # times the distance between neighbouring spots

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
    found = [_fit(name, turn(xy, width, height), tissue, points) for name, turn in TRANSFORMS.items()]
    factor = _spread(points) / max(_spread(xy), 1e-9)
    if not 1 / _LEAST_RESCALING < factor < _LEAST_RESCALING:
        found.append(_fit(f"multiplied by about {factor:.2g}", xy * factor, tissue, points))
    own, best = found[0], max(found, key=lambda one: one.fit)
    plain = (
        own.on_tissue < _WELL_PLACED and best.on_tissue >= _WELL_PLACED and best.fit - own.fit >= _LEAST_GAIN
    )
    return own, best if plain else None


def _fit(name: str, xy: Points, tissue: Tissue, points: Points) -> Orientation:
    tree = KDTree(xy)
    neighbours = tree.query(xy, k=2)[0][:, 1] if len(xy) > 1 else np.array([1.0])
    near = tree.query(points)[0] <= _REACH_OF_A_SPOT * float(np.median(neighbours))
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
