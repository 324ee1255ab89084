"""Where the prototypes of a slide are, and what they look like."""

from __future__ import annotations

from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.collections import EllipseCollection
from matplotlib.figure import Figure
from numpy.typing import NDArray

from mmap_st.data import Thumbnail
from mmap_st.errors import counted
from mmap_st.extract.slides import close_ups
from mmap_st.prototypes import Candidates, selection_space
from mmap_st.report.figure import FONT, frame, new_figure, relative_height, scale_bar, spot_distance, wrapped
from mmap_st.report.prototype_colours import order_by_similarity, prototype_colours
from mmap_st.urls import Place

#: What a picture of a prototype shows across, a patch of 224 pixels at 20x; and its own pixels.
WINDOW_UM, WINDOW_PX = 112.0, 112
#: Prototypes that are shown as pictures, in rows of `_A_ROW`.
SHOWN, _A_ROW = 16, 8
_SPOT_SHARE = 0.84  # of the distance between spots
_WIDE_IN = 4.5  # of a figure in which there is room for more than numbers
_TITLE_IN, _GAP_IN = 0.55, 0.16


def prototypes_map(
    name: str,
    xy: NDArray[np.float64],
    candidates: Candidates,
    background: Thumbnail | None,
    mpp: float | None,
    width_in: float = 5.2,
    image: Place | None = None,
) -> Figure:
    """A figure of a slide's candidates, see `draw_prototypes`, with pictures of the largest.

    Parameters
    ----------
    width_in
        Of the figure.
    image
        Of the slide, from which pictures are taken of the spots nearest to the prototypes. None, or where it
        cannot be read: no pictures.
    """
    order = order_by_similarity(selection_space(candidates.centre))
    largest = np.argsort(-candidates.size, kind="stable")[:SHOWN]
    shown = order[np.isin(order, largest)]
    pictures = None if image is None else _pictures(image, xy[candidates.medoid[shown]], xy, mpp)
    height = relative_height(xy, background) * width_in + _TITLE_IN
    if pictures is None:
        figure = new_figure(width_in, height)
        draw_prototypes(figure.subplots(), name, xy, candidates, background, mpp)
        return figure
    rows = -(-len(shown) // _A_ROW)
    strip = rows * (width_in / _A_ROW + _GAP_IN)
    figure = new_figure(width_in, height + strip)
    parts: Any = figure.subfigures(2, 1, height_ratios=[height, strip])
    above, below = parts
    draw_prototypes(above.subplots(), name, xy, candidates, background, mpp, numbered=shown)
    colours, places = prototype_colours(order), np.argsort(order)
    grid = below.subplots(rows, _A_ROW, squeeze=False)
    for axes in grid.flat[len(shown) :]:
        axes.set_axis_off()
    for axes, number, picture in zip(grid.flat, shown, pictures, strict=False):
        axes.imshow(picture)
        axes.set_xticks([])
        axes.set_yticks([])
        for side in axes.spines.values():
            side.set(color=colours[number], linewidth=2.5)
        members = f": {counted(int(candidates.size[number]), 'spot')}" if width_in >= _WIDE_IN else ""
        axes.set_title(f"{places[number] + 1}{members}", fontsize=FONT - 2)
    return figure


def draw_prototypes(
    axes: Axes,
    name: str,
    xy: NDArray[np.float64],
    candidates: Candidates,
    background: Thumbnail | None,
    mpp: float | None,
    numbered: NDArray[np.int64] | None = None,
) -> None:
    """Draw a slide's candidates; near colours are near embeddings.

    Parameters
    ----------
    name
        Of the slide.
    xy
        (n, 2) centres of its spots in level-0 pixels.
    candidates
        Of the slide.
    background, mpp
        See `mmap_st.report.maps.SlideMap`.
    numbered
        Candidates that are marked by their numbers in the order of similarity; None: all by dots.
    """
    frame(axes, xy, background)
    valid = candidates.label >= 0
    order = order_by_similarity(selection_space(candidates.centre))
    colours = prototype_colours(order)
    size = np.full(int(valid.sum()), _SPOT_SHARE * spot_distance(xy))
    axes.add_collection(
        EllipseCollection(
            size,
            size,
            np.zeros_like(size),
            offsets=xy[valid],
            units="xy",
            offset_transform=axes.transData,
            facecolors=colours[candidates.label[valid]],
        )
    )
    medoids = xy[candidates.medoid]
    if numbered is None:
        x, y = medoids.T
        axes.scatter(x, y, s=18, marker="o", facecolors="white", edgecolors="black", lw=0.8)
        marks = "white dots: the spots nearest to the prototypes"
    else:
        places = np.argsort(order)
        for number in numbered:
            axes.annotate(
                str(places[number] + 1), medoids[number], fontsize=FONT - 2, ha="center", va="center",
                bbox={"boxstyle": "round,pad=0.15", "facecolor": "white", "edgecolor": "0.4", "lw": 0.5},
            )  # fmt: skip
        marks = f"numbers: the spots nearest to the {len(numbered)} largest, which the pictures show"
        marks += f" ({WINDOW_UM:.0f} um across)" if mpp is not None else ""
    scale_bar(axes, mpp, xy)
    count = counted(len(candidates.size), "prototype")
    alike = "like colours" if numbered is None else "like colours and neighbouring numbers"
    title = f"{name}: {count}; similar ones have {alike}; {marks}"
    figure = axes.get_figure(root=True)
    assert figure is not None
    width = axes.get_position().width * figure.get_figwidth()
    axes.set_title(wrapped(title, width), fontsize=FONT, color="0.3")


def _pictures(
    image: Place, centres: NDArray[np.float64], xy: NDArray[np.float64], mpp: float | None
) -> NDArray[np.uint8] | None:
    width = 2 * spot_distance(xy) if mpp is None else WINDOW_UM / mpp
    return close_ups(image, centres, width, WINDOW_PX)
