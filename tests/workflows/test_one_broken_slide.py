"""Whatever is wrong with one slide's image, the others are done, and the broken one is named in a sentence."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import anndata
import numpy as np
import pytest
import tifffile

from mmap_st.errors import ImageError, RegionError, of_one_slide

Mmap = Callable[..., "subprocess.CompletedProcess[str]"]
TINY = ("--encoder", "timm:test_efficientnet", "--random-weights", "--mpp", "2")
BROKEN, WHOLE = "B1", ("A1", "C1")


def cut(path: Path) -> None:
    data = path.read_bytes()
    path.write_bytes(data[: len(data) // 3])


def emptied(path: Path) -> None:
    path.write_bytes(b"")


def text(path: Path) -> None:
    path.write_text("no image")


def folder(path: Path) -> None:
    path.unlink()
    path.mkdir()


def gone(path: Path) -> None:
    path.unlink()


BREAKS = {one.__name__: one for one in (cut, emptied, text, folder, gone)}


@pytest.fixture
def sections(write_section: Callable[..., Path], tmp_path: Path) -> Path:
    """A cohort file of three small sections."""
    for name in (*WHOLE, BROKEN):
        root = write_section(name, seed=ord(name[0]), mpp=2.0)
    lines = [
        f"{name},{name[0]},her2st/ST-imgs/{name[0]}/{name}/{name}.jpg,her2st/ST-spotfiles/{name}_selection.tsv,"
        f"her2st/ST-cnts/{name}.tsv.gz,her2st"
        for name in sorted((*WHOLE, BROKEN))
    ]
    (tmp_path / "c.csv").write_text("\n".join(["slide,patient,image,spots,counts,reader", *lines]) + "\n")
    assert root.is_dir()
    return tmp_path / "c.csv"


def image_of(sections: Path, name: str = BROKEN) -> Path:
    return sections.parent / "her2st" / "ST-imgs" / name[0] / name / f"{name}.jpg"


def sentence_of(shown: subprocess.CompletedProcess[str], status: int = 1) -> str:
    """The reason that a command gives for the broken slide."""
    assert shown.returncode == status, shown
    assert "Traceback" not in shown.stdout + shown.stderr
    assert "please report this" not in shown.stdout + shown.stderr
    reasons = [
        cells[2].strip()
        for line in shown.stdout.splitlines()
        if len(cells := line.split("│")) == 4 and cells[1].strip() == BROKEN
    ]
    assert len(reasons) == 1, shown.stdout
    return reasons[0]


@pytest.mark.parametrize("how", BREAKS)
def test_commands_that_read_images_do_the_others(
    how: str, sections: Path, tmp_path: Path, mmap: Mmap
) -> None:
    BREAKS[how](image_of(sections))
    shown = mmap("cohort", "check", sections)
    assert sentence_of(shown).endswith(".")
    rows = [line for line in shown.stdout.splitlines() if "legacy ST" in line]
    assert len(rows) == 3

    shown = mmap("extract", sections, tmp_path / "s.zarr", *TINY, "--preview", tmp_path / "preview")
    assert sentence_of(shown).endswith(".")
    assert sorted(p.stem for p in (tmp_path / "preview").iterdir()) == list(WHOLE)

    shown = mmap("extract", sections, tmp_path / "s.zarr", *TINY)
    assert sentence_of(shown).endswith(".")
    contents = mmap("info", tmp_path / "s.zarr")
    assert contents.returncode == 0
    assert contents.stdout.count("complete") == 2


@pytest.mark.parametrize("how", ["cut", "text"])
def test_imports_do_the_others(how: str, sections: Path, tmp_path: Path, mmap: Mmap) -> None:
    BREAKS[how](image_of(sections))
    (tmp_path / "features").mkdir()
    for name in (*WHOLE, BROKEN):
        np.save(tmp_path / "features" / f"{name}.npy", np.random.default_rng(0).normal(size=(16, 8)))
    words = ("--encoder", "made", "--mpp", "0.5", "--features", tmp_path / "features", "--cohort", sections)
    shown = mmap("import", tmp_path / "i.zarr", *words)
    if how == "text":
        assert sentence_of(shown).endswith(".")
    for name in WHOLE:
        assert (tmp_path / "i.zarr" / name).is_dir()


class Defect(Exception):  # noqa: N818 - a kind that nobody foresees
    """What a library raises that nothing here knows."""


@pytest.mark.parametrize("error", [Defect("broken\nin two lines"), MemoryError(), RegionError("one region")])
def test_errors_that_nobody_foresees_end_one_slide(
    error: Exception, sections: Path, tmp_path: Path, mmap: Mmap, monkeypatch: pytest.MonkeyPatch
) -> None:
    from mmap_st.extract.engine import preview, session
    from mmap_st.extract.engine.planning import placement
    from mmap_st.extract.slides import overview
    from mmap_st.extract.slides import slide as opening
    from mmap_st.report import cohort_check

    def broken(path: Path) -> opening.Slide:
        if path.stem == BROKEN:
            raise error
        return opening.open_slide(path)

    for module in (placement, preview, session, cohort_check, overview):
        monkeypatch.setattr(module, "open_slide", broken)
    for words in (
        ("cohort", "check", sections, "--pictures", tmp_path / "pictures"),
        ("extract", sections, tmp_path / "s.zarr", *TINY, "--preview", tmp_path / "preview"),
        ("extract", sections, tmp_path / "s.zarr", *TINY),
    ):
        shown = mmap(*words)
        assert shown.returncode == 1
        assert BROKEN in shown.stdout
    for folder_ in ("pictures", "preview"):
        assert sorted(p.stem for p in (tmp_path / folder_).iterdir()) == list(WHOLE)
    assert mmap("info", tmp_path / "s.zarr").stdout.count("complete") == 2


def test_reports_and_predictions_do_the_others(tiny, tmp_path: Path, mmap: Mmap) -> None:
    """Predictions name their images; a broken one leaves its map without a background."""
    shutil.copytree(tiny.her2st, tmp_path / "her2st")
    source = f"her2st:{tmp_path / 'her2st'}"
    (image,) = (tmp_path / "her2st").rglob("B1*.jpg")
    cut(image)
    out = tmp_path / "p"
    shown = mmap("predict", tiny.run, tiny.store, "--out", out, "--cohort", source)
    assert shown.returncode == 0
    assert sorted(p.stem for p in out.iterdir()) == ["A1", "B1", "C1"]
    genes = ("--genes", anndata.read_h5ad(out / "A1.h5ad").var_names[0])
    shown = mmap("report", out, "--out", tmp_path / "figures", *genes)
    assert shown.returncode == 0
    assert len(list((tmp_path / "figures").glob("*.png"))) == 3

    cut(out / "B1.h5ad")
    shown = mmap("report", out, "--out", tmp_path / "again", *genes)
    assert "predict the slide again" in sentence_of(shown)
    assert sorted(p.stem for p in (tmp_path / "again").glob("*.png")) == ["A1_maps", "C1_maps"]


def test_fits_need_no_image(tiny, tmp_path: Path, mmap: Mmap) -> None:
    shutil.copytree(tiny.her2st, tmp_path / "her2st")
    for image in (tmp_path / "her2st").rglob("*.jpg"):
        cut(image)
    words = ("--encoder", "efficientnet-lite0", "--head", "mean", "--genes", "mean:5", "--test", "patient=B")
    shown = mmap("fit-head", f"her2st:{tmp_path / 'her2st'}", tiny.store, *words, "--out", tmp_path / "run")
    assert shown.returncode == 0
    assert (tmp_path / "run" / "predictions" / "B1.h5ad").is_file()


def test_one_slide_errors_are_kept_and_others_become_sentences() -> None:
    own = ImageError("its image is broken.")
    assert of_one_slide(own) is own
    assert "not enough memory" in str(of_one_slide(MemoryError()))
    defect = of_one_slide(KeyError("x"))
    assert "KeyError" in str(defect)
    assert "\n" not in str(of_one_slide(Defect("broken\nin two lines")))
    assert isinstance(defect.__cause__, KeyError)


@pytest.mark.parametrize("name", ["a.png", "a.jpg", "deflate.tif", "lzw.tif", "packbits.tif", "plain.tif"])
def test_pictures_beyond_pillows_limit_are_read(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from PIL import Image

    from mmap_st.extract.slides import open_slide

    pixels = np.asarray(
        Image.fromarray(np.random.default_rng(0).integers(0, 255, (9, 11, 3), np.uint8)).resize((330, 270))
    )
    how = {"deflate.tif": "zlib", "lzw.tif": "lzw", "packbits.tif": "packbits", "plain.tif": None}
    if name in how:
        tifffile.imwrite(tmp_path / name, pixels, photometric="rgb", compression=how[name], rowsperstrip=16)
    else:
        Image.fromarray(pixels).save(tmp_path / name)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1000)
    slide = open_slide(tmp_path / name)
    shown = np.asarray(slide.read((0, 0, 330, 270))).astype(float)
    assert np.abs(shown - pixels).mean() < (3 if name == "a.jpg" else 0.01)
    assert Image.MAX_IMAGE_PIXELS == 1000
