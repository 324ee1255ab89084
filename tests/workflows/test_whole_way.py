"""Every reader goes the whole way: cohort, check, extract, fit-head, predict, by the commands."""

import sys
from pathlib import Path

import anndata
import numpy as np
import polars as pl
import pytest
from typer.testing import CliRunner

from mmap_st.cli import app
from mmap_st.data.readers import READERS

sys.path.insert(0, str(Path(__file__).parents[1] / "data"))
import layouts

ENCODER = ("--encoder", "efficientnet-lite0")


def mmap(*words: object, status: int = 0) -> str:
    result = CliRunner().invoke(app, [str(word) for word in words])
    assert result.exit_code == status, (words, result.output, result.exception)
    return result.output


def whole_way(
    source: str, folder: Path, *options: object, mpp: str = "0.5,1", state: str = "ok"
) -> anndata.AnnData:
    """From a layout to predictions of its first slide."""
    cohort, store = folder / "cohort.csv", folder / "f.zarr"
    mmap("cohort", source, "--out", cohort, *options)
    status = 0 if state in ("ok", "no tissue") else 1
    shown = mmap("cohort", "check", cohort, "--pictures", folder / "pictures", status=status)
    assert f" {state} " in shown
    assert list((folder / "pictures").glob("*.jpg"))
    mmap("extract", cohort, store, *ENCODER, "--mpp", mpp)
    mmap("fit-head", cohort, store, *ENCODER, "--head", "ridge", "--genes", "all", "--out", folder / "run")
    mmap("predict", folder / "run", store, "--out", folder / "predicted")
    found = anndata.read_h5ad(sorted((folder / "predicted").glob("*.h5ad"))[0])
    assert np.isfinite(found.X).all()
    return found


def write_her2st(root: Path) -> None:
    place, xy = layouts.st_tables()
    for folder in ("ST-cnts", "ST-spotfiles"):
        (root / folder).mkdir(parents=True)
    (root / "ST-cnts" / "A1.tsv").write_text(layouts.st_counts(place))
    rows = [f"{x}\t{y}\t{px}\t{py}\t1" for (x, y), (px, py) in zip(place, xy, strict=True)]
    text = "\n".join(["x\ty\tpixel_x\tpixel_y\tselected", *rows])
    (root / "ST-spotfiles" / "A1_selection.tsv").write_text(text)
    layouts.picture(root / "ST-imgs" / "A" / "A1" / "a.jpg", 1800, 1800)


def write_h5ad(root: Path) -> None:
    root.mkdir()
    adata = layouts.make_adata()
    adata.uns["spatial"] = {"S": {"metadata": {"chemistry_description": "Spatial 3' v1"}, "scalefactors": {}}}
    adata.write_h5ad(root / "S.h5ad")
    layouts.picture(root / "S.png", *(int(v) + 300 for v in adata.obsm["spatial"].max(axis=0)))


def write_table(root: Path) -> None:
    root.mkdir()
    place, xy = layouts.st_tables()
    ids = [f"s{i}" for i in range(len(place))]
    spots = {"id": ids, "x": xy[:, 0], "y": xy[:, 1]}
    pl.DataFrame(spots).write_parquet(root / "S_spots.parquet")
    values = layouts.counts(len(ids)).astype(int).T
    pl.DataFrame({"id": ids, **dict(zip(layouts.GENES, values, strict=True))}).write_csv(
        root / "S_counts.csv"
    )
    layouts.write_tiff(root / "S.tif", 1800, 1800, 0.7)


def write_spatialdata(root: Path) -> None:
    root.mkdir()
    layouts.write_spatialdata(root / "S.zarr")


WRITERS = {
    "her2st": write_her2st,
    "st": layouts.write_cscc,
    "visium": layouts.write_visium,
    "visium-hd": layouts.write_visium_hd,
    "xenium": layouts.write_xenium,
    "hest": lambda root: layouts.write_hest(root, embedded=0.5),
    "h5ad": write_h5ad,
    "spatialdata": write_spatialdata,
    "table": write_table,
}


@pytest.mark.parametrize("reader", list(WRITERS))
def test_a_layout_goes_the_whole_way(tmp_path: Path, reader: str) -> None:
    image = WRITERS[reader](tmp_path / "data")
    given = ("--image", image) if reader in ("visium", "visium-hd") else ()
    # Their images are small, and of a noise that shows no tissue.
    state = "no tissue" if reader in ("visium-hd", "spatialdata") else "ok"
    found = whole_way(f"{reader}:{tmp_path / 'data'}", tmp_path, *given, state=state)
    assert set(found.var_names) == set(layouts.GENES)
    assert found.n_obs in (25, 36, 144)
    assert found.uns["mmap"]["normalisation"] == "log1p-10k"


def test_every_reader_has_a_way() -> None:
    missing = set(READERS) - {*WRITERS, "images"}
    assert not missing, f"write a function for WRITERS that makes files of {missing}"
    listed = mmap("cohort", "--readers")
    assert all(name in listed for name in READERS)


def test_a_slide_without_spots_gets_a_grid_and_predictions(tmp_path: Path, shared: Path) -> None:
    write_table(tmp_path / "data")
    whole_way(f"table:{tmp_path / 'data'}", tmp_path)
    svs = shared / "data" / "wsi" / "CMU-1-Small-Region.svs"
    store = tmp_path / "new.zarr"
    words = (f"images:{svs}", store, *ENCODER, "--mpp", "0.5,1", "--spots", "grid:100")
    mmap("extract", *words, "--preview", tmp_path / "preview")
    assert (tmp_path / "preview" / "CMU-1-Small-Region.jpg").is_file()
    assert not store.exists()
    mmap("extract", *words)
    mmap("predict", tmp_path / "run", store, "--out", tmp_path / "out")
    found = anndata.read_h5ad(tmp_path / "out" / "CMU-1-Small-Region.h5ad")
    assert 60 < found.n_obs < 200
    assert np.isfinite(found.X).all()


def test_the_real_visium_files_open_and_go_the_whole_way(tmp_path: Path, shared: Path) -> None:
    visium = shared / "data" / "visium"
    (tmp_path / "h5ad").mkdir()
    crop = f"h5ad:{visium / 'mouse_brain_crop.h5ad'}"
    found = whole_way(crop, tmp_path / "h5ad", "--values", "lognorm")
    assert found.shape == (49, 1999)
    assert found.uns["mmap"]["normalisation"] == "lognorm-as-given"
    (tmp_path / "outs").mkdir()
    found = whole_way(
        f"visium:{visium / 'space_ranger_outs'}", tmp_path / "outs", mpp="4,8", state="black, too coarse"
    )
    assert found.n_obs == 100


def test_every_real_image_opens_or_says_what_to_do(shared: Path) -> None:
    shown = mmap("cohort", "check", f"images:{shared / 'data' / 'wsi'}", status=1)
    assert shown.count(" ok ") == 3
    assert "give them in the cohort's column mpp" in shown  # boxes.tiff: 72 dpi is no scale
    assert "convert it to 8-bit RGB" in shown  # not_tiled.tif: 16 bits of grey


def test_a_wrong_mpp_in_an_image_is_refused_until_the_cohort_says_whom_to_believe(tmp_path: Path) -> None:
    layouts.write_hest(tmp_path / "hest", mpp=0.5, embedded=5.0)
    cohort, store = tmp_path / "cohort.csv", tmp_path / "f.zarr"
    mmap("cohort", f"hest:{tmp_path / 'hest'}", "--out", cohort)
    words = (
        "extract",
        cohort,
        store,
        "--encoder",
        "timm:test_efficientnet",
        "--random-weights",
        "--mpp",
        "0.5",
    )
    shown = mmap(*words, status=1)
    for part in ("0.5 (given in the cohort)", "0.5 +-", "5 (from the image's metadata)", "mpp_from"):
        assert part in shown
    pl.read_csv(cohort).with_columns(mpp_from=pl.lit("pitch")).write_csv(cohort)
    mmap(*words)
