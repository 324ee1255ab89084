"""Squares of a grid, and bins of Visium HD that are joined to them."""

from __future__ import annotations

import json
import shutil
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import sparse

from mmap_st.data.arrays import mpp_from_pitch
from mmap_st.data.bins import place_of, squares_of
from mmap_st.data.cohort import CohortSlide
from mmap_st.data.readers import open_cohort, read_counts, read_spots
from mmap_st.errors import CohortError, CountsError, SlideError, SpotsError

sys.path.insert(0, str(Path(__file__).parent))
import layouts

XY = st.lists(st.tuples(st.floats(-200, 600), st.floats(-200, 600)), min_size=1, max_size=80)


@given(places=XY, side_um=st.sampled_from([2.0, 7.5, 100.0, 2500.0]), seed=st.integers(0, 99))
@settings(max_examples=60)
def test_sums_over_squares_are_those_of_numpy(
    places: list[tuple[float, float]], side_um: float, seed: int
) -> None:
    xy = np.array(places)
    rows = np.random.default_rng(seed).poisson(3, (len(xy), 3)).astype(np.float32)
    squares = squares_of(place_of(xy, side_um), side_um)
    sums = squares.sums(sparse.csr_array(rows)).toarray()
    edges = np.arange(np.floor(-200 / side_um), np.floor(600 / side_um) + 2)
    column, row = (squares.place - int(edges[0])).T
    for gene in range(3):
        wanted, _, _ = np.histogram2d(*(xy / side_um).T, (edges, edges), weights=rows[:, gene])
        assert np.array_equal(sums[:, gene], wanted[column, row])
        assert sums[:, gene].sum() == wanted.sum() == rows[:, gene].sum()
    inside = np.abs(squares.centres_um[squares.member_of] - xy).max()
    assert inside <= side_um / 2 * (1 + 1e-9)
    assert len(set(squares.names)) == len(squares)


def test_squares_are_named_by_their_grid() -> None:
    place = np.array([[12, 34], [-1, 0], [9999, 0]])
    assert squares_of(place, 100.0).names == ("x-001y0000_100um", "x9999y0000_100um", "x0012y0034_100um")
    assert not set(squares_of(place, 100.0).names) & set(squares_of(place, 50.0).names)


def one(source: Path, bin_um: float | None) -> CohortSlide:
    (slide,) = open_cohort(f"visium-hd:{source}", bin_um=bin_um).slides
    return slide


@pytest.mark.parametrize("bin_um", [8.0, 16.0, 24.0, 40.0, 100.0])
def test_joined_bins_have_the_sums_of_their_bins(bin_um: float, tmp_path: Path) -> None:
    layouts.write_visium_hd(tmp_path, mpp=0.25, bin_um=8, side=12)
    bins, joined = one(tmp_path, None), one(tmp_path, bin_um)
    spots, counts = read_spots(bins), read_counts(bins)
    found, sums = read_spots(joined), read_counts(joined)
    assert found.ids == sums.ids
    assert sums.genes == counts.genes
    wanted: dict[tuple[int, int], np.ndarray] = {}
    for (x, y), row in zip((spots.array + 0.5) * 8 // bin_um, counts.matrix.toarray(), strict=True):
        wanted[int(x), int(y)] = wanted.get((int(x), int(y)), 0) + row
    assert len(wanted) == len(found)
    for (x, y), row in zip(found.array.astype(int).tolist(), sums.matrix.toarray(), strict=True):
        assert np.array_equal(row, wanted[x, y])
    # The middle of the square is where the bins' own positions say, also if only some of it was measured.
    assert np.abs(found.xy - ((found.array + 0.5) * bin_um / 8 - 0.5) * 8 / 0.25 - 400).max() < 1e-6
    assert found.pitch_um == bin_um
    assert found.mpp == 0.25
    if bin_um < 40:
        assert mpp_from_pitch(found).mpp == pytest.approx(0.25, rel=1e-6)
    assert any("no whole number of bins" in note for note in found.notes) == (bin_um == 100)


def test_bins_beside_the_tissue_are_left_out_of_sums(tmp_path: Path) -> None:
    layouts.write_visium_hd(tmp_path, side=10)
    path = next(tmp_path.rglob("tissue_positions.parquet"))
    table = pl.read_parquet(path, glob=False)
    beside = (pl.col("array_row") < 3) | (pl.col("array_col") == 9)
    table.with_columns(in_tissue=pl.when(beside).then(0).otherwise(1)).write_parquet(path)
    bins, joined = one(tmp_path, None), one(tmp_path, 32)
    kept = read_counts(bins).rows_of(read_spots(bins).ids)
    assert len(kept.ids) == 7 * 9
    assert read_counts(joined).matrix.sum() == kept.matrix.sum()
    spots = read_spots(joined)
    assert spots.ids == read_counts(joined).ids
    assert any("beside the tissue" in note for note in spots.notes)
    assert np.abs(spots.xy - ((spots.array + 0.5) * 4 - 0.5) * 32 - 400).max() < 1e-6


def test_the_finest_bins_are_joined(tmp_path: Path) -> None:
    for bin_um in (16, 8, 2):
        layouts.write_visium_hd(tmp_path / str(bin_um), bin_um=bin_um, side=48 // bin_um)
    binned = tmp_path / "8" / "outs" / "binned_outputs"
    for bin_um in (16, 2):
        source = tmp_path / str(bin_um) / "outs" / "binned_outputs" / f"square_{bin_um:03d}um"
        shutil.move(source, binned / source.name)
    assert "square_002um" in str(one(tmp_path / "8", 24).spots)
    assert "square_008um" in str(one(tmp_path / "8", None).spots)
    assert "square_016um" in str(one(binned / "square_016um", 32).spots)
    assert len(read_spots(one(tmp_path / "8", 24))) == 4


def test_bins_that_cannot_be_joined(tmp_path: Path) -> None:
    layouts.write_visium_hd(tmp_path)
    with pytest.raises(SpotsError, match="bins of 8 um, and they cannot be joined to squares of 4 um"):
        read_spots(one(tmp_path, 4))
    path = next(tmp_path.rglob("scalefactors_json.json"))
    path.write_text(json.dumps({"microns_per_pixel": 0.25}))
    with pytest.raises(SlideError, match="does not say how large its bins are"):
        read_spots(one(tmp_path, 16))


def test_bins_in_one_line_have_no_squares(tmp_path: Path) -> None:
    layouts.write_visium_hd(tmp_path)
    path = next(tmp_path.rglob("tissue_positions.parquet"))
    pl.read_parquet(path, glob=False).filter(pl.col("array_row") == 3).write_parquet(path)
    with pytest.raises(SpotsError, match="lie in one line"):
        read_spots(one(tmp_path, 16))


def test_normalised_values_are_not_summed(tmp_path: Path) -> None:
    layouts.write_visium_hd(tmp_path)
    with pytest.raises(CountsError, match="only counts can be summed"):
        read_counts(replace(one(tmp_path, 16), values="lognorm"))


def test_a_row_of_a_reader_that_joins_nothing(tmp_path: Path) -> None:
    layouts.write_visium(tmp_path / "S")
    (slide,) = open_cohort(f"visium:{tmp_path / 'S'}").slides
    with pytest.raises(SpotsError, match=r"column bin_um \(100\) is for the readers .*visium-hd"):
        read_spots(replace(slide, bin_um=100.0))
    (tmp_path / "cohort.csv").write_text("slide,spots,reader\nS,s.csv,visium\n")
    with pytest.raises(CohortError, match=r"--bin-um 100 is for the readers .*visium-hd"):
        open_cohort(str(tmp_path / "cohort.csv"), bin_um=100)
    (tmp_path / "cohort.csv").write_text("slide,bin_um\nS,many\n")
    with pytest.raises(CohortError, match="bin_um is 'many'; give micrometres"):
        open_cohort(str(tmp_path / "cohort.csv"))
