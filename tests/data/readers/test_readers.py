"""Each layout is read as what it is: ids, positions, counts, scale; and refused in one sentence where it is not."""

import sys
from dataclasses import replace
from pathlib import Path

import anndata
import numpy as np
import polars as pl
import pytest

from mmap_st.data.arrays import mpp_from_pitch
from mmap_st.data.cohort import read_cohort, write_cohort
from mmap_st.data.counts import Counts
from mmap_st.data.readers import READERS, open_cohort, read_counts, read_spots
from mmap_st.errors import CohortError, CountsError, MissingDependencyError, SpotsError

sys.path.insert(0, str(Path(__file__).parents[1]))
import layouts


def dense(table: Counts) -> dict[str, list[float]]:
    return dict(zip(table.ids, table.matrix.toarray().tolist(), strict=True))


def expected(ids: list[str]) -> dict[str, list[float]]:
    return dict(zip(ids, layouts.counts(len(ids)).tolist(), strict=True))


@pytest.mark.parametrize("version", [1, 2])
@pytest.mark.parametrize("matrix", ["h5", "mtx"])
def test_visium_in_all_its_forms(tmp_path: Path, version: int, matrix: str) -> None:
    image = layouts.write_visium(tmp_path / "S1", mpp=0.4, version=version, matrix=matrix)
    for source in (tmp_path / "S1" / "outs", tmp_path / "S1", tmp_path):
        row = open_cohort(f"visium:{source}", image=image)["S1"]
        spots, table = read_spots(row), read_counts(row)
        assert spots.ids == table.ids
        place = layouts.hexagon()
        ids = layouts.barcodes(len(place))
        xy = dict(zip(ids, layouts.visium_pixels(place, 0.4).tolist(), strict=True))
        np.testing.assert_allclose(spots.xy, [xy[name] for name in spots.ids])
        assert dense(table) == expected(ids)
        assert table.genes == layouts.GENES
        assert table.gene_ids == layouts.GENE_IDS
        assert (spots.positions_without_counts, spots.counts_without_position) == (1, 0)
        estimate = mpp_from_pitch(spots)
        assert estimate is not None
        assert estimate.mpp == pytest.approx(0.4, rel=1e-6)


def test_visium_with_the_hires_image_alone_scales_positions_and_says_so(tmp_path: Path) -> None:
    layouts.write_visium(tmp_path / "S1", mpp=0.5, hires=0.2)
    cohort = open_cohort(f"visium:{tmp_path}")
    assert cohort["S1"].image.name == "tissue_hires_image.png"
    write_cohort(cohort, tmp_path / "cohort.csv")
    row = read_cohort(tmp_path / "cohort.csv")["S1"]
    spots = read_spots(row)
    full = read_spots(replace(row, scale=None))
    np.testing.assert_allclose(spots.xy, full.xy * 0.2)
    assert mpp_from_pitch(spots).mpp == pytest.approx(2.5, rel=1e-6)
    assert any("0.2" in note for note in spots.notes)
    assert any("name the image that Space Ranger was given with --image" in note for note in spots.notes)


def test_visium_leaves_out_features_that_are_no_genes(tmp_path: Path) -> None:
    ids = layouts.barcodes(3)
    layouts.write_10x_h5(tmp_path / "m.h5", ids, layouts.counts(3), antibody=True)
    row = replace(open_cohort_row(tmp_path), counts=tmp_path / "m.h5")
    assert read_counts(row).genes == layouts.GENES[:-1]


def open_cohort_row(tmp_path: Path):
    layouts.write_visium(tmp_path / "S1")
    return open_cohort(f"visium:{tmp_path}")["S1"]


def test_visium_without_scanpy_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    row = open_cohort_row(tmp_path)
    monkeypatch.setitem(sys.modules, "scanpy", None)
    with pytest.raises(MissingDependencyError, match=r"pip install 'mmap-st\[visium\]'"):
        read_counts(row)


def test_visium_hd_bins_of_any_size(tmp_path: Path) -> None:
    image = layouts.write_visium_hd(tmp_path / "S1", bin_um=16, mpp=0.3)
    row = open_cohort(f"visium-hd:{tmp_path / 'S1' / 'outs'}", image=image)["S1"]
    spots = read_spots(row)
    assert spots.technology == "Visium HD 16 um"
    assert spots.mpp == 0.3
    assert mpp_from_pitch(spots).mpp == pytest.approx(0.3, rel=1e-6)
    assert dense(read_counts(row)) == expected(list(spots.ids))
    layouts.write_visium_hd(tmp_path / "S1", bin_um=2, mpp=0.3)
    with pytest.raises(CohortError, match=r"2 bin sizes \(square_002um, square_016um\)"):
        open_cohort(f"visium-hd:{tmp_path / 'S1'}")
    layouts.write_visium_hd(tmp_path / "S1", bin_um=8, mpp=0.3)
    (usual,) = open_cohort(f"visium-hd:{tmp_path}").slides
    assert (usual.slide, usual.counts.parent.name) == ("S1", "square_008um")
    two = tmp_path / "S1" / "outs" / "binned_outputs" / "square_002um"
    assert read_spots(open_cohort(f"visium-hd:{two}")["S1"]).technology == "Visium HD 2 um"


@pytest.mark.parametrize("flat", [False, True])
def test_hest_takes_its_own_estimate_of_the_scale(tmp_path: Path, flat: bool) -> None:
    image = layouts.write_hest(tmp_path / "hest", mpp=0.5, embedded=5.0, flat=flat)
    row = open_cohort(f"hest:{tmp_path / 'hest'}")["TENX1"]
    assert (row.mpp, row.pitch_um, row.image) == (0.5, 100.0, image)
    assert row.patient == "A study: Patient 1"
    spots = read_spots(row)
    assert mpp_from_pitch(spots).mpp == pytest.approx(0.5, rel=1e-6)
    assert dense(read_counts(row)) == expected(list(spots.ids))


def test_anndata_with_counts_in_x_in_a_layer_or_in_raw(tmp_path: Path) -> None:
    adata = layouts.make_adata()
    raw = adata.X.toarray()
    ids = list(adata.obs_names)
    adata.write_h5ad(tmp_path / "x.h5ad")
    layer = adata.copy()
    layer.layers["counts"], layer.X = adata.X, layouts.lognorm(raw)
    layer.write_h5ad(tmp_path / "layer.h5ad")
    kept = adata.copy()
    kept.raw = adata
    kept.X = layouts.lognorm(raw)
    kept[:, :3].copy().write_h5ad(tmp_path / "raw.h5ad")
    cohort = open_cohort(f"h5ad:{tmp_path}")
    assert cohort.names == ("layer", "raw", "x")
    for row in cohort.slides:
        table = read_counts(row)
        assert table.genes == layouts.GENES, row.slide  # raw has more genes than X
        assert dense(table) == expected(ids)
        assert read_spots(row).technology == "Visium"


def test_log_normalised_values_are_refused_unless_they_are_wanted(tmp_path: Path) -> None:
    adata = layouts.make_adata()
    values = layouts.lognorm(adata.X.toarray())
    adata.X = values
    adata.write_h5ad(tmp_path / "s.h5ad")
    row = open_cohort(f"h5ad:{tmp_path / 's.h5ad'}")["s"]
    with pytest.raises(CountsError, match=r"holds no counts, .*: X holds values such as .*--values lognorm"):
        read_counts(row)
    wanted = open_cohort(f"h5ad:{tmp_path / 's.h5ad'}", values="lognorm")["s"]
    table = read_counts(wanted)
    assert table.values == "lognorm"
    np.testing.assert_array_equal(table.matrix.toarray(), values)
    adata.X = layouts.counts(adata.n_obs)
    adata.write_h5ad(tmp_path / "s.h5ad")
    with pytest.raises(CountsError, match="these are counts; leave out --values lognorm"):
        read_counts(wanted)


@pytest.mark.parametrize(
    ("change", "part"),
    [
        (lambda a: a.obsm.pop("spatial"), "no obsm\\['spatial'\\]"),
        (lambda a: a.obsm.__setitem__("spatial", np.full((a.n_obs, 2), np.nan)), "without a finite position"),
        (lambda a: a.obsm.__setitem__("spatial", np.zeros((a.n_obs, 1))), "shape"),
        (lambda a: a.obsm.__setitem__("spatial", np.arange(3.0 * a.n_obs).reshape(-1, 3)), "3 dimensions"),
        (lambda a: a.uns.__setitem__("spatial", {"a": {}, "b": {}}), "2 sections"),
        (lambda a: a.obs.__setattr__("index", ["x"] * a.n_obs), "not unique"),
    ],
)
def test_anndata_whose_spots_cannot_be_used(tmp_path: Path, change, part: str) -> None:
    adata = layouts.make_adata()
    change(adata)
    adata.write_h5ad(tmp_path / "s.h5ad")
    with pytest.raises(SpotsError, match=part):
        read_spots(open_cohort(f"h5ad:{tmp_path}")["s"])


def test_anndata_without_array_coordinates_takes_the_scale_from_neighbours(tmp_path: Path) -> None:
    adata = layouts.make_adata(mpp=0.8)
    del adata.obs["array_row"], adata.obs["array_col"]
    adata.write_h5ad(tmp_path / "s.h5ad")
    row = open_cohort(f"h5ad:{tmp_path}")["s"]
    assert mpp_from_pitch(read_spots(row)) is None  # nothing says how far the spots are apart
    assert mpp_from_pitch(read_spots(replace(row, pitch_um=100.0))).mpp == pytest.approx(0.8, rel=1e-6)


def test_cscc_and_stnet_in_their_own_forms(tmp_path: Path) -> None:
    layouts.write_cscc(tmp_path / "cscc")
    layouts.write_cscc(tmp_path / "cscc", "P10_ST_rep3", "GSM4284327")
    layouts.write_stnet(tmp_path / "stnet")
    cscc = open_cohort(f"st:{tmp_path / 'cscc'}")
    assert [(s.slide, s.patient) for s in cscc.slides] == [("P10_ST_rep3", "P10"), ("P2_ST_rep1", "P2")]
    stnet = open_cohort(f"st:{tmp_path / 'stnet'}")
    assert [(s.slide, s.patient) for s in stnet.slides] == [("BC23209_C1", "BC23209")]
    place, xy = layouts.st_tables()
    for row in (cscc["P2_ST_rep1"], stnet["BC23209_C1"]):
        spots, table = read_spots(row), read_counts(row)
        assert row.image is not None
        assert spots.ids == tuple(f"{x}x{y}" for x, y in place)
        np.testing.assert_allclose(spots.xy, xy, atol=0.01)
        assert mpp_from_pitch(spots).mpp == pytest.approx(0.7, rel=1e-4)
        assert dense(table) == expected(list(spots.ids))
    assert read_counts(stnet["BC23209_C1"]).genes == layouts.GENE_IDS  # versions are left out


@pytest.mark.parametrize("transposed", [False, True])
def test_an_alignment_places_the_spots_of_a_count_table(tmp_path: Path, transposed: bool) -> None:
    place, _ = layouts.st_tables()
    (tmp_path / "S_stdata.tsv").write_text(layouts.st_counts(place))
    matrix = np.array([[280.0, 3.0, 0.0], [-3.0, 280.0, 0.0], [-150.0, -90.0, 1.0]])
    rows = matrix.T if transposed else matrix
    (tmp_path / "S_alignment.txt").write_text(" ".join(f"{v:g}" for v in rows.ravel()))
    spots = read_spots(open_cohort(f"st:{tmp_path}")["S"])
    np.testing.assert_allclose(spots.xy[0], [280 - 3 - 150, 3 + 280 - 90])
    assert mpp_from_pitch(spots).mpp == pytest.approx(200 / np.hypot(280, 3), rel=1e-6)


def test_st_tables_with_spots_in_columns_are_turned(tmp_path: Path) -> None:
    layouts.write_cscc(tmp_path)
    row = open_cohort(f"st:{tmp_path}")["P2_ST_rep1"]
    upright = read_counts(row)
    table = pl.read_csv(row.counts, separator="\t")
    turned = table.drop("").transpose(include_header=True, header_name="gene", column_names=list(upright.ids))
    (tmp_path / "T_stdata.tsv").write_text(turned.write_csv(separator="\t"))
    found = read_counts(replace(row, counts=tmp_path / "T_stdata.tsv"))
    assert (found.ids, found.genes) == (upright.ids, upright.genes)
    assert (found.matrix != upright.matrix).nnz == 0


@pytest.mark.parametrize("ending", [".csv", ".tsv", ".parquet"])
@pytest.mark.parametrize("long", [False, True])
def test_plain_tables_wide_and_long(tmp_path: Path, ending: str, long: bool) -> None:
    ids = [f"spot{i}" for i in range(9)]
    values = layouts.counts(9).astype(np.int64)
    values[4, 2] = 0
    spots = pl.DataFrame({"id": ids, "x": np.arange(9.0) * 10, "y": np.arange(9.0) % 3 * 10})
    wide = pl.DataFrame({"id": ids, **dict(zip(layouts.GENES, values.T, strict=True))})
    table = wide.unpivot(index="id", variable_name="gene", value_name="count") if long else wide
    for name, frame in (("S_spots", spots), ("S_counts", table)):
        path = tmp_path / f"{name}{ending}"
        if ending == ".parquet":
            frame.write_parquet(path)
        else:
            frame.write_csv(path, separator="," if ending == ".csv" else "\t")
    row = open_cohort(f"table:{tmp_path}")["S"]
    found = read_counts(row)
    assert dense(found) == dict(zip(ids, values.astype(float).tolist(), strict=True))
    assert read_spots(row).ids == tuple(ids)


def test_images_alone_and_dicom_folders_are_slides_without_spots(tmp_path: Path) -> None:
    layouts.picture(tmp_path / "a.png", 64, 64)
    layouts.picture(tmp_path / "b.ome.tif", 64, 64)
    (tmp_path / "c").mkdir()
    (tmp_path / "c" / "1.dcm").write_bytes(b"")
    cohort = open_cohort(f"images:{tmp_path}")
    assert cohort.names == ("a", "b", "c")
    assert all(s.reader is None and s.spots is None and s.counts is None for s in cohort.slides)
    assert open_cohort(f"images:{tmp_path / 'a.png'}").names == ("a",)


def test_images_of_a_folder_go_to_the_slides_of_their_name(tmp_path: Path) -> None:
    for name in ("S1", "S2"):
        layouts.write_visium(tmp_path / "runs" / name)
    layouts.picture(tmp_path / "images" / "S2.png", 64, 64)
    cohort = open_cohort(f"visium:{tmp_path / 'runs'}", image=tmp_path / "images")
    assert cohort["S1"].image.name == "tissue_hires_image.png"
    assert (cohort["S2"].image, cohort["S2"].scale) == (tmp_path / "images" / "S2.png", None)
    with pytest.raises(CohortError, match=r"one image and .* has 2 slides"):
        open_cohort(f"visium:{tmp_path / 'runs'}", image=tmp_path / "images" / "S2.png")


@pytest.mark.parametrize("name", [name for name in READERS if name != "images"])
def test_a_folder_of_another_kind_is_refused_in_one_sentence(tmp_path: Path, name: str) -> None:
    (tmp_path / "notes.md").write_text("nothing")
    with pytest.raises(CohortError) as error:
        open_cohort(f"{name}:{tmp_path}")
    assert str(tmp_path) in str(error.value)
    assert "\n" not in str(error.value)


def test_an_old_anndata_file_without_encoded_tables_is_read(tmp_path: Path) -> None:
    """Before anndata 0.7, obs was a compound dataset."""
    import h5py

    adata = layouts.make_adata()
    path = tmp_path / "s.h5ad"
    adata.write_h5ad(path)
    with h5py.File(path, "a") as file:
        for key, frame in (("obs", adata.obs), ("var", adata.var)):
            records = frame.to_records()
            kinds = [
                (n, "S40" if records[n].dtype == object else records[n].dtype) for n in records.dtype.names
            ]
            plain = np.empty(len(records), kinds)
            for n in records.dtype.names:
                plain[n] = [str(v).encode() if records[n].dtype == object else v for v in records[n]]
            del file[key]
            file[key] = plain
    assert isinstance(anndata.read_h5ad(path), anndata.AnnData)
    row = open_cohort(f"h5ad:{path}")["s"]
    assert dense(read_counts(row)) == expected(list(adata.obs_names))
