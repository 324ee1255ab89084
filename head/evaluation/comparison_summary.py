"""What the rows of a comparison add up to: scores, paired differences, agreement with regions, cost."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace

import numpy as np

from mmap_st.head.evaluation.aggregate import Patients, gain
from mmap_st.head.evaluation.comparison_rows import Row
from mmap_st.head.evaluation.results import (
    FIRST_ENCODER,
    FIRST_MAGNIFICATIONS,
    REFERENCES,
    CommonProtocol,
    ComparisonResult,
    RowResult,
)
from mmap_st.head.scoring import FEWEST_FOR_TEST, PER_SLIDE, CorrectedDifference, Scores, holm


def unevaluated_row(row: Row, reason: str) -> RowResult:
    """A row that does not apply, or failed."""
    return RowResult(row.key, row.fit.encoder, row.head, row.mpps, reason)


def evaluated_row(
    row: Row,
    scores: Scores,
    seconds: Mapping[str, float],
    parameters: int,
    agreement: Mapping[str, float | None],
) -> RowResult:
    """A row that was evaluated.

    Parameters
    ----------
    scores
        Of its head, on held-out slides.
    seconds
        ``fit`` and ``predict``, the mean over its fits.
    parameters
        How many numbers its head consists of.
    agreement
        Adjusted Rand index of each labelled slide.
    """
    known = [value for value in agreement.values() if value is not None]
    return replace(
        unevaluated_row(row, ""),
        reason=None,
        scores=scores,
        ari=float(np.mean(known)) if known else None,
        ari_slides=dict(agreement),
        parameters=parameters,
        seconds=dict(seconds),
    )


def compare_rows(
    rows: Sequence[RowResult], protocol: CommonProtocol | None, patients: Patients
) -> ComparisonResult:
    """Compare rows with each other.

    Parameters
    ----------
    rows
        In the order of the table.
    protocol
        Of a row that was evaluated; None where there is none.
    patients
        Of each slide.

    Returns
    -------
    The rows with their differences to the heads of `REFERENCES` of the same encoder and magnifications, to
    the same head of the `FIRST_ENCODER`, and to that at the `FIRST_MAGNIFICATIONS`. With 6 patients or more a
    difference has its interval; to `REFERENCES` also the p-value of the Wilcoxon test, and ``p_holm``:
    corrected for all rows that are compared with that head on that metric.
    """
    found = [_differences(row, rows, patients) for row in rows]
    for reference in REFERENCES:
        compared = [differences[reference] for differences in found if reference in differences]
        for metric in PER_SLIDE:
            corrected = holm([of_row[metric].p_value for of_row in compared])
            for of_row, p_holm in zip(compared, corrected, strict=True):
                of_row[metric] = replace(of_row[metric], p_holm=p_holm)
    compared_rows = (replace(row, differences=d) for row, d in zip(rows, found, strict=True))
    return ComparisonResult(protocol, tuple(compared_rows))


def _differences(
    row: RowResult, rows: Sequence[RowResult], patients: Patients
) -> dict[str, dict[str, CorrectedDifference]]:
    """How far a row lies above each of those that it is compared with, and that were evaluated."""
    found: dict[str, dict[str, CorrectedDifference]] = {}
    for name, other in _compared_with(row, rows).items():
        if other.key == row.key or row.scores is None or other.scores is None:
            continue
        found[name] = {
            metric: replace(
                CorrectedDifference(**asdict(apart)),
                interval=apart.interval if apart.patients >= FEWEST_FOR_TEST else None,
                p_value=apart.p_value if name in REFERENCES else None,
            )
            for metric, apart in gain(row.scores, other.scores, patients).items()
        }
    return found


def _compared_with(row: RowResult, rows: Sequence[RowResult]) -> dict[str, RowResult]:
    """The first row of each kind that a row is compared with."""

    def first(encoder: str | None, head: str, mpps: tuple[float, ...] | None) -> RowResult | None:
        same = (
            other
            for other in rows
            if other.head == head
            and encoder in (None, other.encoder)
            and mpps in (None, other.magnifications)
        )
        return next(same, None)

    found = {name: first(row.encoder, name, row.magnifications) for name in REFERENCES}
    found[FIRST_ENCODER] = first(None, row.head, row.magnifications)
    found[FIRST_MAGNIFICATIONS] = first(row.encoder, row.head, None)
    return {name: other for name, other in found.items() if other is not None}
