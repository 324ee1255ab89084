"""Grids of tokens on their way from a store to a head, and back from a saved one."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from mmap_st.data.cohort import Cohort
from mmap_st.errors import HeadError, RequestError
from mmap_st.extract.encoders import encoder_spec
from mmap_st.extract.engine.extraction import EncoderRequest, extract_cohort
from mmap_st.extract.store.magnification import StoredTokens
from mmap_st.extract.store.reader import FeatureStore
from mmap_st.head.dataset import check_tokens, load_slide
from mmap_st.head.evaluation.ablations import evaluate
from mmap_st.head.evaluation.folder import EvaluateRequest
from mmap_st.head.registry import head_method
from mmap_st.head.runs.fit import fit_head
from mmap_st.head.runs.prediction import predict_slides
from mmap_st.head.runs.prediction_files import read_prediction
from mmap_st.head.runs.request import fit_request

TINY = "timm:test_efficientnet"
MPPS = (0.5, 1.0)
TCGN = head_method("tcgn")
QUICK = ("epochs=2", "layers=1", "width=8")
REFUSED = (
    r"the head tcgn needs tokens of timm:test_efficientnet at 0\.5000 um/px, and slide A1 has none; run"
    r" `mmap extract \.\.\. --encoder timm:test_efficientnet --tokens 4` into a new store, or into this one"
    r" with --overwrite\."
)


def extracted(cohort: Cohort, path: Path, tokens: int) -> FeatureStore:
    request = EncoderRequest(
        encoder_spec(TINY), random_weights=True, device="cpu", precision="fp32", tokens=tokens
    )
    assert not extract_cohort(cohort, path, request, MPPS).failed
    return FeatureStore.open(path)


@pytest.fixture(scope="module")
def stores(cohort: Cohort, tmp_path_factory: pytest.TempPathFactory) -> dict[int, FeatureStore]:
    """The simulated sections with grids of 2 x 2 and 3 x 3 tokens, and without."""
    folder = tmp_path_factory.mktemp("tokens")
    return {side: extracted(cohort, folder / f"{side}.zarr", side) for side in (0, 2, 3)}


@pytest.fixture(scope="module")
def run(cohort: Cohort, stores, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("runs") / "tcgn"
    fit_head(cohort, stores[2], request("tcgn", *QUICK), out)
    return out


def request(head: str, *pairs: str):
    return fit_request(TINY, head, pairs=pairs, genes="hvg:8", test="patient=E")


def test_tokens_of_a_store_read_as_an_array(stores) -> None:
    magnifications = list(stores[2].slide("A1").complete(TINY).values())
    whole = np.stack([m.token_rows(slice(None)) for m in magnifications], axis=1)
    whole = whole.reshape(*whole.shape[:2], 4, -1)
    stored = StoredTokens(magnifications)
    assert stored.shape == whole.shape
    rows = np.arange(len(whole))
    for wanted in (slice(None), slice(3, 9), rows[::7], rows[:0]):
        np.testing.assert_array_equal(stored[wanted], whole[wanted])
    np.testing.assert_array_equal(stored.at(1)[rows], whole[:, 1:])
    np.testing.assert_array_equal(stored.subset(rows[1::3]).at(0)[np.array([0, 4])], whole[1::3, :1][[0, 4]])


def test_a_slide_has_them_where_they_are_asked_for(stores) -> None:
    assert load_slide(stores[2], "A1", TINY, MPPS).tokens is None
    slide = load_slide(stores[2], "A1", TINY, MPPS, tokens=True)
    whole = slide.grids[:]
    some = slide.rows(np.arange(len(slide)) % 3 == 1)
    np.testing.assert_array_equal(some.grids[:], whole[1::3])
    coarser = slide.by_magnification[1]
    np.testing.assert_array_equal(coarser.grids[:], whole[:, 1:])
    np.testing.assert_array_equal(coarser.embedding[:], slide.embedding[:][:, 1:])
    expected = (whole - whole.mean(0)) / np.maximum(whole.std(0), 1e-9)
    rows = np.arange(5)
    np.testing.assert_allclose(slide.standardised_tokens(rows), expected[:5], atol=1e-3)


def test_a_run_says_which_tokens_it_needs_and_predicts_alike(run: Path, stores, tmp_path: Path) -> None:
    card = json.loads((run / "head.json").read_text())
    width = stores[2].slide("A1").complete(TINY)[0.5].token_width
    assert (card["tokens"], card["shape"]["token_width"]) == (2, width)
    assert json.loads((run / "metrics.json").read_text())["baseline_ridge"] is not None
    report = predict_slides(run, stores[2], tmp_path, ["E1"])
    again, first = (read_prediction(folder / "E1.h5ad") for folder in (tmp_path, run / "predictions"))
    np.testing.assert_allclose(again.X, first.X, atol=1e-5)
    assert list(report.written) == ["E1"]


def test_a_head_without_tokens_says_nothing_of_them(cohort: Cohort, stores, tmp_path: Path) -> None:
    fit_head(cohort, stores[2], request("ridge"), tmp_path / "run")
    card = json.loads((tmp_path / "run" / "head.json").read_text())
    assert "tokens" not in card
    assert card["shape"].keys() == {"magnifications", "width", "genes"}
    assert predict_slides(tmp_path / "run", stores[0], tmp_path / "out", ["E1"]).written


def test_a_store_without_tokens_is_refused_before_any_work(cohort: Cohort, stores, tmp_path: Path) -> None:
    with pytest.raises(HeadError, match=REFUSED):
        fit_head(cohort, stores[0], request("tcgn"), tmp_path / "run")
    with pytest.raises(HeadError, match=REFUSED):
        evaluate(cohort, stores[0], EvaluateRequest(request("tcgn"), jobs=1), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_grids_that_differ_are_refused(stores) -> None:
    slides = [stores[2].slide("A1"), stores[3].slide("B1")]
    with pytest.raises(HeadError, match=r"slide B1 has 3 x 3 tokens .* and slide A1 has 2 x 2; extract"):
        check_tokens(slides, TINY, MPPS, TCGN)
    assert check_tokens(slides, TINY, MPPS, head_method("ridge")) == 0
    assert check_tokens(slides[1:], TINY, MPPS, TCGN) == 3


def test_slides_without_the_same_grid_are_passed_over(run: Path, stores, tmp_path: Path) -> None:
    with pytest.raises(RequestError, match=r"what the head needs: .*, with 2 x 2 tokens"):
        predict_slides(run, stores[0], tmp_path)
    with pytest.raises(RequestError, match="with 2 x 2 tokens"):
        predict_slides(run, stores[3], tmp_path)


def test_the_commands_fit_predict_and_refuse(mmap, simulated: Path, stores, tmp_path: Path) -> None:
    def fit(store: FeatureStore, out: str):
        what = ("--encoder", TINY, "--head", "tcgn", "--genes", "hvg:8", "--test", "patient=E")
        settings = [word for pair in QUICK for word in ("--set", pair)]
        return mmap("fit-head", f"her2st:{simulated}", store.path, *what, *settings, "--out", tmp_path / out)

    refused = fit(stores[0], "refused")
    assert refused.returncode == 2
    assert "the head tcgn needs tokens" in " ".join(refused.stderr.split())
    done = fit(stores[2], "run")
    assert done.returncode == 0, done.stderr
    predicted = mmap("predict", tmp_path / "run", stores[2].path, "--out", tmp_path / "out", "--slides", "E1")
    assert predicted.returncode == 0, predicted.stderr
    assert (tmp_path / "out" / "E1.h5ad").is_file()
