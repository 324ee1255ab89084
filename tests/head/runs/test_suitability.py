"""`mmap predict` says of a slide that it is unlike those of training, and `--strict` fails it."""

from __future__ import annotations

import shutil
import warnings
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import cast
from unittest.mock import ANY

import numpy as np
import pytest
from PIL import Image, ImageOps

from mmap_st import load_head
from mmap_st.data.cohort import Cohort, CohortSlide
from mmap_st.errors import UnlikeTrainingWarning
from mmap_st.extract.encoders import encoder_spec
from mmap_st.extract.engine.extraction import EncoderRequest, extract_cohort
from mmap_st.extract.engine.planning.options import ExtractOptions
from mmap_st.extract.store.reader import FeatureStore
from mmap_st.head.domain import Domain
from mmap_st.head.runs.fit import fit_head
from mmap_st.head.runs.prediction_files import prediction_file, read_prediction
from mmap_st.head.runs.request import fit_request
from mmap_st.head.runs.saved_head import read_card
from mmap_st.head.runs.suitability import FAR, LIKE, UNLIKE, TrainingSlides, judge_slide

ENCODER = "efficientnet-lite0"
ODD = ("black", "noise", "dark field", "flat")


def slide_of(name: str, image: Path, xy: np.ndarray, mpp: float, folder: Path) -> CohortSlide:
    """A slide that was never sequenced, with spots at (n, 2) pixels."""
    lines = [f"{number},{x},{y}" for number, (x, y) in enumerate(xy)]
    spots = folder / f"{name}.csv"
    spots.write_text("\n".join(["id,x,y", *lines]) + "\n")
    return CohortSlide(name, patient="X", image=image, spots=spots, reader="table", mpp=mpp)


def pictures(section: Image.Image, folder: Path) -> dict[str, Path]:
    """The section turned into what it should not be."""
    rng = np.random.default_rng(0)
    made = {
        "black": Image.new("RGB", section.size),
        "noise": Image.fromarray(rng.integers(0, 256, (*section.size[::-1], 3), np.uint8)),
        # Bright nuclei on black, as of a fluorescent stain.
        "dark field": ImageOps.colorize(ImageOps.invert(section.convert("L")), "black", "blue"),
        "flat": Image.new("RGB", section.size, (214, 158, 205)),
        "mirrored": ImageOps.mirror(section),
    }
    paths = {name: folder / f"{name}.png" for name in made}
    for name, picture in made.items():
        picture.save(paths[name])
    return paths


@pytest.fixture(scope="module")
def run(cohort: Cohort, store: FeatureStore, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("run") / "ridge"
    request = replace(fit_request(ENCODER, "ridge", genes="hvg:10"), train="slide=A1,B1,C1,D1")
    fit_head(cohort, store, request, out)
    return out


@pytest.fixture(scope="module")
def odd_store(cohort: Cohort, store: FeatureStore, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The store with pictures that are no H&E, and with a section at twice its scale."""
    folder = tmp_path_factory.mktemp("odd")
    path = folder / "features.zarr"
    shutil.copytree(store.path, path)
    row = cohort["E1"]
    with Image.open(row.image) as section:
        made = pictures(section.convert("RGB"), folder)
    mpp, xy = store.slide("E1").source_mpp, store.slide("E1").spot_xy()[::2]
    slides = [slide_of(name, image, xy, mpp, folder) for name, image in made.items()]
    slides.append(slide_of("twice", row.image, xy, 2 * mpp, folder))
    request = EncoderRequest(encoder_spec(ENCODER))
    options = ExtractOptions(unchecked=True)
    report = extract_cohort(Cohort(tuple(slides), "test"), path, request, (0.5, 1.0), options)
    assert not report.failed
    return path


def test_what_is_no_such_tissue_is_called_so_and_what_is_not(
    mmap, run: Path, odd_store: Path, tmp_path: Path
) -> None:
    done = mmap("predict", run, odd_store, "--out", tmp_path / "p")
    assert done.returncode == 0
    found = {}
    odd = FeatureStore.open(odd_store)
    for name in odd.slides:
        table = read_prediction(prediction_file(tmp_path / "p", name))
        found[name] = table.uns["mmap"]["domain"]
        assert np.isfinite(table.obs["distance"][table.obs["valid"]]).all()
        assert table.obs["distance_percentile"].between(0, 100).all()
        share = table.obs["tissue"].to_numpy()
        assert np.array_equal(share, odd.slide(name).complete(ENCODER)[0.5].tissue(), equal_nan=True)
        assert np.array_equal(table.obs["on_tissue"], ~(share < 0.05))
    for name in ODD:
        assert found[name]["verdict"] == UNLIKE
    for name in ("A1", "B1", "C1", "D1", "E1", "mirrored"):
        assert found[name]["verdict"] in (LIKE, FAR)
    assert found["twice"]["distance"] > found["E1"]["distance"]
    assert "unlike anything the head was trained on" in done.stdout
    assert "times as far from the training tissue as held-out training slides" in done.stdout


def test_strict_fails_such_slides_and_writes_the_others(
    mmap, run: Path, odd_store: Path, tmp_path: Path
) -> None:
    done = mmap("predict", run, odd_store, "--out", tmp_path / "p", "--strict", "--slides", "black,E1")
    assert done.returncode == 1
    assert "failed" in done.stdout
    assert "unlike anything it was trained on" in done.stdout
    assert [file.name for file in (tmp_path / "p").glob("*.h5ad")] == ["E1.h5ad"]


def test_in_python_it_is_a_warning(run: Path, odd_store: Path) -> None:
    head = load_head(run)
    with pytest.warns(UnlikeTrainingWarning, match="black"):
        head.predict(odd_store, "black", progress=False)
    with warnings.catch_warnings():
        warnings.simplefilter("error", UnlikeTrainingWarning)
        head.predict(odd_store, "A1", progress=False)


def test_another_pitch_is_a_reason(
    mmap, run: Path, cohort: Cohort, store: FeatureStore, tmp_path: Path
) -> None:
    assert read_card(run).training_slides.pitch_um == pytest.approx(200.0, rel=0.05)
    path = tmp_path / "features.zarr"
    shutil.copytree(store.path, path)
    mpp = store.slide("E1").source_mpp
    ticks = np.arange(5) * 100.0 + 600.0
    xy = np.stack(np.meshgrid(ticks, ticks), axis=-1).reshape(-1, 2) / mpp
    row = slide_of("dense", cohort["E1"].image, xy, mpp, tmp_path)
    extract_cohort(Cohort((row,), "test"), path, EncoderRequest(encoder_spec(ENCODER)), (0.5, 1.0))
    done = mmap("predict", run, path, "--out", tmp_path / "p", "--slides", "dense,E1")
    assert done.returncode == 0
    assert "its spots lie 100 um apart, those of training 200 um" in " ".join(done.stdout.split())
    # Spots beside their places make the distance found a little short; what is said is that of the array.
    dense = FeatureStore.open(path).slide("dense")
    found = judge_slide(None, {ENCODER: TrainingSlides(187.0)}, dense, ANY, (0.5, 1.0))
    assert found.reasons == ("its spots lie 100 um apart, those of training 200 um",)


@pytest.mark.parametrize(
    ("unlike", "pitch", "sentence"),
    [
        (False, 200.0, f"{FAR}: 1.3 times as far as held-out training slides"),
        (
            False,
            50.0,
            f"{UNLIKE}: 1.3 times as far from the training tissue as held-out training slides; its",
        ),
        (
            True,
            200.0,
            f"{UNLIKE}: 1.3 times as far from the training tissue as held-out training slides (look",
        ),
    ],
)
def test_the_verdict_and_its_reason_are_one_sentence(
    store: FeatureStore, unlike: bool, pitch: float, sentence: str
) -> None:
    domain = SimpleNamespace(judge=lambda _: SimpleNamespace(slide=1.3, far=True, unlike=unlike))
    trained = {ENCODER: TrainingSlides(pitch)}
    found = judge_slide(cast("Domain", domain), trained, store.slide("E1"), ANY, (0.5,))
    assert found.sentence.startswith(sentence)
