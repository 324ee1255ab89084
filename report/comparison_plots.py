"""Figures of a comparison: every row with its patients, and two rows gene by gene."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
from matplotlib import colormaps
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from mmap_st.errors import counted
from mmap_st.head.evaluation import FIRST_ENCODER, FIRST_MAGNIFICATIONS, REFERENCES, RowResult
from mmap_st.head.scoring import Interval, Scores
from mmap_st.report.comparison import COMPARED, Rows
from mmap_st.report.figure import COLOURS, FONT, hide_frame, new_figure, plain, save_figure

_GRID, _LINE = "#dddddd", "#444444"
_ROW_IN, _GROUP_IN, _AROUND_IN = 0.2, 0.24, 1.05
_NAMED_GENES = 10
# Errors beyond this many times the middle one are off the axis.
_FAR = 1.5


def draw_comparison(rows: Rows, path: Path) -> Path | None:
    """Write the figure of a comparison, see `comparison_figure`; None where no row has scores."""
    figure = comparison_figure(rows)
    return None if figure is None else save_figure(figure, path)


def comparison_figure(rows: Rows, width_in: float = 7.6) -> Figure | None:
    """One line per row, the best first: PCC, its paired difference to a reference, MSE.

    What was compared is side by side: encoders, in a group for each head, where there are several; else
    magnifications; else heads. Dots are patients, a diamond is the mean over slides, and bars are 95%
    intervals over patients, where there are enough. None where no row has scores.
    """
    scored = [_Scored(row, row.scores) for row in rows if row.scores is not None]
    if not scored:
        return None
    view = _view_of([one.row for one in scored])
    groups = _grouped(scored, view)
    encoders = list(dict.fromkeys(one.row.encoder for one in scored))
    colours = dict(zip(encoders, colormaps[COLOURS](np.linspace(0.15, 0.7, len(encoders))), strict=True))
    headed = any(name for name, _ in groups)
    height = _AROUND_IN + _ROW_IN * len(scored) + _GROUP_IN * len(groups) * headed
    figure = new_figure(width_in, height)
    panels = [
        _Panel("PCC, per slide", _of_row("pcc_slide")),
        *(_Panel(_label_of(name, view), _apart(name, scored), zero=True) for name in view.references),
        _Panel("MSE", _of_row("mse"), clipped=True),
    ]
    axes = figure.subplots(1, len(panels), sharey=True, squeeze=False)[0]
    place, y = {}, 0.0
    for name, members in groups:
        if headed:
            y -= _GROUP_IN / _ROW_IN
            axes[0].annotate(
                plain(name), (-0.02, y), xycoords=("axes fraction", "data"), fontsize=FONT, weight="bold",
                ha="right", va="center", annotation_clip=False,
            )  # fmt: skip
        for one in members:
            y -= 1
            place[one.row.key] = y
    for axis, panel in zip(axes, panels, strict=True):
        _draw_panel(axis, panel, scored, place, colours)
    by_key = {one.row.key: one.row for one in scored}
    names = [plain(view.label(by_key[key])) for key in place]
    axes[0].set_yticks(list(place.values()), names, fontsize=FONT)
    axes[0].set_ylim(y - 0.7, -0.3)
    several = any(len(one.scores.of_patients("mse")) > 1 for one in scored)
    with_bars = any(one.scores.interval("mse") is not None for one in scored)
    words = [
        *(["dots: patients"] if several else []),
        "diamonds: means over slides",
        *(["differences: with all else the same"] if view.references else []),
        *(["bars: 95% intervals over patients"] if with_bars else []),
    ]
    figure.supxlabel("; ".join(words), fontsize=FONT - 1, color="0.35")
    return figure


@dataclass(frozen=True)
class _Scored:
    """A row that has scores."""

    row: RowResult
    scores: Scores


@dataclass(frozen=True)
class _Shown:
    """What a panel shows of a row: a value, its interval, and the value of every patient."""

    value: float
    interval: Interval | None
    patients: Sequence[float]


@dataclass(frozen=True)
class _Panel:
    """One measure of all rows; `clipped`: what lies far above the others is an arrow at the edge."""

    label: str
    of: Callable[[_Scored], _Shown | None]
    clipped: bool = False
    zero: bool = False


@dataclass(frozen=True)
class _View:
    """What was compared: which part of a row is its label, which parts name its group, and the references."""

    label: Callable[[RowResult], str]
    group: Callable[[RowResult], str]
    references: tuple[str, ...]
    first_encoder: str


def _view_of(rows: Rows) -> _View:
    parts: dict[str, Callable[[RowResult], str]] = {
        "encoder": lambda row: row.encoder,
        "magnifications": lambda row: f"{', '.join(f'{mpp:g}' for mpp in row.magnifications)} um/px",
        "head": lambda row: row.head,
    }
    vary = [part for part, of in parts.items() if len({of(row) for row in rows}) > 1]
    shown = vary[0] if vary else "head"
    others = [parts[part] for part in vary if part != shown]
    known = {reference for row in rows for reference in row.differences}
    of_heads = next((name for name in REFERENCES if name in known), None)
    first = {"encoder": FIRST_ENCODER, "magnifications": FIRST_MAGNIFICATIONS, "head": of_heads}
    references = [first[part] for part in dict.fromkeys((shown, *(["head"] if "head" in vary else [])))]
    return _View(
        label=parts[shown],
        group=lambda row: ", ".join(of(row) for of in others),
        references=tuple(name for name in references if name is not None and name in known),
        first_encoder=rows[0].encoder,
    )


def _grouped(scored: Sequence[_Scored], view: _View) -> list[tuple[str, list[_Scored]]]:
    """Rows by group, the best row of each first, and the group with the best row first."""
    found: dict[str, list[_Scored]] = {}
    for one in sorted(scored, key=lambda one: -_or_least(one.scores.value(COMPARED))):
        found.setdefault(view.group(one.row), []).append(one)
    return list(found.items())


def _label_of(reference: str, view: _View) -> str:
    if reference == FIRST_ENCODER:
        return f"PCC, difference to\n{plain(view.first_encoder)}"
    if reference == FIRST_MAGNIFICATIONS:
        return "PCC, difference to\nthe first magnifications"
    return f"PCC, difference to\n{plain(reference)}"


def _of_row(metric: str) -> Callable[[_Scored], _Shown | None]:
    """A metric of a row."""

    def of(one: _Scored) -> _Shown | None:
        value = one.scores.value(metric)
        patients = list(one.scores.of_patients(metric).values())
        return None if np.isnan(value) else _Shown(value, one.scores.interval(metric), patients)

    return of


def _apart(reference: str, scored: Sequence[_Scored]) -> Callable[[_Scored], _Shown | None]:
    """How far a row lies above its reference, patient by patient."""

    def reference_of(row: RowResult) -> _Scored | None:
        """The row that it is compared with."""
        for other in scored:
            alike = (
                other.row.magnifications == row.magnifications or reference == FIRST_MAGNIFICATIONS,
                other.row.encoder == row.encoder or reference == FIRST_ENCODER,
                other.row.head == (reference if reference in REFERENCES else row.head),
            )
            if all(alike):  # the first such row is the first encoder's, or that of the first magnifications
                return other
        return None

    def of(one: _Scored) -> _Shown | None:
        other = reference_of(one.row)
        cell = one.row.difference(reference, COMPARED)
        if cell is None:
            return _Shown(0.0, None, []) if other is not None and other.row.key == one.row.key else None
        patients: list[float] = []
        if other is not None:
            theirs: Mapping[str, float] = other.scores.of_patients(COMPARED)
            own = one.scores.of_patients(COMPARED)
            patients = [own[whose] - theirs[whose] for whose in own if whose in theirs]
        return _Shown(cell.mean, cell.interval, patients)

    return of


def _draw_panel(
    axis: Any,
    panel: _Panel,
    scored: Sequence[_Scored],
    place: Mapping[str, float],
    colours: Mapping[str, Any],
) -> None:
    shown = {one.row.key: of for one in scored if (of := panel.of(one)) is not None}
    low, high = _range(list(shown.values()), clipped=panel.clipped)
    if panel.zero:
        axis.axvline(0, color=_LINE, lw=0.8, zorder=1)
    for one in scored:
        of, y, colour = shown.get(one.row.key), place[one.row.key], colours[one.row.encoder]
        if of is None:
            continue
        if of.value > high:  # far off: an arrow at the edge, so that the others can be distinguished
            axis.plot(high, y, ">", color=colour, ms=4, clip_on=False)
            axis.annotate(
                f"{of.value:.2f}", (high, y), (-5, 0), textcoords="offset points", fontsize=FONT - 2,
                ha="right", va="center",
            )  # fmt: skip
            continue
        if len(of.patients) > 1:
            axis.scatter(of.patients, [y] * len(of.patients), s=9, color=colour, alpha=0.35, lw=0, zorder=2)
        if of.interval:
            axis.plot(of.interval, [y, y], color=colour, lw=1.4, zorder=3)
        axis.plot(of.value, y, "D", color=colour, ms=4, mec="white", mew=0.6, zorder=4)
    axis.set_xlim(low, high)
    axis.xaxis.set_major_locator(MaxNLocator(4))
    axis.set_xlabel(panel.label, fontsize=FONT)
    axis.grid(axis="both", color=_GRID, lw=0.5)
    axis.set_axisbelow(True)
    hide_frame(axis)


def _range(shown: Sequence[_Shown], *, clipped: bool) -> tuple[float, float]:
    """What an axis shows: all values and intervals; where it is clipped, none far above the middle one."""
    if not shown:
        return 0.0, 1.0
    middle = float(np.median([of.value for of in shown]))
    near = [of for of in shown if not clipped or of.value <= _FAR * middle]
    ends = [end for of in near for end in (of.value, *(of.interval or ()), *of.patients)]
    margin = 0.06 * (max(ends) - min(ends)) or 0.01
    return min(ends) - margin, max(ends) + margin


def _or_least(value: float) -> float:
    return float("-inf") if value != value else value


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
