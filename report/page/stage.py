"""What all maps of a page share: the slide that is shown, its picture, and the part of it that is seen."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from importlib.resources import files
from typing import Any

from bokeh.models.css import InlineStyleSheet
from bokeh.models.ranges import Range1d
from bokeh.models.sources import ColumnDataSource
from bokeh.models.widgets.inputs import Select
from bokeh.plotting import figure

MAP_PX = 400
# Widgets have style sheets of their own, which know no dark page.
_STYLE = """
@media (prefers-color-scheme: dark) {
  .bk-input, .bk-menu { color: #e8e8ea; background-color: #2a2a2e; border-color: #55555b; }
  .bk-menu > :hover, .bk-menu > .bk-active { background-color: #44444a; }
  .slick-row, .slick-row.odd { color: #e8e8ea !important; background-color: #1b1b1e !important; }
  .slick-row.odd { background-color: #242428 !important; }
  .slick-cell.selected, .slick-row:hover { background-color: #3c4a5e !important; }
}
"""


@dataclass(frozen=True)
class Stage:
    """Models that several parts of a page refer to.

    Attributes
    ----------
    choose_slide
        Its value is the name of the slide that is shown.
    picture
        Its thumbnail.
    across, down
        What of the slide is seen, in level-0 pixels.
    """

    choose_slide: Select
    picture: ColumnDataSource
    across: Range1d
    down: Range1d


def new_stage(slides: Sequence[str]) -> Stage:
    """A stage for slides of these names; the first is shown first."""
    names: list[Any] = list(slides)
    choose_slide = Select(title="slide", options=names, value=names[0], width=200, name="slide")
    styled(choose_slide)
    picture = ColumnDataSource({"url": [], "x": [], "y": [], "w": [], "h": []})
    return Stage(choose_slide, picture, Range1d(), Range1d())


def empty_map(stage: Stage, title: str, name: str, tools: str = "") -> Any:
    """A map that shows the slide's picture and no spots yet, as a figure of Bokeh.

    Parameters
    ----------
    tools
        What it has besides those that all have.
    """
    plot = figure(
        width=MAP_PX,
        height=MAP_PX,
        title=title,
        x_range=stage.across,
        y_range=stage.down,
        match_aspect=True,
        tools=f"pan,wheel_zoom,box_zoom,reset,save{tools}",
        active_scroll="wheel_zoom",
        toolbar_location="above",
        name=f"map_{name}",
    )
    plot.axis.visible = False
    plot.grid.visible = False
    plot.outline_line_color = None
    plot.image_url("url", "x", "y", "w", "h", source=stage.picture, anchor="top_left", alpha=0.7)
    return plot


def styled(*widgets: Any) -> None:
    """Make widgets follow a dark page."""
    for widget in widgets:
        widget.stylesheets = [*widget.stylesheets, InlineStyleSheet(css=_STYLE)]


def script(name: str) -> str:
    """One of the scripts beside this file, behind what all of them use."""
    folder = files("mmap_st.report.page")
    return "\n".join(folder.joinpath(part).read_text("utf-8") for part in ("common.js", name))
