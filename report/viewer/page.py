"""The page of a viewer: the map, which Bokeh draws, and the files that the page is made of."""

from __future__ import annotations

import html
import json
from functools import cache
from importlib.resources import files

import numpy as np

import mmap_st
from mmap_st.report.viewer.shown_slide import ShownSlide
from mmap_st.report.viewer.tiles import TILE_PX, TileGrid

_TEXT = "; charset=utf-8"
_OWN = {"viewer.js": f"text/javascript{_TEXT}", "viewer.css": f"text/css{_TEXT}"}
_BOKEH = ("bokeh.min.js", "bokeh-gl.min.js")
_STEPS = 256
#: Left around the spots, of the longer side of what they span.
_MARGIN = 0.02
#: What the page's script replaces by the address of the slide.
_BASE = "BASE/"


@cache
def assets() -> dict[str, tuple[bytes, str]]:
    """The page's files and those of Bokeh, with their types, by name."""
    own = files("mmap_st.report.viewer")
    found = {name: (own.joinpath(name).read_bytes(), kind) for name, kind in _OWN.items()}
    style = files("mmap_st.report.page").joinpath("page.css").read_bytes()
    found["page.css"] = (style, _OWN["viewer.css"])
    bokeh = files("bokeh.server").joinpath("static", "js")
    return (
        found
        | {name: (bokeh.joinpath(name).read_bytes(), _OWN["viewer.js"]) for name in _BOKEH}
        | {"palettes.json": (json.dumps(_palettes()).encode(), "application/json")}
    )


def _palettes() -> dict[str, list[str]]:
    """Colours of the page of results: told apart without red and green."""
    from bokeh.palettes import Cividis256, Viridis256

    from mmap_st.report.page import DIFFERENCES

    return {"expression": list(Viridis256), "spread": list(Cividis256), "difference": list(DIFFERENCES)}


def page_html(title: str) -> str:
    """The page itself; all that it shows of slides is fetched by its script."""
    text = files("mmap_st.report.viewer").joinpath("viewer.html").read_text("utf-8")
    return text.replace("{{ title }}", html.escape(title)).replace("{{ version }}", mmap_st.__version__)


def around(slide: ShownSlide) -> dict[str, float]:
    """The part of the map that holds all spots and a margin, in its units."""
    unit = slide.mpp or 1.0
    known = slide.xy[np.isfinite(slide.xy).all(axis=1)]
    if not len(known):
        return {"x0": 0.0, "x1": 1.0, "y0": -1.0, "y1": 0.0}
    edge = slide.diameter_px + _MARGIN * np.ptp(known, axis=0).max()
    (x0, y0), (x1, y1) = known.min(axis=0) - edge, known.max(axis=0) + edge
    ends = {"x0": x0, "x1": x1, "y0": -y1, "y1": -y0}
    return {name: float(end * unit) for name, end in ends.items()}


def figure_json(slide: ShownSlide, grid: TileGrid | None) -> str:
    """The map of a slide without its spots, as Bokeh's script takes it.

    Units are micrometres where the scale is known, else level-0 pixels; y points up, so that what is `y` down
    in the image is `-y` here.
    """
    from bokeh.embed import json_item
    from bokeh.models.annotations import ColorBar, ScaleBar
    from bokeh.models.mappers import LinearColorMapper
    from bokeh.models.ranges import Range1d
    from bokeh.models.sources import ColumnDataSource
    from bokeh.models.tiles import WMTSTileSource
    from bokeh.models.tools import BoxZoomTool, HoverTool, PanTool, ResetTool, SaveTool, WheelZoomTool
    from bokeh.plotting import figure

    unit = slide.mpp or 1.0
    place = around(slide)
    across = Range1d(start=place["x0"], end=place["x1"], name="across")
    up = Range1d(start=place["y0"], end=place["y1"], name="up")
    wheel = WheelZoomTool()
    plot = figure(
        x_range=across,
        y_range=up,
        sizing_mode="stretch_both",
        tools=[PanTool(), wheel, BoxZoomTool(match_aspect=True), ResetTool(), SaveTool()],
        active_scroll=wheel,
        toolbar_location="right",
        output_backend="webgl",
        name="map",
    )
    plot.toolbar.logo = None
    plot.axis.visible = False
    plot.grid.visible = False
    plot.outline_line_color = None
    if slide.thumbnail is not None:
        height, width = (side / slide.thumbnail.scale * unit for side in slide.thumbnail.pixels.shape[:2])
        picture = ColumnDataSource(
            {"x": [0.0], "y": [0.0], "w": [width], "h": [height], "url": [f"{_BASE}overview.jpg"]}
        )
        plot.image_url(
            "url", "x", "y", "w", "h", source=picture, anchor="top_left", name="overview", level="underlay"
        )
    if grid is not None:
        side = TILE_PX * unit * 2 ** (grid.zooms - 1)
        source = WMTSTileSource(
            url=f"{_BASE}tiles/{{Z}}/{{X}}/{{Y}}",
            tile_size=TILE_PX,
            min_zoom=0,
            max_zoom=grid.zooms - 1,
            initial_resolution=side / TILE_PX,
            x_origin_offset=0.0,
            y_origin_offset=side,
            wrap_around=False,
            tags=[
                {
                    "tiles": [list(grid.tiles(zoom)) for zoom in range(grid.zooms)],
                    "width": grid.size[0] * unit,
                    "height": grid.size[1] * unit,
                }
            ],
        )
        plot.add_tile(source, name="tissue", alpha=1.0)
    spots = ColumnDataSource({"x": [], "y": [], "value": [], "id": []}, name="spots")
    mapper = LinearColorMapper(
        palette=["#808080"] * _STEPS, low=0, high=1, nan_color="rgba(0,0,0,0)", name="colours"
    )
    drawn = plot.circle(
        "x",
        "y",
        radius=slide.diameter_px * unit / 2,
        source=spots,
        fill_color={"field": "value", "transform": mapper},
        line_color=None,
        fill_alpha=0.8,
        name="drawn",
    )
    hover = HoverTool(renderers=[drawn], tooltips=[("spot", "@id"), ("value", "@value{0.00}")], name="hover")
    plot.add_tools(hover)
    plot.add_layout(ColorBar(color_mapper=mapper, width=10, label_standoff=5, name="bar"), "right")
    if slide.mpp is not None:
        plot.add_layout(
            ScaleBar(
                range=across, unit="µm", location="bottom_left", length_sizing="adaptive", bar_length=0.12,
                background_fill_alpha=0.8, border_line_color=None, name="scale_bar",
            )
        )  # fmt: skip
    return json.dumps(json_item(plot))
