"""What surrounds a spot: sparse averages over its neighbours on the slide."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray
from scipy import sparse
from scipy.spatial import cKDTree

# Weights beyond this many widths of the Gaussian are left out: together they are under 5%.
_REACH = 2.5


def spot_pitch(xy: NDArray[np.float64]) -> float:
    """Median distance of a spot to its nearest neighbour, in the units of `xy`; 1 for fewer than 2 spots."""
    if len(xy) < 2:
        return 1.0
    nearest = cKDTree(xy).query(xy, k=2)[0][:, 1]
    apart = nearest[nearest > 0]
    return float(np.median(apart)) if len(apart) else 1.0


@dataclass(frozen=True)
class Surroundings:
    """Where the spots of one slide lie, to find what is near some of them.

    Attributes
    ----------
    xy
        (n, 2) centres of the spots.
    use
        (n,) spots that may be averaged.
    pitch
        Distance of neighbouring spots, in the units of `xy`.
    """

    xy: NDArray[np.float64]
    use: NDArray[np.bool_]
    pitch: float

    @cached_property
    def _tree(self) -> tuple[cKDTree, NDArray[np.int64]]:
        rows = np.flatnonzero(self.use)
        return cKDTree(self.xy[rows]), rows

    def gaussian(self, rows: NDArray[np.int64], width: float) -> sparse.csr_array:
        """Averages over the neighbours of some spots, nearer ones counting more.

        Parameters
        ----------
        rows
            (k,) which spots.
        width
            Standard deviation of the Gaussian, in spot pitches.

        Returns
        -------
        (k, n) float32 whose rows sum to 1; a spot takes part in its own average. Rows of spots that may not
        be averaged are empty.
        """
        tree, of_tree = self._tree
        asked = np.flatnonzero(self.use[rows])
        if not len(asked):
            return sparse.csr_array((len(rows), len(self.xy)), dtype=np.float32)
        found = cKDTree(self.xy[rows[asked]]).sparse_distance_matrix(
            tree, _REACH * width * self.pitch, output_type="ndarray"
        )
        i, j = asked[found["i"]], of_tree[found["j"]]
        squared = ((self.xy[rows[i]] - self.xy[j]) ** 2).sum(axis=1) / self.pitch**2
        weight = np.exp(-squared / (2 * width**2))
        total = np.bincount(i, weight, minlength=len(rows))
        return sparse.csr_array(
            ((weight / total[i]).astype(np.float32), (i, j)), shape=(len(rows), len(self.xy))
        )
