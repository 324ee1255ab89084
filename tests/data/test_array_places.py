"""Rows and columns of spots, from their names or from the positions that a reader gives."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mmap_st.data import Spots, are_squares, array_indices
from mmap_st.data.arrays import hexagonal_positions, square_positions


@pytest.mark.parametrize(
    ("ids", "expected"),
    [
        (("10x13", "9x2"), [[13, 10], [2, 9]]),
        (("r0012c0034", "r12345c0000"), [[12, 34], [12345, 0]]),
        (("s_016um_00052_00082-1", "s_008um_00000_00001-1"), [[52, 82], [0, 1]]),
        (("x0012y0034_100um", "x-001y0000_7.5um"), [[34, 12], [0, -1]]),
    ],
)
def test_names_that_say_the_place(ids: tuple[str, ...], expected: list[list[int]]) -> None:
    found = array_indices(ids)
    assert found is not None
    assert found.tolist() == expected


@pytest.mark.parametrize(
    "ids",
    [(), ("AAAC-1", "AAAG-1"), ("10x13", "AAAC-1"), ("10x13", "r0012c0034"), ("99999999999x1",), ("1.5x2",)],
)
def test_names_that_do_not(ids: tuple[str, ...]) -> None:
    assert array_indices(ids) is None


def spots_at(array: np.ndarray | None, n: int) -> Spots:
    return Spots(tuple(f"spot-{i}" for i in range(n)), np.zeros((n, 2)), array=array)


pairs = st.lists(st.tuples(st.integers(0, 500), st.integers(0, 500)), min_size=1, max_size=30, unique=True)


@given(places=pairs, seed=st.integers(0, 99))
def test_hexagonal_and_square_arrays_are_found_again_in_any_order(
    places: list[tuple[int, int]], seed: int
) -> None:
    place = np.array(places, np.float64)
    # Visium has every other column of a row.
    hexagonal = np.column_stack([place[:, 0], 2 * place[:, 1] + place[:, 0] % 2])
    order = np.random.default_rng(seed).permutation(len(place))
    ids = tuple(f"spot-{i}" for i in order)
    square = array_indices(ids, spots_at(square_positions(place), len(place)))
    assert square is not None
    assert np.array_equal(square, place[order])
    found = array_indices(ids, spots_at(hexagonal_positions(hexagonal), len(place)))
    assert found is not None
    if (hexagonal[:, 0] > 0).any():
        assert np.array_equal(found, hexagonal[order])


@pytest.mark.parametrize(
    ("ids", "expected"),
    [
        (("x0012y0034_100um", "x-001y0000_100um"), True),
        (("s_016um_00052_00082-1",), True),
        (("10x13", "9x2"), False),
        (("r0012c0034",), False),
        (("AAAC-1", "x0012y0034_100um"), False),
        ((), False),
    ],
)
def test_names_of_squares_that_touch(ids: tuple[str, ...], expected: bool) -> None:
    assert are_squares(ids) is expected


@pytest.mark.parametrize("array", [None, np.array([[0.31, 0.77], [1.2, 2.9]])])
def test_places_that_are_on_no_array(array: np.ndarray | None) -> None:
    assert array_indices(("spot-0", "spot-1"), spots_at(array, 2)) is None


def test_spots_of_another_table_are_not_placed() -> None:
    assert array_indices(("spot-0", "other"), spots_at(np.zeros((2, 2)), 2)) is None
