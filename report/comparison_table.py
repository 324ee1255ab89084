"""A comparison as a table of words: for a terminal, and as Markdown."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

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

# What rows are compared with, see `mmap_st.head.comparison.summary.comparison`.
_REFERENCES = ("mmap", "ridge", "first encoder", "first magnifications")

Row = Mapping[str, Any]


def table_of(rows: Sequence[Row]) -> tuple[list[str], list[list[str]]]:
    """Columns, and a line a row; columns that would be empty are left out."""
    references = [r for r in _REFERENCES if any(r in row["differences"] for row in rows)]
    labelled = any(row.get("ari") is not None for row in rows)
    columns = ["row", *METRICS.values()]
    columns += [f"PCC, to {reference.replace('first', 'its head, first')}" for reference in references]
    columns += ["ARI"] if labelled else []
    columns += ["parameters", "fit", "predict"]
    lines = []
    for row in rows:
        if row["reason"]:
            lines.append([row["key"], "not evaluated", *[""] * (len(columns) - 2)])
            continue
        line = [row["key"], *(_with_interval(row[m], row["intervals"].get(m)) for m in METRICS)]
        line += [_difference(row["differences"].get(r, {}).get(COMPARED)) for r in references]
        line += [_number(row["ari"], 3)] if labelled else []
        line += [_short(row["parameters"]), *(f"{row['seconds'][k]:.1f} s" for k in ("fit", "predict"))]
        lines.append(line)
    return columns, lines


def about(result: Mapping[str, Any]) -> str:
    """What was compared on what, in one line."""
    protocol = result["protocol"]
    if protocol is None:
        return "no row could be evaluated"
    slides = sum(len(names) for names in protocol["fold_slides"].values())
    genes = " to ".join(dict.fromkeys(str(n) for n in (protocol["genes"][0], protocol["genes"][-1])))
    seeds = len(protocol["seeds"])
    return (
        f"{slides} slides of {protocol['patients']} patients in {len(protocol['fold_slides'])} folds"
        f" ({protocol['folds']}), {seeds} seed{'' if seeds == 1 else 's'}; {genes} genes"
        f" ({protocol['panel']}); protocol {protocol['name']}"
    )


def notes(result: Mapping[str, Any]) -> list[str]:
    """What a reader of the table must know."""
    protocol = result["protocol"]
    reasons = [f"{row['key']} is not evaluated: {row['reason']}" for row in result["rows"] if row["reason"]]
    if protocol is None:
        return reasons
    scored = [row for row in result["rows"] if not row["reason"]]
    found = []
    if any(row["intervals"][COMPARED] for row in scored):
        found.append("In brackets: 95% bootstrap interval over patients.")
    cells = [cell[COMPARED] for row in scored for cell in row["differences"].values()]
    if any(cell["p_holm"] is not None for cell in cells):
        found.append(
            "p: Wilcoxon signed-rank test over patients' means, Holm-corrected for all rows of the table that"
            " are compared with that head."
        )
    elif cells and not any(cell["interval"] for cell in cells):
        found.append("Differences are without intervals and p-values: these need at least 6 patients.")
    found.append("fit, predict: seconds of one fit with its inner choices, and of its fold's test slides.")
    return [*found, *reasons]


def write_markdown(result: Mapping[str, Any], path: Path) -> Path:
    """Write compare.md and return its path."""
    columns, lines = table_of(result["rows"])
    marks = ["---", *["---:"] * (len(columns) - 1)]
    table = [_line(cells) for cells in (columns, marks, *lines)]
    text = "\n\n".join([about(result) + ".", "\n".join(table), "\n\n".join(notes(result))])
    path.write_text(text + "\n", "utf-8")
    return path


def _line(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"


def _difference(cell: Row | None) -> str:
    if cell is None:
        return ""
    shown = _with_interval(cell["mean"], cell["interval"], "+")
    return shown if cell["p_holm"] is None else f"{shown}, p = {cell['p_holm']:.2g}"


def _with_interval(value: float | None, interval: Sequence[float] | None, sign: str = "") -> str:
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
