"""Xenium bundles that are not whole: each fault is one sentence that names the file."""

from __future__ import annotations

import gzip
import json
import os
import re
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from mmap_st.data.cohort import CohortSlide
from mmap_st.data.counts import Counts
from mmap_st.data.readers import open_cohort, read_counts, read_spots
from mmap_st.data.spots import Spots
from mmap_st.data.tables import limits
from mmap_st.errors import CohortError, CountsError, MmapError, SlideError

sys.path.insert(0, str(Path(__file__).parents[1]))
import layouts

Damage = Callable[[Path], object]


def table(**columns: object) -> Damage:
    def write(bundle: Path) -> None:
        layouts.xenium_transcripts().with_columns(**columns).write_parquet(bundle / "transcripts.parquet")

    return write


def first(column: str, value: object) -> Damage:
    return table(**{column: pl.when(pl.col("qv") > 25).then(pl.lit(value)).otherwise(pl.col(column))})


def without(*columns: str) -> Damage:
    return lambda b: layouts.xenium_transcripts().drop(columns).write_parquet(b / "transcripts.parquet")


def rows(keep: pl.Expr) -> Damage:
    return lambda b: layouts.xenium_transcripts().filter(keep).write_parquet(b / "transcripts.parquet")


def experiment(**about: object) -> Damage:
    return lambda b: (b / "experiment.xenium").write_text(json.dumps(about))


def alignment(text: str) -> Damage:
    return lambda b: (b.parent / "section_he_imagealignment.csv").write_text(text)


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def pipe(path: Path) -> None:
    path.unlink()
    os.mkfifo(path)


def cells_alone(change: Damage = lambda bundle: None) -> Damage:
    def write(bundle: Path) -> None:
        layouts.write_xenium_cells(bundle, layouts.xenium_transcripts())
        (bundle / "transcripts.parquet").unlink()
        change(bundle)

    return write


def cells(**columns: object) -> Damage:
    def write(bundle: Path) -> None:
        path = bundle / "cells.parquet"
        pl.read_parquet(path, glob=False).with_columns(**columns).write_parquet(path)

    return cells_alone(write)


def text_table(text: str) -> Damage:
    def write(bundle: Path) -> None:
        (bundle / "transcripts.parquet").unlink()
        (bundle / "transcripts.csv.gz").write_bytes(gzip.compress(text.encode()))

    return write


def packed(change: Callable[[bytes], bytes]) -> Damage:
    """A table of text that is longer than what is read to find its separator."""

    def write(bundle: Path) -> None:
        text = pl.concat([layouts.xenium_transcripts()] * 30).write_csv().encode()
        (bundle / "transcripts.parquet").unlink()
        (bundle / "transcripts.csv.gz").write_bytes(change(gzip.compress(text, 1)))

    return write


HEADER = "feature_name,x_location,y_location,qv\n"

FAULTS: dict[str, tuple[Damage, str]] = {
    "no qualities": (without("qv"), "transcripts.parquet is missing the columns qv; it has"),
    "no positions": (without("x_location", "y_location"), "missing the columns x_location, y_location"),
    "no rows": (rows(pl.lit(value=False)), "has no transcripts"),
    "none of quality": (rows(pl.col("qv") < 20), "no transcript of a gene with a quality"),
    "controls alone": (rows(~pl.col("is_gene")), "controls alone"),
    "positions that are NaN": (first("x_location", float("nan")), "without a position"),
    "positions that are missing": (first("y_location", None), "without a position"),
    "positions that are infinite": (first("y_location", float("inf")), "without a position"),
    "positions in another unit": (table(x_location=pl.col("x_location") * 1e5), "a slide is"),
    "qualities that are NaN": (first("qv", float("nan")), "without a qv"),
    "qualities that are words": (table(qv=pl.lit("good")), "without a qv"),
    "names that are missing": (first("feature_name", None), "without a feature_name"),
    "names that are no text": (table(feature_name=pl.lit(b"\xff\xfe")), "cannot be read as a table of"),
    "positions that are lists": (table(x_location=pl.concat_list("x_location")), "cannot be read as"),
    "a table that is cut": (lambda b: cut(b / "transcripts.parquet"), "cannot be read as a table"),
    "a table that is a folder": (
        lambda b: [(b / "transcripts.parquet").unlink(), (b / "transcripts.parquet").mkdir()],
        "is a folder, and not a table",
    ),
    "a table that is text": (lambda b: (b / "transcripts.parquet").write_text("no"), "cannot be read as"),
    "a table that is a pipe": (lambda b: pipe(b / "transcripts.parquet"), "is a pipe or a device"),
    "an empty text": (text_table(""), "is empty"),
    "a text without rows": (text_table(HEADER), "has no transcripts"),
    "a word for a number": (text_table(HEADER + "A,1,2,30\nA,x,2,30\n"), "without a position"),
    "a word for a quality": (text_table(HEADER + "A,1,2,30\nA,1,2,x\n"), "without a qv"),
    "a packed text that is cut": (packed(lambda data: data[: len(data) // 2]), "cannot be read as a table"),
    "a packed text that lacks its end": (packed(lambda data: data[:-4]), "cannot be read as a table"),
    "a packed text with a wrong byte": (
        packed(lambda data: data[:2_000] + bytes([data[2_000] ^ 255]) + data[2_001:]),
        "cannot be read as a table",
    ),
    "a text with cells too many": (text_table(HEADER + "A,1,2,30\nA,1,2,30,9\n"), "cannot be read as"),
    "no table": (lambda b: (b / "transcripts.parquet").unlink(), "neither transcripts.parquet nor"),
    "no pixel size": (experiment(region_name="R"), "has no pixel_size"),
    "a pixel size of zero": (experiment(pixel_size=0), "has the pixel_size 0;"),
    "a pixel size of nothing": (experiment(pixel_size=None), "has no pixel_size"),
    "a pixel size in metres": (experiment(pixel_size=2.125e-7), "has the pixel_size 2.125e-07;"),
    "a pixel size that is a word": (experiment(pixel_size="\x1b[2Jx"), "has the pixel_size '\\\\x1b"),
    "a description that is a list": (
        lambda b: (b / "experiment.xenium").write_text("[1]"),
        "has no pixel_size",
    ),
    "a description that is cut": (lambda b: cut(b / "experiment.xenium"), "cannot be read as the descr"),
    "a description that is a pipe": (lambda b: pipe(b / "experiment.xenium"), "is a pipe or a device"),
    "an empty alignment": (alignment(""), "has 0 rows of no cells"),
    "an alignment of two rows": (alignment("1,0,0\n0,1,0\n"), "has 2 rows of 3 cells"),
    "an alignment of 4 x 4": (alignment("1,0,0,0\n" * 4), "has 4 rows of 4 cells"),
    "an alignment of words": (alignment("a,0,0\n0,1,0\n0,0,1"), "has a cell that is not a number"),
    "an alignment with NaN": (alignment("nan,0,0\n0,1,0\n0,0,1"), "is no alignment"),
    "an alignment in perspective": (alignment("1,0,0\n0,1,0\n0.1,0,1"), "is no alignment"),
    "a singular alignment": (alignment("1,1,0\n1,1,0\n0,0,1"), "onto a line or a point"),
    "an alignment of zeros": (alignment("0,0,0\n0,0,0\n0,0,1"), "onto a line or a point"),
    "an alignment in metres": (alignment("1e6,0,0\n0,1e6,0\n0,0,1"), "um/px, which none is"),
    "a long alignment": (alignment("1,0,0\n" * 20_000), "has 120,000 bytes"),
    "an alignment of bytes": (
        lambda b: (b.parent / "section_he_imagealignment.csv").write_bytes(b"\xff\xfe\x00"),
        "cannot be read as the matrix",
    ),
    "an alignment that is a pipe": (
        lambda b: pipe(b.parent / "section_he_imagealignment.csv"),
        "is a pipe or a device",
    ),
    "no alignment": (
        lambda b: (b.parent / "section_he_imagealignment.csv").unlink(),
        "put it beside the image as section_he_imagealignment.csv",
    ),
    "two alignments": (
        lambda b: [(b / f"{i}_he_imagealignment.csv").write_text("1") for i in "ab"]
        + [(b.parent / "section_he_imagealignment.csv").unlink()],
        "several files of one kind",
    ),
    "a matrix that is cut": (
        lambda b: [layouts.write_xenium_cells(b, layouts.xenium_transcripts()), cut(b / "cell_feature_matrix.h5")],
        "cell_feature_matrix.h5",
    ),
    "cells that are a pipe": (cells_alone(lambda b: pipe(b / "cells.parquet")), "is a pipe or a device"),
    "a matrix that is a pipe": (cells_alone(lambda b: pipe(b / "cell_feature_matrix.h5")), "is a pipe"),
    "cells without positions": (cells(x_centroid=pl.lit(float("nan"))), "cells without a position"),
    "cells of another run": (cells(cell_id=pl.col("cell_id") + "x"), "no cell is in both"),
    "cells twice": (cells(cell_id=pl.lit("cell1-1")), "repeats cells"),
    "cells without a table": (cells_alone(lambda b: (b / "cells.parquet").unlink()), "no cells.parquet"),
    "cells without columns": (
        cells_alone(lambda b: pl.DataFrame({"cell_id": ["a"]}).write_parquet(b / "cells.parquet")),
        "missing the columns x_centroid, y_centroid",
    ),
    "cells cut": (cells_alone(lambda b: cut(b / "cells.parquet")), "cells.parquet cannot be read"),
}  # fmt: skip


def read_both(slide: CohortSlide) -> tuple[Spots, Counts]:
    return read_spots(slide), read_counts(slide)


@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_is_one_sentence(fault: str, tmp_path: Path) -> None:
    bundle = layouts.write_xenium(tmp_path)
    damage, said = FAULTS[fault]
    damage(bundle)
    (slide,) = open_cohort(f"xenium:{bundle}").slides
    with pytest.raises(SlideError) as refused:
        read_both(slide)
    message = str(refused.value)
    assert re.search(said if "\\" in said else re.escape(said), message), message
    assert str(tmp_path) in message
    assert "\n" not in message
    assert "\x1b" not in message


PATHS: dict[str, tuple[Callable[[Path], Path], str]] = {
    "one of its files": (lambda b: b / "transcripts.parquet", "name the folder that it is in, xenium:"),
    "its description": (lambda b: b / "experiment.xenium", "name the folder that it is in, xenium:"),
    "its image": (lambda b: b.parent / "section_he_image.ome.tif", "is a file"),
}


@pytest.mark.parametrize("given", PATHS)
def test_a_path_that_is_no_bundle(given: str, tmp_path: Path) -> None:
    make, said = PATHS[given]
    path = make(layouts.write_xenium(tmp_path))
    with pytest.raises(CohortError, match=said):
        open_cohort(f"xenium:{path}")


def test_a_zipped_bundle_is_to_be_unzipped(tmp_path: Path) -> None:
    bundle = layouts.write_xenium(tmp_path / "made")
    (tmp_path / "given").mkdir()
    with zipfile.ZipFile(tmp_path / "given" / "S_outs.zip", "w") as file:
        file.write(bundle / "experiment.xenium", "experiment.xenium")
    with pytest.raises(CohortError, match="unzip it, and name the folder"):
        open_cohort(f"xenium:{tmp_path / 'given' / 'S_outs.zip'}")
    with pytest.raises(CohortError, match=r"unzip S_outs\.zip there"):
        open_cohort(f"xenium:{tmp_path / 'given'}")


def test_a_pipe_in_the_place_of_a_bundle(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(CohortError, match="is a pipe or a device"):
        open_cohort(f"xenium:{tmp_path / 'pipe'}")


def test_links_are_followed_and_keep_their_names(tmp_path: Path) -> None:
    bundle = layouts.write_xenium(tmp_path / "made")
    blobs = tmp_path / "blobs"
    blobs.mkdir()
    for number, path in enumerate([*bundle.iterdir(), *(tmp_path / "made").glob("*he_image*")]):
        path.rename(blobs / str(number))  # without a suffix, as caches keep them
        path.symlink_to(blobs / str(number))
    (tmp_path / "linked").symlink_to(bundle)
    (slide,) = open_cohort(f"xenium:{bundle}").slides
    assert len(read_spots(slide)) == read_counts(slide).matrix.shape[0] == 36
    (linked,) = open_cohort(f"xenium:{tmp_path / 'linked'}").slides
    assert linked.slide == "linked"


def test_no_image_and_no_alignment_say_what_to_give(tmp_path: Path) -> None:
    bundle = layouts.write_xenium(tmp_path)
    for path in tmp_path.glob("*he_image*"):
        path.unlink()
    (slide,) = open_cohort(f"xenium:{bundle}").slides
    with pytest.raises(
        SlideError, match=r"no H&E, and no matrix .* name its H&E by --image, and put the matrix"
    ):
        read_spots(slide)


def test_two_images_have_to_be_one(tmp_path: Path) -> None:
    bundle = layouts.write_xenium(tmp_path)
    for name in "ab":
        (bundle / f"{name}_he_image.ome.tif").write_bytes(b"")
    with pytest.raises(CohortError, match=r"several files of one kind .*keep one"):
        open_cohort(f"xenium:{bundle}")


def test_what_would_not_fit_into_memory_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    bundle = layouts.write_xenium(tmp_path)
    (slide,) = open_cohort(f"xenium:{bundle}").slides
    monkeypatch.setattr(limits, "largest_table", lambda: 1000)
    with pytest.raises(CountsError, match=r"its counts would take .* half of the free memory"):
        read_counts(slide)


def test_too_many_squares_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    bundle = layouts.write_xenium(tmp_path)
    (slide,) = open_cohort(f"xenium:{bundle}", bin_um=1).slides
    monkeypatch.setattr("mmap_st.data.bins._MOST_SQUARES", 100)
    with pytest.raises(CountsError, match="use a bin_um of at least"):
        read_spots(slide)


@pytest.mark.parametrize("bin_um", [0.0, -5.0, 0.5, 1e5, float("nan"), float("inf")])
def test_sides_that_no_square_has(bin_um: float, tmp_path: Path) -> None:
    with pytest.raises(CohortError, match="give micrometres from 1 to 10,000"):
        open_cohort(f"xenium:{layouts.write_xenium(tmp_path)}", bin_um=bin_um)


@pytest.mark.parametrize("reader", ["table", "visium", "images"])
def test_other_readers_join_nothing(reader: str, tmp_path: Path) -> None:
    with pytest.raises(CohortError, match="is for the readers visium-hd and xenium, not for"):
        open_cohort(f"{reader}:{tmp_path}", bin_um=100)


def test_sums_need_counts(tmp_path: Path) -> None:
    (slide,) = open_cohort(f"xenium:{layouts.write_xenium(tmp_path)}", values="lognorm").slides
    with pytest.raises(CountsError, match="only counts can be summed"):
        read_counts(slide)


def test_one_bad_section_leaves_the_others(tmp_path: Path) -> None:
    for name in ("A", "B"):
        layouts.write_xenium(tmp_path / name)
    cut(tmp_path / "A" / "section_outs" / "transcripts.parquet")
    slides = [
        *open_cohort(f"xenium:{tmp_path / 'A'}").slides,
        *open_cohort(f"xenium:{tmp_path / 'B'}").slides,
    ]
    with pytest.raises(MmapError):
        read_counts(slides[0])
    assert np.isfinite(read_counts(slides[1]).matrix.data).all()
