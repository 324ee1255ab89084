"""Inputs that look right and would be read wrongly in silence."""

import json
import sys
from dataclasses import replace
from pathlib import Path

import anndata
import numpy as np
import pandas as pd
import polars as pl
import pytest

from mmap_st.data.arrays import mpp_from_pitch
from mmap_st.data.counts import named_by_id
from mmap_st.data.readers import open_cohort, read_counts, read_spots
from mmap_st.data.readers.table import read_spot_table
from mmap_st.data.spots import Spots
from mmap_st.errors import SpotsError

sys.path.insert(0, str(Path(__file__).parents[1]))
import layouts


def write_hexagonal_table(root: Path, mpp: float) -> None:
    """A Visium sample as a plain table."""
    place = layouts.hexagon()
    xy, ids = layouts.visium_pixels(place, mpp), layouts.barcodes(len(place))
    columns = {"id": ids, "x": xy[:, 0], "y": xy[:, 1], "array_row": place[:, 0], "array_col": place[:, 1]}
    root.mkdir(parents=True, exist_ok=True)
    pl.DataFrame(columns).write_csv(root / "S_spots.csv")


def test_visiums_rows_and_columns_in_a_plain_table_are_hexagonal(tmp_path: Path) -> None:
    write_hexagonal_table(tmp_path, 0.5)
    (row,) = open_cohort(f"table:{tmp_path}").slides
    spots = replace(read_spots(row), pitch_um=100.0)
    assert mpp_from_pitch(spots).mpp == pytest.approx(0.5, rel=1e-6)


def test_an_array_that_would_be_stretched_is_not_believed() -> None:
    """Rows and columns of Visium, taken for a square array, would give a scale that is wrong by half."""
    place = layouts.hexagon()
    xy = layouts.visium_pixels(place, 0.5)
    ids = tuple(layouts.barcodes(len(place)))
    spots = Spots(ids, xy, place[:, ::-1].astype(float), pitch_um=100.0)
    assert mpp_from_pitch(spots).mpp == pytest.approx(0.5, rel=1e-6)


def test_pixels_are_taken_before_places_on_the_array(tmp_path: Path) -> None:
    path = tmp_path / "S_spots.csv"
    path.write_text("id,x,y,pixel_x,pixel_y,selected\ns1,10,15,3000,4000,1\ns2,11,15,3200,4000,1\n")
    assert read_spot_table(path).xy.tolist() == [[3000, 4000], [3200, 4000]]
    path.write_text("id,x,y,pixel_x\ns1,10,15,3000\ns2,11,15,3200\n")
    assert read_spot_table(path).xy.tolist() == [[10, 15], [11, 15]]  # half a pair is none


@pytest.mark.parametrize("form", ["index", "parquet", "unnamed", "parquet-index-is-id", "positions"])
def test_columns_that_hold_no_counts_are_no_genes(tmp_path: Path, form: str) -> None:
    ids = ["s1", "s2", "s3"]
    frame = pd.DataFrame({"id": ids, "G1": [1, 2, 3], "G2": [0, 2, 5]})
    (tmp_path / "S_spots.csv").write_text("id,x,y\ns1,1,1\ns2,2,1\ns3,1,2\n")
    if form == "index":
        frame.to_csv(tmp_path / "S_counts.csv")
    elif form == "unnamed":
        frame.assign(**{"Unnamed: 0": [7, 8, 9]}).to_csv(tmp_path / "S_counts.csv", index=False)
    elif form == "parquet":
        frame.iloc[[0, 1, 2]].set_index(pd.Index([4, 5, 6])).to_parquet(tmp_path / "S_counts.parquet")
    elif form == "parquet-index-is-id":
        frame.set_index("id").rename_axis(None).to_parquet(tmp_path / "S_counts.parquet")
    else:
        frame.assign(x=[10, 20, 30], y=1, in_tissue=1).to_csv(tmp_path / "S_counts.csv", index=False)
    table = read_counts(open_cohort(f"table:{tmp_path}")["S"])
    assert table.genes == ("G1", "G2")
    assert table.ids == tuple(ids)
    assert table.matrix.toarray().tolist() == [[1, 0], [2, 2], [3, 5]]


def test_sections_that_were_put_together_without_a_name_are_refused(tmp_path: Path) -> None:
    one, other = layouts.make_adata(), layouts.make_adata(seed=1)
    anndata.concat([one, other], index_unique="-").write_h5ad(tmp_path / "S.h5ad")
    with pytest.raises(SpotsError, match="write one file per section"):
        read_spots(open_cohort(f"h5ad:{tmp_path}")["S"])


def test_genes_without_an_id_are_not_one_gene(tmp_path: Path) -> None:
    adata = layouts.make_adata()
    ids = [*layouts.GENE_IDS[:-2], None, "7157"]
    adata.var["gene_ids"] = pd.array(ids, dtype="string")
    adata.write_h5ad(tmp_path / "S.h5ad")
    table = read_counts(open_cohort(f"h5ad:{tmp_path}")["S"])
    assert table.gene_ids == (*layouts.GENE_IDS[:-2], "", "")
    assert named_by_id(table).genes == layouts.GENE_IDS[:-2]


def test_one_section_of_stnet_under_both_prefixes(tmp_path: Path) -> None:
    layouts.write_stnet(tmp_path, "BC23209_C1", other="BT23209_C1")
    layouts.write_stnet(tmp_path, "BC23210_D2")
    one, two = open_cohort(f"st:{tmp_path}").slides
    assert (one.slide, one.patient, two.slide) == ("BC23209_C1", "BC23209", "BC23210_D2")
    assert (one.image.name, one.spots.name) == ("HE_BT23209_C1.jpg", "spots_BT23209_C1.csv.gz")
    assert len(read_spots(one)) == len(read_spots(two)) == 25


@pytest.mark.parametrize("missing", [float("nan"), None, "", "nan"])
def test_hests_missing_patients_are_nobody(tmp_path: Path, missing: object) -> None:
    layouts.write_hest(tmp_path / "hest")
    path = next((tmp_path / "hest" / "metadata").glob("*.json"))
    path.write_text(json.dumps({**json.loads(path.read_text()), "patient": missing}))
    (row,) = open_cohort(f"hest:{tmp_path / 'hest'}").slides
    assert row.patient is None


def test_a_positions_list_that_was_saved_with_a_header(tmp_path: Path) -> None:
    layouts.write_visium(tmp_path / "S1", version=1)
    (path,) = tmp_path.rglob("tissue_positions_list.csv")
    bare = read_spots(open_cohort(f"visium:{tmp_path}")["S1"])
    header = "barcode,in_tissue,array_row,array_col,pxl_row_in_fullres,pxl_col_in_fullres\n"
    path.write_text(header + path.read_text())
    headed = read_spots(open_cohort(f"visium:{tmp_path}")["S1"])
    assert headed.ids == bare.ids
    np.testing.assert_array_equal(headed.xy, bare.xy)
