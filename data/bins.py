"""Squares of a grid in micrometres, into which transcripts, cells or finer bins are joined to pseudo-spots.

The lines of the grid lie at whole multiples of its pitch from the origin of the positions: the same place is
in the same square, whatever else was measured and whichever table it is read from.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import sparse

#: Sides of squares that make sense, in micrometres.
LEAST_UM, MOST_UM = 1.0, 10_000.0
#: More spots than any array has; their windows would take days.
_MOST_SQUARES = 5_000_000
#: Beyond it no position on a slide can lie, in micrometres.
_FARTHEST_UM = 1e6


@dataclass(frozen=True)
class Squares:
    """The squares of a grid that hold something, row by row.

    Attributes
    ----------
    place
        (m, 2) int64, column and row of each square.
    member_of
        (n,) int64, the square that each thing lies in.
    side_um
        Side of a square in micrometres.
    """

    place: NDArray[np.int64]
    member_of: NDArray[np.int64]
    side_um: float

    def __len__(self) -> int:
        return len(self.place)

    @property
    def names(self) -> tuple[str, ...]:
        """Such as ``x0012y0034_100um``: squares of another grid have other names, never those of this one."""
        return tuple(f"x{x:04d}y{y:04d}_{self.side_um:.10g}um" for x, y in self.place.tolist())

    @property
    def centres_um(self) -> NDArray[np.float64]:
        """(m, 2) float64, the middle of each square in micrometres."""
        return np.asarray((self.place + 0.5) * self.side_um, np.float64)

    def sums(self, rows: sparse.csr_array) -> sparse.csr_array:
        """(m, g) sums of the (n, g) rows over each square; whole numbers are summed exactly."""
        ones = np.ones(len(self.member_of), np.float64)
        joins = sparse.csr_array((ones, (self.member_of, np.arange(len(ones)))), (len(self), len(ones)))
        return sparse.csr_array(joins @ rows)

    def means(self, values: NDArray[np.float64]) -> NDArray[np.float64]:
        """(m, k) means of (n, k) values over each square."""
        number = np.bincount(self.member_of, minlength=len(self))
        sums = [np.bincount(self.member_of, column, len(self)) for column in values.T]
        return np.asarray(np.column_stack(sums) / number[:, None], np.float64)


def squares_of(place: NDArray[np.int64], side_um: float) -> Squares:
    """The squares that things lie in.

    Parameters
    ----------
    place
        (n, 2) column and row of the square that each lies in.
    side_um
        Side of a square in micrometres.

    Raises
    ------
    ValueError
        If positions are farther apart than any slide is long, or there are more squares than can be used.
    """
    farthest = float(np.abs(place).max(initial=0)) * side_um
    if farthest > _FARTHEST_UM:
        raise ValueError(
            f"positions reach {farthest:.3g} um, and a slide is 75,000 um long; they have to be micrometres"
        )
    _, first, member_of = np.unique(
        place[:, 1] * (1 << 32) + place[:, 0], return_index=True, return_inverse=True
    )
    if len(first) > _MOST_SQUARES:
        larger = side_um * float(np.sqrt(len(first) / _MOST_SQUARES))
        raise ValueError(
            f"squares of {side_um:g} um would be {len(first) / 1e6:.0f} million spots; use a bin_um of at"
            f" least {larger:.2g}"
        )
    return Squares(place[first], member_of.ravel().astype(np.int64), side_um)


def place_of(xy_um: NDArray[np.float64], side_um: float) -> NDArray[np.int64]:
    """(n, 2) column and row of the square that each of (n, 2) finite positions in micrometres lies in."""
    return np.floor(np.clip(xy_um, -1e12, 1e12) / side_um).astype(np.int64)
