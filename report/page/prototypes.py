"""The part of a page that shows prototypes: where they are, what they look like, and what a spot attends to.

Bokeh draws it. What changes with the chosen slide or spot is done by ``prototypes.js`` in the browser.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from bokeh.layouts import column, gridplot, row
from bokeh.models.annotations import ColorBar
from bokeh.models.callbacks import CustomJS
from bokeh.models.css import InlineStyleSheet
from bokeh.models.mappers import LinearColorMapper
from bokeh.models.sources import ColumnDataSource
from bokeh.models.tools import HoverTool
from bokeh.models.ui import UIElement
from bokeh.models.widgets.inputs import AutocompleteInput
from bokeh.models.widgets.markups import Div
from bokeh.palettes import Cividis256

from mmap_st.report.page.slide_layers import SlideLayers, as_data_uri, pack_layer
from mmap_st.report.page.slide_prototypes import SlidePrototypes
from mmap_st.report.page.stage import MAP_PX, Stage, empty_map, script, styled

#: Prototypes that are shown as pictures, those that the chosen spot attends to most.
SHOWN = 12
_PICTURE_QUALITY = 70  # there are dozens of them, and each is small
_GALLERY_STYLE = """
.prototypes { display: grid; grid-template-columns: repeat(4, 112px); gap: 14px; margin: 0; }
figure { margin: 0; font: 12px/1.3 system-ui, sans-serif; overflow-wrap: anywhere; }
img, .none { width: 104px; height: 104px; display: block; border: 4px solid var(--own); border-radius: 4px; }
.none { background: var(--own); opacity: 0.6; }
.share { height: 5px; margin: 3px 0; background: var(--own); }
.genes { font-style: italic; }
figure { color: #1d1d1f; }
@media (prefers-color-scheme: dark) { figure { color: #e8e8ea; } }
"""


def prototypes_part(stage: Stage, slides: Sequence[SlideLayers]) -> tuple[UIElement, CustomJS] | None:
    """The maps of prototypes and of a spot's attention, and the prototypes as pictures.

    Parameters
    ----------
    stage
        For the same slides.
    slides
        Some of which have prototypes.

    Returns
    -------
    What is to be shown, and the callback that fills it once the page is ready; None where no slide has
    prototypes.
    """
    if all(slide.prototypes is None for slide in slides):
        return None
    columns = ("x", "y", "id", "number", "colour", "attention", "genes")
    spots = ColumnDataSource({name: [] for name in columns})
    mapper = LinearColorMapper(palette=Cividis256, low=0, high=1, nan_color="rgba(0,0,0,0)")
    where = empty_map(stage, "the prototype that each spot attends to most", "prototypes", ",tap")
    attended = empty_map(stage, "attention of the chosen spot", "attention", ",tap")
    tips = [("spot", "@id"), ("prototype", "@number"), ("its genes", "@genes")]
    renderers = []
    for plot, colour, name in (
        (where, "colour", "prototypes"),
        (attended, {"field": "attention", "transform": mapper}, "attention"),
    ):
        drawn = plot.circle(
            "x", "y", radius=1.0, source=spots, fill_color=colour, line_color=None, name=f"spots_{name}"
        )
        # A chosen spot is ringed, and the others stay as they are.
        drawn.nonselection_glyph = drawn.glyph
        drawn.selection_glyph = drawn.glyph.clone(line_color="#d62728", line_width=3)
        share = [("attention of the chosen spot to it", "@attention{0.0}%")] if name == "attention" else []
        plot.add_tools(HoverTool(renderers=[drawn], tooltips=[*tips, *share]))
        renderers.append(drawn)
    bar = ColorBar(color_mapper=mapper, width=8, label_standoff=4, title="%")
    attended.add_layout(bar, "right")
    choose_spot = AutocompleteInput(
        title="spot", completions=[], value="", case_sensitive=False, min_characters=1, max_completions=20,
        search_strategy="includes", width=180, name="spot",
    )  # fmt: skip
    styled(choose_spot)
    words = Div(text="", name="prototype_words", width=2 * MAP_PX)
    gallery = Div(text="", name="gallery", stylesheets=[InlineStyleSheet(css=_GALLERY_STYLE)])
    steer = CustomJS(
        args={
            "slides": [_packed(slide) for slide in slides],
            "spots": spots,
            "mapper": mapper,
            "glyphs": [glyph for one in renderers for glyph in (one.glyph, one.selection_glyph)],
            "plots": [where, attended],
            "bars": [bar],
            "choose_slide": stage.choose_slide,
            "choose_spot": choose_spot,
            "gallery": gallery,
            "words": words,
            "shown": SHOWN,
        },
        code=script("prototypes.js"),
        module=True,
    )
    stage.choose_slide.js_on_change("value", steer)
    choose_spot.js_on_change("value", steer)
    spots.selected.js_on_change("indices", steer)
    both = gridplot([[where, attended]], merge_tools=True, toolbar_options={"logo": None})
    maps = column(choose_spot, words, both)
    return row(maps, gallery, name="prototypes"), steer


def _packed(slide: SlideLayers) -> dict[str, object] | None:
    """A slide's prototypes as the page's script takes them."""
    found = slide.prototypes
    if found is None:
        return {"name": slide.name, "count": 0}
    return {
        "name": slide.name,
        "count": len(found.shown_by),
        "encoder": found.encoder,
        "x": [round(float(x), 1) for x in slide.xy[:, 0]],
        "y": [round(float(y), 1) for y in slide.xy[:, 1]],
        "ids": list(slide.ids),
        "spot_px": slide.diameter_px,
        "weights": pack_layer(found.weights),
        "nearest": found.nearest.tolist(),
        "size": found.size.tolist(),
        "shown_by": [slide.ids[spot] for spot in found.shown_by],
        "colours": [_hex(colour) for colour in found.colours],
        "genes": [list(genes) for genes in found.genes],
        "windows": [
            as_data_uri(found.windows[number], _PICTURE_QUALITY) if number in found.windows else None
            for number in range(len(found.shown_by))
        ],
    }


def _hex(colour: np.ndarray) -> str:
    return "#" + "".join(f"{round(255 * part):02x}" for part in colour)


def note_of(slides: Sequence[SlideLayers]) -> str:
    """What a reader of this part must know, in sentences."""
    found: list[SlidePrototypes] = [slide.prototypes for slide in slides if slide.prototypes is not None]
    encoders = list(dict.fromkeys(one.encoder for one in found))
    widths = {one.window_um for one in found if one.windows}
    pictures = "There are no pictures of them: the slides' images could not be read."
    if widths:
        across = ", ".join(f"{width:.0f} um" if width else "two spots" for width in sorted(widths, key=str))
        pictures = f"A picture shows the spot that attends to a prototype most, {across} across."
    return (
        f"Prototypes are what k-means finds in the slide's own embeddings ({', '.join(encoders)}); those that"
        " no spot attends to most are left out. Similar ones have neighbouring numbers and like colours."
        " Choose a spot in a map or by its name to see which it attends to, in the fixed attention of the"
        f" head. {pictures} Genes: those predicted furthest above the slide's mean where a prototype is"
        " attended to most."
    )
