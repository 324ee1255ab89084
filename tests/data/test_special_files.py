"""Pipes and devices in the place of files: one sentence at once, where reading them would never end."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from mmap_st.data.cohort import CohortSlide, read_cohort
from mmap_st.data.gene_names import read_gene_list
from mmap_st.data.hdf5 import check_hdf5
from mmap_st.data.readers import open_cohort, read_counts, read_spots
from mmap_st.errors import MmapError
from mmap_st.extract.slides import open_slide
from mmap_st.extract.store import FeatureStore
from mmap_st.report.cohort_check import check_slide

Command = Callable[..., subprocess.CompletedProcess[str]]


def pipe(path: Path) -> None:
    os.mkfifo(path)


def zero(path: Path) -> None:
    path.symlink_to("/dev/zero")


MAKE = pytest.mark.parametrize("make", [pipe, zero])


@MAKE
@pytest.mark.parametrize("suffix", [".jpg", ".png", ".tif", ".svs", ".ome.tif", ".dcm"])
def test_images(make: Callable[[Path], None], suffix: str, tmp_path: Path) -> None:
    make(tmp_path / f"slide{suffix}")
    with pytest.raises(MmapError, match="is a pipe or a device"):
        open_slide(tmp_path / f"slide{suffix}")


@MAKE
@pytest.mark.parametrize("suffix", [".jpg", ".tif", ""])
def test_images_in_the_check_of_a_cohort(
    make: Callable[[Path], None], suffix: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What says why it was refused does not read it either."""
    path = tmp_path / f"slide{suffix}"
    make(path)
    monkeypatch.delattr(Path, "open")  # reading one would never end
    (problem,) = check_slide(CohortSlide("S", image=path, mpp=1.0)).problems
    assert "is a pipe or a device" in problem


@MAKE
def test_tables_cohorts_and_lists(make: Callable[[Path], None], tmp_path: Path) -> None:
    for name in ("cohort.csv", "cohort.parquet", "genes.txt"):
        make(tmp_path / name)
    for path in (tmp_path / "cohort.csv", tmp_path / "cohort.parquet"):
        with pytest.raises(MmapError, match="is a pipe or a device"):
            read_cohort(path)
    with pytest.raises(MmapError, match="is a pipe or a device"):
        read_gene_list(tmp_path / "genes.txt")
    make(tmp_path / "a.h5ad")
    with pytest.raises(OSError, match="is a pipe or a device"):
        check_hdf5(tmp_path / "a.h5ad")


@MAKE
@pytest.mark.parametrize("which", ["spots", "counts"])
def test_tables_of_a_slide(
    make: Callable[[Path], None], which: str, write_section: Callable[..., Path]
) -> None:
    (slide,) = open_cohort(f"her2st:{write_section('A1')}").slides
    path = getattr(slide, which)
    path.unlink()
    make(path)
    with pytest.raises(MmapError, match="is a pipe or a device"):
        (read_spots if which == "spots" else read_counts)(slide)


@MAKE
def test_files_of_runs_and_stores(make: Callable[[Path], None], tiny, mmap: Command, tmp_path: Path) -> None:
    for name in ("head.json", "head.safetensors"):
        run = tmp_path / f"run {name}"
        shutil.copytree(tiny.run, run)
        (run / name).unlink()
        make(run / name)
        shown = mmap("predict", run, tiny.store, "--out", tmp_path / "out")
        assert shown.returncode == 2
        assert len(shown.stderr.splitlines()) == 1
    shutil.copytree(tiny.store, tmp_path / "f.zarr")
    (tmp_path / "f.zarr" / "zarr.json").unlink()
    make(tmp_path / "f.zarr" / "zarr.json")
    with pytest.raises(MmapError):
        FeatureStore(tmp_path / "f.zarr")
