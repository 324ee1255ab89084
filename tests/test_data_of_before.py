"""Stores, runs and evaluations of an earlier version are read, resumed and predicted with.

What is kept must be the same to the last bit; what is computed again, by another processor perhaps, nearly so.
"""

from __future__ import annotations

import json
import tarfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

import mmap_st
from mmap_st.cli import app
from mmap_st.data.cohort import Cohort
from mmap_st.data.readers import open_cohort
from mmap_st.errors import RequestError
from mmap_st.extract.encoders import encoder_spec
from mmap_st.extract.engine import EncoderRequest, extract_cohort
from mmap_st.extract.store import FeatureStore
from mmap_st.head.evaluation import EvaluateRequest, evaluate, read_evaluation
from mmap_st.head.evaluation import fold_jobs as jobs
from mmap_st.head.mmap import MmapSettings
from mmap_st.head.runs import fit_request, predict_slides, read_head, read_metrics, read_prediction
from mmap_st.head.scoring import Scores, SlideScores

ARCHIVE = Path(__file__).parent / "data_of_before" / "store_and_runs.tar.xz"
SMALL = ("epochs=2", "width=8", "components=8", "members=2", "steps_per_epoch=1", "clusters=8")

# Its encoder imports from where plug-ins imported from then.
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")


@pytest.fixture
def before(tmp_path: Path) -> Path:
    with tarfile.open(ARCHIVE) as archive:
        archive.extractall(tmp_path, filter="data")
    return tmp_path


def contents(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


@pytest.mark.parametrize("head", ["ridge", "mmap"])
def test_a_run_is_read_and_predicts_as_it_did(head: str, before: Path) -> None:
    store = FeatureStore.open(before / "features.zarr")
    expected = np.load(before / "expected" / "predicted.npz")
    kept = contents(before / head)
    saved = read_head(before / head)
    assert saved.method.name == head
    assert saved.card.slides.train == ("A1", "B1", "C1")
    assert read_metrics(before / head / "metrics.json").test.slides.keys() == {"D1"}
    report = predict_slides(before / head, store, before / "predicted")
    assert sorted(report.written) == ["A1", "B1", "C1", "D1"]
    for slide, path in report.written.items():
        table = read_prediction(path)
        np.testing.assert_allclose(table.X, expected[f"{head}_{slide}_X"], rtol=1e-4, atol=1e-5)
        spread = expected[f"{head}_{slide}_spread"]
        np.testing.assert_allclose(table.layers["spread"], spread, rtol=1e-4, atol=1e-5)
    of_fit = read_prediction(before / head / "predictions" / "D1.h5ad")
    np.testing.assert_array_equal(of_fit.X, expected[f"{head}_D1_X"])
    assert contents(before / head) == kept


def test_a_run_of_before_is_not_overwritten_and_its_predictions_are_not_mixed_with_others(
    before: Path,
) -> None:
    store = FeatureStore.open(before / "features.zarr")
    with pytest.raises(RequestError, match="this head did not make"):
        predict_slides(before / "ridge", store, before / "mmap" / "predictions", ["A1"])
    command = ["fit-head", str(before / "cohort.csv"), str(store.path), "--encoder", "colour-grid"]
    shown = CliRunner().invoke(app, [*command, "--head", "mean", "--out", str(before / "ridge")])
    assert isinstance(shown.exception, RequestError)
    assert "--overwrite" in str(shown.exception)


def test_a_stopped_evaluation_resumes(before: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # Numbers of another version of the package are another evaluation's.
    monkeypatch.setattr(mmap_st, "__version__", "0.1.0")
    out = before / "evaluation"
    kept = contents(out)
    fitted = []
    real = jobs.fit_split

    def noting(cohort, store, request, split, *others):
        fitted.append(split.test)
        return real(cohort, store, request, split, *others)

    monkeypatch.setattr(jobs, "fit_split", noting)
    # The head has another recipe now; this is the one of before.
    former = [f"{key}={value}" for key, value in MmapSettings.FORMER.items()]
    fit = fit_request("colour-grid", "mmap", pairs=[*SMALL, *former], genes="all")
    report = evaluate(
        open_cohort(str(before / "cohort.csv")),
        FeatureStore.open(before / "features.zarr"),
        EvaluateRequest(fit, jobs=1),
        out,
    )
    assert fitted == [("C1",), ("D1",)]
    after = contents(out)
    assert {name: after[name] for name in kept if name != ".lock"} == {
        name: content for name, content in kept.items() if name != ".lock"
    }
    expected = read_evaluation(before / "expected" / "evaluation_metrics.json")
    found = report.metrics
    assert found.protocol.fold_slides == expected.protocol.fold_slides

    def known(scores: Scores, slide: str) -> SlideScores:
        """As they were, with the patient, whom they did not name."""
        return replace(scores.slides[slide], patient=slide[0])

    for slide in ("A1", "B1"):  # by heads of before
        assert found.test.slides[slide] == known(expected.test, slide)
        assert found.baseline_ridge.slides[slide] == known(expected.baseline_ridge, slide)
    for slide in ("C1", "D1"):
        assert vars(found.baseline_ridge.slides[slide]) == pytest.approx(
            vars(known(expected.baseline_ridge, slide)), abs=1e-3
        )
        assert found.test.slides[slide].mse == pytest.approx(expected.test.slides[slide].mse, abs=0.05)
    assert list(json.loads((out / "metrics.json").read_text())) == list(
        json.loads((before / "expected" / "evaluation_metrics.json").read_text())
    )


def test_a_stopped_extraction_resumes(before: Path) -> None:
    store_path = before / "features.zarr"
    folder = store_path / "A1" / "colour-grid" / "8.0000"
    kept = {name: content for name, content in contents(folder).items() if "/c/" in name}
    assert set(kept) == {f"{name}/c/0/0" if name == "embedding" else f"{name}/c/0" for name in (
        "embedding", "in_bounds", "tissue", "valid",
    )}  # fmt: skip
    whole = open_cohort(str(before / "cohort.csv"))
    one = replace(whole, slides=tuple(s for s in whole.slides if s.slide == "A1"))
    request = EncoderRequest(encoder_spec(f"{before / 'colour_grid.py'}:make"))
    report = extract_cohort(one, store_path, request, (8.0,))
    assert not report.failed
    assert report.windows == 31 - 8
    now = contents(folder)
    assert {name: now[name] for name in kept} == kept
    stored = FeatureStore.open(store_path).slide("A1").complete("colour-grid")[8.0]
    expected = np.load(before / "expected" / "A1_8.npy")
    found = np.asarray(stored.embedding())
    np.testing.assert_array_equal(found[:8], expected[:8])
    np.testing.assert_allclose(found, expected, atol=4e-3)


def test_a_complete_store_is_the_same_after_an_extraction(before: Path) -> None:
    store_path = before / "features.zarr"
    kept = contents(store_path)
    whole = open_cohort(str(before / "cohort.csv"))
    one = Cohort(tuple(s for s in whole.slides if s.slide == "A1"), whole.source)
    request = EncoderRequest(encoder_spec(f"{before / 'colour_grid.py'}:make"))
    report = extract_cohort(one, store_path, request, (2.0, 4.0))
    assert (report.failed, report.windows) == ({}, 0)
    assert contents(store_path) == kept


def test_info_reads_a_store_of_before(before: Path) -> None:
    shown = CliRunner().invoke(app, ["info", str(before / "features.zarr")])
    assert shown.exit_code == 0, shown.output
    assert shown.stdout.count("complete") >= 8
    assert "unfinished, 1 of 4 chunks" in shown.stdout
