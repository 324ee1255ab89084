"""What lies around spots: their nearest neighbours, and the cells of the grid that they are on."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.spatial import cKDTree
from torch import nn

# Places are told apart to this part of a pitch: rounding of floats must not order spots that are equally far.
_DECIMALS = 3


def nearest(place: NDArray[np.float32], count: int, reach: float) -> tuple[torch.Tensor, torch.Tensor]:
    """Find the nearest other spots of every spot; where several are equally far, those of least y, then x.

    Parameters
    ----------
    place
        (n, 2) in spot pitches.
    count
        Most neighbours k of a spot.
    reach
        How far a neighbour may be, in spot pitches.

    Returns
    -------
    index
        (n, k) int64, nearest first; 0 where there is none.
    known
        (n, k) bool, where there is one.
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
    """(n, w) mean of the values (n, w) of each spot's neighbours, see `nearest`; 0 where it has none."""
    weight = known / known.sum(dim=1, keepdim=True).clamp(min=1)
    return (values[index] * weight[..., None]).sum(dim=1)


def grid_cells(place: NDArray[np.float32]) -> tuple[torch.Tensor, torch.Tensor]:
    """Put spots on a grid of one pitch; only cells that hold spots are kept, so that any extent will do.

    Parameters
    ----------
    place
        (n, 2) in spot pitches, 0 or greater.

    Returns
    -------
    cell
        (n,) int64, the cell of each spot, of c cells.
    around
        (c, 9) int64, the cells from one row above to one below and one column before to one after, row by
        row; c where a cell holds no spot.
    """
    cells, cell = np.unique(np.round(place).astype(np.int64)[:, ::-1], axis=0, return_inverse=True)
    width = cells[:, 1].max() + 3  # one empty column on either side: what is beside a row is in no other
    number = (cells[:, 0] + 1) * width + cells[:, 1] + 1
    step = np.arange(-1, 2)
    wanted = number[:, None] + (step[:, None] * width + step).ravel()
    found = np.searchsorted(number, wanted).clip(max=len(cells) - 1)
    around = np.where(number[found] == wanted, found, len(cells))
    return torch.from_numpy(cell.reshape(-1)), torch.from_numpy(around)


class GridConvolution(nn.Module):
    """A depthwise convolution of 3 x 3 on the array of spots, added to them; empty cells count as 0.

    On a cell of several spots is their mean.
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
