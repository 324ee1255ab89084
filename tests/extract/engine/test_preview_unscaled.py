"""Slides whose micrometres per pixel are not known are drawn too: a picture is how one finds out what they are."""

from __future__ import annotations

import subprocess
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from mmap_st.data.readers import open_cohort
from mmap_st.extract.engine import preview_cohort
from mmap_st.extract.engine.preview import _OUTLINE, _SPOT
from mmap_st.extract.slides import parse_grid

Mmap = Callable[..., "subprocess.CompletedProcess[str]"]


@pytest.fixture
def cohort(tmp_path: Path) -> Path:
    """Tissue on glass: with spots and without, of known um/px, unknown, and in contradiction."""
    rng = np.random.default_rng(0)
    picture = np.full((500, 600, 3), 243, np.uint8)
    picture[80:430, 60:450] = np.clip(np.array([206, 130, 180]) + rng.normal(0, 9, (350, 390, 3)), 0, 255)
    Image.fromarray(picture).save(tmp_path / "a.png")
    Image.fromarray(picture).save(tmp_path / "a.tif", dpi=(25_400 / 2.0, 25_400 / 2.0))
    spots = [f"s{i},{100 + i % 8 * 40},{120 + i // 8 * 40}" for i in range(48)]
    (tmp_path / "spots.csv").write_text("\n".join(["id,x,y", *spots]) + "\n")
    rows = [
        "known,a.png,spots.csv,table,2", "unknown,a.png,spots.csv,table,", "contradicted,a.tif,spots.csv,table,9",
        "bare,a.png,,,",
    ]  # fmt: skip
    (tmp_path / "c.csv").write_text("\n".join(["slide,image,spots,reader,mpp", *rows]) + "\n")
    return tmp_path / "c.csv"


def amount(path: Path, colour: tuple[int, int, int]) -> int:
    """Pixels of a picture that are of about this colour."""
    pixels = np.asarray(Image.open(path).convert("RGB")).astype(int)
    return int((np.abs(pixels - colour).max(axis=2) < 30).sum())


def test_check_and_preview_draw_them(cohort: Path, tmp_path: Path, mmap: Mmap) -> None:
    assert mmap("cohort", "check", cohort, "--pictures", tmp_path / "checked").returncode == 1
    assert sorted(p.stem for p in (tmp_path / "checked").iterdir()) == ["contradicted", "known", "unknown"]
    words = (
        "--encoder",
        "timm:test_efficientnet",
        "--magnifications",
        "5",
        "--preview",
        tmp_path / "preview",
    )
    shown = mmap("extract", cohort, tmp_path / "s.zarr", *words, "--spots", "grid:100")
    assert shown.returncode == 1
    assert shown.stdout.count("not known") == 2
    assert "disagree by more than 5%" in shown.stdout
    pictures = {p.stem: p for p in (tmp_path / "preview").iterdir()}
    assert sorted(pictures) == ["bare", "contradicted", "known", "unknown"]
    for name, path in pictures.items():
        assert amount(path, _OUTLINE) > 500
        assert (amount(path, _SPOT) > 500) == (name != "bare")


def test_only_what_is_not_known_is_missing(cohort: Path, tmp_path: Path) -> None:
    report = preview_cohort(open_cohort(str(cohort)), None, tmp_path / "p", parse_grid("grid:100"))
    assert report.failed == {}
    assert sorted(report.unscaled) == ["bare", "contradicted", "unknown"]
    bars = {name: amount(path, (30, 30, 30)) for name, path in report.written.items()}
    assert bars["known"] > bars["unknown"]  # a scale bar
