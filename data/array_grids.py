"""Places on the arrays that spots are printed on, in units of the distance between neighbours."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

_ROW_HEIGHT = np.sqrt(3) / 2


def is_hexagonal(row_column: NDArray[np.float64]) -> bool:
    """Whether (n, 2) rows and columns number a Visium array: in even rows even columns, in odd rows odd."""
    whole = np.array_equal(row_column, np.round(row_column))
    return bool(whole and len(row_column) > 1 and not (row_column.sum(axis=1) % 2).any())


def array_units(row_column: NDArray[np.float64]) -> NDArray[np.float64]:
    """(n, 2) x and y of rows and columns of either array, by how they are numbered."""
    return hexagonal(row_column) if is_hexagonal(row_column) else square(row_column)


def hexagonal(row_column: NDArray[np.float64]) -> NDArray[np.float64]:
    """(n, 2) x and y of Visium's rows and columns: neighbours in a row are two columns apart."""
    return np.column_stack([row_column[:, 1] / 2, row_column[:, 0] * _ROW_HEIGHT])


def square(row_column: NDArray[np.float64]) -> NDArray[np.float64]:
    """(n, 2) x and y of rows and columns of a square array."""
    return row_column[:, ::-1].copy()
