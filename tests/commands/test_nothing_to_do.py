"""A run that could do nothing of what was asked says why, and does not end with status 0."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

import mmap_st as mm
from mmap_st.errors import RequestError, SlideError
from mmap_st.extract.store import FeatureStore
from mmap_st.report import report_run

TINY = ("--encoder", "timm:test_efficientnet", "--random-weights", "--mpp", "1")
ENCODER = ("--encoder", "efficientnet-lite0")


@pytest.fixture
def cohort(write_section: Callable, tmp_path: Path) -> Callable[[str], Path]:
    """Write a cohort file; S.jpg is an image, `table` a spot table of it."""
    root = write_section("A1")
    shutil.copy(next(root.rglob("*.jpg")), tmp_path / "S.jpg")
    (tmp_path / "spots.csv").write_text("id,x,y\na,300,300\nb,500,500\n")

    def write(text: str) -> Path:
        (tmp_path / "cohort.csv").write_text(text)
        return tmp_path / "cohort.csv"

    return write


NO_IMAGE = "names no image for any slide; fill in the column `image`"
NO_SPOTS = "names no spots for any slide with an image; --spots grid:100 lays some on the tissue"
#: What a cohort says, and what an extraction of it ends with and says, if none is added and with a grid.
COHORTS = {
    "no image": ("slide\nA\nB\n", (2, NO_IMAGE), (2, NO_IMAGE)),
    "spots and no image": ("slide,spots,reader\nA,spots.csv,table\n", (2, NO_IMAGE), (2, NO_IMAGE)),
    "no spots": ("slide,image,mpp\nA,S.jpg,1\n", (2, NO_SPOTS), (0, "")),
    "an image, and spots of another": (
        "slide,image,mpp,spots,reader\nA,S.jpg,1,,\nB,,,spots.csv,table\n", (2, NO_SPOTS), (0, ""),
    ),
    "a missing image": ("slide,image\nA,gone.jpg\n", (1, "gone.jpg does not exist"), (1, "does not exist")),
    "a missing image with spots": (
        "slide,image,spots,reader\nA,gone.jpg,spots.csv,table\n", (1, "does not exist"), (1, "does not exist"),
    ),
    "a missing image beside one": (
        "slide,image,mpp,spots,reader\nA,S.jpg,1,spots.csv,table\nB,gone.jpg,1,,\n",
        (1, "gone.jpg does not exist"),
        (1, "gone.jpg does not exist"),
    ),
    "some without spots": (
        "slide,image,mpp,spots,reader\nA,S.jpg,1,spots.csv,table\nB,S.jpg,1,,\n", (0, "1 skipped"), (0, ""),
    ),
    "no rows": ("slide,image\n", (2, "lists no slides"), (2, "lists no slides")),
    "nothing": ("", (2, "is empty; copy it again"), (2, "is empty; copy it again")),
}  # fmt: skip


@pytest.mark.parametrize("grid", [False, True])
@pytest.mark.parametrize("preview", [False, True])
@pytest.mark.parametrize("key", COHORTS)
def test_an_extraction(
    key: str, preview: bool, grid: bool, cohort: Callable, mmap: Callable, tmp_path: Path
) -> None:
    text, *expected = COHORTS[key]
    status, says = expected[grid]
    words: list[object] = ["extract", cohort(text), tmp_path / "s.zarr", *TINY]
    words += ["--spots", "grid:200"] if grid else []
    words += ["--preview", tmp_path / "pictures"] if preview else []
    done = mmap(*words)
    assert done.returncode == status, done
    if not (preview and says == "1 skipped"):
        assert says in done.stdout + done.stderr
    if status == 2:
        assert done.stdout == ""
        assert len(done.stderr.splitlines()) == 1
        assert not (tmp_path / "s.zarr").exists()
        assert not (tmp_path / "pictures").exists()


def test_what_is_complete_counts_as_done(cohort: Callable, mmap: Callable, tmp_path: Path) -> None:
    words = ("extract", cohort(COHORTS["some without spots"][0]), tmp_path / "s.zarr", *TINY)
    assert mmap(*words).returncode == 0
    again = mmap(*words)
    assert again.returncode == 0
    assert "1 complete before, 1 skipped" in again.stdout
    prototypes = ("prototypes", tmp_path / "s.zarr", *TINY[:2])
    assert mmap(*prototypes).returncode == 0
    assert "there before" in mmap(*prototypes).stdout


def test_the_function_says_so_too(cohort: Callable, tmp_path: Path) -> None:
    with pytest.raises(RequestError, match="--spots grid:100"):
        mm.embed(
            cohort(COHORTS["no spots"][0]), tmp_path / "s.zarr", encoder="efficientnet-lite0", mpp=1.0,
            progress=False,
        )  # fmt: skip


@pytest.mark.parametrize("pictures", [False, True])
def test_a_check_of_a_slide_that_has_nothing(
    pictures: bool, cohort: Callable, mmap: Callable, tmp_path: Path
) -> None:
    more = ("--pictures", tmp_path / "p") if pictures else ()
    done = mmap("cohort", "check", cohort("slide,image,mpp\nA,,\nB,S.jpg,1\n"), *more)
    assert done.returncode == 1
    assert "names neither an image nor tables for it" in done.stdout
    assert ("2 slides are not drawn (no image or no spots)" in done.stdout) == pictures


@pytest.fixture
def partly(tiny, tmp_path: Path) -> Path:
    """A store of which one slide lacks what the head needs."""
    store = shutil.copytree(tiny.store, tmp_path / "s.zarr")
    shutil.rmtree(store / "C1" / "efficientnet-lite0")
    return store


@pytest.mark.parametrize(
    ("slides", "status", "says"),
    [
        (None, 0, "C1"),
        ("A1", 0, "A1.h5ad"),
        ("A1,C1", 1, "is not complete"),
        ("C1", 2, "no slide of"),
        ("Z9", 2, "has no slide Z9"),
        ("A1,Z9", 2, "has no slide Z9"),
        (",", 2, "names nothing"),
        ("", 2, "names nothing"),
    ],
)
def test_predictions(
    slides: str | None, status: int, says: str, tiny, partly: Path, mmap: Callable, tmp_path: Path
) -> None:
    more = () if slides is None else ("--slides", slides)
    done = mmap("predict", tiny.run, partly, "--out", tmp_path / "p", *more)
    assert done.returncode == status, done
    assert says in done.stdout + done.stderr
    if status == 2:
        assert len(done.stderr.splitlines()) == 1
        assert not (tmp_path / "p").exists()


def test_an_empty_store(tiny, mmap: Callable, tmp_path: Path) -> None:
    FeatureStore.create(tmp_path / "e.zarr")
    predicted = mmap("predict", tiny.run, tmp_path / "e.zarr", "--out", tmp_path / "p")
    built = mmap("prototypes", tmp_path / "e.zarr", *ENCODER)
    out = ("--out", tmp_path / "r")
    fitted = mmap("fit-head", f"her2st:{tiny.her2st}", tmp_path / "e.zarr", *ENCODER, *out)
    tested = mmap("evaluate", f"her2st:{tiny.her2st}", tmp_path / "e.zarr", *ENCODER, *out)
    compared = mmap("compare", f"her2st:{tiny.her2st}", tmp_path / "e.zarr", "--encoders", ENCODER[1], *out)
    for done in (predicted, built, fitted, tested, compared):
        assert done.returncode == 2, done
        assert len(done.stderr.splitlines()) == 1
    assert "has no slides yet" in mmap("info", tmp_path / "e.zarr").stdout


def test_reports(tiny, mmap: Callable, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    for run, said in (("empty", "holds no predictions"), ("gone", "does not exist; name a run")):
        done = mmap("report", tmp_path / run, "--out", tmp_path / "figures")
        assert done.returncode == 2
        assert said in done.stderr
    none = mmap("report", tiny.run, "--out", tmp_path / "figures", "--genes", " , ")
    assert none.returncode == 2
    assert "names nothing" in none.stderr
    assert not (tmp_path / "figures").exists()


@pytest.mark.parametrize(("content", "others"), [(b"", False), (b"no HDF5", True), (None, False)])
def test_a_prediction_that_cannot_be_read_fails_alone(
    others: bool, content: bytes | None, tiny, mmap: Callable, tmp_path: Path
) -> None:
    (tmp_path / "p").mkdir()
    if content is None:
        import anndata
        import numpy as np

        anndata.AnnData(np.ones((3, 2), np.float32)).write_h5ad(tmp_path / "p" / "A1.h5ad")
    else:
        (tmp_path / "p" / "A1.h5ad").write_bytes(content)
    if others:
        shutil.copy(tiny.run / "predictions" / "B1.h5ad", tmp_path / "p")
    done = mmap("report", tmp_path / "p", "--out", tmp_path / "figures")
    assert done.returncode == 1, done
    assert "cannot be read" in done.stdout or "is not a prediction of mmap" in done.stdout
    assert (tmp_path / "figures" / "B1_maps.png").exists() == others
    with pytest.raises(SlideError, match=r"cannot be read|is not a prediction of mmap"):
        report_run(tmp_path / "p", tmp_path / "figures")


@pytest.mark.parametrize("option", ["--sections", "--what", "--ids"])
def test_a_filter_that_names_nothing(option: str, mmap: Callable, tmp_path: Path) -> None:
    done = mmap("download", "her2st", option, ",", "--out", tmp_path / "d", "--mirror", "http://127.0.0.1:9")
    assert done.returncode == 2
    assert "names nothing" in done.stderr
    assert not (tmp_path / "d").exists()
