"""Grids: exact, complete, and only on tissue."""

import math
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.spatial import cKDTree

from mmap_st.data.arrays import mpp_from_pitch
from mmap_st.data.spots import Spots
from mmap_st.errors import RequestError, TissueError
from mmap_st.extract.slides.grid import GridRequest, grid_spots, parse_grid, stored_grid
from mmap_st.extract.slides.tissue import Tissue, on_tissue


def whole(size: tuple[int, int], scale: float = 16.0) -> Tissue:
    """Tissue everywhere."""
    shape = math.ceil(size[1] / scale), math.ceil(size[0] / scale)
    return Tissue(np.ones(shape, np.bool_), (scale, scale))


@st.composite
def tissues(draw: st.DrawFn) -> tuple[Tissue, tuple[int, int]]:
    """A mask of random blocks, and the slide's size."""
    h, w = draw(st.integers(4, 40)), draw(st.integers(4, 40))
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    mask = rng.random((h, w)) < draw(st.sampled_from([0.1, 0.5, 1.0]))
    mask[h // 2, w // 2] = True
    scale = draw(st.floats(5, 40)), draw(st.floats(5, 40))
    return Tissue(mask, scale), (math.floor(w * scale[0]), math.floor(h * scale[1]))


def plain_square(tissue: Tissue, size: tuple[int, int], pitch: float) -> set[tuple[float, float]]:
    """The grid by its definition, point by point."""
    found = set()
    for row in range(10_000):
        for column in range(10_000):
            x, y = (column + 0.5) * pitch, (row + 0.5) * pitch
            if x >= size[0]:
                break
            if y < size[1] and tissue.mask[int(y // tissue.scale[1]), int(x // tissue.scale[0])]:
                found.add((x, y))
        if y >= size[1]:
            break
    return found


def laid(tissue: Tissue, size: tuple[int, int], mpp: float, pitch_um: float, layout: str) -> Spots | None:
    try:
        return grid_spots(tissue, size, mpp, pitch_um, layout)
    except TissueError:
        return None


@given(tissues(), st.floats(0.1, 2.0), st.floats(5, 200), st.sampled_from(["square", "hexagonal"]))
def test_spots_lie_on_tissue_and_neighbours_exactly_a_pitch_apart(made, mpp, pitch_um, layout) -> None:
    tissue, size = made
    spots = laid(tissue, size, mpp, pitch_um, layout)
    if spots is None:
        return
    assert on_tissue(tissue, spots.xy).all()
    assert (spots.xy >= 0).all()
    assert (spots.xy < size).all()
    assert len(set(spots.ids)) == len(spots)
    assert spots.pitch_um is None
    assert spots.array is not None
    # Pixels are array coordinates times the pitch, up to one offset.
    offset = spots.xy - spots.array * (pitch_um / mpp)
    assert np.allclose(offset, offset[0], atol=1e-6)
    if len(spots) > 1:
        distance = cKDTree(spots.xy * mpp).query(spots.xy * mpp, k=2)[0][:, 1]
        assert distance.min() >= pitch_um * (1 - 1e-9)


@given(tissues(), st.floats(4, 90))
def test_no_spot_of_a_square_grid_is_missing(made, pitch) -> None:
    tissue, size = made
    spots = laid(tissue, size, 1.0, pitch, "square")
    found = set() if spots is None else {tuple(point) for point in spots.xy.tolist()}
    assert found == plain_square(tissue, size, pitch)


@given(st.floats(0.2, 1.0), st.floats(10, 60), st.sampled_from([("square", 4), ("hexagonal", 6)]))
def test_every_inner_spot_has_all_of_its_neighbours(mpp, pitch_um, layout) -> None:
    size = 700, 500
    spots = grid_spots(whole(size), size, mpp, pitch_um, layout[0])
    um, pitch = spots.xy * mpp, pitch_um * 1.000001
    neighbours = np.array([len(near) - 1 for near in cKDTree(um).query_ball_point(um, pitch)])
    inner = ((um > pitch) & (um < np.array(size) * mpp - 1.5 * pitch)).all(axis=1)
    assert (neighbours[inner] == layout[1]).all()
    assert neighbours.max() <= layout[1]


def test_ids_name_row_and_column_of_the_slide_whatever_is_tissue() -> None:
    mask = np.zeros((50, 80), np.bool_)
    mask[30:32, 40:60] = True
    tissue = Tissue(mask, (10.0, 10.0))
    spots = grid_spots(tissue, (800, 500), 0.5, 5.0, "square")
    assert spots.ids[:2] == ("r0030c0040", "r0030c0041")
    assert spots.xy[0].tolist() == [405.0, 305.0]
    assert len(spots) == 40
    more = grid_spots(whole((800, 500)), (800, 500), 0.5, 5.0, "square")
    where = dict(zip(more.ids, more.xy.tolist(), strict=True))
    assert all(where[name] == xy for name, xy in zip(spots.ids, spots.xy.tolist(), strict=True))


def test_the_same_request_gives_the_same_bits_and_odd_rows_are_shifted() -> None:
    first, again = (grid_spots(whole((999, 777)), (999, 777), 0.499, 55.0, "hexagonal") for _ in range(2))
    assert first.ids == again.ids
    assert first.xy.tobytes() == again.xy.tobytes()
    assert first.technology == "hexagonal grid"
    pitch = 55.0 / 0.499
    rows = {name[:5]: x for name, x in zip(reversed(first.ids), first.xy[::-1, 0].tolist(), strict=True)}
    assert rows["r0000"] == pytest.approx(0.5 * pitch)
    assert rows["r0001"] == pytest.approx(pitch)


def test_the_array_gives_back_the_scale_but_the_grid_claims_no_pitch() -> None:
    for layout in ("square", "hexagonal"):
        spots = grid_spots(whole((3000, 2000)), (3000, 2000), 0.25, 50.0, layout)
        assert mpp_from_pitch(spots) is None
        estimate = mpp_from_pitch(replace(spots, pitch_um=50.0))
        assert estimate is not None
        assert estimate.mpp == pytest.approx(0.25, rel=1e-6)


def test_grids_that_cannot_be_laid_say_so() -> None:
    mask = np.zeros((100, 100), np.bool_)
    mask[0, 0] = True
    with pytest.raises(TissueError, match=r"no spot of a grid 5000 um apart .* finer grid"):
        grid_spots(Tissue(mask, (8.0, 8.0)), (800, 800), 1.0, 5000.0, "square")
    size = 100_000, 80_000
    with pytest.raises(TissueError, match=r"about 500 million spots on it; ask for at least 10 um"):
        grid_spots(whole(size, 100.0), size, 0.25, 1.0, "square")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("grid:100", GridRequest("square", 100.0)),
        ("hex:55", GridRequest("hexagonal", 55.0)),
        (" HEX:112.5um ", GridRequest("hexagonal", 112.5)),
    ],
)
def test_requests_are_read_and_written(text: str, expected: GridRequest) -> None:
    assert parse_grid(text) == expected
    assert parse_grid(str(expected)) == expected
    assert stored_grid(expected.made_by()) == expected
    assert stored_grid(None) is None


@pytest.mark.parametrize("text", ["", "grid", "grid:", "100", "round:100", "grid:ten", "hex:nan", "grid:-5",
                                  "grid:0.5", "grid:inf", "grid:100,50", "spots.csv"])  # fmt: skip
def test_other_requests_are_refused_with_the_forms_that_are_taken(text: str) -> None:
    with pytest.raises(RequestError, match=r"--spots .*grid:100 .*hex:100") as caught:
        parse_grid(text)
    assert "\n" not in str(caught.value)
