"""Predictions as files of other tools, read back by these tools."""

from __future__ import annotations

import json
import stat
import subprocess
from collections.abc import Callable
from pathlib import Path

import anndata
import geopandas
import numpy as np
import polars as pl
import pytest
import spatialdata

import mmap_st as mm
from mmap_st.errors import MissingDependencyError, RequestError, SlidesLeftOutWarning
from mmap_st.report.exports.geojson import circle
from tests.conftest import Tiny

Mmap = Callable[..., "subprocess.CompletedProcess[str]"]


@pytest.fixture(scope="module")
def predictions(tiny: Tiny, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("predictions")
    mm.predict(tiny.run, tiny.store, out, slides="B1", cohort=f"her2st:{tiny.her2st}", progress=False)
    return out


@pytest.fixture
def table(predictions: Path) -> anndata.AnnData:
    return anndata.read_h5ad(predictions / "B1.h5ad")


def with_holes(table: anndata.AnnData, folder: Path) -> Path:
    """The same prediction, its first spot not predicted."""
    table.X[0] = np.nan
    folder.mkdir()
    table.write_h5ad(folder / "B1.h5ad")
    return folder


@pytest.mark.parametrize("ending", ["csv", "parquet"])
def test_tables_hold_spots_places_and_genes(ending: str, table: anndata.AnnData, tmp_path: Path) -> None:
    mm.export(with_holes(table, tmp_path / "p"), tmp_path / "out", ending, progress=False)
    read = pl.read_csv if ending == "csv" else pl.read_parquet
    found = read(tmp_path / "out" / f"B1.{ending}")
    assert found["spot"].to_list() == list(table.obs_names)
    assert np.allclose(found[["x_px", "y_px"]].to_numpy(), table.obsm["spatial"])
    assert found[table.var_names[0]].null_count() == 1
    assert np.allclose(found[list(table.var_names)].to_numpy()[1:], table.X[1:], atol=1e-5)
    assert set(table.obs) <= set(found.columns)
    for layer in ("spread", "measured"):
        values = read(tmp_path / "out" / f"B1_{layer}.{ending}")
        assert np.allclose(values[list(table.var_names)].to_numpy(), table.layers[layer], atol=1e-5)


def test_a_gene_that_is_called_as_a_column_is_kept(table: anndata.AnnData, tmp_path: Path) -> None:
    table.var_names = ["spot", "x_px", "valid", *table.var_names[3:]]
    mm.export(with_holes(table, tmp_path / "p"), tmp_path / "out", "csv", progress=False)
    found = pl.read_csv(tmp_path / "out" / "B1.csv")
    assert {"gene spot", "gene x_px", "gene valid"} <= set(found.columns)


def test_geojson_is_read_by_geopandas_and_is_as_qupath_has_it(table: anndata.AnnData, tmp_path: Path) -> None:
    genes = [str(gene) for gene in table.var_names[:3]]
    folder = with_holes(table, tmp_path / "p")
    mm.export(folder, tmp_path / "out", "geojson", genes=genes, progress=False)
    path = tmp_path / "out" / "B1.geojson"
    content = json.loads(path.read_text("utf-8"), parse_constant=pytest.fail)
    assert content["type"] == "FeatureCollection"
    first, second = content["features"][:2]
    assert first["properties"]["objectType"] == "detection"
    assert first["properties"]["name"] == table.obs_names[0]
    assert not set(genes) & set(first["properties"]["measurements"])  # it was not predicted
    measurements = second["properties"]["measurements"]
    for number, gene in enumerate(genes):
        assert measurements[gene] == pytest.approx(table.X[1, number], rel=1e-4)
        assert measurements[f"{gene} (spread)"] == pytest.approx(table.layers["spread"][1, number], rel=1e-4)
        assert measurements[f"{gene} (measured)"] == pytest.approx(
            table.layers["measured"][1, number], rel=1e-4
        )
    shapes = geopandas.read_file(path).set_crs(None, allow_override=True)  # pixels, not degrees
    assert len(shapes) == len(table)
    assert shapes.is_valid.all()
    centres = np.column_stack([shapes.centroid.x, shapes.centroid.y])
    assert np.allclose(centres, table.obsm["spatial"], atol=0.02)
    diameter = table.uns["mmap"]["spot_diameter_px"]
    assert np.allclose(shapes.area, np.pi * diameter**2 / 4, rtol=0.02)
    # The same spot has the same id in every export.
    again = mm.export(folder, tmp_path / "again", "geojson", genes=genes[:1], progress=False)
    ids = [feature["id"] for feature in json.loads(again.written[0].read_text("utf-8"))["features"]]
    assert ids == [feature["id"] for feature in content["features"]]
    assert len(set(ids)) == len(ids)


def test_rings_are_closed_and_counter_clockwise() -> None:
    ring = np.array(circle(np.array([10.0, 20.0]), 4.0))
    assert np.array_equal(ring[0], ring[-1])
    x, y = ring.T
    assert (x[:-1] * y[1:] - x[1:] * y[:-1]).sum() > 0
    assert np.hypot(x - 10, y - 20) == pytest.approx(2, abs=0.01)


def test_geojson_without_genes_has_those_that_are_predicted_best(predictions: Path, tmp_path: Path) -> None:
    mm.export(predictions, tmp_path, "geojson", progress=False)
    (feature, *_) = json.loads((tmp_path / "B1.geojson").read_text("utf-8"))["features"]
    assert len([name for name in feature["properties"]["measurements"] if name.endswith("(measured)")]) == 10


def test_spatialdata_reads_image_spots_and_table(
    table: anndata.AnnData, predictions: Path, tmp_path: Path
) -> None:
    mm.export(predictions, tmp_path, "spatialdata", progress=False)
    assert [path.name for path in tmp_path.iterdir()] == ["B1.zarr"]
    found = spatialdata.read_zarr(tmp_path / "B1.zarr")
    assert set(found.coordinate_systems) == {"global", "micrometers"}
    spots, expression, image = found["spots"], found["expression"], found["image"]
    assert np.allclose(np.column_stack([spots.geometry.x, spots.geometry.y]), table.obsm["spatial"])
    assert np.allclose(spots["radius"], table.uns["mmap"]["spot_diameter_px"] / 2)
    assert np.array_equal(expression.X, table.X)
    assert np.array_equal(expression.layers["spread"], table.layers["spread"])
    # In every system the spots lie on the image, and micrometres are micrometres.
    mpp = table.uns["mmap"]["source_mpp"]
    for system, scale in (("global", 1.0), ("micrometers", mpp)):
        across = spatialdata.get_extent(image, coordinate_system=system)
        of_spots = spatialdata.get_extent(spots, coordinate_system=system)
        assert all(across[axis][0] <= of_spots[axis][0] for axis in "xy")
        assert all(of_spots[axis][1] <= across[axis][1] for axis in "xy")
        assert of_spots["x"][1] == pytest.approx(
            scale * (table.obsm["spatial"][:, 0].max() + table.uns["mmap"]["spot_diameter_px"] / 2)
        )
    matched, annotating = spatialdata.join_spatialelement_table(
        sdata=found, spatial_element_names="spots", table_name="expression", how="inner"
    )
    assert len(annotating) == len(matched["spots"]) == len(table)


def test_a_prediction_without_an_image_or_a_scale_is_spots_and_table(
    table: anndata.AnnData, tmp_path: Path
) -> None:
    del table.uns["spatial"], table.uns["mmap"]["source_mpp"], table.uns["mmap"]["image"]
    mm.export(with_holes(table, tmp_path / "p"), tmp_path / "out", "spatialdata", progress=False)
    found = spatialdata.read_zarr(tmp_path / "out" / "B1.zarr")
    assert found.coordinate_systems == ["global"]
    assert list(found.images) == []


def test_what_is_there_is_not_replaced_without_a_word(predictions: Path, tmp_path: Path) -> None:
    (tmp_path / "B1_spread.csv").write_text("mine")
    with pytest.raises(RequestError, match=r"B1_spread.csv is there already; give --overwrite"):
        mm.export(predictions, tmp_path, "csv,spatialdata", progress=False)
    assert [path.name for path in tmp_path.iterdir()] == ["B1_spread.csv"]
    for _ in range(2):
        done = mm.export(predictions, tmp_path, "csv,spatialdata", overwrite=True, progress=False)
    assert sorted(path.name for path in done.written) == [
        "B1.csv",
        "B1.zarr",
        "B1_measured.csv",
        "B1_spread.csv",
    ]
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(path.name for path in done.written)
    for path in done.written:
        wanted = 0o755 if path.is_dir() else 0o644
        assert stat.S_IMODE(path.stat().st_mode) == wanted


@pytest.mark.parametrize(
    ("formats", "genes", "sentence"),
    [
        ("xlsx", None, "--format xlsx: give csv, parquet, geojson or spatialdata, or several"),
        ("csv", "NOSUCH", "nothing can be written: NOSUCH is not on the panel"),
        ("csv", "hvg:5", "--genes hvg:5"),
    ],
)
def test_requests_that_cannot_be_met_are_one_sentence(
    formats: str, genes: str | None, sentence: str, predictions: Path, tmp_path: Path
) -> None:
    with pytest.raises(RequestError, match=sentence):
        mm.export(predictions, tmp_path / "out", formats, genes=genes, progress=False)


def test_without_spatialdata_a_sentence_says_what_to_install(
    predictions: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(__import__("sys").modules, "spatialdata", None)
    with pytest.raises(MissingDependencyError, match=r"pip install mmap-st\[spatialdata\]"):
        mm.export(predictions, tmp_path / "out", "spatialdata", progress=False)
    assert not (tmp_path / "out").exists()


def test_one_damaged_slide_does_not_stop_the_others(predictions: Path, tmp_path: Path) -> None:
    (tmp_path / "p").mkdir()
    (tmp_path / "p" / "A1.h5ad").write_bytes(b"no prediction")
    (tmp_path / "p" / "B1.h5ad").write_bytes((predictions / "B1.h5ad").read_bytes())
    with pytest.warns(SlidesLeftOutWarning, match="A1"):
        done = mm.export(tmp_path / "p", tmp_path / "out", "parquet", progress=False)
    assert list(done.failed) == ["A1"]
    assert (tmp_path / "out" / "B1.parquet").is_file()


def test_one_prediction_is_exported_and_shown_by_its_own_file(predictions: Path, tmp_path: Path) -> None:
    done = mm.export(predictions / "B1.h5ad", tmp_path / "out", "csv", progress=False)
    assert (tmp_path / "out" / "B1.csv") in done.written
    page = tmp_path / "page.html"
    assert mm.write_report(predictions / "B1.h5ad", page, progress=False).written == [page]


def test_a_run_that_is_not_there_is_told_from_one_without_predictions(tmp_path: Path) -> None:
    for call in (mm.export, mm.write_report):
        more = ("csv",) if call is mm.export else ()
        with pytest.raises(RequestError, match=r"nowhere does not exist; name a run"):
            call(tmp_path / "nowhere", tmp_path / "out", *more, progress=False)
        with pytest.raises(RequestError, match="holds no predictions"):
            call(tmp_path, tmp_path / "out", *more, progress=False)


def test_prototypes_of_predictions_without_their_head(tiny: Tiny, predictions: Path, tmp_path: Path) -> None:
    for place in (predictions, predictions / "B1.h5ad"):
        with pytest.raises(RequestError, match=r"name the run of the head, or leave --store out"):
            mm.write_report(place, tmp_path / "figures", store=tiny.store, progress=False)
    assert not (tmp_path / "figures").exists()


def test_the_command(predictions: Path, tmp_path: Path, mmap: Mmap) -> None:
    done = mmap("export", predictions, "--format", "csv,geojson", "--out", tmp_path / "o")
    assert done.returncode == 0, done.stderr
    assert {Path(line).name for line in done.stdout.splitlines()} == {
        "B1.csv", "B1_spread.csv", "B1_measured.csv", "B1.geojson",
    }  # fmt: skip
    done = mmap("export", predictions, "--format", "csv", "--out", tmp_path / "o")
    assert done.returncode == 2
    assert "give --overwrite" in done.stderr
