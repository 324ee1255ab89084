"""All encoders in one head, beside each alone, in a comparison."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from mmap_st.data.cohort import Cohort
from mmap_st.errors import RequestError
from mmap_st.extract.store.reader import FeatureStore
from mmap_st.head.evaluation.ablations import evaluate
from mmap_st.head.evaluation.comparison import compare
from mmap_st.head.evaluation.comparison_rows import CompareRequest, make_heads
from mmap_st.head.evaluation.folder import EvaluateRequest
from mmap_st.head.runs.fit import fit_head
from mmap_st.head.runs.prediction_files import read_prediction
from mmap_st.head.runs.request import fit_request
from tests.conftest import Tiny
from tests.head.joined.conftest import BOTH, ENCODER, NARROW, OTHER

METRICS = ("pcc_slide", "pcc_slide_hvg50", "mse", "mae", "pcc_pooled")


@pytest.fixture(scope="module")
def compared(cohort: Cohort, store: FeatureStore, tmp_path_factory):
    out = tmp_path_factory.mktemp("compared") / "run"
    heads = make_heads(("ridge", "mean"), (), "default", genes="mean:10")
    asked = CompareRequest((ENCODER, OTHER), heads, jobs=1, joined=True)
    return out, compare(cohort, store, asked, out).result


def test_the_joined_row_stands_beside_each_alone(compared) -> None:
    out, result = compared
    assert [row.key for row in result.rows] == [
        f"{encoder}/{head}" for encoder in (ENCODER, OTHER, BOTH) for head in ("ridge", "mean")
    ]
    rows = {row.key: row for row in result.rows}
    joined, first = rows[f"{BOTH}/ridge"], rows[f"{ENCODER}/ridge"]
    assert joined.encoder == BOTH
    assert set(joined.differences) == {"first encoder"}
    apart = joined.difference("first encoder", "pcc_slide")
    assert apart.mean == pytest.approx(joined.value("pcc_slide") - first.value("pcc_slide"))
    assert set(rows[f"{BOTH}/mean"].differences) == {"ridge", "first encoder"}
    table = result.table
    assert table["encoder"].to_list() == [row.encoder for row in result.rows]
    assert json.loads((out / "compare.json").read_text())["rows"][4]["encoder"] == BOTH


def test_the_joined_row_is_what_evaluate_and_fit_head_say(
    compared, cohort: Cohort, store: FeatureStore, tmp_path: Path
) -> None:
    _, result = compared
    row = next(row for row in result.rows if row.key == f"{BOTH}/ridge")
    fit = fit_request(f"{ENCODER}, {OTHER}", "ridge", genes="mean:10")
    found = evaluate(cohort, store, EvaluateRequest(fit, jobs=1), tmp_path / "evaluation")
    for metric in METRICS:
        assert row.value(metric) == pytest.approx(found.metrics.test.value(metric), rel=1e-9)
    fit_head(cohort, store, replace(fit, test="slide=C1"), tmp_path / "own")
    own, fold = (
        read_prediction(folder / "predictions" / "C1.h5ad")
        for folder in (tmp_path / "own", tmp_path / "evaluation")
    )
    assert np.array_equal(own.X, fold.X)
    asked = json.loads((tmp_path / "evaluation" / "request.json").read_text())
    assert asked["encoder"] == BOTH
    with pytest.raises(RequestError, match="another request"):
        evaluate(
            cohort,
            store,
            EvaluateRequest(replace(fit, encoder=f"{OTHER},{ENCODER}"), jobs=1),
            tmp_path / "evaluation",
        )


@pytest.mark.parametrize("encoders", [(ENCODER,), (OTHER, NARROW)])
def test_one_encoder_cannot_be_joined(
    encoders: tuple[str, ...], cohort: Cohort, store: FeatureStore, tmp_path: Path
) -> None:
    heads = make_heads(("ridge",), (), "default", genes="mean:10")
    with pytest.raises(RequestError, match="give two encoders or more"):
        compare(cohort, store, CompareRequest(encoders, heads, joined=True), tmp_path / "run")


def test_the_command(mmap, tiny: Tiny, store: FeatureStore, tmp_path: Path) -> None:
    cohort_word, common = f"her2st:{tiny.her2st}", ("--genes", "mean:10", "--out")
    words = (
        "compare",
        cohort_word,
        store.path,
        "--encoders",
        BOTH,
        "--joined",
        "--heads",
        "mean",
        "--jobs",
        1,
    )
    done = mmap(*words, *common, tmp_path / "compared")
    assert done.returncode == 0, done.stderr
    rows = json.loads((tmp_path / "compared" / "compare.json").read_text())["rows"]
    assert [row["key"] for row in rows] == [f"{ENCODER}/mean", f"{OTHER}/mean", f"{BOTH}/mean"]
