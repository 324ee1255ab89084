"""Charts of a page: every patient's scores, and what was tried on validation spots."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import mmap_st as mm
from mmap_st.head.runs import histories_of
from mmap_st.head.scoring import Scores, SlideScores
from mmap_st.report import draw_page
from mmap_st.report.page.charts import curves_chart, patients_chart
from mmap_st.report.summary import summary_of_folds
from mmap_st.workflows import Evaluation
from tests.conftest import Tiny


def scores_of(values: dict[str, tuple[str | None, float]]) -> Scores:
    """Of slides, each with its patient and its PCC."""
    slides = {
        slide: SlideScores(10, pcc, 1 - pcc, 1 - pcc, 0, pcc, patient=patient)
        for slide, (patient, pcc) in values.items()
    }
    mean = float(np.nanmean([pcc for _, pcc in values.values()]))
    return Scores(slides, mean, mean, mean, 1 - mean, 1 - mean)


def points_of(chart: tuple[Any, Any] | None) -> list[Any]:
    """Data of the patients' points of each plot, from left to right."""
    assert chart is not None
    drawn = [[one for one in plot.renderers if one.name == "points"] for plot in chart[0].children]
    return [one.data_source.data for (one,) in drawn]


def test_a_patient_is_the_mean_of_its_slides() -> None:
    scores = scores_of(
        {"a": ("P", 0.2), "b": ("P", 0.4), "c": ("Q", 0.1), "d": (None, 0.9), "e": ("R", np.nan)}
    )
    expected = {"P": pytest.approx(0.3), "Q": 0.1, "slide d": 0.9}
    assert scores.of_patients("pcc_slide") == expected
    data, errors = points_of(patients_chart({"mmap": scores, "ridge": scores}))
    found = dict(zip(data["patient"], data["value"], strict=True))
    assert found == expected
    assert set(data["row"]) == {"mmap", "ridge"}
    assert len(errors["value"]) == 6


def test_one_patient_needs_no_chart() -> None:
    assert patients_chart({"mmap": scores_of({"a": ("P", 0.2), "b": ("P", 0.4)})}) is None
    assert patients_chart({}) is None


def history(**columns: list[float]) -> list[dict[str, float]]:
    return [dict(zip(columns, values, strict=True)) for values in zip(*columns.values(), strict=True)]


@pytest.mark.parametrize(
    ("setting", "values", "axis"),
    [("epoch", [0, 1, 30], "LinearAxis"), ("alpha", [1, 10, 1e4], "LogAxis"), ("k", [5, 6, 8], "LinearAxis")],
)
def test_curves_are_of_what_was_tried(setting: str, values: list[float], axis: str) -> None:
    rows = history(**{setting: values, "validation_pcc": [0.1, 0.2, np.nan], "validation_mse": [3, 2, 1]})
    chart = curves_chart({"fold A": rows, "fold B": rows, "fold C": []})
    assert chart is not None
    pcc, mse = chart[0].children
    assert (pcc.xaxis.axis_label, type(pcc.xaxis[0]).__name__) == (setting, axis)
    lines = [one.data_source.data for one in pcc.renderers if type(one.glyph).__name__ == "Line"]
    assert [line["x"] for line in lines] == [values[:2]] * 2  # a score that is no number is no point
    assert [line["fit"][0] for line in lines] == ["fold A", "fold B"]
    assert len(mse.renderers[0].data_source.data["x"]) == 3


@pytest.mark.parametrize("rows", [[], history(epoch=[0], validation_pcc=[0.1], validation_mse=[1])])
def test_what_was_not_chosen_has_no_curve(rows: list[dict[str, float]]) -> None:
    assert curves_chart({"this run": rows}) is None


@pytest.mark.parametrize("text", ["", "epoch\n", "epoch,validation_pcc\nx,y\n", "\x00"])
def test_a_damaged_history_is_left_out(tmp_path: Path, text: str) -> None:
    (tmp_path / "history.csv").write_text(text)
    assert histories_of(tmp_path) == {}


@pytest.fixture(scope="module")
def evaluation(tiny: Tiny, tmp_path_factory: pytest.TempPathFactory) -> Evaluation:
    return mm.evaluate(
        f"her2st:{tiny.her2st}", tiny.store, encoder="efficientnet-lite0", head="ridge", genes="mean:5", seeds=2,
        out=tmp_path_factory.mktemp("evaluated") / "e", progress=False,
    )  # fmt: skip


def test_histories_of_runs_and_folds(tiny: Tiny, evaluation: Evaluation, tmp_path: Path) -> None:
    assert histories_of(tiny.run) == {}  # its strength was given
    assert set(histories_of(evaluation.path)) == {f"fold {p}, seed {s}" for p in "ABC" for s in (0, 1)}
    (tmp_path / "history.csv").write_text("encoder,alpha,validation_pcc\n0,1,.5\n1,1,.6\n0,2,.7\n")
    by_encoder = histories_of(tmp_path)
    assert [len(rows) for rows in by_encoder.values()] == [2, 1]
    assert list(by_encoder) == ["this run, encoder 0", "this run, encoder 1"]


def test_every_fold_has_a_row(evaluation: Evaluation) -> None:
    scores = evaluation.metrics.test.slides
    table = summary_of_folds(evaluation.metrics)
    assert [row[:2] for row in table.rows] == [("A", "A1"), ("B", "B1"), ("C", "C1")]
    assert [row[4] for row in table.rows] == [f"{of.mse:.4f}" for of in scores.values()]
    assert [of.patient for of in scores.values()] == ["A", "B", "C"]


def test_the_page_shows_folds_patients_and_what_was_tried(evaluation: Evaluation, tmp_path: Path) -> None:
    draw_page(evaluation.path, tmp_path / "e.html")
    text = (tmp_path / "e.html").read_text("utf-8")
    titles = re.findall("<h2>(.*)</h2>", text)
    assert titles == [
        "held-out slides, with 95% intervals over patients", "folds", "slides", "Patients", "Maps", "Validation"
    ]  # fmt: skip
