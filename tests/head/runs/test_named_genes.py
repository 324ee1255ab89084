"""Genes that are named beside a rule, from the command to head.json, in fits, evaluations and comparisons."""

from __future__ import annotations

import gzip
import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

import mmap_st as mm
from mmap_st.data.readers import open_cohort, read_counts
from mmap_st.errors import MmapWarning, PanelError

ENCODER = ("--encoder", "efficientnet-lite0")
RIDGE = (*ENCODER, "--head", "ridge", "--set", "alpha=1e4")


@pytest.fixture(scope="module")
def genes(tiny) -> tuple[str, ...]:
    cohort = open_cohort(f"her2st:{tiny.her2st}")
    return read_counts(cohort.slides[0]).genes


def panel_of(run: Path) -> dict[str, object]:
    panel = json.loads((run / "head.json").read_text())["panel"]
    assert isinstance(panel, dict)
    return panel


def said(done: object) -> str:
    return " ".join(done.stderr.split())  # type: ignore[attr-defined]


def test_a_fit(tiny, genes: tuple[str, ...], mmap: Callable, tmp_path: Path) -> None:
    fit = ("fit-head", f"her2st:{tiny.her2st}", tiny.store, *RIDGE, "--test", "patient=B")
    last = panel_of(tiny.run)["genes"]
    assert isinstance(last, list)
    other = next(gene for gene in genes if gene not in last)
    text = f"mean:10,{other},NOTHERE,{other.lower()}"
    done = mmap(*fit, "--genes", text, "--out", tmp_path / "run")
    assert done.returncode == 0, done.stderr
    assert panel_of(tmp_path / "run") == {
        "genes": [*last, other],
        "gene_ids": None,
        "how": text,
        "slides": ["A1", "C1"],
    }
    assert (
        f"2 of 3 genes are on no training slide, so not on the panel: NOTHERE, {other.lower()} (did you"
        f" mean {other}?)" in said(done)
    )
    for wrong in (("NOTHERE",), (f"mean:10,{other},NOTHERE", "--protocol", "legacy-mmap")):
        done = mmap(*fit, "--genes", *wrong, "--out", tmp_path / "none")
        assert done.returncode == 2, done
        assert len(done.stderr.splitlines()) == 1
        assert not (tmp_path / "none").exists()


def test_names_of_held_out_slides_are_none(tiny, genes: tuple[str, ...], tmp_path: Path) -> None:
    """A gene that only the test slide has is as missing as one that none has."""
    root = shutil.copytree(tiny.her2st, tmp_path / "her2st")
    (file,) = (root / "ST-cnts").glob("B1.*")
    text = gzip.decompress(file.read_bytes()).decode() if file.suffix == ".gz" else file.read_text()
    text = text.replace(f"\t{genes[1]}\t", "\tONLYB\t", 1)
    assert "ONLYB" in text
    file.write_bytes(gzip.compress(text.encode()) if file.suffix == ".gz" else text.encode())
    with pytest.warns(MmapWarning, match=r"no training slide, so not on the panel: ONLYC$"):
        mm.fit_head(
            f"her2st:{root}", tiny.store, encoder=ENCODER[1], head="mean", test="patient=B",
            genes=f"{genes[0]},ONLYC", out=tmp_path / "run", progress=False,
        )  # fmt: skip
    assert panel_of(tmp_path / "run")["genes"] == [genes[0]]
    with pytest.raises(PanelError, match="on no training slide"):
        mm.fit_head(
            f"her2st:{root}", tiny.store, encoder=ENCODER[1], head="mean", test="patient=B",
            genes=["ONLYB"], out=tmp_path / "none", progress=False,
        )  # fmt: skip


def test_evaluations_and_comparisons(tiny, genes: tuple[str, ...], mmap: Callable, tmp_path: Path) -> None:
    markers = tmp_path / "markers"
    markers.write_text(f"{genes[3]}\nNOTHERE\n")
    common = (f"her2st:{tiny.her2st}", tiny.store, "--jobs", 1, "--genes", f"mean:2,{markers}")
    evaluate = ("evaluate", *common, *ENCODER, "--head", "mean", "--out", tmp_path / "e")
    compare = ("compare", *common, "--encoders", ENCODER[1], "--heads", "mean", "--out", tmp_path / "c")
    for command in (evaluate, compare):
        done = mmap(*command)
        assert done.returncode == 0, done.stderr
        assert said(done).count("1 of 2 genes is on no training slide") == 1
    for run in (*tmp_path.glob("e/folds/*/seed0"), *tmp_path.glob("c/rows/*/*/*/folds/*/seed0")):
        assert genes[3] in panel_of(run)["genes"]
        assert panel_of(run)["how"] == "mean:2,markers"
    assert len(list(tmp_path.glob("c/rows/*/*/*/folds/*/seed0"))) == 3
    # What a file holds is part of the request; where nothing changed, a run resumes.
    assert mmap(*evaluate).returncode == 0
    markers.write_text(f"{genes[4]}\n")
    assert "another request" in mmap(*evaluate).stderr
