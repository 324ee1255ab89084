"""The figure of a comparison draws what was compared, and every patient."""

from __future__ import annotations

import numpy as np
import pytest
from matplotlib.figure import Figure

from mmap_st.head.evaluation import CommonProtocol, RowResult
from mmap_st.head.evaluation.comparison_rows import compare_rows
from mmap_st.head.scoring import PER_SLIDE, Scores, SlideScores
from mmap_st.report.comparison_plots import comparison_figure

# Each patient has two slides but the last, who has one.
PATIENTS = {"a1": "A", "a2": "A", "b1": "B", "b2": "B", "c1": "C"}
MPPS = {"fine": (0.5,), "both": (0.5, 2.0)}


def row(encoder: str, head: str, magnifications: str, pcc: float) -> RowResult:
    steps = np.linspace(-0.1, 0.1, len(PATIENTS))
    slides = {
        slide: SlideScores(9, pcc + step, 1 - pcc, 0.5, 0, pcc + step, patient=patient)
        for (slide, patient), step in zip(PATIENTS.items(), steps.tolist(), strict=True)
    }
    scores = Scores(slides, pcc, pcc, pcc, 1 - pcc, 0.5, intervals=dict.fromkeys(PER_SLIDE))
    key = f"{encoder}/{head}/{magnifications}"
    return RowResult(key, encoder, head, MPPS[magnifications], scores=scores)


def drawn(*rows: RowResult) -> Figure:
    protocol = CommonProtocol("default", "patient", {}, (0,), 3, (), "hvg:9", (9,), "log1p", smoothed=False)
    figure = comparison_figure(compare_rows(list(rows), protocol, PATIENTS).rows)
    assert figure is not None
    return figure


def labels(figure: Figure) -> list[str]:
    return [text.get_text() for text in figure.axes[0].get_yticklabels()]


def groups(figure: Figure) -> list[str]:
    return [text.get_text() for text in figure.axes[0].texts]


def panels(figure: Figure) -> list[str]:
    return [axis.get_xlabel().replace("\n", " ") for axis in figure.axes]


def test_encoders_are_side_by_side_for_each_head() -> None:
    figure = drawn(
        row("uni", "mmap", "fine", 0.3), row("uni", "ridge", "fine", 0.1),
        row("gigapath", "mmap", "fine", 0.4), row("gigapath", "ridge", "fine", 0.2),
    )  # fmt: skip
    assert groups(figure) == ["mmap", "ridge"]
    assert labels(figure) == ["gigapath", "uni", "gigapath", "uni"]
    assert panels(figure) == ["PCC, per slide", "PCC, difference to uni", "PCC, difference to mmap", "MSE"]


def test_encoders_alone_need_no_groups() -> None:
    figure = drawn(row("uni", "mmap", "fine", 0.3), row("gigapath", "mmap", "fine", 0.4))
    assert groups(figure) == []
    assert labels(figure) == ["gigapath", "uni"]
    assert panels(figure) == ["PCC, per slide", "PCC, difference to uni", "MSE"]


def test_heads_of_one_encoder_are_compared_with_mmap() -> None:
    figure = drawn(row("uni", "knn", "fine", 0.1), row("uni", "mmap", "fine", 0.3))
    assert labels(figure) == ["mmap", "knn"]
    assert panels(figure) == ["PCC, per slide", "PCC, difference to mmap", "MSE"]


def test_magnifications_of_one_encoder_are_side_by_side() -> None:
    figure = drawn(row("uni", "mmap", "fine", 0.3), row("uni", "mmap", "both", 0.35))
    assert labels(figure) == ["0.5, 2 um/px", "0.5 um/px"]
    assert panels(figure)[1] == "PCC, difference to the first magnifications"


def points(figure: Figure, panel: int) -> list[list[float]]:
    """Patients' values of each row, from the top down."""
    found = [np.asarray(dots.get_offsets()) for dots in figure.axes[panel].collections]
    return [dots[:, 0].tolist() for dots in sorted(found, key=lambda dots: -dots[0, 1])]


def test_dots_are_patients() -> None:
    figure = drawn(row("uni", "mmap", "fine", 0.3), row("uni", "knn", "fine", 0.1))
    means = [-0.075, 0.025, 0.1]
    assert points(figure, 0) == [
        pytest.approx([0.3 + m for m in means]),
        pytest.approx([0.1 + m for m in means]),
    ]
    assert points(figure, 1) == [pytest.approx([-0.2] * 3)]
    assert "dots: patients" in figure.get_supxlabel()


def test_what_lies_far_off_is_an_arrow_and_what_is_undefined_is_left_out() -> None:
    figure = drawn(
        row("uni", "mmap", "fine", 0.3), row("uni", "knn", "fine", -4.0), row("uni", "mlp", "fine", np.nan)
    )
    error = figure.axes[-1]
    assert error.get_xlim()[1] < 2
    assert [text.get_text().strip() for text in error.texts] == ["5.00"]
    assert "mlp" in labels(figure)


def test_rows_without_scores_are_no_figure() -> None:
    assert comparison_figure([RowResult("uni/tcgn", "uni", "tcgn", (0.5,), reason="no tokens")]) is None
