"""A pathologist's labels of spots."""

from pathlib import Path

import pytest

from mmap_st.data.readers import open_cohort
from mmap_st.data.spots import read_labels
from mmap_st.errors import LabelsError

HEADER = "x\ty\tpixel_x\tpixel_y\tlabel\n"


def write(path: Path, text: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return path


def test_places_on_the_array_become_spot_ids(write_section) -> None:
    root = write_section("A1")
    rows = "1.004\t2.0\t10\t20\tinvasive cancer\n3\t1.96\t1\t1\tconnective tissue\nNA\tNA\t\t\tnone\ninf\t2\t\t\tnone\n2\t2\t\t\t\n"
    write(root / "ST-pat" / "lbl" / "A1_labeled_coordinates.tsv", HEADER + rows)
    path = open_cohort(f"her2st:{root}")["A1"].labels
    assert path is not None
    assert read_labels(path) == {"1x2": "invasive cancer", "3x2": "connective tissue"}


def test_ids_and_barcodes_are_taken_as_they_are(tmp_path: Path) -> None:
    assert read_labels(write(tmp_path / "a.csv", "Barcode,label\nAAA-1,tumour\nBBB-1,\n")) == {
        "AAA-1": "tumour"
    }


@pytest.mark.parametrize(
    ("text", "part"),
    [
        ("x\ty\n1\t2\n", "no column label"),
        ("label\ncancer\n", "its rows cannot be matched to spots"),
        ("", "is empty"),
        (HEADER + "a\t2\t\t\tcancer\n", "is not a number"),
        (HEADER + "1\t2\t\t\tcancer\n1.1\t2\t\t\tfat\n", "two labels, cancer and fat"),
    ],
)
def test_what_cannot_be_read_is_one_sentence(tmp_path: Path, text: str, part: str) -> None:
    with pytest.raises(LabelsError, match=part):
        read_labels(write(tmp_path / "l.tsv", text))
