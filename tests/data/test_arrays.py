"""Neighbours on an array: means over a spot and those around it."""

from pathlib import Path

import numpy as np
import pytest

from mmap_st.data.arrays import array_means
from mmap_st.data.readers import open_cohort, read_spots


def square(side: int = 7) -> np.ndarray:
    return np.stack(np.meshgrid(np.arange(side), np.arange(side)), -1).reshape(-1, 2)


def hexagonal(side: int = 7) -> np.ndarray:
    """Rows and columns as Visium numbers them: neighbours in a row are two columns apart."""
    return np.array([(row, 2 * k + row % 2) for row in range(side) for k in range(side)])


def turned(xy: np.ndarray, degrees: float = 17.0) -> np.ndarray:
    angle = np.deg2rad(degrees)
    turn = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    return xy @ turn.T * 287.5 + 1000.0


def plain_means(array: np.ndarray, steps: list[tuple[int, int]], values: np.ndarray) -> np.ndarray:
    """A loop over array coordinates: the spot and whichever of the steps around it are there."""
    row_of = {tuple(place): row for row, place in enumerate(array.tolist())}
    smoothed = []
    for a, b in array.tolist():
        around = [(a + da, b + db) for da, db in [(0, 0), *steps]]
        smoothed.append(values[[row_of[place] for place in around if place in row_of]].mean(axis=0))
    return np.array(smoothed)


BLOCK = [(a, b) for a in (-1, 0, 1) for b in (-1, 0, 1) if (a, b) != (0, 0)]
RING = [(0, -2), (0, 2), (-1, -1), (-1, 1), (1, -1), (1, 1)]


@pytest.mark.parametrize("holes", [False, True])
@pytest.mark.parametrize("kind", ["square", "hexagonal"])
def test_means_are_those_of_a_loop_over_the_array(kind: str, holes: bool) -> None:
    rng = np.random.default_rng(0)
    array = square() if kind == "square" else hexagonal()
    if holes:
        array = array[rng.permutation(len(array))[:33]]
    xy = array.astype(float) if kind == "square" else array[:, ::-1] * [0.5, np.sqrt(3) / 2]
    # Legacy ST spots stray from their places; Visium's are off by the rounding of pixels.
    xy = turned(xy) + rng.normal(0, 10.0 if kind == "square" else 2.0, xy.shape)
    values = rng.poisson(3.0, (len(array), 4)).astype(float)
    expected = plain_means(array, BLOCK if kind == "square" else RING, values)
    np.testing.assert_allclose(array_means(xy) @ values, expected, rtol=1e-12)


def test_a_spot_alone_is_its_own_mean() -> None:
    assert array_means(np.array([[5.0, 5.0]])).toarray().tolist() == [[1.0]]
    means = array_means(np.concatenate([square(4) * 200.0, [[5000.0, 0.0]]])).toarray()
    assert means[-1].tolist() == [0.0] * 16 + [1.0]
    assert means[0].tolist() == [0.25 if i in (0, 1, 4, 5) else 0.0 for i in range(17)]
    assert array_means(np.zeros((3, 2))).toarray() == pytest.approx(np.full((3, 3), 1 / 3))


def test_real_neighbours_are_those_of_the_array(shared: Path) -> None:
    """Spots of her2st stray far from their places: nearly all neighbours are told rightly all the same."""
    wrong, all_pairs = 0, 0
    for row in open_cohort(f"her2st:{shared / 'data' / 'her2st'}").slides:
        spots = read_spots(row)
        assert spots.array is not None
        steps = np.abs(spots.array[:, None] - spots.array[None]).max(axis=2).round()
        wrong += int(((steps <= 1) != (array_means(spots.xy).toarray() > 0)).sum())
        all_pairs += int((steps == 1).sum())
    assert all_pairs > 70_000
    assert wrong < 0.001 * all_pairs
