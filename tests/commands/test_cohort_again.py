"""Finding slides again: a cohort file in which somebody filled in something is not replaced without a word."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import polars as pl
import pytest

import mmap_st as mm
from mmap_st.commands.options import parse_patients
from mmap_st.data.tables import read_table
from mmap_st.errors import CohortError, RequestError
from tests.conftest import Tiny

Mmap = Callable[..., "subprocess.CompletedProcess[str]"]


@pytest.fixture
def images(tiny: Tiny, tmp_path: Path) -> Path:
    """A folder of two slides."""
    folder = tmp_path / "images"
    folder.mkdir()
    for name, file in zip(("S1", "S2"), sorted(tiny.her2st.rglob("*.jpg")), strict=False):
        (folder / f"{name}.jpg").write_bytes(file.read_bytes())
    return folder


@pytest.mark.parametrize("ending", [".csv", ".parquet"])
@pytest.mark.parametrize(
    ("column", "text"),
    [("patient", "P1"), ("labels", "l.tsv"), ("mpp", "0.5"), ("mpp_from", "cohort"), ("grade", "3")],
)
def test_what_was_filled_in_is_not_lost(
    column: str, text: str, ending: str, images: Path, tmp_path: Path, mmap: Mmap
) -> None:
    out = tmp_path / f"cohort{ending}"
    words = ("cohort", f"images:{images}", "--out", out)
    assert mmap(*words).returncode == 0
    assert mmap(*words).returncode == 0, "the same again loses nothing"
    table = read_table(out, CohortError)
    filled = table.with_columns(pl.when(pl.col("slide") == "S2").then(pl.lit(text)).alias(column))
    (filled.write_parquet if ending == ".parquet" else filled.write_csv)(out)
    before = out.read_bytes()
    refused = mmap(*words)
    assert refused.returncode == 2
    assert f"{column} {text} of S2" in refused.stderr
    assert len(refused.stderr.splitlines()) == 1
    assert out.read_bytes() == before
    assert mmap(*words, "--overwrite").returncode == 0
    assert out.read_bytes() != before


def patients(path: Path) -> list[str | None]:
    return [row.patient for row in mm.read_cohort(path).slides]


def test_patients_are_named_on_the_command_line(images: Path, tmp_path: Path, mmap: Mmap) -> None:
    out = tmp_path / "cohort.csv"
    words = ("cohort", f"images:{images}", "--out", out)
    assert mmap(*words, "--patient", "P1").returncode == 0
    assert patients(out) == ["P1", "P1"]
    assert mmap(*words).returncode == 2, "they would be lost"
    done = mmap(*words, "--overwrite", "--patient", "S2=P2")
    assert (done.returncode, patients(out)) == (0, [None, "P2"])
    # A name for all is for those that have none; one slide's own is for that slide, whatever it was.
    assert mm.read_cohort(out, patient="P1")["S2"].patient == "P2"
    assert mm.read_cohort(out, patient={"S2": "P3"})["S2"].patient == "P3"
    assert "P1" in mmap("cohort", "check", out, "--patient", "P1").stdout


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (["S3=P1"], r"has no slide S3 \(did you mean S"),
        (["S1=P1", "S1=P2"], "two patients of S1, P1 and P2"),
        (["S1=P1", "P2"], "give SLIDE=PATIENT for each"),
        (["S1="], "nothing stands after the =; give SLIDE=PATIENT, with a patient there"),
        (["=P1"], "nothing stands before the =; give SLIDE=PATIENT, with a slide there"),
        (["unknown"], "names nobody"),
        ([""], "names nobody"),
    ],
)
def test_patients_that_cannot_be_meant(given: list[str], said: str, images: Path) -> None:
    with pytest.raises(RequestError, match=said):
        mm.read_cohort(f"images:{images}", patient=parse_patients(given))


def test_names_of_slides_may_have_an_equals_sign() -> None:
    assert parse_patients(["a=b=P1"]) == {"a=b": "P1"}
    assert parse_patients(None) is None


def test_spots_without_an_image_are_noted(tiny: Tiny, tmp_path: Path, mmap: Mmap) -> None:
    shutil.copytree(tiny.her2st, tmp_path / "her2st")
    for image in (tmp_path / "her2st").rglob("*B1*.jpg"):
        image.unlink()
    out = tmp_path / "cohort.csv"
    said = "B1: no image is known, and spots are embedded from images; name them with --image"
    done = mmap("cohort", f"her2st:{tmp_path / 'her2st'}", "--out", out)
    assert (done.returncode, said in " ".join(done.stderr.split())) == (0, True)
    assert said in " ".join(mmap("cohort", "check", out).stdout.split())
    assert "no image" not in mmap("cohort", f"her2st:{tiny.her2st}", "--out", tmp_path / "whole.csv").stderr


def test_what_files_say_may_change(images: Path, tmp_path: Path, mmap: Mmap) -> None:
    out = tmp_path / "cohort.csv"
    assert mmap("cohort", f"images:{images}", "--out", out, "--mpp", "0.5").returncode == 0
    (images / "S2.jpg").rename(images / "S3.jpg")
    assert mmap("cohort", f"images:{images}", "--out", out, "--mpp", "0.25").returncode == 2  # S2's mpp
    assert mmap("cohort", f"images:{images}", "--out", out, "--mpp", "0.25", "--overwrite").returncode == 0
    again = mmap("cohort", f"images:{images}", "--out", out, "--mpp", "0.3")
    assert (again.returncode, again.stderr) == (0, "")


@pytest.mark.parametrize("content", [b"gene,spot\nFASN,1\n", b"\xff\xd8\x00\x00", b"\x1f\x8bnot gzip"])
def test_a_file_that_is_no_cohort_is_kept(content: bytes, images: Path, tmp_path: Path, mmap: Mmap) -> None:
    out = tmp_path / "counts.csv"
    out.write_bytes(content)
    refused = mmap("cohort", f"images:{images}", "--out", out)
    assert (refused.returncode, len(refused.stderr.splitlines())) == (2, 1)
    assert "is no cohort" in refused.stderr
    assert out.read_bytes() == content
    out.write_bytes(b"")
    assert mmap("cohort", f"images:{images}", "--out", out).returncode == 0
