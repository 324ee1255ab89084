"""The interactive part of a page: maps of the gene that is chosen, and the table that genes are chosen from.

Bokeh draws it. What changes with the chosen gene, slide or scale is done by ``page.js`` in the browser.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from bokeh.layouts import column, gridplot, row
from bokeh.models.annotations import ColorBar
from bokeh.models.callbacks import CustomJS
from bokeh.models.filters import IndexFilter
from bokeh.models.mappers import LinearColorMapper
from bokeh.models.sources import CDSView, ColumnDataSource
from bokeh.models.tools import HoverTool
from bokeh.models.ui import UIElement
from bokeh.models.widgets.inputs import AutocompleteInput, Checkbox, TextInput
from bokeh.models.widgets.markups import Div
from bokeh.models.widgets.sliders import Slider
from bokeh.models.widgets.tables import DataTable, NumberFormatter, StringFormatter, TableColumn
from bokeh.palettes import Cividis256, Viridis256, interp_palette

from mmap_st.head.scoring import pearson_per_gene
from mmap_st.report.page.slide_layers import (
    CLIPPED,
    SPREAD_LEVELS,
    SlideLayers,
    as_data_uri,
    pack_layer,
)
from mmap_st.report.page.stage import MAP_PX, Stage, empty_map, script, styled

# Rows of the table of genes that the search, and the box beside it, leave.
_NARROW = """
const {gene, trusted: flags} = source.data
const wanted = search.value_input.trim().toLowerCase()
const rows = []
for (let i = 0; i < gene.length; i++)
  if (gene[i].toLowerCase().includes(wanted) && (!trusted.active || flags[i] === "yes")) rows.push(i)
kept.indices = rows
source.change.emit()
"""
_TABLE_PX = 420
#: Blue, white, orange: told apart without red and green.
DIFFERENCES = interp_palette(
    ("#08519c", "#3182bd", "#9ecae1", "#f7f7f7", "#fdbe85", "#e6550d", "#a63603"), 255
)
TITLES = {
    "measured": "measured",
    "predicted": "predicted",
    "difference": "predicted − measured",
    "spread": "spread of the prediction",
}


def maps_and_genes(
    stage: Stage, slides: Sequence[SlideLayers], columns: Mapping[str, Sequence[object]]
) -> tuple[UIElement, CustomJS]:
    """The maps, what they are steered by, and the table of genes.

    Parameters
    ----------
    stage
        For the same slides.
    slides
        Their genes are the same, in the same order.
    columns
        Of the table of genes, by name: values (g,) of the same genes. The first gene is shown first.

    Returns
    -------
    What is to be shown, and the callback that fills it once the page is ready.
    """
    genes = slides[0].genes
    shown = [name for name in TITLES if _has(slides, name)]
    spots = ColumnDataSource({name: [] for name in ("x", "y", "id", "distance", *shown)})
    mappers = {name: _mapper(name) for name in shown}
    radius = Slider(start=0.3, end=1.5, step=0.05, value=0.8, title="size of spots", width=160)
    opacity = Slider(start=0, end=1, step=0.05, value=0.9, title="opacity of spots", width=160)
    plots: list[Any] = []
    glyphs, bars = [], []
    for name in shown:
        plot = empty_map(stage, TITLES[name], name)
        drawn = plot.circle(
            "x",
            "y",
            radius=1.0,
            source=spots,
            fill_color={"field": name, "transform": mappers[name]},
            line_color=None,
            fill_alpha=0.9,
            name=f"spots_{name}",
        )
        glyphs.append(drawn.glyph)
        opacity.js_link("value", drawn.glyph, "fill_alpha")
        tips = [("spot", "@id")] + [(TITLES[other], f"@{other}{{0.00}}") for other in shown]
        plot.add_tools(HoverTool(renderers=[drawn], tooltips=[*tips, ("distance", "@distance{0.0}")]))
        bar = ColorBar(color_mapper=mappers[name], width=8, label_standoff=4, title=None)
        plot.add_layout(bar, "right")
        bars.append(bar)
        plots.append(plot)
    packed = [_packed(slide) for slide in slides]
    nothing = [float("nan")] * len(genes)
    table_source = ColumnDataSource(
        {"gene": list(genes), "slide_pcc": packed[0]["pcc"] or nothing, **columns}
    )
    kept = IndexFilter(indices=list(range(len(genes))))
    with_pcc = any(slide.measured is not None for slide in slides)
    table = _table(table_source, CDSView(filter=kept), columns, with_pcc=with_pcc)
    search = TextInput(title="search genes", width=180, name="search")
    trusted = Checkbox(label="trusted genes only", name="trusted", visible="trusted" in columns)
    choose_genes = column(search, trusted)
    narrow = CustomJS(
        args={"source": table_source, "kept": kept, "search": search, "trusted": trusted}, code=_NARROW
    )
    search.js_on_change("value_input", narrow)
    trusted.js_on_change("active", narrow)
    choose_gene = AutocompleteInput(
        title="gene", completions=list(genes), value=genes[0], case_sensitive=False, min_characters=1,
        search_strategy="includes", width=180, name="gene",
    )  # fmt: skip
    one_scale = Checkbox(
        label="one colour scale for measured and predicted", active=True, name="one_scale", visible=with_pcc
    )
    styled(choose_gene, one_scale, radius, opacity, search, trusted, table)
    words = Div(text="", name="words", width=2 * MAP_PX)
    steer = CustomJS(
        args={
            "slides": packed,
            "genes": list(genes),
            "spots": spots,
            "picture": stage.picture,
            "mappers": mappers,
            "across": stage.across,
            "down": stage.down,
            "radius": radius,
            "glyphs": glyphs,
            "plots": plots,
            "bars": bars,
            "table": table_source,
            "kept": kept,
            "choose_gene": choose_gene,
            "choose_slide": stage.choose_slide,
            "one_scale": one_scale,
            "words": words,
            "clipped": list(CLIPPED),
        },
        code=script("page.js"),
        module=True,
    )
    for widget, change in (
        (choose_gene, "value"),
        (stage.choose_slide, "value"),
        (one_scale, "active"),
        (radius, "value"),
    ):
        widget.js_on_change(change, steer)
    table_source.selected.js_on_change("indices", steer)
    steering = row(stage.choose_slide, choose_gene, radius, opacity, sizing_mode="stretch_width")
    left = column(
        steering, one_scale, words, gridplot(plots, ncols=2, merge_tools=True, toolbar_options={"logo": None})
    )
    right = column(choose_genes, table)
    root = row(left, right, name="maps")
    return root, steer


def _has(slides: Sequence[SlideLayers], layer: str) -> bool:
    """Whether any slide has a layer; differences are there where measured values are."""
    needed = "measured" if layer == "difference" else layer
    return any(getattr(slide, needed) is not None for slide in slides)


def _mapper(layer: str) -> LinearColorMapper:
    palette = DIFFERENCES if layer == "difference" else Cividis256 if layer == "spread" else Viridis256
    return LinearColorMapper(palette=palette, low=0, high=1, nan_color="rgba(0,0,0,0)")


def _packed(slide: SlideLayers) -> dict[str, object]:
    """A slide as the page's script takes it."""
    layers = {"predicted": pack_layer(slide.predicted)}
    if slide.measured is not None:
        layers["measured"] = pack_layer(slide.measured)
    if slide.spread is not None:
        layers["spread"] = pack_layer(slide.spread, SPREAD_LEVELS)
    picture, height, width = None, 0.0, 0.0
    if slide.thumbnail is not None:
        picture = as_data_uri(slide.thumbnail.pixels)
        height, width = (side / slide.thumbnail.scale for side in slide.thumbnail.pixels.shape[:2])
    pcc = None
    if slide.measured is not None:
        pcc = [round(float(v), 4) for v in pearson_per_gene(slide.predicted, slide.measured)]
    return {
        "name": slide.name,
        "units": slide.units,
        "verdict": slide.verdict,
        "x": [round(float(x), 1) for x in slide.xy[:, 0]],
        "y": [round(float(y), 1) for y in slide.xy[:, 1]],
        "spot_px": slide.diameter_px,
        "ids": list(slide.ids),
        "distance": None if slide.distance is None else [round(float(d), 2) for d in slide.distance],
        "picture": picture,
        "width": width,
        "height": height,
        "layers": layers,
        "pcc": pcc,
    }


def _table(
    source: ColumnDataSource, view: CDSView, columns: Mapping[str, Sequence[object]], *, with_pcc: bool
) -> DataTable:
    """The table of genes, which sorts where its heads are clicked."""
    shown = [TableColumn(field="gene", title="gene", width=90)]
    if with_pcc:
        shown.append(TableColumn(field="slide_pcc", title="PCC here", formatter=_formatter([0.0]), width=70))
    shown += [
        TableColumn(field=name, title=name.replace("_", " "), formatter=_formatter(values), width=75)
        for name, values in columns.items()
    ]
    return DataTable(
        source=source,
        view=view,
        columns=shown,
        width=_TABLE_PX,
        height=2 * MAP_PX,
        index_position=None,
        reorderable=False,
        selectable=True,
        autosize_mode="none",
        name="genes",
    )


def _formatter(values: Sequence[object]) -> StringFormatter:
    numbers = bool(values) and isinstance(values[0], float)
    return NumberFormatter(format="0.000", nan_format="") if numbers else StringFormatter()
