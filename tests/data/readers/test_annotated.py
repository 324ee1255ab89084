"""AnnData files with more in them than the genes and spots of one section."""

import sys
from collections.abc import Callable
from pathlib import Path

import anndata
import numpy as np
import pandas as pd
import pytest

from mmap_st.data.cohort import CohortSlide, read_cohort, write_cohort
from mmap_st.data.readers import open_cohort, read_counts, read_spots
from mmap_st.errors import CountsError, SpotsError

sys.path.insert(0, str(Path(__file__).parents[1]))
import layouts

ROWS, COLUMNS = 6, 7
XY = np.array([(100.0 + 60 * c, 900.0 + 50 * r) for r in range(ROWS) for c in range(COLUMNS)])


def section(seed: int = 0, *, array: bool = False) -> anndata.AnnData:
    obs = pd.DataFrame(index=[f"s{i}" for i in range(len(XY))])
    if array:
        obs["array_row"], obs["array_col"] = np.arange(len(XY)) // COLUMNS, np.arange(len(XY)) % COLUMNS
    adata = anndata.AnnData(layouts.counts(len(XY), seed), obs=obs, var=pd.DataFrame(index=layouts.GENES))
    adata.obsm["spatial"] = XY.copy()
    return adata


def saved(adata: anndata.AnnData, folder: Path) -> CohortSlide:
    adata.write_h5ad(folder / "S.h5ad")
    return CohortSlide("S", spots=folder / "S.h5ad", counts=folder / "S.h5ad", reader="h5ad")


def two(column: str, *, array: bool = False, names: tuple[str, str] = ("A", "B")) -> anndata.AnnData:
    parts = {name: section(seed, array=array) for seed, name in enumerate(names)}
    return anndata.concat(parts, label=column, index_unique="-")


# Genes


@pytest.mark.parametrize("column", ["feature_types", "feature_type"])
@pytest.mark.parametrize(
    ("gene", "other"),
    [
        ("Gene Expression", "Antibody Capture"),
        ("Gene Expression", "CRISPR Guide Capture"),
        ("Gene Expression", "Negative Control Probe"),
        (None, "Antibody Capture"),
    ],
)
def test_features_that_are_no_genes_are_left_out(
    column: str, gene: str | None, other: str, tmp_path: Path
) -> None:
    adata = section()
    adata.var[column] = pd.array([gene] * 4 + [other] * 2, dtype="string")
    adata.X[:, 4:] = 0.5  # normalised antibodies next to counts
    table = read_counts(saved(adata, tmp_path))
    assert table.genes == layouts.GENES[:4]
    np.testing.assert_array_equal(table.library, layouts.counts(len(XY))[:, :4].sum(axis=1))
    (note,) = table.notes
    assert note == f"features that are not genes ({other}), left out: 2"


@pytest.mark.parametrize("kind", ["protein_coding", "Gene Expression", "gene"])
def test_types_of_genes_leave_nothing_out(kind: str, tmp_path: Path) -> None:
    adata = section()
    adata.var["feature_types"] = kind
    table = read_counts(saved(adata, tmp_path))
    assert (table.genes, table.notes) == (layouts.GENES, ())


def test_antibodies_alone_are_refused(tmp_path: Path) -> None:
    adata = section()
    adata.var["feature_types"] = "Antibody Capture"
    with pytest.raises(CountsError, match="none of its features is a gene"):
        read_counts(saved(adata, tmp_path))


# Spots beside the tissue


@pytest.mark.parametrize("values", [(0, 1), (False, True), ("0", "1"), (0.0, 1.0), ("False", "True")])
def test_spots_beside_the_tissue_are_not_used(values: tuple[object, object], tmp_path: Path) -> None:
    adata = section()
    inside = np.arange(len(XY)) % COLUMNS > 2
    adata.obs["in_tissue"] = [values[int(yes)] for yes in inside]
    row = saved(adata, tmp_path)
    spots, table = read_spots(row), read_counts(row)
    assert spots.ids == table.ids == tuple(adata.obs_names[inside])
    np.testing.assert_array_equal(spots.xy, XY[inside])
    np.testing.assert_array_equal(table.matrix.toarray(), layouts.counts(len(XY))[inside])
    assert spots.notes == (f"spots beside the tissue (in_tissue 0), left out: {(~inside).sum()}",)


def test_no_spot_on_tissue_is_refused(tmp_path: Path) -> None:
    adata = section()
    adata.obs["in_tissue"] = 0
    with pytest.raises(SpotsError, match="of every spot that it is not on tissue"):
        read_spots(saved(adata, tmp_path))


def test_unfiltered_matrix_of_space_ranger(tmp_path: Path) -> None:
    layouts.write_visium(tmp_path / "S1")
    (row,) = open_cohort(f"visium:{tmp_path}").slides
    place = layouts.hexagon()
    ids = [*layouts.barcodes(len(place)), "TTTTTTTTTTTTTTTT-1"]
    layouts.write_10x_h5(row.counts, ids, layouts.counts(len(ids)))
    spots = read_spots(row)
    assert spots.ids == tuple(ids[:-1])
    assert spots.notes[0] == "spots beside the tissue (in_tissue 0), left out: 1"


# Several sections

KIN = (
    "batch", "sample", "library_id", "sample_id", "slide", "slide_id", "section", "library", "section_id",
    "sample_name", "orig.ident",
)  # fmt: skip


@pytest.mark.parametrize("array", [False, True])
@pytest.mark.parametrize("column", KIN)
def test_sections_of_one_file_are_one_slide_each(column: str, array: bool, tmp_path: Path) -> None:
    saved(two(column, array=array), tmp_path)
    layouts.picture(tmp_path / "S_A.png", 64, 64)
    cohort = open_cohort(f"h5ad:{tmp_path}")
    assert cohort.names == ("S_A", "S_B")
    write_cohort(cohort, tmp_path / "cohort.csv")
    for seed, slide in enumerate(read_cohort(tmp_path / "cohort.csv").slides):
        spots, table = read_spots(slide), read_counts(slide)
        np.testing.assert_array_equal(spots.xy, XY)
        assert spots.ids == table.ids
        np.testing.assert_array_equal(table.matrix.toarray(), layouts.counts(len(XY), seed))
        assert (slide.image is not None) == (seed == 0)


@pytest.mark.parametrize("read", [read_spots, read_counts])
@pytest.mark.parametrize("column", KIN)
def test_a_row_for_several_sections_is_told_how_to_choose(
    column: str, read: Callable[[CohortSlide], object], tmp_path: Path
) -> None:
    row = saved(two(column), tmp_path)
    with pytest.raises(SpotsError, match=rf"2 sections according to obs\['{column}'\] \(A, B\).*{column}=A"):
        read(row)


def test_numbers_as_names_of_sections(tmp_path: Path) -> None:
    adata = two("batch")
    adata.obs["batch"] = [0.0] * len(XY) + [1.0] * len(XY)
    saved(adata, tmp_path)
    assert open_cohort(f"h5ad:{tmp_path}").names == ("S_0", "S_1")


def test_the_finest_column_tells_sections_apart(tmp_path: Path) -> None:
    adata = two("sample")
    adata.obs["batch"] = "one"
    saved(adata, tmp_path)
    assert [row.where for row in open_cohort(f"h5ad:{tmp_path}").slides] == ["sample=A", "sample=B"]


def test_sections_without_any_name_are_seen_by_their_places(tmp_path: Path) -> None:
    adata = two("batch")
    del adata.obs["batch"]
    with pytest.raises(SpotsError, match="several spots at the same pixels"):
        read_spots(saved(adata, tmp_path))


@pytest.mark.parametrize(
    ("where", "message"),
    [
        ("bach=A", "did you mean batch"),
        ("batch=C", "no spot has 'C'"),
        ("batch", "give a column of obs and a value"),
    ],
)
def test_a_wrong_choice_is_refused(where: str, message: str, tmp_path: Path) -> None:
    row = saved(two("batch"), tmp_path)
    with pytest.raises(SpotsError, match=message):
        read_spots(CohortSlide("S", spots=row.spots, reader="h5ad", where=where))


def test_other_readers_choose_no_rows(tmp_path: Path) -> None:
    (tmp_path / "S_spots.csv").write_text("id,x,y\na,1,2\n")
    with pytest.raises(SpotsError, match="the reader table reads none"):
        read_spots(CohortSlide("S", spots=tmp_path / "S_spots.csv", reader="table", where="batch=A"))


# What uns["spatial"] says of libraries

HD = {"scalefactors": {"bin_size_um": 8.0, "microns_per_pixel": 0.25}}
OLD = {"scalefactors": {"tissue_hires_scalef": 0.5}}


@pytest.mark.parametrize("column", ["library_id", "any name"])
def test_one_section_cut_out_of_two_is_read(column: str, tmp_path: Path) -> None:
    adata = two(column)
    adata.uns["spatial"] = {"A": OLD, "B": HD}
    one = adata[adata.obs[column] == "B"].copy()
    assert set(one.uns["spatial"]) == {"A", "B"}
    spots = read_spots(saved(one, tmp_path))
    assert (spots.technology, spots.pitch_um, spots.mpp) == ("Visium HD 8 um", 8.0, 0.25)


def test_two_libraries_under_a_column_of_any_name_are_two_slides(tmp_path: Path) -> None:
    adata = two("mouse")
    adata.uns["spatial"] = {"A": OLD, "B": HD}
    saved(adata, tmp_path)
    one, other = open_cohort(f"h5ad:{tmp_path}").slides
    assert (read_spots(one).technology, read_spots(other).technology) == (None, "Visium HD 8 um")


def test_two_libraries_and_no_column_are_refused(tmp_path: Path) -> None:
    adata = section()
    adata.uns["spatial"] = {"A": OLD, "B": HD}
    with pytest.raises(SpotsError, match=r"2 sections in uns\['spatial'\] \(A, B\) and no column"):
        read_spots(saved(adata, tmp_path))


# Positions


@pytest.mark.parametrize(
    "names",
    [
        ("x", "y"), ("X", "Y"), ("pxl_col_in_fullres", "pxl_row_in_fullres"), ("col", "row"), ("x_pixel", "y_pixel"),
        ("imagecol", "imagerow"), ("spatial1", "spatial2"), ("0", "1"),
    ],
)  # fmt: skip
@pytest.mark.parametrize("turned", [False, True])
def test_named_positions_are_read_by_their_names(
    names: tuple[str, str], turned: bool, tmp_path: Path
) -> None:
    adata = section()
    frame = pd.DataFrame(XY, index=adata.obs_names, columns=list(names))
    adata.obsm["spatial"] = frame[frame.columns[::-1]] if turned else frame
    np.testing.assert_array_equal(read_spots(saved(adata, tmp_path)).xy, XY)


@pytest.mark.parametrize("names", [("array_row", "array_col"), ("a", "b"), ("x", "row")])
def test_names_that_are_no_pixels_are_refused(names: tuple[str, str], tmp_path: Path) -> None:
    adata = section()
    adata.obsm["spatial"] = pd.DataFrame(XY, index=adata.obs_names, columns=list(names))
    with pytest.raises(SpotsError, match=f"has the columns {names[0]}, {names[1]}, of which none is known"):
        read_spots(saved(adata, tmp_path))


@pytest.mark.parametrize(
    "names",
    [("x_pixel", "y_pixel"), ("pxl_col_in_fullres", "pxl_row_in_fullres"), ("pixel_x", "pixel_y"),
     ("imagecol", "imagerow"), ("x_px", "y_px")],
)  # fmt: skip
def test_positions_among_the_columns_of_obs(names: tuple[str, str], tmp_path: Path) -> None:
    adata = section(array=True)
    del adata.obsm["spatial"]
    adata.obs[names[1]], adata.obs[names[0]] = XY[:, 1], XY[:, 0]
    np.testing.assert_array_equal(read_spots(saved(adata, tmp_path)).xy, XY)


@pytest.mark.parametrize("names", [(), ("x", "y"), ("row", "col"), ("array_row", "array_col")])
def test_places_on_the_array_are_not_taken_for_pixels(names: tuple[str, ...], tmp_path: Path) -> None:
    adata = section()
    del adata.obsm["spatial"]
    for column, name in enumerate(names):
        adata.obs[name] = XY[:, column]
    with pytest.raises(SpotsError, match="no columns of obs that are named as pixels"):
        read_spots(saved(adata, tmp_path))


# Counts


@pytest.mark.parametrize("place", ["layers['counts']", "raw"])
def test_it_says_where_counts_are_from(place: str, tmp_path: Path) -> None:
    adata = section()
    if place == "raw":
        adata.raw = adata
    else:
        adata.layers["counts"] = adata.X.copy()
    adata.X = layouts.lognorm(adata.X)
    table = read_counts(saved(adata, tmp_path))
    np.testing.assert_array_equal(table.matrix.toarray(), layouts.counts(len(XY)))
    (note,) = table.notes
    assert f"counts are read from {place}: X holds values such as" in note


def test_spatialdata_knows_the_same(tmp_path: Path) -> None:
    import spatialdata as sd

    layouts.write_spatialdata(tmp_path / "S1.zarr")
    store = sd.read_zarr(tmp_path / "S1.zarr")
    table = store["table"]
    table.obs["in_tissue"] = (np.arange(len(table)) > 4).astype(int)
    table.var["feature_types"] = ["Gene Expression"] * 5 + ["Antibody Capture"]
    store.write(tmp_path / "S2.zarr")
    (row,) = open_cohort(f"spatialdata:{tmp_path / 'S2.zarr'}").slides
    spots, counts = read_spots(row), read_counts(row)
    assert spots.ids == counts.ids == tuple(table.obs_names[5:])
    assert counts.genes == layouts.GENES[:5]
