"""Neighbours and grid cells of spots, against plain references."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.nn import functional as F

from mmap_st.head.neighbourhood import GridConvolution, grid_cells, mean_of_neighbours, nearest


def places(n: int, seed: int, side: float = 6.0) -> np.ndarray:
    return np.random.default_rng(seed).uniform(0, side, (n, 2)).astype(np.float32)


def square(side: int) -> np.ndarray:
    x, y = np.meshgrid(np.arange(side), np.arange(side))
    return np.stack([x.ravel(), y.ravel()], axis=1).astype(np.float32)


@given(n=st.integers(1, 60), count=st.integers(1, 8), squared=st.integers(9, 1600), seed=st.integers(0, 99))
def test_the_nearest_are_those_of_all_distances(n: int, count: int, squared: int, seed: int) -> None:
    place = places(n, seed).round(1)
    reach = float(np.sqrt(squared + 0.5)) / 10  # no two places are just as far apart
    exact = np.linalg.norm((place[:, None].astype(float) - place[None]).round(1), axis=2)
    np.fill_diagonal(exact, np.inf)
    distance = exact.round(3)
    index, known = (found.numpy() for found in nearest(place, count, reach))
    for spot in range(n):
        wanted = np.sort(distance[spot][exact[spot] < reach])[:count]
        found = index[spot][known[spot]]
        np.testing.assert_array_equal(distance[spot][found], wanted)
        assert len(set(found)) == len(found)
        assert not known[spot][len(found) :].any()


def test_the_24_nearest_are_the_5_by_5_around() -> None:
    place = square(7)
    index, known = nearest(place, 24, 3.0)
    centre = 24
    assert known[centre].all()
    assert (np.abs(place[index[centre]] - place[centre]).max(axis=1) <= 2).all()
    assert int(known[0].sum()) < 24


def test_a_lonely_spot_has_no_neighbours_and_their_mean_is_0() -> None:
    place = np.array([[0, 0], [1, 0], [9, 9]], np.float32)
    index, known = nearest(place, 2, 2.0)
    assert known.sum(dim=1).tolist() == [1, 1, 0]
    mean = mean_of_neighbours(torch.tensor([[1.0], [2.0], [4.0]]), index, known)
    assert mean.flatten().tolist() == [2.0, 1.0, 0.0]


@given(seed=st.integers(0, 99))
def test_neighbours_depend_on_no_order_of_the_spots(seed: int) -> None:
    place = square(5)  # many are equally far
    order = np.random.default_rng(seed).permutation(len(place))
    index, known = (found.numpy() for found in nearest(place, 3, 2.0))
    mixed, mixed_known = (found.numpy() for found in nearest(place[order], 3, 2.0))
    np.testing.assert_array_equal(known[order], mixed_known)
    np.testing.assert_array_equal(index[order], order[mixed])


@given(n=st.integers(1, 40), side=st.floats(1, 12), seed=st.integers(0, 99))
def test_the_convolution_is_that_of_a_full_grid(n: int, side: float, seed: int) -> None:
    place = places(n, seed, side)
    torch.manual_seed(seed)
    tokens, convolution = torch.randn(n, 3), GridConvolution(3)
    torch.nn.init.normal_(convolution.bias)
    column, row = np.round(place).astype(int).T
    grid, spots = torch.zeros(3, 14, 14), torch.zeros(14, 14)
    for token, x, y in zip(tokens, column, row, strict=True):
        grid[:, y, x] += token
        spots[y, x] += 1
    kernel = convolution.weight.T.reshape(3, 1, 3, 3)
    full = F.conv2d((grid / spots.clamp(min=1))[None], kernel, convolution.bias, padding=1, groups=3)[0]
    with torch.inference_mode():
        found = convolution(tokens, *grid_cells(place))
        torch.testing.assert_close(found, tokens + full[:, row, column].T)


def test_a_grid_of_any_extent_needs_no_more_than_its_spots() -> None:
    far = np.array([[0, 0], [1, 0], [1e6, 1e6]], np.float32)
    cell, around = grid_cells(far)
    assert around.shape == (3, 9)
    assert (around == 3).sum(dim=1)[cell].tolist() == [7, 7, 8]


@pytest.mark.parametrize("n", [1, 2])
def test_few_spots_will_do(n: int) -> None:
    _, known = nearest(np.zeros((n, 2), np.float32), 4, 2.0)
    assert int(known.sum()) == n * (n - 1)
