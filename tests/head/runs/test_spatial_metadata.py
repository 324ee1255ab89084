"""Predictions as scanpy and squidpy take them: over the tissue, with the array's rows and columns."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from pathlib import Path

import anndata
import matplotlib
import numpy as np
import polars as pl
import pytest
from matplotlib import pyplot as plt
from PIL import Image

import mmap_st as mm
from mmap_st.head.runs.spatial_metadata import library_name, spot_diameter
from mmap_st.report import map_of
from tests.conftest import Tiny


@pytest.fixture(scope="module")
def predicted(tiny: Tiny, tmp_path_factory: pytest.TempPathFactory) -> anndata.AnnData:
    out = tmp_path_factory.mktemp("predicted")
    cohort = f"her2st:{tiny.her2st}"
    path = mm.predict(tiny.run, tiny.store, out, slides=["B1"], cohort=cohort, progress=False).written["B1"]
    return anndata.read_h5ad(path)


@pytest.fixture
def no_screen() -> Iterator[None]:
    matplotlib.use("agg")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield
    plt.close("all")


def test_the_thumbnail_lies_behind_the_spots(predicted: anndata.AnnData, tiny: Tiny) -> None:
    library = predicted.uns["spatial"]["B1"]
    (image,) = (tiny.her2st / "ST-imgs").rglob("*B1*.jpg")
    with Image.open(image) as opened:
        factor = library["scalefactors"]["tissue_hires_scalef"]
        assert library["images"]["hires"].shape == (
            round(opened.height * factor),
            round(opened.width * factor),
            3,
        )
    # The thumbnail is darker where spots are than at its corner, which is glass.
    x, y = (predicted.obsm["spatial"] * factor).astype(int).T
    hires = library["images"]["hires"].mean(axis=2)
    assert hires[y, x].mean() < hires[:4, :4].mean()
    background = map_of(predicted).background
    assert background is not None
    assert np.array_equal(background.pixels, library["images"]["hires"])


def test_scanpy_draws_them(predicted: anndata.AnnData, no_screen: None) -> None:
    import scanpy

    gene = predicted.var_names[0]
    scanpy.pl.spatial(predicted, color=[gene, "on_tissue"], show=False)
    axes = plt.gcf().axes[0]
    assert len(axes.images) == 1  # the tissue
    (spots,) = axes.collections
    assert np.allclose(np.sort(spots.get_array()), np.sort(predicted[:, gene].X.ravel()))


def test_squidpy_draws_them_and_finds_neighbours(predicted: anndata.AnnData, no_screen: None) -> None:
    import squidpy

    squidpy.pl.spatial_scatter(predicted, color=predicted.var_names[0])
    assert len(plt.gcf().axes[0].images) == 1
    table = predicted.copy()
    squidpy.gr.spatial_neighbors(table, coord_type="grid", n_neighs=4)
    neighbours = table.obsp["spatial_connectivities"].tocoo()
    places = table.obs[["array_row", "array_col"]].to_numpy()
    apart = np.abs(places[neighbours.row] - places[neighbours.col]).sum(axis=1)
    assert np.mean(apart == 1) > 0.9


def test_spots_say_what_share_of_their_windows_is_inside(predicted: anndata.AnnData) -> None:
    assert predicted.obs["in_bounds"].between(0, 1).all()
    assert predicted.obs["in_bounds"].max() == 1


def test_without_an_image_there_is_no_picture(tiny: Tiny, no_screen: None) -> None:
    import scanpy

    table = mm.load_head(tiny.run).predict(tiny.store, "B1", progress=False)
    assert "spatial" not in table.uns  # scanpy would look for a picture in it
    width = table.uns["mmap"]["spot_diameter_px"]
    scanpy.pl.spatial(table, color=table.var_names[0], spot_size=width, show=False)
    assert not plt.gcf().axes[0].images


@pytest.mark.parametrize("slide", ["a/b", "50% d'été"])
def test_any_name_of_a_slide_is_a_library(slide: str, tiny: Tiny, tmp_path: Path) -> None:
    """HDF5 would make two groups of a name with a slash."""
    run = mm.load_head(tiny.run)
    table = mm.read_cohort(f"her2st:{tiny.her2st}")["B1"]
    cohort = pl.DataFrame(
        {"slide": slide, "image": str(table.image), "spots": str(table.spots), "reader": "her2st"}
    )
    store = mm.embed(cohort, tmp_path / "s.zarr", encoder=run.encoder, mpp=run.mpps, progress=False)
    (path,) = mm.predict(run, store, tmp_path / "p", cohort=cohort, progress=False).written.values()
    again = anndata.read_h5ad(path)
    assert list(again.uns["spatial"]) == [library_name(slide)]
    assert again.uns["spatial"][library_name(slide)]["images"]["hires"].ndim == 3
    assert again.uns["mmap"]["slide"] == slide


@pytest.mark.parametrize(
    ("pitch_um", "fills", "expected_um"),
    [
        (100, False, 55),
        (200, False, 100),
        (195, False, 100),
        (100, True, 100),
        (8, False, 8),
        (300, False, 300),
    ],
)
def test_the_width_of_spots(pitch_um: float, fills: bool, expected_um: float) -> None:
    x, y = np.meshgrid(np.arange(5), np.arange(5))
    xy = np.column_stack([x.ravel(), y.ravel()]) * pitch_um / 0.5
    assert spot_diameter(xy, 0.5, fills=fills) == pytest.approx(expected_um / 0.5)


def test_the_width_of_spots_without_scale_or_neighbours() -> None:
    assert spot_diameter(np.array([[0.0, 0.0], [0.0, 100.0]]), None) == pytest.approx(55)
    assert spot_diameter(np.array([[5.0, 5.0]]), 0.5) == pytest.approx(110)
