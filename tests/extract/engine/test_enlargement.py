"""Windows finer than the slide: up to four times they are made and said, beyond they are refused."""

from __future__ import annotations

import re
import subprocess
from collections.abc import Callable
from pathlib import Path

import anndata
import numpy as np
import pytest
from PIL import Image

import mmap_st as mm
from mmap_st.errors import SlidesFailedError
from mmap_st.extract.store import enlargement
from mmap_st.extract.windows import MOST_ENLARGED

ENCODER = "timm:test_efficientnet"


@pytest.fixture
def cohort(tmp_path: Path) -> Path:
    """A slide of 2 um/px and one of 3."""
    rng = np.random.default_rng(0)
    for name in ("fine", "coarse"):
        noise = rng.integers(60, 250, (40, 40, 3), np.uint8)
        Image.fromarray(noise).resize((400, 400), Image.Resampling.BICUBIC).save(tmp_path / f"{name}.png")
    (tmp_path / "spots.csv").write_text("id,x,y\n" + "".join(f"s{i},{100 + 20 * i},150\n" for i in range(10)))
    rows = ["fine,fine.png,spots.csv,table,2", "coarse,coarse.png,spots.csv,table,3"]
    (tmp_path / "c.csv").write_text("\n".join(["slide,image,spots,reader,mpp", *rows]) + "\n")
    return tmp_path / "c.csv"


def embed(cohort: Path, mpp: object, **how: bool) -> mm.FeatureStore:
    return mm.embed(
        cohort, cohort.parent / "s.zarr", encoder=ENCODER, random_weights=True, mpp=mpp, progress=False, **how
    )


@pytest.mark.parametrize(("mpp", "done"), [
    (2.0, ["fine", "coarse"]), (0.75, ["fine", "coarse"]), (0.5, ["fine"]), (0.49, []),
])  # fmt: skip
@pytest.mark.filterwarnings("ignore::mmap_st.errors.SlidesLeftOutWarning")
def test_beyond_four_times_slides_are_refused_and_the_others_done(
    cohort: Path, mpp: float, done: list[str]
) -> None:
    if not done:
        with pytest.raises(SlidesFailedError, match=r"enlarged 4\.1 times .* give --enlarge"):
            embed(cohort, mpp)
        return
    report = embed(cohort, mpp).report
    assert report.done == done
    assert list(report.failed) == [name for name in ("coarse",) if name not in done]


@pytest.mark.filterwarnings("ignore::mmap_st.errors.SlidesLeftOutWarning")
@pytest.mark.parametrize("mpp", ["2.01", "4.834", "19"])
def test_the_scale_that_the_refusal_names_is_accepted(
    cohort: Path, mpp: str, mmap: Callable[..., subprocess.CompletedProcess[str]]
) -> None:
    cohort.write_text(
        "".join(cohort.read_text().splitlines(keepends=True)[:2]).replace("table,2", f"table,{mpp}")
    )
    with pytest.raises(SlidesFailedError) as refused:
        embed(cohort, 0.3)
    named = re.search(r"at least ([\d.]+) um/px", str(refused.value))
    assert named is not None
    assert embed(cohort, float(named[1])).report.done == ["fine"]
    notes = mmap("cohort", "check", cohort, COLUMNS="2000").stderr
    assert f"at least {named[1]} um/px" in notes


def test_who_insists_is_heeded_and_it_is_shown(
    cohort: Path, mmap: Callable[..., subprocess.CompletedProcess[str]]
) -> None:
    store = cohort.parent / "s.zarr"
    words = ("extract", cohort, store, "--encoder", ENCODER, "--random-weights", "--mpp", "0.4,2")
    refused = mmap(*words)
    assert refused.returncode == 1
    assert refused.stdout.count("--enlarge") == 2
    assert mmap(*words, "--enlarge").returncode == 0
    shown = mmap("info", store).stdout
    for times in ("enlarged 7.5 times", "enlarged 5 times", "enlarged 1.5 times"):
        assert shown.count(times) == 1
    assert shown.count("enlarged") == 3
    # What is complete is not judged again, nor anything else of the slide at other scales.
    assert embed(cohort, "0.4,4").report.done == ["fine", "coarse"]
    assert embed(cohort, "0.4").report.unchanged == ["fine", "coarse"]


def test_predictions_say_it(tiny, tmp_path: Path) -> None:
    """The simulated slides have 0.5 um/px or so: windows at 0.5 are hardly enlarged, those at 1.0 not."""
    found = mm.predict(tiny.run, tiny.store, tmp_path / "p", progress=False).written
    for name, path in found.items():
        about = anndata.read_h5ad(path).uns["mmap"]
        magnifications = mm.FeatureStore(tiny.store)[name].complete("efficientnet-lite0")
        expected = {f"{mpp:.4f}": enlargement(one.recipe) for mpp, one in magnifications.items()}
        expected = {key: value for key, value in expected.items() if value is not None}
        assert {k: float(v) for k, v in about.get("enlarged", {}).items()} == pytest.approx(expected)


@pytest.mark.parametrize(
    ("source", "mpp", "times"), [("2", 0.5, 4.0), ("0.5", 0.5, None), ("0.3", 1.0, None)]
)
def test_enlargement_is_told_by_the_recipe(source: str, mpp: float, times: float | None) -> None:
    assert enlargement({"source_mpp": source, "mpp": mpp}) == times
    assert enlargement({"mpp": mpp}) is None
    assert enlargement({"source_mpp": source, "mpp": mpp, "encoder": {"imported": True}}) is None
    assert MOST_ENLARGED == 4.0
