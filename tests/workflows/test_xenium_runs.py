"""Squares are the same in extraction and fits, or it is said; a bad section ends no other."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import anndata
import numpy as np
import polars as pl
import pytest

sys.path.insert(0, str(Path(__file__).parents[1] / "data"))
import layouts

ENCODER = ("--encoder", "efficientnet-lite0", "--mpp", "1")
FIT = ("--encoder", "efficientnet-lite0", "--head", "ridge", "--genes", "all")
Command = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture(scope="module")
def sections(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two sections, of which the second has no table that can be read."""
    root = tmp_path_factory.mktemp("sections")
    for name in ("A", "B"):
        layouts.write_xenium(root / "made" / name)
        (root / "made" / name / "section_outs").rename(root / f"{name}_outs")
        for ending in (".ome.tif", "alignment.csv"):
            (root / "made" / name / f"section_he_image{ending}").rename(root / f"{name}_he_image{ending}")
    path = root / "B_outs" / "transcripts.parquet"
    path.write_bytes(path.read_bytes()[:1000])
    return root


def test_another_size_of_squares_is_noticed(sections: Path, tmp_path: Path, mmap: Command) -> None:
    cohort, other, store = tmp_path / "cohort.csv", tmp_path / "other.csv", tmp_path / "f.zarr"
    shown = mmap("cohort", f"xenium:{sections}", "--bin-um", "200", "--out", cohort)
    assert shown.returncode == 1  # B cannot be used
    assert "transcripts.parquet cannot be read as a table of transcripts" in shown.stdout + shown.stderr
    assert pl.read_csv(cohort, glob=False)["bin_um"].to_list() == [200, 200]
    shown = mmap("cohort", "check", cohort)
    assert "Xenium 200 um" in shown.stdout
    shown = mmap("extract", cohort, store, *ENCODER)
    assert shown.returncode == 1
    assert "transcripts.parquet cannot be read" in shown.stdout + shown.stderr
    fitted = mmap("fit-head", cohort, store, *FIT, "--out", tmp_path / "run")
    assert (tmp_path / "run" / "head.json").is_file(), fitted.stdout + fitted.stderr
    predicted = mmap("predict", tmp_path / "run", store, "--cohort", cohort, "--out", tmp_path / "predicted")
    assert (tmp_path / "predicted" / "A.h5ad").is_file(), predicted.stdout + predicted.stderr

    mmap("cohort", f"xenium:{sections}", "--out", other)
    assert pl.read_csv(other, glob=False)["bin_um"].to_list() == [100, 100]
    shown = mmap("extract", other, store, *ENCODER)
    assert shown.returncode == 1
    assert "the store has it with other spots" in shown.stdout + shown.stderr
    fitted = mmap("fit-head", other, store, *FIT, "--out", tmp_path / "again")
    assert fitted.returncode == 2
    text = " ".join((fitted.stdout + fitted.stderr).split())
    assert "no spot of the store (such as x0001y0001_200um" in text
    assert not (tmp_path / "again" / "head.json").exists()


def test_joined_bins_go_the_whole_way(tmp_path: Path, mmap: Command) -> None:
    image = layouts.write_visium_hd(tmp_path / "S", side=24)
    cohort, store = tmp_path / "cohort.csv", tmp_path / "f.zarr"
    source = ("cohort", f"visium-hd:{tmp_path / 'S'}", "--image", image)
    shown = mmap(*source, "--bin-um", "32", "--out", cohort)
    assert shown.returncode == 0, shown.stderr
    assert "Visium HD 8 um joined to 32 um" in mmap("cohort", "check", cohort).stdout
    assert mmap("extract", cohort, store, *ENCODER).returncode == 0
    fitted = mmap("fit-head", cohort, store, *FIT, "--out", tmp_path / "run")
    assert fitted.returncode == 0, fitted.stderr
    predicted = mmap("predict", tmp_path / "run", store, "--out", tmp_path / "predicted")
    assert predicted.returncode == 0, predicted.stderr
    found = anndata.read_h5ad(tmp_path / "predicted" / "S.h5ad")
    assert found.n_obs == 36
    assert found.obs_names[0] == "x0000y0000_32um"
    assert np.isfinite(found.X).all()
