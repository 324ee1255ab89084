"""A comparison to look at: its table in words, every row with its interval, and two rows gene by gene."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from itertools import pairwise
from pathlib import Path

import numpy as np
import polars as pl
from matplotlib import colormaps
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from numpy.typing import NDArray

from mmap_st.errors import counted, printable
from mmap_st.files import write_text, writing
from mmap_st.head.evaluation import (
    FIRST_ENCODER,
    FIRST_MAGNIFICATIONS,
    REFERENCES,
    ComparisonResult,
    RowResult,
)
from mmap_st.head.scoring import CorrectedDifference, Interval, Scores
from mmap_st.report.figure import COLOURS, FONT, hide_frame, new_figure, plain, save_figure

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


_GRID, _LINE = "#dddddd", "#444444"
_NAMED_GENES = 10
# Errors beyond this many times the middle one are off the axis.
_FAR = 1.5

# A row that has scores.
_Scored = tuple[RowResult, Scores]
# What a panel shows of a row: a value, and its interval.
_Shown = tuple[float | None, Interval | None]


def draw_comparison(rows: Rows, path: Path) -> Path | None:
    """Write the figure of a comparison, see `comparison_figure`; None where no row has scores."""
    figure = comparison_figure(rows)
    return None if figure is None else save_figure(figure, path)


def comparison_figure(rows: Rows, width_in: float = 7.6) -> Figure | None:
    """One dot per row, the best of each encoder first: PCC, its paired difference to a reference, MSE.

    Bars are 95% intervals over patients, where there are enough patients. None where no row has scores.
    """
    scored = [(row, row.scores) for row in rows if row.scores is not None]
    if not scored:
        return None
    encoders = list(dict.fromkeys(row.encoder for row, _ in scored))
    scored.sort(key=lambda one: (encoders.index(one[0].encoder), -_or_least(one[1].value(COMPARED))))
    colours = dict(zip(encoders, colormaps[COLOURS](np.linspace(0.2, 0.75, len(encoders))), strict=True))
    reference = next((r for r in REFERENCES if any(r in row.differences for row, _ in scored)), None)
    figure = new_figure(width_in, 0.9 + 0.17 * (len(scored) + len(encoders)))
    panels: list[tuple[str, Callable[[_Scored], _Shown]]] = [
        ("PCC, per slide", lambda one: _shown(one[1], COMPARED))
    ]
    if reference:
        label = f"PCC, difference to {reference}\nof the same encoder"
        panels.append((label, lambda one: _apart(one[0], str(reference))))
    panels.append(("MSE", lambda one: _shown(one[1], "mse")))
    place = _places(scored)
    axes = figure.subplots(1, len(panels), sharey=True, squeeze=False)[0]
    for axis, (label, of) in zip(axes, panels, strict=True):
        shown = [of(one) for one in scored]
        low, high = _range(shown, clipped=label == "MSE")
        for y, (row, _), (value, interval) in zip(place, scored, shown, strict=True):
            colour = colours[row.encoder]
            if value is None:
                continue
            if value > high:  # far off: an arrow at the edge, so that the others can be distinguished
                axis.plot(high, y, ">", color=colour, ms=4, clip_on=False)
                axis.annotate(f"{value:.2f} ", (high, y), fontsize=FONT - 2, ha="right", va="center")
                continue
            if interval:
                axis.plot(interval, [y, y], color=colour, lw=1.2)
            axis.plot(value, y, "o", color=colour, ms=4)
        axis.set_xlim(low, high)
        axis.xaxis.set_major_locator(MaxNLocator(4))
        if "difference" in label:
            axis.axvline(0, color=_LINE, lw=0.8)
        axis.set_xlabel(label, fontsize=FONT)
        axis.grid(axis="both", color=_GRID, lw=0.5)
        hide_frame(axis)
    axes[0].set_yticks(place, [plain(_label(row, rows)) for row, _ in scored], fontsize=FONT)
    axes[0].set_ylim(place.min() - 0.7, place.max() + 0.7)
    for encoder in encoders:
        top = max(y for y, (row, _) in zip(place, scored, strict=True) if row.encoder == encoder)
        axes[-1].annotate(
            plain(encoder), (1.02, top), xycoords=("axes fraction", "data"), fontsize=FONT,
            color=colours[encoder], va="center", annotation_clip=False,
        )  # fmt: skip
    return figure


def draw_genes(first: tuple[str, Path], second: tuple[str, Path], path: Path) -> Path:
    """Every gene's PCC (a mean over slides) by two rows, from their genes.csv.

    Parameters
    ----------
    first, second
        Name of a row, and its genes.csv.
    """
    tables = [_scores(file) for _, file in (first, second)]
    joined = tables[0].join(tables[1], on="gene", suffix="_other").drop_nulls()
    x, y = joined["pcc_other"].to_numpy(), joined["pcc"].to_numpy()
    figure = new_figure(3.6, 3.6)
    axis = figure.subplots()
    low, high = min(x.min(), y.min()) - 0.02, max(x.max(), y.max()) + 0.02
    axis.plot([low, high], [low, high], color=_GRID, lw=1, zorder=0)
    axis.scatter(x, y, s=6, color=colormaps[COLOURS](0.3), alpha=0.6, lw=0)
    named: list[int] = []
    for number in np.argsort(-np.maximum(x, y), kind="stable")[:_NAMED_GENES]:
        # Names that would lie on each other are left out.
        crowded = any(
            abs(y[number] - y[i]) < 0.035 * (high - low) and abs(x[number] - x[i]) < 0.2 * (high - low)
            for i in named
        )
        if not crowded:
            named.append(int(number))
            axis.annotate(
                plain(joined["gene"][int(number)]), (x[number], y[number]), fontsize=FONT - 2, xytext=(-3, 2),
                textcoords="offset points", ha="right",
            )  # fmt: skip
    axis.set_xlim(low, high)
    axis.set_ylim(low, high)
    axis.set_aspect("equal")
    axis.set_xlabel(plain(f"PCC of {second[0]}"), fontsize=FONT)
    axis.set_ylabel(plain(f"PCC of {first[0]}"), fontsize=FONT)
    above, below = int((y > x).sum()), int((x > y).sum())
    axis.set_title(f"{counted(len(joined), 'gene')}: {above} above the line, {below} below it", fontsize=FONT)
    hide_frame(axis)
    return save_figure(figure, path)


def _scores(file: Path) -> pl.DataFrame:
    return pl.read_csv(file, infer_schema=False, glob=False).select("gene", pl.col("pcc").cast(pl.Float64))


def _range(shown: Sequence[_Shown], *, clipped: bool) -> tuple[float, float]:
    """What an axis shows: all values and intervals; where it is clipped, none far above the middle one."""
    known = [(value, interval) for value, interval in shown if value is not None]
    middle = float(np.median([value for value, _ in known]))
    near = [one for one in known if not clipped or one[0] <= _FAR * middle]
    ends = [end for value, interval in near for end in (value, *(interval or ()))]
    margin = 0.06 * (max(ends) - min(ends)) or 0.01
    return min(ends) - margin, max(ends) + margin


def _shown(scores: Scores, metric: str) -> _Shown:
    value = scores.value(metric)
    return None if np.isnan(value) else value, scores.interval(metric)


def _apart(row: RowResult, reference: str) -> _Shown:
    cell = row.difference(reference, COMPARED)
    if cell is None:
        return (0.0, None) if row.head == reference else (None, None)
    return cell.mean, cell.interval


def _places(scored: Sequence[_Scored]) -> NDArray[np.float64]:
    """Heights of the rows, from above; encoders are a step apart."""
    steps = [1.0 if a.encoder == b.encoder else 2.0 for (a, _), (b, _) in pairwise(scored)]
    return -np.cumsum([0.0, *steps])


def _label(row: RowResult, rows: Rows) -> str:
    several = len({other.magnifications for other in rows}) > 1
    return row.key.removeprefix(f"{row.encoder}/") if several else row.head


def _or_least(value: float | None) -> float:
    return float("-inf") if value is None or value != value else value
