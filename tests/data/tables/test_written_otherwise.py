"""Tables as other programs write them: every table that is read here is read in every form, or refused."""

import gzip
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from mmap_st.data.cohort import CohortSlide, alike_patients, read_cohort
from mmap_st.data.gene_names import read_gene_list
from mmap_st.data.readers import READERS, as_cohort, open_cohort, read_counts, read_spots
from mmap_st.data.readers.table import read_spot_table
from mmap_st.data.splits import inner_folds, make_folds, resolve_split
from mmap_st.data.spots import read_labels
from mmap_st.errors import CohortError, CountsError, LabelsError, MmapError, SplitError, SpotsError

IDS = ("1x1", "1x2", "2x1", "2x2")
Rows = Sequence[Sequence[str]]


def counts_of(path: Path, reader: str = "table") -> object:
    table = read_counts(CohortSlide("S", counts=path, reader=reader))
    return table.ids, table.genes, table.matrix.toarray().tolist()


def spots_of(path: Path, reader: str = "table") -> object:
    spots = read_spots(CohortSlide("S", spots=path, reader=reader))
    return spots.ids, spots.xy.tolist()


def folds_of(path: Path) -> object:
    cohort = as_cohort(pl.DataFrame({"slide": IDS, "patient": list("ABCD")}))
    return [(fold.name, fold.split.test) for fold in make_folds(cohort, IDS, str(path))[1]]


def cohort_of(path: Path) -> object:
    return [(one.slide, one.patient, one.mpp) for one in read_cohort(path).slides]


#: The first row names the columns, the first column the rows; cells may be read as numbers.
TABLES: dict[str, tuple[Rows, Callable[[Path], object]]] = {
    "cohort": (
        (("slide", "patient", "mpp"), ("S1", "A", "0.5"), ("S2", "B", "0.25"), ("S3", "B", "0.5")),
        cohort_of,
    ),
    "spots": (
        (("id", "x", "y"), *((name, f"{10 * i}.5", f"{7 * i}.25") for i, name in enumerate(IDS))),
        spots_of,
    ),
    "spots of st": (
        (("", "X", "Y"), *((name, f"{10 * i}.5", f"{7 * i}.25") for i, name in enumerate(IDS))),
        lambda path: spots_of(path, "st"),
    ),
    "positions of st": (
        (("x", "y", "pixel_x", "pixel_y"), ("1", "1", "10.5", "11.5"), ("1", "2", "20.5", "22.5")),
        lambda path: spots_of(path, "st"),
    ),
    "counts": (
        (("id", "GAPDH", "ACTB", "KRT8"), *((name, str(i), "0", "3") for i, name in enumerate(IDS))),
        counts_of,
    ),
    "long counts": (
        (("id", "gene", "count"), ("1x1", "GAPDH", "2"), ("1x2", "GAPDH", "1"), ("1x2", "ACTB", "5")),
        counts_of,
    ),
    "counts of st": (
        (("", "GAPDH", "ACTB", "KRT8"), *((name, str(i), "0", "3") for i, name in enumerate(IDS))),
        lambda path: counts_of(path, "st"),
    ),
    "labels": ((("id", "label", "seen"), *((name, "tumour", "yes") for name in IDS)), read_labels),
    "folds": ((("slide", "fold", "by"), *((name, str(i % 2), "me") for i, name in enumerate(IDS))), folds_of),
}
EVERY = pytest.mark.parametrize("table", TABLES)


def written(
    path: Path,
    rows: Rows,
    separator: str = ",",
    end: str = "\n",
    encoding: str = "utf-8",
    quoted: bool = False,
    blank: bool = False,
) -> Path:
    lines = [separator.join(f'"{cell}"' if quoted else cell for cell in row) for row in rows]
    text = end.join([*([""] if blank else []), *lines, *([""] if blank else [])]) + end
    data = text.encode(encoding)
    path.write_bytes(gzip.compress(data) if path.name.endswith(".gz") else data)
    return path


FORMS = {
    "semicolons": {"separator": ";"},
    "tabs in a .csv": {"separator": "\t"},
    "quotes": {"quoted": True},
    "semicolons and quotes": {"separator": ";", "quoted": True},
    "lines of Windows": {"end": "\r\n"},
    "mark of UTF-8": {"encoding": "utf-8-sig"},
    "UTF-16": {"encoding": "utf-16", "separator": "\t"},
    "blank lines": {"blank": True},
}


@EVERY
@pytest.mark.parametrize("suffix", [".csv", ".csv.gz"])
@pytest.mark.parametrize("form", FORMS)
def test_every_table_in_every_form(table: str, form: str, suffix: str, tmp_path: Path) -> None:
    rows, read = TABLES[table]
    plain = read(written(tmp_path / "plain.csv", rows))
    assert read(written(tmp_path / f"other{suffix}", rows, **FORMS[form])) == plain


@EVERY
@pytest.mark.parametrize("separator", ["\t", ",", " "])
def test_a_text_file_with_any_separator(table: str, separator: str, tmp_path: Path) -> None:
    rows, read = TABLES[table]
    if separator == " " and rows[0][0] == "":
        rows = [("id", *rows[0][1:]), *rows[1:]]
    plain = read(written(tmp_path / "plain.csv", rows))
    assert read(written(tmp_path / "other.txt", rows, separator)) == plain


@pytest.mark.parametrize("quoted", [False, True])
@pytest.mark.parametrize(
    ("suffix", "separator"), [(".csv", ","), (".tsv", "\t"), (".txt", " "), (".csv", ";")]
)
@pytest.mark.parametrize("table", ["spots", "spots of st", "counts", "counts of st", "long counts"])
def test_row_names_without_a_name_of_their_own(
    table: str, suffix: str, separator: str, quoted: bool, tmp_path: Path
) -> None:
    """As R's write.table writes them: the first line has one cell less than the others."""
    rows, read = TABLES[table]
    plain = read(written(tmp_path / "plain.csv", rows))
    short = [rows[0][1:], *rows[1:]]
    assert read(written(tmp_path / f"other{suffix}", short, separator, quoted=quoted)) == plain


@EVERY
def test_empty_cells_after_the_last_column(table: str, tmp_path: Path) -> None:
    rows, read = TABLES[table]
    plain = read(written(tmp_path / "plain.csv", rows))
    assert read(written(tmp_path / "other.csv", [rows[0], *((*row, "", "") for row in rows[1:])])) == plain


@pytest.mark.parametrize("quoted", [False, True])
@pytest.mark.parametrize("table", ["cohort", "spots", "spots of st", "positions of st"])
def test_decimal_commas(table: str, quoted: bool, tmp_path: Path) -> None:
    rows, read = TABLES[table]
    plain = read(written(tmp_path / "plain.csv", rows))
    commas = [[cell.replace(".", ",") for cell in row] for row in rows]
    assert read(written(tmp_path / "other.csv", commas, ";", quoted=quoted)) == plain


@pytest.mark.parametrize("reader", ["table", "st"])
def test_decimal_commas_among_values(reader: str, tmp_path: Path) -> None:
    rows = (("id", "A", "B"), ("1x1", "0", "1,25"), ("1x2", "2,5", "0"), ("2x1", "1,125", "NA"))
    path = written(tmp_path / "S.csv", rows[:3], ";")
    row = CohortSlide("S", counts=path, reader=reader, values="lognorm")
    assert read_counts(row).matrix.toarray().tolist() == [[0, 1.25], [2.5, 0]]
    written(path, [*rows[:2], ("1x2", "1,125", "0")], ";")
    assert read_counts(row).matrix.toarray().tolist() == [[0, 1.25], [1.125, 0]]


@pytest.mark.parametrize("cell", ["1,234", "1,234,567"])
def test_a_comma_of_either_kind_is_not_guessed(cell: str, tmp_path: Path) -> None:
    counts = written(tmp_path / "S_counts.csv", (("id", "A"), ("s1", cell), ("s2", "0")), ";")
    with pytest.raises(CountsError, match=r"is not a number|may be decimal or one of thousands"):
        counts_of(counts)
    spots = written(tmp_path / "S_spots.csv", (("id", "x", "y"), ("s1", cell, "1"), ("s2", "0", "2")), ";")
    with pytest.raises(SpotsError, match=r"is not a number|may be decimal or one of thousands"):
        read_spot_table(spots)


# Names that repeat

NARROW = ("cohort", "spots", "spots of st", "positions of st", "long counts", "labels", "folds")


@pytest.mark.parametrize("form", ["csv", "short of a name"])
@pytest.mark.parametrize("table", NARROW)
def test_two_columns_of_one_name_that_differ_are_refused(table: str, form: str, tmp_path: Path) -> None:
    rows, read = TABLES[table]
    place = 0 if rows[0][0] else 1
    if form == "csv":
        doubled = [(*row, row[place] if i == 0 else f"{i}") for i, row in enumerate(rows)]
    else:
        doubled = [(*row, row[place]) if i == 0 else ("name", *row, f"{i}") for i, row in enumerate(rows)]
    path = written(tmp_path / "other.csv", doubled)
    with pytest.raises(MmapError, match=f"two columns {rows[0][place]}, and they differ") as refused:
        read(path)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize("table", NARROW)
def test_a_copy_of_a_column_is_one(table: str, tmp_path: Path) -> None:
    rows, read = TABLES[table]
    plain = read(written(tmp_path / "plain.csv", rows))
    assert read(written(tmp_path / "other.csv", [(*row, row[1]) for row in rows])) == plain


def test_columns_of_the_users_own_may_repeat_in_a_cohort(tmp_path: Path) -> None:
    rows = (("slide", "note", "note"), ("S1", "a", "b"))
    assert read_cohort(written(tmp_path / "c.csv", rows)).names == ("S1",)


def test_a_data_frame_with_a_column_twice() -> None:
    import pandas as pd

    with pytest.raises(CohortError, match="several columns slide"):
        as_cohort(pd.DataFrame([["S1", "S2"]], columns=["slide", "slide"]))


@pytest.mark.parametrize("reader", ["table", "st"])
def test_columns_of_one_gene_are_added_up_and_named(reader: str, tmp_path: Path) -> None:
    rows = (("id", "1-Mar", "ACTB", "1-Mar"), ("1x1", "1", "2", "3"), ("1x2", "0", "0", "4"))
    path = written(tmp_path / "S.csv", rows)
    table = read_counts(CohortSlide("S", counts=path, reader=reader))
    assert table.genes == ("1-Mar", "ACTB")
    assert table.matrix.toarray().tolist() == [[4, 2], [4, 0]]
    added, dates = table.notes
    assert added == "1 column was added to another column of the same gene (1-Mar)"
    assert "1 gene has a date for its name (1-Mar)" in dates


@pytest.mark.parametrize("gene", ["2-Sep", "Mar-01", "DEC-1", "4-OCT"])
def test_dates_among_genes_are_noted(gene: str, tmp_path: Path) -> None:
    path = written(tmp_path / "S.csv", (("id", gene, "HLA-A"), ("s", "1", "2")))
    (note,) = read_counts(CohortSlide("S", counts=path, reader="table")).notes
    assert gene in note


def test_a_gene_twice_for_a_spot_of_a_long_table_is_refused(tmp_path: Path) -> None:
    rows = (("id", "gene", "count"), ("s", "1-Mar", "2"), ("s", "1-Mar", "1"))
    with pytest.raises(CountsError, match="lists a gene of a spot more than once"):
        counts_of(written(tmp_path / "S.csv", rows))


# Cells that are missing, or too many


@pytest.mark.parametrize("table", ["counts", "counts of st"])
@pytest.mark.parametrize(
    ("change", "part"),
    [
        (lambda row: row[:-1], r"row 2 has 3 cells, and the first line names 4 columns"),
        (lambda row: (*row, "7"), r"row 2 has 5 cells, and the first line names 4 columns"),
        (lambda row: (*row[:-1], "many"), "column KRT8, row 2: 'many' is not a number"),
        (lambda row: (*row[:-1], "1_0"), "column KRT8, row 2: '1_0' is not a number"),
        (lambda row: (*row[:-1], ""), "1 counts are missing or not numbers"),
    ],
)
def test_a_row_that_is_wrong_is_named(
    table: str, change: Callable[[Sequence[str]], Sequence[str]], part: str, tmp_path: Path
) -> None:
    rows, read = TABLES[table]
    with pytest.raises(CountsError, match=part):
        read(written(tmp_path / "S.csv", [rows[0], rows[1], change(rows[2]), *rows[3:]]))


@pytest.mark.parametrize("table", ["spots", "labels", "cohort", "folds"])
def test_rows_longer_than_the_first_line_are_refused(table: str, tmp_path: Path) -> None:
    rows, read = TABLES[table]
    path = written(tmp_path / "S.csv", [rows[0], rows[1], (*rows[2], "more"), *rows[3:]])
    with pytest.raises(MmapError, match="more cells than the 3 columns of its first line"):
        read(path)


def test_one_long_row_does_not_make_row_names(tmp_path: Path) -> None:
    path = written(tmp_path / "S.csv", (("id", "x", "y"), ("a", "1", "2", "3"), ("b", "1", "2")))
    with pytest.raises(SpotsError, match="row 2 has fewer"):
        spots_of(path)


# Patients

NOBODY = ("NA", "nan", "NaN", "None", "", " ", "null", "N/A", "#N/A", "<NA>", "unknown", "?", "-")


@pytest.mark.parametrize("word", NOBODY)
def test_a_patient_who_is_not_known_is_nobody(word: str, tmp_path: Path) -> None:
    path = written(tmp_path / "c.csv", (("slide", "patient"), ("S1", word), ("S2", word), ("S3", "P")))
    assert [one.patient for one in read_cohort(path).slides] == [None, None, "P"]
    assert as_cohort(pl.DataFrame({"slide": ["S1"], "patient": [word]}))["S1"].patient is None


@pytest.mark.parametrize("word", ["NA", "nan", "None"])
def test_missing_cells_of_other_columns(word: str, tmp_path: Path) -> None:
    rows = (("slide", "patient", "image", "mpp", "scale"), (word, "P", word, word, word))
    (one,) = read_cohort(written(tmp_path / "c.csv", rows)).slides
    assert (one.slide, one.image, one.mpp, one.scale) == (word, None, None, None)


PAIRS = (("P1", "p1"), ("Anna B", "AnnaB"), ("Patient 1", "patient  1"))


@pytest.mark.parametrize(("one", "other"), PAIRS)
def test_patients_who_differ_in_case_are_not_split_apart(one: str, other: str) -> None:
    cohort = as_cohort(pl.DataFrame({"slide": ["a", "b", "c"], "patient": [one, other, "Q"]}))
    (note,) = alike_patients(row.patient for row in cohort.slides)
    assert repr(one) in note
    assert repr(other) in note
    with pytest.raises(SplitError, match="differ in case or blanks only"):
        make_folds(cohort, cohort.names, "patient")
    with pytest.raises(SplitError, match="would be in training and in test"):
        resolve_split(cohort, test=f"patient={one}")
    assert resolve_split(cohort, test="slide=a").shared_patients == (one,)
    rule, folds = inner_folds("abcd", [one, other, "Q", "R"])
    assert rule == "inner folds by patient"
    assert ("a", "b") in folds


def test_the_commands_say_so(mmap, tmp_path: Path) -> None:
    path = written(tmp_path / "c.csv", (("slide", "patient"), ("S1", "P1"), ("S2", "p1")))
    shown = mmap("cohort", "check", path)
    assert "'P1' and 'p1' differ in case" in " ".join((shown.stdout + shown.stderr).split())


# Lists


@pytest.mark.parametrize("form", ["utf-8", "utf-8-sig", "utf-16", "gzip"])
def test_lists_of_genes_and_slides(form: str, tmp_path: Path) -> None:
    path = tmp_path / "list.txt"
    text = "S1\nS2\n"
    path.write_bytes(gzip.compress(text.encode()) if form == "gzip" else text.encode(form))
    assert read_gene_list(path) == ("S1", "S2")
    cohort = as_cohort(pl.DataFrame({"slide": ["S1", "S2", "S3"]}))
    assert resolve_split(cohort, test=str(path)).test == ("S1", "S2")


def test_hests_table_in_another_form(tmp_path: Path) -> None:
    from mmap_st.data.readers.hest import _metadata_table

    rows = (("id", "patient", "dataset_title"), ("T1", "Patient 1", "A; study"))
    written(tmp_path / "HEST_v1.csv", rows, ";", quoted=True)
    assert _metadata_table(tmp_path)["T1"]["dataset_title"] == "A; study"
    assert "hest" in READERS


def test_empty_tables_are_said_to_be(tmp_path: Path) -> None:
    for name, (_, read) in TABLES.items():
        (tmp_path / "S.csv").write_text("\n\n")
        with pytest.raises((CohortError, CountsError, LabelsError, SplitError, SpotsError), match="is empty"):
            read(tmp_path / "S.csv")
        assert name


def test_a_table_of_a_slide_is_found_in_any_form(tmp_path: Path) -> None:
    written(tmp_path / "S_spots.csv", TABLES["spots"][0], ";")
    written(tmp_path / "S_counts.tsv.gz", TABLES["counts"][0], "\t")
    (row,) = open_cohort(f"table:{tmp_path}").slides
    assert read_spots(row).ids == read_counts(row).ids == IDS
    np.testing.assert_array_equal(read_counts(row).library, [3, 4, 5, 6])
