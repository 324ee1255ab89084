"""Xenium: what is counted in which square, and where a square lies in the H&E."""

from __future__ import annotations

import gzip
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage

import mmap_st as mm
from mmap_st.data.cohort import Cohort, CohortSlide, read_cohort, write_cohort
from mmap_st.data.readers import open_cohort, read_counts, read_spots
from mmap_st.data.readers.annotated import Features
from mmap_st.data.readers.xenium.alignment import Alignment
from mmap_st.data.readers.xenium.features import panel_of
from mmap_st.data.readers.xenium.transcripts import open_transcripts
from mmap_st.errors import ResolutionError
from mmap_st.extract.slides import open_slide, resolve_source_mpp

sys.path.insert(0, str(Path(__file__).parents[1]))
import layouts

PIXEL_UM = 0.2125


def one(bundle: Path, bin_um: float | None = None) -> CohortSlide:
    (slide,) = open_cohort(f"xenium:{bundle}", bin_um=bin_um).slides
    return slide


def histogram(table: pl.DataFrame, bin_um: float) -> dict[tuple[str, str], int]:
    """What numpy counts per square and gene."""
    kept = table.filter(pl.col("is_gene") & (pl.col("qv") >= 20))
    found = {}
    for gene, of in kept.group_by("feature_name"):
        x, y = (of[axis].to_numpy().astype(float) for axis in ("x_location", "y_location"))
        edges = np.arange(0, 1200 + bin_um, bin_um)
        number, _, _ = np.histogram2d(x, y, (edges, edges))
        for i, j in np.argwhere(number):
            found[f"x{i:04d}y{j:04d}_{bin_um:g}um", str(gene[0])] = int(number[i, j])
    return found


def as_dictionary(slide: CohortSlide) -> dict[tuple[str, str], int]:
    counts = read_counts(slide)
    rows, columns = counts.matrix.nonzero()
    return {
        (counts.ids[i], counts.genes[j]): int(counts.matrix[i, j]) for i, j in zip(rows, columns, strict=True)
    }


@pytest.mark.parametrize("bin_um", [50.0, 100.0, 137.5])
def test_counts_are_those_of_a_histogram(bin_um: float, tmp_path: Path) -> None:
    bundle = layouts.write_xenium(tmp_path)
    slide = one(bundle, bin_um)
    assert as_dictionary(slide) == histogram(pl.read_parquet(slide.counts, glob=False), bin_um)
    spots, counts = read_spots(slide), read_counts(slide)
    assert spots.ids == counts.ids
    assert spots.pitch_um == bin_um
    assert counts.library.min() > 0
    assert any("controls" in note for note in counts.notes)


FORMS = {
    "bytes": lambda t: t.with_columns(pl.col("feature_name").cast(pl.Binary)),
    "dictionary": lambda t: t.with_columns(pl.col("feature_name").cast(pl.Categorical)),
    "no is_gene": lambda t: t.drop("is_gene"),
    "categories": lambda t: t.with_columns(
        codeword_category=pl.when("is_gene").then(pl.lit("predesigned_gene")).otherwise(pl.lit("negative"))
    ).drop("is_gene"),
    "float64": lambda t: t.with_columns(pl.col("x_location", "y_location", "qv").cast(pl.Float64)),
    "whole qualities": lambda t: t.with_columns(pl.col("qv").floor().cast(pl.Int64)),
    "columns in another order": lambda t: t.select(reversed(t.columns)),
    "several row groups": lambda t: t,
}


@pytest.mark.parametrize("form", FORMS)
def test_every_version_of_the_table_reads_alike(form: str, tmp_path: Path) -> None:
    bundle = layouts.write_xenium(tmp_path)
    slide = one(bundle)
    before = as_dictionary(slide)
    table = FORMS[form](layouts.xenium_transcripts())
    table.write_parquet(bundle / "transcripts.parquet", row_group_size=100)
    assert as_dictionary(slide) == before


@pytest.mark.parametrize(
    ("name", "packed"),
    [("transcripts.csv.gz", True), ("transcripts.csv", False), ("transcripts.csv.gz", False)],
)
@pytest.mark.parametrize("separator", [",", ";"])
def test_tables_of_text_read_alike(name: str, packed: bool, separator: str, tmp_path: Path) -> None:
    bundle = layouts.write_xenium(tmp_path)
    before = as_dictionary(one(bundle))
    (bundle / "transcripts.parquet").unlink()
    text = layouts.xenium_transcripts().write_csv(separator=separator, quote_style="non_numeric").encode()
    (bundle / name).write_bytes(gzip.compress(text) if packed else text)
    assert one(bundle).counts == bundle / name
    assert as_dictionary(one(bundle)) == before


@pytest.mark.parametrize("suffix", ["parquet", "csv.gz"])
@pytest.mark.parametrize("form", ["h5", "mtx"])
def test_cells_are_counted_where_there_are_no_transcripts(suffix: str, form: str, tmp_path: Path) -> None:
    bundle = layouts.write_xenium(tmp_path, cells=suffix)
    if form == "mtx":
        before = read_counts(replace(one(bundle), counts=bundle / "cell_feature_matrix.h5"))
        (bundle / "cell_feature_matrix.h5").unlink()
        kept = layouts.xenium_transcripts().filter(pl.col("is_gene") & (pl.col("qv") >= 20))
        values = np.zeros((len(kept) // 2 + len(kept) % 2, len(layouts.GENES)))
        genes = [layouts.GENES.index(name) for name in kept["feature_name"]]
        np.add.at(values, (np.arange(len(kept)) // 2, genes), 1)
        ids = [f"cell{i}-1" for i in range(len(values))]
        layouts.write_10x_mtx(bundle / "cell_feature_matrix", ids, values)
        after = read_counts(replace(one(bundle), counts=bundle / "cell_feature_matrix"))
        assert after.ids == before.ids
        assert (after.matrix != before.matrix).nnz == 0
    transcripts = one(bundle)
    total = read_counts(transcripts).matrix.sum()
    (bundle / "transcripts.parquet").unlink()
    slide = one(bundle)
    spots, counts = read_spots(slide), read_counts(slide)
    assert spots.ids == counts.ids
    assert counts.matrix.sum() == total
    assert counts.gene_ids == layouts.GENE_IDS
    assert not spots.notes
    # A cell's transcripts are all where its first one is.
    table = pl.DataFrame({"xy": [tuple(place) for place in spots.array.astype(int)]})
    assert len(table.unique()) == len(spots)


def test_cells_of_one_table_alone_are_left_out_and_said(tmp_path: Path) -> None:
    bundle = layouts.write_xenium(tmp_path, cells="parquet")
    (bundle / "transcripts.parquet").unlink()
    whole = read_counts(one(bundle))
    table = pl.read_parquet(bundle / "cells.parquet", glob=False)
    others = pl.DataFrame({"cell_id": ["z"], "x_centroid": [9000.0], "y_centroid": [1.0]})
    pl.concat([table[7:], others.cast(dict(table.schema))]).write_parquet(bundle / "cells.parquet")
    notes = read_spots(one(bundle)).notes
    assert notes == ("cells without counts, left out: 1", "cells without a position, left out: 7")
    assert 0 < read_counts(one(bundle)).matrix.sum() < whole.matrix.sum()


def test_a_scale_that_contradicts_the_image_is_refused(tmp_path: Path) -> None:
    """The alignment says 0.5 um/px; an image that says 0.25 is not the one, or one of the two is wrong."""
    bundle = layouts.write_xenium(tmp_path)
    slide = one(bundle)
    spots = read_spots(slide)
    assert resolve_source_mpp(slide, 0.5, spots).mpp == pytest.approx(0.5)
    assert resolve_source_mpp(slide, None, spots).mpp == pytest.approx(0.5)
    with pytest.raises(ResolutionError, match=r"0\.25"):
        resolve_source_mpp(slide, 0.25, spots)


def test_genes_without_a_transcript_are_genes_with_their_ids(tmp_path: Path) -> None:
    bundle = layouts.write_xenium(tmp_path, cells="parquet")
    table = layouts.xenium_transcripts().filter(pl.col("feature_name") != "CD3E")
    table.write_parquet(bundle / "transcripts.parquet")
    counts = read_counts(one(bundle))
    assert counts.genes == layouts.GENES
    assert counts.gene_ids == layouts.GENE_IDS
    assert counts.columns_of(["CD3E"])[0].sum() == 0


def test_two_genes_of_one_name_are_one_with_the_id_of_the_first() -> None:
    measured = Features(("A", "B", "A"), ("ENSG1", "ENSG2", "ENSG3"), np.ones(3, np.bool_))
    panel = panel_of({"A": None, "C": True, "NegControlProbe_1": None}, measured)
    assert panel.genes == ("A", "B", "C")
    assert panel.gene_ids == ("ENSG1", "ENSG2", "")
    assert panel.controls == 1


@pytest.mark.parametrize(
    "name",
    [
        "NegControlProbe_00042", "NegControlCodeword_0500", "antisense_PROKR2", "BLANK_0037",
        "UnassignedCodeword_0001", "DeprecatedCodeword_0321", "Intergenic_Region_2",
    ],
)  # fmt: skip
def test_controls_are_told_by_name_where_nothing_else_tells(name: str) -> None:
    assert panel_of({name: None, "BLNK": None, "NEGR1": None}, None).genes == ("BLNK", "NEGR1")


TURN = {angle: np.deg2rad(angle) for angle in (0, 30, 90, 180, 271)}


def alignment_of(angle: float, mirrored: bool, scale: float) -> np.ndarray:
    """H&E to morphology: its middle stays in the middle of 1,200 um."""
    turn = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]]) * scale
    if mirrored:
        turn = turn @ np.diag([-1, 1])
    matrix = np.eye(3)
    matrix[:2, :2] = turn
    middle_he = np.array([600.0, 600.0]) / (PIXEL_UM * scale)
    matrix[:2, 2] = np.array([600.0, 600.0]) / PIXEL_UM - turn @ middle_he
    return matrix


@pytest.mark.parametrize("scale", [4.0, 9.3])
@pytest.mark.parametrize("mirrored", [False, True])
@pytest.mark.parametrize("angle", TURN)
def test_a_square_lies_where_the_image_shows_it(
    angle: float, mirrored: bool, scale: float, tmp_path: Path
) -> None:
    """The image is drawn from its pixels to the section, as the matrix is defined; marks are found in it."""
    matrix = alignment_of(TURN[angle], mirrored, scale)
    side = round(1200 / (PIXEL_UM * scale))
    # A mark in the middle of two squares, the second one small.
    marks = (np.array([450.0, 850.0]), 40.0), (np.array([750.0, 550.0]), 20.0)
    row, column = np.mgrid[:side, :side] + 0.5
    x, y = (matrix[:2, :2] @ [column.ravel(), row.ravel()] + matrix[:2, 2:]) * PIXEL_UM
    pixels = np.full((side * side, 3), 240, np.uint8)
    for (mx, my), radius in marks:
        pixels[np.hypot(x - mx, y - my) < radius] = (90, 30, 120)
    image = pixels.reshape(side, side, 3)
    places = np.array([place for place, _ in marks])
    table = pl.DataFrame(
        {
            "feature_name": ["A", "B"], "qv": [40.0, 40.0], "is_gene": [True, True],
            "x_location": places[:, 0] + 3, "y_location": places[:, 1] - 7,
        }
    )  # fmt: skip
    bundle = layouts.write_xenium(tmp_path, matrix=matrix, transcripts=table, pixels=image)
    slide = one(bundle)
    spots = read_spots(slide)
    assert spots.ids == ("x0007y0005_100um", "x0004y0008_100um")
    label, _ = ndimage.label(image[..., 0] < 200)
    found = np.array(ndimage.center_of_mass(label > 0, label, [1, 2]))[:, ::-1] + 0.5
    sizes = np.bincount(label.ravel())[1:]
    found = found[np.argsort(sizes)]  # the smaller mark first, as its square is
    assert np.abs(spots.xy - found).max() < 0.6
    assert slide.image is not None
    opened = open_slide(slide.image)
    assert opened.mpp == pytest.approx(spots.mpp, rel=1e-6)
    for x_px, y_px in spots.xy.round().astype(int).tolist():
        window = np.asarray(opened.read((x_px - 2, y_px - 2, x_px + 2, y_px + 2)))
        assert (window == (90, 30, 120)).all()
    opened.close()


@given(
    angle=st.floats(0, 6.3), mirrored=st.booleans(), scale=st.floats(0.1, 40),
    places=st.lists(st.tuples(st.floats(-1e4, 1e5), st.floats(-1e4, 1e5)), min_size=1, max_size=20),
)  # fmt: skip
@settings(max_examples=60)
def test_pixels_and_micrometres_are_inverse(
    angle: float, mirrored: bool, scale: float, places: list[tuple[float, float]]
) -> None:
    alignment = Alignment(alignment_of(angle, mirrored, scale), PIXEL_UM)
    um = np.array(places)
    assert np.allclose(alignment.um(alignment.pixels(um)), um, atol=1e-6)
    assert alignment.mpp == pytest.approx(PIXEL_UM * scale)
    assert not alignment.notes


@pytest.mark.parametrize(("x", "said"), [(1.0, False), (1.01, False), (1.1, True), (3.0, True)])
@pytest.mark.parametrize("how", ["scale", "shear"])
def test_a_stretch_is_said(x: float, said: bool, how: str, tmp_path: Path) -> None:
    matrix = np.diag([2.0 * x, 2.0, 1.0]) if how == "scale" else np.eye(3) * [2, 2, 1]
    if how == "shear":
        matrix[0, 1] = 2.0 * (x - 1)
    bundle = layouts.write_xenium(tmp_path, matrix=matrix)
    assert any("stretches its H&E" in note for note in read_spots(one(bundle)).notes) == said


@given(
    places=st.lists(
        st.tuples(st.floats(-500, 5000, width=32), st.floats(-500, 5000, width=32), st.sampled_from("ABC")),
        min_size=1, max_size=60,
    ),
    bin_um=st.sampled_from([1.0, 7.3, 50.0, 100.0, 1000.0]),
)  # fmt: skip
@settings(max_examples=50)
def test_no_transcript_is_lost(
    places: list[tuple[float, float, str]], bin_um: float, tmp_path_factory: pytest.TempPathFactory
) -> None:
    path = tmp_path_factory.mktemp("t") / "transcripts.parquet"
    x, y, gene = zip(*places, strict=True)
    columns = {"x_location": x, "y_location": y, "feature_name": gene, "qv": [20.0] * len(x)}
    pl.DataFrame(columns).write_parquet(path)
    squares, counts = open_transcripts(path, None).counts(bin_um)
    assert counts.sum() == len(places)
    assert len(set(squares.names)) == len(squares)
    expected = sorted({(int(np.floor(b / bin_um)), int(np.floor(a / bin_um))) for a, b, _ in places})
    assert [(row, column) for column, row in squares.place.tolist()] == expected


def test_a_cohort_keeps_the_size_of_squares(tmp_path: Path) -> None:
    bundle = layouts.write_xenium(tmp_path)
    write_cohort(Cohort((one(bundle, 50.0),), "here"), tmp_path / "cohort.csv")
    (again,) = read_cohort(tmp_path / "cohort.csv").slides
    assert again.bin_um == 50.0
    assert read_spots(again).ids == read_spots(one(bundle, 50.0)).ids
    assert not set(read_spots(again).ids) & set(read_counts(one(bundle)).ids)
    frame = pl.read_csv(tmp_path / "cohort.csv", glob=False, infer_schema=False)
    (resolved,) = mm.read_cohort(frame.with_columns(spots=pl.lit(str(again.spots))), bin_um=200).slides
    assert resolved.bin_um == 200
    (rebinned,) = open_cohort(str(tmp_path / "cohort.csv"), bin_um=200).slides
    assert read_spots(rebinned).pitch_um == 200
    assert one(bundle).bin_um == 100  # written down, whatever later versions do


PLACES = {
    "in the bundle": lambda root: (
        "section_outs/any_he_image.ome.tif",
        "section_outs/x_he_imagealignment.csv",
    ),
    "beside it, in capitals": lambda root: ("Section_HE_image.OME.TIF", "SECTION_he_imagealignment.CSV"),
    "beside a smaller copy": lambda root: [
        "section_outs/a_he_image.ome.tif",
        "section_outs/a_he_imagealignment.csv",
        (root / "section_outs" / "a_he_image.jpg").write_bytes(b"jpeg"),
    ][:2],
    "beside it, of another name": lambda root: ("a_he_image.tiff", "b_he_imagealignment.csv"),
}


@pytest.mark.parametrize("place", PLACES)
def test_the_image_and_its_alignment_are_found(place: str, tmp_path: Path) -> None:
    bundle = layouts.write_xenium(tmp_path)
    image, alignment = PLACES[place](tmp_path)
    (tmp_path / "section_he_image.ome.tif").rename(tmp_path / image)
    (tmp_path / "section_he_imagealignment.csv").rename(tmp_path / alignment)
    slide = one(bundle)
    assert slide.image == tmp_path / image
    assert len(read_spots(slide)) == 36


def test_an_image_elsewhere_brings_its_own_alignment(tmp_path: Path) -> None:
    bundle = layouts.write_xenium(tmp_path / "run")
    (tmp_path / "images").mkdir()
    for ending in (".ome.tif", "alignment.csv"):
        (tmp_path / "run" / f"section_he_image{ending}").rename(tmp_path / "images" / f"HE{ending}")
    (slide,) = open_cohort(f"xenium:{bundle}", image=tmp_path / "images" / "HE.ome.tif").slides
    assert len(read_spots(slide)) == 36


def test_sections_side_by_side_have_the_image_of_their_name(tmp_path: Path) -> None:
    for name in ("A", "B"):
        layouts.write_xenium(tmp_path / f"made{name}")
        (tmp_path / f"made{name}" / "section_outs").rename(tmp_path / f"{name}_outs")
    for ending in (".ome.tif", "alignment.csv"):
        (tmp_path / "madeA" / f"section_he_image{ending}").rename(tmp_path / f"A_he_image{ending}")
    first, second = open_cohort(f"xenium:{tmp_path}").slides
    assert (first.slide, second.slide) == ("A", "B")
    assert first.image == tmp_path / "A_he_image.ome.tif"
    assert second.image is None  # never that of another section


def test_a_bundle_reads_from_inside_of_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    bundle = layouts.write_xenium(tmp_path)
    monkeypatch.chdir(bundle)
    slide = one(Path())
    assert slide.slide == "section"
    assert slide.image is not None
    assert len(read_spots(slide)) == 36
