"""Figures of ablations: what each part of a head contributes, and how many prototypes a spot needs."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from mmap_st.head.evaluation import AblationRow
from mmap_st.report.figure import FONT, hide_frame, new_figure, plain, save_figure

Rows = Sequence[AblationRow]

_WHOLE, _PART, _GRID = "#31688e", "#444444", "#dddddd"
#: Metrics that are drawn, and whether more is better.
_SHOWN = {"pcc_slide": ("PCC, per slide", True), "mse": ("MSE", False)}


def draw_ablations(rows: Rows, folder: Path) -> list[Path]:
    """Draw ablations.png, and selected.png where L was varied.

    Parameters
    ----------
    rows
        Of the head as it is, and of its variants.
    """
    written = [_draw_parts(rows, folder / "ablations.png")]
    by_count = _by_selected(rows)
    if by_count:
        written.append(_draw_selected(by_count, folder / "selected.png"))
    return written


def _draw_parts(rows: Rows, path: Path) -> Path:
    """One dot per variant: its difference to the head as it is, with the interval over patients."""
    parts = [(row.variant, row.difference) for row in rows if row.difference is not None]
    figure = new_figure(7.2, 0.9 + 0.2 * len(parts))
    axes = figure.subplots(1, len(_SHOWN), sharey=True)
    place = np.arange(len(parts))[::-1]
    for axis, (metric, (label, more)) in zip(axes, _SHOWN.items(), strict=True):
        axis.axvline(0, color=_WHOLE, lw=1)
        for y, (_, difference) in zip(place, parts, strict=True):
            apart = difference[metric]
            if apart.interval:
                axis.plot(apart.interval, [y, y], color=_PART, lw=1)
            axis.plot(apart.mean, y, "o", color=_PART, ms=3.5)
        better = "right" if more else "left"
        axis.set_xlabel(f"{label}: difference to the head as it is\n(better to the {better})", fontsize=FONT)
        axis.set_ylim(-0.7, len(parts) - 0.3)
        axis.grid(axis="x", color=_GRID, lw=0.5)
        hide_frame(axis)
    axes[0].set_yticks(place, [plain(variant) for variant, _ in parts], fontsize=FONT)
    return save_figure(figure, path)


def _draw_selected(by_count: Sequence[tuple[str, AblationRow]], path: Path) -> Path:
    """Scores by L, the number of prototypes that each spot attends to (Figure 4 of arXiv 2510.11344)."""
    shown = {"pcc_slide": "PCC, per slide", "mse": "MSE", "mae": "MAE"}
    figure = new_figure(7.2, 2.1)
    place = np.arange(len(by_count))
    for axis, (metric, label) in zip(figure.subplots(1, len(shown)), shown.items(), strict=True):
        values = np.array([row.value(metric) for _, row in by_count])
        fixed = np.array([row.selected is not None for _, row in by_count])
        whole = np.array([row.key == "whole" for _, row in by_count])
        axis.plot(place[fixed], values[fixed], "-", color=_PART, lw=1)
        axis.plot(place[~whole], values[~whole], "o", color=_PART, ms=3.5)
        axis.plot(place[whole], values[whole], "D", color=_WHOLE, ms=4.5)
        axis.set_xticks(place, [plain(name) for name, _ in by_count], fontsize=FONT)
        axis.set_xlabel("L, prototypes of a spot", fontsize=FONT)
        axis.set_ylabel(label, fontsize=FONT)
        axis.margins(x=0.12, y=0.2)
        axis.grid(axis="y", color=_GRID, lw=0.5)
        hide_frame(axis)
    return save_figure(figure, path)


def _by_selected(rows: Rows) -> list[tuple[str, AblationRow]]:
    """Rows by L, the adaptive one last; none where L was not varied."""
    varied = [row for row in rows if row.key == "whole" or row.key.startswith("selected-")]
    if len(varied) < 2:
        return []
    by_count = sorted(varied, key=lambda row: (row.selected is None, row.selected))
    return [(str(row.selected or "K / 2"), row) for row in by_count]
