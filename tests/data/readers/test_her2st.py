from pathlib import Path

import numpy as np
import pytest

from mmap_st.data.readers import open_cohort, read_counts, read_spots
from mmap_st.errors import CohortError, CountsError, SpotsError

HEADER = "x\ty\tnew_x\tnew_y\tpixel_x\tpixel_y\tselected\n"


def test_spots_follow_the_count_table_and_both_sides_are_counted(write_section) -> None:
    counts = "\tA\tB\n3x1\t1\t2\n1x1\t0\t5\n9x9\t1\t1\n"
    spots = (
        HEADER
        + "1\t1\t1\t1\t10.5\t20\t1\n2\t1\t2\t1\t30\t20\t1\n3\t1\t3\t1\t50\t20.25\t1\n4\t1\t4\t1\t70\t20\t0\n"
    )
    root = write_section("A1", counts=counts, spots=spots)
    slide = open_cohort(f"her2st:{root}")["A1"]
    found = read_spots(slide)
    assert found.ids == ("3x1", "1x1")
    assert found.xy.tolist() == [[50, 20.25], [10.5, 20]]
    assert found.array is not None
    assert found.array.tolist() == [[3, 1], [1, 1]]
    assert (found.positions_without_counts, found.counts_without_position) == (1, 1)
    table = read_counts(slide)
    assert table.genes == ("A", "B")
    assert table.matrix.toarray().tolist() == [[1, 2], [0, 5], [1, 1]]


@pytest.mark.parametrize("plain", [True, False])
def test_counts_may_be_plain_or_gzipped_and_the_folder_data_may_be_left_out(
    write_section, tmp_path, plain
) -> None:
    write_section("C2", root=tmp_path / "repo" / "data", plain=plain)
    for folder in ("repo", "repo/data"):
        cohort = open_cohort(f"her2st:{tmp_path / folder}")
        assert cohort.names == ("C2",)
        assert cohort["C2"].patient == "C"
        assert len(read_spots(cohort["C2"])) == 16


def test_sections_that_lack_an_image_or_counts_keep_their_row(write_section) -> None:
    root = write_section("A10", image=False)
    write_section("A2")
    (root / "ST-cnts" / "A2.tsv.gz").unlink()
    (root / "ST-pat" / "lbl").mkdir(parents=True)
    (root / "ST-pat" / "lbl" / "A2_labeled_coordinates.tsv").touch()
    cohort = open_cohort(f"her2st:{root}")
    assert cohort.names == ("A2", "A10")
    assert cohort["A10"].image is None
    assert cohort["A2"].counts is None
    assert cohort["A2"].labels is not None
    assert len(read_spots(cohort["A2"])) == 16


@pytest.mark.parametrize(
    ("counts", "part"),
    [
        ("\tA\n1x1\t-1\n", "1 counts are negative, the first -1 for spot 1x1, gene A"),
        ("\tA\tB\n1x1\t1\tNA\n", "missing or not numbers, the first nan for spot 1x1, gene B"),
        ("\tA\n1x1\t0.5\n", "are not whole numbers"),
        ("\tA\n1x1\t1\n1x1\t2\n", "not unique: 1x1"),
        ("\tA\n1x1\tmany\n", "column A, row 1: 'many' is not a number"),
        ("\tA\n", "has 0 spots and 1 gene;"),
        ("", "is empty; copy it again"),
    ],
)
def test_what_is_no_count_is_refused_with_its_place(write_section, counts: str, part: str) -> None:
    root = write_section("A1", counts=counts)
    with pytest.raises(CountsError, match=part):
        read_counts(open_cohort(f"her2st:{root}")["A1"])


@pytest.mark.parametrize(
    ("spots", "part"),
    [
        (HEADER + "7\t7\t7\t7\t1\t1\t1\n", "no spot id is in both"),
        (HEADER + "1\t1\t1\t1\t1\t1\t1\n1\t1\t1\t1\t2\t2\t1\n", "repeats spots: 1x1"),
        (HEADER + "1\t1\t1\t1\t\t1\t1\n", "without a finite position: 1x1"),
        ("x\ty\n1\t1\n", "is missing the columns pixel_x, pixel_y"),
        (HEADER + "a\t1\t1\t1\t1\t1\t1\n", "column x, row 1: 'a' is not a number"),
        ("", "is empty"),
    ],
)
def test_bad_spot_tables_are_refused(write_section, spots: str, part: str) -> None:
    root = write_section("A1", counts="\tA\n1x1\t1\n", spots=spots)
    with pytest.raises(SpotsError, match=part):
        read_spots(open_cohort(f"her2st:{root}")["A1"])


def test_duplicate_count_rows_are_found_without_reading_the_values(write_section) -> None:
    root = write_section("A1", counts="\tA\n1x1\t1\n1x1\t2\n")
    with pytest.raises(CountsError, match="repeats spots: 1x1"):
        read_spots(open_cohort(f"her2st:{root}")["A1"])


def test_duplicate_genes_are_added_up(write_section) -> None:
    root = write_section("A1", counts="\tA\tB\tA\n1x1\t1\t2\t3\n2x1\t0\t1\t0\n")
    counts = read_counts(open_cohort(f"her2st:{root}")["A1"])
    assert counts.genes == ("A", "B")
    assert counts.merged_genes == 1
    assert counts.matrix.toarray().tolist() == [[4, 2], [0, 1]]


def test_positions_may_turn_fractional_late_in_the_table(write_section) -> None:
    whole = [f"{x}\t1\t{x}\t1\t{100 * x}\t50\t1" for x in range(1, 150)]
    spots = HEADER + "\n".join([*whole, "150\t1\t150\t1\t15000.5\t50\t1"]) + "\n"
    counts = "\tA\n" + "".join(f"{x}x1\t1\n" for x in range(1, 151))
    root = write_section("A1", counts=counts, spots=spots)
    assert read_spots(open_cohort(f"her2st:{root}")["A1"]).xy[-1].tolist() == [15000.5, 50]


def test_hidden_files_beside_an_image_are_not_images(write_section) -> None:
    root = write_section("A1")
    (root / "ST-imgs" / "A" / "A1" / "._A1.jpg").touch()
    assert open_cohort(f"her2st:{root}")["A1"].image.name == "A1.jpg"


def test_two_images_of_one_section_are_ambiguous(write_section) -> None:
    root = write_section("A1")
    (root / "ST-imgs" / "A" / "A1" / "again.png").touch()
    with pytest.raises(CohortError, match="holds 2 images"):
        open_cohort(f"her2st:{root}")


def test_the_real_sections(shared: Path) -> None:
    cohort = open_cohort(f"her2st:{shared / 'data' / 'her2st'}")
    assert len(cohort.slides) == 26
    assert [s.slide for s in cohort.slides if s.image] == ["B4", "C2", "C3", "C4"]
    spots = read_spots(cohort["C4"])
    features = np.load(shared / "data" / "mmap_features" / "C4.npy", mmap_mode="r")
    assert len(spots) == len(features)
    assert spots.positions_without_counts == 3
    counts = read_counts(cohort["C4"])
    assert counts.ids == spots.ids
    assert counts.matrix.shape == (184, 15842)
