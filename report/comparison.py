"""A comparison in words and as a table."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

from mmap_st.errors import counted, printable
from mmap_st.files import write_text, writing
from mmap_st.head.evaluation import (
    FIRST_ENCODER,
    FIRST_MAGNIFICATIONS,
    REFERENCES,
    ComparisonResult,
    RowResult,
)
from mmap_st.head.scoring import CorrectedDifference, Interval

#: Metrics that are shown, and what they are called.
METRICS = {
    "pcc_slide": "PCC (per slide)",
    "pcc_slide_hvg50": "PCC (hvg50)",
    "pcc_pooled": "PCC (pooled)",
    "mse": "MSE",
    "mae": "MAE",
}
#: The metric whose paired differences are shown.
COMPARED = "pcc_slide"

# What rows are compared with.
_COMPARED_WITH = (*REFERENCES, FIRST_ENCODER, FIRST_MAGNIFICATIONS)

Rows = Sequence[RowResult]


def table_of(rows: Rows) -> tuple[list[str], list[list[str]]]:
    """Columns, and one line per row; columns that would be empty are left out."""
    references = [r for r in _COMPARED_WITH if any(r in row.differences for row in rows)]
    labelled = any(row.ari is not None for row in rows)
    columns = ["row", *METRICS.values()]
    columns += [f"PCC, to {reference.replace('first', 'its head, first')}" for reference in references]
    columns += ["ARI"] if labelled else []
    columns += ["parameters", "fit", "predict"]
    lines = []
    for row in rows:
        if row.scores is None:
            lines.append([row.key, "not evaluated", *[""] * (len(columns) - 2)])
            continue
        line = [row.key, *(_with_interval(row.scores.value(m), row.scores.interval(m)) for m in METRICS)]
        line += [_difference(row.difference(r, COMPARED)) for r in references]
        line += [_number(row.ari, 3)] if labelled else []
        line += [_short(row.parameters or 0), *(f"{row.seconds[k]:.1f} s" for k in ("fit", "predict"))]
        lines.append(line)
    return columns, lines


def about(result: ComparisonResult) -> str:
    """What was compared on what, in one line."""
    protocol = result.protocol
    if protocol is None:
        return "no row could be evaluated"
    slides = sum(len(names) for names in protocol.fold_slides.values())
    first, last = protocol.genes[0], protocol.genes[-1]
    genes = counted(last, "gene") if first == last else f"{first} to {last} genes"
    return (
        f"{counted(slides, 'slide')} of {counted(protocol.patients, 'patient')} in"
        f" {counted(len(protocol.fold_slides), 'fold')} ({protocol.folds}),"
        f" {counted(len(protocol.seeds), 'seed')}; {genes} ({protocol.panel}); protocol {protocol.name}"
    )


def notes(result: ComparisonResult) -> list[str]:
    """What a reader of the table must know."""
    reasons = [f"{row.key} is not evaluated: {row.reason}" for row in result.rows if row.reason]
    if result.protocol is None:
        return reasons
    found = []
    if any(row.scores is not None and row.scores.interval(COMPARED) for row in result.evaluated):
        found.append("In brackets: 95% bootstrap interval over patients.")
    cells = [of_metric[COMPARED] for row in result.evaluated for of_metric in row.differences.values()]
    if any(cell.p_holm is not None for cell in cells):
        found.append(
            "p: Wilcoxon signed-rank test over patients' means, Holm-corrected for all rows of the table that"
            " are compared with that head."
        )
    elif cells and not any(cell.interval for cell in cells):
        found.append("Differences are without intervals and p-values: these need at least 6 patients.")
    found.append("fit, predict: seconds of one fit with its inner choices, and of its fold's test slides.")
    return [*found, *reasons]


def write_markdown(result: ComparisonResult, path: Path) -> Path:
    """Write compare.md and return its path."""
    columns, lines = table_of(result.rows)
    marks = ["---", *["---:"] * (len(columns) - 1)]
    rows = [list(map(_markdown, cells)) for cells in (columns, *lines)]
    table = [_line(cells) for cells in (rows[0], marks, *rows[1:])]
    text = "\n\n".join([f"{_markdown(about(result))}.", "\n".join(table), *map(_markdown, notes(result))])
    with writing(path.parent):
        write_text(path, text + "\n")
    return path


def _line(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cells) + " |"


def _markdown(text: str) -> str:
    """A text as it is, for Markdown: no names of it become links, code or HTML."""
    return re.sub(r"[\\`*\[\]<>&|]", r"\\\g<0>", printable(text))


def _difference(cell: CorrectedDifference | None) -> str:
    if cell is None:
        return ""
    shown = _with_interval(cell.mean, cell.interval, "+")
    return shown if cell.p_holm is None else f"{shown}, p = {cell.p_holm:.2g}"


def _with_interval(value: float | None, interval: Interval | None, sign: str = "") -> str:
    shown = _number(value, 4, sign)
    return shown if interval is None else f"{shown} ({interval[0]:{sign}.4f} to {interval[1]:{sign}.4f})"


def _number(value: float | None, digits: int, sign: str = "") -> str:
    return "undefined" if value is None or value != value else f"{value:{sign}.{digits}f}"


def _short(number: int) -> str:
    """A count in words of at most five characters."""
    for size, unit in ((1_000_000, "M"), (1_000, "k")):
        if number >= size:
            return f"{number / size:.3g}{unit}"
    return str(number)
