"""The charts of a page: scores of every patient, and the scores that choices were made by."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from bokeh.layouts import row
from bokeh.models.callbacks import CustomJS
from bokeh.models.ranges import FactorRange
from bokeh.models.sources import ColumnDataSource
from bokeh.models.tools import HoverTool
from bokeh.models.ui import UIElement
from bokeh.plotting import figure

from mmap_st.head.scoring import Scores
from mmap_st.report.page.stage import script

_WIDTH_PX, _ROW_PX, _AROUND_PX, _CURVE_PX = 620, 34, 90, 300
# On white and on black.
_COLOUR, _OTHER, _FAINT = "#3f8fc4", "#c8741f", 0.5
_FEWEST = 2
#: Metrics that have charts of patients, and what they are called.
_METRICS = {"pcc_slide": "PCC (per slide)", "mse": "MSE"}
#: Columns of a history that are scores, and what they are called.
_VALIDATION = {"validation_pcc": "PCC on validation spots", "validation_mse": "MSE on validation spots"}
_NO_SETTING = {*_VALIDATION, "training_loss", "encoder"}
# Settings that were tried at steps of about the same ratio.
_BY_RATIO = 20.0


def patients_chart(scores: Mapping[str, Scores]) -> tuple[UIElement, CustomJS] | None:
    """Scores of every patient by every predictor, with means and their intervals.

    Returns
    -------
    What is to be shown, and the callback that fits it to a dark page; None where there are no scores, or of
    one patient alone, whom tables show.
    """
    if all(len(of.of_patients("mse")) < _FEWEST for of in scores.values()):
        return None
    rows = list(reversed(list(scores)))
    plots = [_patients_plot(scores, rows, metric, title) for metric, title in _METRICS.items()]
    return row(*plots, name="patients"), _themed(plots)


def _patients_plot(scores: Mapping[str, Scores], rows: Sequence[str], metric: str, title: str) -> Any:
    points = [
        (name, whose, value)
        for name, of in scores.items()
        for whose, value in sorted(of.of_patients(metric).items())
    ]
    plot = figure(
        width=_WIDTH_PX,
        height=_AROUND_PX + _ROW_PX * len(rows),
        y_range=FactorRange(factors=list(rows)),
        title=title,
        tools="xwheel_zoom,xpan,reset,save",
        toolbar_location=None,
        name=f"patients_{metric}",
    )
    plot.ygrid.grid_line_color = None
    source = ColumnDataSource(
        {
            "row": [name for name, _, _ in points],
            "patient": [whose for _, whose, _ in points],
            "value": [value for _, _, value in points],
        }
    )
    drawn = plot.scatter(
        "value", "row", source=source, size=9, color=_COLOUR, alpha=_FAINT, line_color=None, name="points"
    )
    means = {name: of.value(metric) for name, of in scores.items() if np.isfinite(of.value(metric))}
    for name in means:
        interval = scores[name].interval(metric)
        if interval is not None:
            plot.line(list(interval), [name, name], line_width=3, color=_OTHER)
    mean = plot.scatter(
        list(means.values()), list(means), marker="diamond", size=13, color=_OTHER, name="means"
    )
    tips = [("predictor", "@row"), ("patient", "@patient"), (title, "@value{0.0000}")]
    plot.add_tools(HoverTool(renderers=[drawn], tooltips=tips))
    plot.add_tools(HoverTool(renderers=[mean], tooltips=[("mean over slides", "@x{0.0000}")]))
    return plot


def curves_chart(
    histories: Mapping[str, Sequence[Mapping[str, float]]],
) -> tuple[UIElement, CustomJS] | None:
    """The validation scores of everything that a head tried, a line a fit.

    Returns
    -------
    What is to be shown, and the callback that fits it to a dark page; None where nothing was tried.
    """
    lines = {name: rows for name, rows in histories.items() if len(rows) > 1 and _setting(rows) is not None}
    if not lines:
        return None
    setting = _setting(next(iter(lines.values())))
    lines = {name: rows for name, rows in lines.items() if _setting(rows) == setting}
    assert setting is not None
    plots = [_curves_plot(lines, setting, key, title) for key, title in _VALIDATION.items()]
    return row(*plots, name="curves"), _themed(plots)


def _setting(rows: Sequence[Mapping[str, float]]) -> str | None:
    """What was tried: the first column that is no score."""
    return next((key for key in rows[0] if key not in _NO_SETTING), None)


def _curves_plot(
    lines: Mapping[str, Sequence[Mapping[str, float]]], setting: str, key: str, title: str
) -> Any:
    tried = [one[setting] for rows in lines.values() for one in rows if one[setting] > 0]
    by_ratio = setting != "epoch" and bool(tried) and max(tried) / min(tried) > _BY_RATIO
    plot = figure(
        width=_WIDTH_PX,
        height=_CURVE_PX,
        title=title,
        x_axis_label=setting,
        x_axis_type="log" if by_ratio else "linear",
        tools="pan,box_zoom,wheel_zoom,reset,save",
        toolbar_location=None,
        name=f"curves_{key}",
    )
    for name, rows in lines.items():
        known = [one for one in rows if np.isfinite(one[key])]
        source = ColumnDataSource(
            {
                "x": [one[setting] for one in known],
                "y": [one[key] for one in known],
                "fit": [name] * len(known),
            }
        )
        alpha = 1.0 if len(lines) == 1 else _FAINT
        plot.line("x", "y", source=source, color=_COLOUR, line_width=2, alpha=alpha)
        drawn = plot.scatter("x", "y", source=source, color=_COLOUR, size=5, alpha=alpha)
        tips = [("fit", "@fit"), (setting, "@x"), (title, "@y{0.0000}")]
        plot.add_tools(HoverTool(renderers=[drawn], tooltips=tips))
    return plot


def _themed(plots: Sequence[Any]) -> CustomJS:
    code = script("charts.js")
    return CustomJS(args={"plots": list(plots), "bars": []}, code=code, module=True)
