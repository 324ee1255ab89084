"""Spatial neighbours of spots: Gaussian averages, nearest spots, cells of a grid."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import sparse
from scipy.spatial import cKDTree
from torch import nn

# The Gaussian is cut off at this many standard deviations: what is left out weighs under 5%.
_REACH = 2.5
_ROUNDING = 1e-6


def spot_pitch(xy: NDArray[np.float64]) -> float:
    """Median distance of a spot to its nearest neighbour, in the units of `xy`; 1 for fewer than 2 spots."""
    if len(xy) < 2:
        return 1.0
    nearest = cKDTree(xy).query(xy, k=2)[0][:, 1]
    apart = nearest[nearest > 0]
    return float(np.median(apart)) if len(apart) else 1.0


@dataclass(frozen=True)
class SpatialNeighbours:
    """The places of the spots of one slide, to average over the neighbours of some of them.

    Attributes
    ----------
    xy
        (n, 2) float64 centres of the spots.
    use
        (n,) bool, spots that may be averaged.
    pitch
        Distance between adjacent spots, in the units of `xy`.
    """

    xy: NDArray[np.float64]
    use: NDArray[np.bool_]
    pitch: float

    @cached_property
    def _tree(self) -> tuple[cKDTree, NDArray[np.int64]]:
        rows = np.flatnonzero(self.use)
        return cKDTree(self.xy[rows]), rows

    def gaussian(self, rows: NDArray[np.int64], width: float) -> sparse.csr_array:
        """Return averages over the neighbours of some spots, with Gaussian weights.

        Parameters
        ----------
        rows
            (k,) int64, which spots.
        width
            EmbeddingScaler deviation of the Gaussian, in spot pitches.

        Returns
        -------
        (k, n) float32 CSR matrix whose rows sum to 1; a spot is part of its own average. Rows of spots
        that may not be averaged are empty.
        """
        tree, of_tree = self._tree
        used = np.flatnonzero(self.use[rows])
        if not len(used):
            return sparse.csr_array((len(rows), len(self.xy)), dtype=np.float32)
        found = cKDTree(self.xy[rows[used]]).sparse_distance_matrix(
            tree, _REACH * width * self.pitch, output_type="ndarray"
        )
        i, j = used[found["i"]], of_tree[found["j"]]
        squared = ((self.xy[rows[i]] - self.xy[j]) ** 2).sum(axis=1) / self.pitch**2
        weight = np.exp(-squared / (2 * width**2))
        total = np.bincount(i, weight, minlength=len(rows))
        return sparse.csr_array(
            ((weight / total[i]).astype(np.float32), (i, j)), shape=(len(rows), len(self.xy))
        )

    def reached(self, rows: NDArray[np.int64], width: float) -> NDArray[np.int64]:
        """(m,) int64, ascending: some spots, and all others that `gaussian` averages over for them."""
        reach = _REACH * width * self.pitch * (1 + _ROUNDING)
        place = self.xy[rows]
        inside = (self.xy >= place.min(axis=0) - reach) & (self.xy <= place.max(axis=0) + reach)
        around = np.flatnonzero(inside.all(axis=1) & self.use)
        apart, _ = cKDTree(place).query(self.xy[around], distance_upper_bound=reach)
        return np.union1d(rows, around[np.isfinite(apart)])

    def only(self, rows: NDArray[np.int64]) -> SpatialNeighbours:
        """Return these spots only, as far apart as all are."""
        return SpatialNeighbours(self.xy[rows], self.use[rows], self.pitch)


# Distances are rounded to this many decimals of a pitch: float errors must not order equally far spots.
_DECIMALS = 3


def nearest(place: NDArray[np.float32], count: int, reach: float) -> tuple[torch.Tensor, torch.Tensor]:
    """Find the nearest other spots of every spot; equally far ones in order of y, then x.

    Parameters
    ----------
    place
        (n, 2) float32 in spot pitches.
    count
        Largest number of neighbours k.
    reach
        Largest distance of a neighbour, in spot pitches.

    Returns
    -------
    index
        (n, k) int64, nearest first; 0 where there is none.
    known
        (n, k) bool, whether there is one.
    """
    rounded = np.round(place.astype(np.float64), _DECIMALS)
    tree = cKDTree(rounded)
    pairs = tree.sparse_distance_matrix(tree, reach, output_type="ndarray")
    pairs = pairs[pairs["i"] != pairs["j"]]
    position = np.empty(len(place), np.int64)
    position[np.lexsort(rounded.T)] = np.arange(len(place))
    pairs = pairs[np.lexsort((position[pairs["j"]], np.round(pairs["v"], _DECIMALS), pairs["i"]))]
    rank = np.arange(len(pairs)) - np.searchsorted(pairs["i"], pairs["i"])
    pairs, rank = pairs[rank < count], rank[rank < count]
    index = np.zeros((len(place), count), np.int64)
    known = np.zeros((len(place), count), np.bool_)
    index[pairs["i"], rank] = pairs["j"]
    known[pairs["i"], rank] = True
    return torch.from_numpy(index), torch.from_numpy(known)


def mean_of_neighbours(values: torch.Tensor, index: torch.Tensor, known: torch.Tensor) -> torch.Tensor:
    """(n, w) mean of the values (n, w) over each spot's neighbours, see `nearest`; 0 where it has none."""
    weight = known / known.sum(dim=1, keepdim=True).clamp(min=1)
    return (values[index] * weight[..., None]).sum(dim=1)


def grid_cells(place: NDArray[np.float32]) -> tuple[torch.Tensor, torch.Tensor]:
    """Assign spots to the cells of a grid of one pitch; only cells with spots are numbered.

    Parameters
    ----------
    place
        (n, 2) in spot pitches, 0 or greater.

    Returns
    -------
    cell
        (n,) int64, the cell of each spot; there are c cells.
    around
        (c, 9) int64, the 3 x 3 cells around each cell in row-major order; c for a cell without spots.
    """
    cells, cell = np.unique(np.round(place).astype(np.int64)[:, ::-1], axis=0, return_inverse=True)
    width = cells[:, 1].max() + 3  # an empty column on either side: neighbours do not wrap into another row
    number = (cells[:, 0] + 1) * width + cells[:, 1] + 1
    step = np.arange(-1, 2)
    wanted = number[:, None] + (step[:, None] * width + step).ravel()
    found = np.searchsorted(number, wanted).clip(max=len(cells) - 1)
    around = np.where(number[found] == wanted, found, len(cells))
    return torch.from_numpy(cell.reshape(-1)), torch.from_numpy(around)


class GridConvolution(nn.Module):
    """A depthwise 3 x 3 convolution on the array of spots, added to the spots.

    Empty cells count as 0; a cell with several spots has their mean.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(9, width).uniform_(-1 / 3, 1 / 3))
        self.bias = nn.Parameter(torch.zeros(width))

    def forward(self, tokens: torch.Tensor, cell: torch.Tensor, around: torch.Tensor) -> torch.Tensor:
        """(n, width) of tokens (n, width) and their cells, see `grid_cells`."""
        cells = len(around) + 1  # the last is the empty one
        total = tokens.new_zeros(cells, tokens.shape[1]).index_add(0, cell, tokens)
        mean = total / torch.bincount(cell, minlength=cells).clamp(min=1)[:, None]
        return tokens + ((mean[around] * self.weight).sum(dim=1) + self.bias)[cell]
