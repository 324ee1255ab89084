"""What the rows of a comparison add up to: scores, paired differences, agreement with regions, cost."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from mmap_st.head.evaluation.aggregate import PER_SLIDE, Patients, gain
from mmap_st.head.evaluation.comparison_rows import FIRST_ENCODER, FIRST_MAGNIFICATIONS, REFERENCES, Row
from mmap_st.head.scoring import FEWEST_FOR_TEST, holm

#: Scores of a row, beside those of its slides.
SCORES = (*PER_SLIDE, "pcc_pooled")
# What all rows have in common, of their metrics.json.
_COMMON = ("name", "folds", "fold_slides", "seeds", "patients", "shared_patients", "panel", "genes",
           "normalisation", "smoothed")  # fmt: skip

RowResult = dict[str, Any]


def row_without_scores(row: Row, reason: str) -> RowResult:
    """A row that does not apply, or failed."""
    return {**_named(row), "reason": reason}


def row_with_scores(
    row: Row,
    metrics: Mapping[str, Any],
    seconds: Mapping[str, float],
    parameters: int,
    agreement: Mapping[str, float | None],
) -> RowResult:
    """A row that was evaluated.

    Parameters
    ----------
    metrics
        Its metrics.json.
    seconds
        ``fit`` and ``predict``, the mean over its fits.
    parameters
        How many numbers its head consists of.
    agreement
        Adjusted Rand index of each labelled slide.
    """
    test = metrics["test"]
    known = [value for value in agreement.values() if value is not None]
    return {
        **_named(row),
        "reason": None,
        **{key: test[key] for key in SCORES},
        "intervals": test["intervals"],
        **({"spread": test["spread"]} if "spread" in test else {}),
        "ari": float(np.mean(known)) if known else None,
        "ari_slides": dict(agreement),
        "parameters": parameters,
        "seconds": dict(seconds),
        "slides": test["slides"],
    }


def comparison(
    rows: Sequence[RowResult], protocol: Mapping[str, Any] | None, patients: Patients
) -> dict[str, Any]:
    """Contents of compare.json.

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
    ``protocol``, and ``rows`` with ``differences``: to the heads of `REFERENCES` of the same encoder and
    magnifications, to the same head of the `FIRST_ENCODER`, and to that at the `FIRST_MAGNIFICATIONS`. Metric
    by metric there are the mean, and with 6 patients or more its interval; to `REFERENCES` also the p-value
    of the Wilcoxon test and ``p_holm``, corrected for all rows compared with that head on that metric.
    """
    found: list[RowResult] = [{**row, "differences": _differences(row, rows, patients)} for row in rows]
    for reference in REFERENCES:
        for metric in PER_SLIDE:
            compared = [row["differences"] for row in found if reference in row["differences"]]
            cells = [differences[reference][metric] for differences in compared]
            for cell, corrected in zip(cells, holm([cell["p_value"] for cell in cells]), strict=True):
                cell["p_holm"] = corrected
    common = {key: protocol[key] for key in _COMMON} if protocol is not None else None
    return {"protocol": common, "rows": found}


def flat_rows(rows: Sequence[RowResult]) -> list[dict[str, Any]]:
    """Rows of compare.csv: one number a cell, empty where there is none."""
    flat = []
    for row in rows:
        cells: dict[str, Any] = {key: row[key] for key in ("encoder", "head")}
        cells["magnifications"] = " ".join(f"{mpp:g}" for mpp in row["magnifications"])
        for metric in SCORES:
            cells[metric] = row.get(metric)
            if metric in PER_SLIDE:
                low, high = (row.get("intervals") or {}).get(metric) or (None, None)
                cells |= {f"{metric}_low": low, f"{metric}_high": high}
        for reference in (*REFERENCES, FIRST_ENCODER, FIRST_MAGNIFICATIONS):
            for metric in PER_SLIDE:
                cell = row["differences"].get(reference, {}).get(metric, {})
                low, high = cell.get("interval") or (None, None)
                name = f"{metric}_to_{reference.replace(' ', '_')}"
                cells |= {name: cell.get("mean"), f"{name}_low": low, f"{name}_high": high}
                if reference in REFERENCES:
                    cells |= {f"{name}_p": cell.get("p_value"), f"{name}_p_holm": cell.get("p_holm")}
        seconds = row.get("seconds") or {}
        cells |= {"ari": row.get("ari"), "parameters": row.get("parameters")}
        cells |= {f"seconds_{key}": seconds.get(key) for key in ("fit", "predict")}
        cells["reason"] = row["reason"]
        flat.append({key: "" if value is None else value for key, value in cells.items()})
    return flat


def _named(row: Row) -> RowResult:
    return {
        "key": row.key,
        "encoder": row.fit.encoder,
        "head": row.head,
        "magnifications": list(row.mpps),
    }


def _differences(row: RowResult, rows: Sequence[RowResult], patients: Patients) -> dict[str, Any]:
    """How far a row lies above each of those that it is compared with, and that were evaluated."""
    found: dict[str, Any] = {}
    for name, other in _compared_with(row, rows).items():
        if other["key"] == row["key"] or row["reason"] or other["reason"]:
            continue
        found[name] = gain(row, other, patients)
        for cell in found[name].values():
            if cell["patients"] < FEWEST_FOR_TEST:
                cell["interval"] = None
            if name not in REFERENCES:
                cell["p_value"] = None
            cell["p_holm"] = None
    return found


def _compared_with(row: RowResult, rows: Sequence[RowResult]) -> dict[str, RowResult]:
    def first(**same: Any) -> RowResult | None:
        return next((r for r in rows if all(r[key] == value for key, value in same.items())), None)

    encoder, head, magnifications = (row[key] for key in ("encoder", "head", "magnifications"))
    found = {name: first(encoder=encoder, magnifications=magnifications, head=name) for name in REFERENCES}
    found[FIRST_ENCODER] = first(head=head, magnifications=magnifications)
    found[FIRST_MAGNIFICATIONS] = first(head=head, encoder=encoder)
    return {name: other for name, other in found.items() if other is not None}
