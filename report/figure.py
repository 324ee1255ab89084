"""What all figures share: a canvas that needs no screen, one style, and saving."""

from __future__ import annotations

import io
import textwrap
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from numpy.typing import NDArray
from PIL import Image
from scipy.spatial import cKDTree

from mmap_st.data import Thumbnail
from mmap_st.errors import printable
from mmap_st.files import writing

_DPI = 200
_NOTEBOOK_DPI = 100
FONT = 8.0
# How many of a title's letters an inch holds.
_LETTERS_PER_IN = 17.0
# Of a scale bar with its label: distance from the edges, and height, as shares of those of the map.
_MARGIN, _BAR_HEIGHT = 0.03, 0.12
# A bar shorter than this share may be narrower than its label, which then ends where the bar does.
_LABEL = 0.2
# What is shown around the spots, in distances between them.
_AROUND = 1.2
#: Colours of expression, and of spreads.
COLOURS, SPREADS = "viridis", "cividis"
#: Formats that figures are written in.
FORMATS = ("png", "svg", "pdf")
# Text stays text, which journals ask for.
_TEXT: Any = {"svg.fonttype": "none", "pdf.fonttype": 42}


class NotebookFigure(Figure):
    """A figure that a notebook shows, whether or not pyplot was ever imported there."""

    def _repr_png_(self) -> bytes:
        buffer = io.BytesIO()
        self.savefig(buffer, format="png", dpi=_NOTEBOOK_DPI, facecolor="white")
        return buffer.getvalue()


def new_figure(width_in: float, height_in: float) -> Figure:
    """An empty figure of this size in inches."""
    figure = NotebookFigure(figsize=(width_in, height_in), layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def save_figure(figure: Figure, path: Path) -> Path:
    """Write a figure in the format that the path's ending names, and return the path."""
    with writing(path.parent), rc_context(_TEXT):
        path.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(path, dpi=_DPI, facecolor="white")
    return path


def frame(
    axes: Axes,
    xy: NDArray[np.float64],
    background: Thumbnail | None,
    *,
    faded: bool = True,
) -> None:
    """Show the tissue behind the spots, grey and faded or as it is, and cut the axes to them."""
    if background is not None:
        height, width = background.pixels.shape[:2]
        shown = Image.fromarray(background.pixels)
        shown.thumbnail((_printed_px(axes),) * 2)
        if faded:
            grey, white = shown.convert("L").convert("RGB"), Image.new("RGB", shown.size, "white")
            shown = Image.blend(grey, white, 0.45)
        axes.imshow(
            np.asarray(shown),
            extent=(0, width / background.scale, height / background.scale, 0),
            interpolation="antialiased",
        )
    (left, top), (right, bottom) = corners(xy, background)
    axes.set_xlim(left, right)
    axes.set_ylim(bottom, top)
    axes.set_aspect("equal")
    axes.set_xticks([])
    axes.set_yticks([])
    for side in axes.spines.values():
        side.set_visible(False)


def corners(xy: NDArray[np.float64], background: Thumbnail | None) -> NDArray[np.float64]:
    """(2, 2) upper left and lower right corner of what is shown: spots and, in the picture, a margin."""
    pitch = spot_distance(xy)
    low, high = xy.min(axis=0), xy.max(axis=0)
    shown = np.stack([low - _AROUND * pitch, high + _AROUND * pitch])
    if background is not None:
        size = np.array(background.pixels.shape[1::-1]) / background.scale
        spots = np.stack([low - pitch / 2, high + pitch / 2])  # whole, wherever the picture ends
        shown = np.stack(
            [np.minimum(np.maximum(shown[0], 0), spots[0]), np.maximum(np.minimum(shown[1], size), spots[1])]
        )
    return shown


def relative_height(xy: NDArray[np.float64], background: Thumbnail | None) -> float:
    """Height of what is shown as a share of its width, from half to twice as high as wide."""
    low, high = corners(xy, background)
    width, height = high - low
    return float(np.clip(height / width, 0.5, 2.0))


def _printed_px(axes: Axes) -> int:
    """More pixels than a picture that fills these axes is printed with: figures of them are drawn faster."""
    figure, place = axes.get_figure(root=True), axes.get_position()
    assert figure is not None
    inches = max(place.width * figure.get_figwidth(), place.height * figure.get_figheight())
    return int(2 * _DPI * inches)


def spot_distance(xy: NDArray[np.float64]) -> float:
    """Median distance of a spot to its nearest neighbour, in level-0 pixels."""
    if len(xy) < 2:
        return 1.0
    distance, _ = cKDTree(xy).query(xy, k=2)
    return float(np.median(np.asarray(distance)[:, 1]))


def scale_bar(axes: Axes, mpp: float | None, xy: NDArray[np.float64]) -> None:
    """Draw a bar of 1 mm (or 100 um on small tissue) in the corner that holds the fewest spots."""
    if mpp is None:
        return
    left, right = axes.get_xlim()
    bottom, top = axes.get_ylim()
    length_um = 1000.0 if (right - left) * mpp > 2500 else 100.0
    length = length_um / mpp / (right - left)
    share = (xy - (left, bottom)) / (right - left, top - bottom)  # of width and height, from the lower left
    inside = {
        (at_right, at_top): int(
            (
                (share[:, 0] > 1 - length - 2 * _MARGIN if at_right else share[:, 0] < length + 2 * _MARGIN)
                & (share[:, 1] > 1 - _BAR_HEIGHT if at_top else share[:, 1] < _BAR_HEIGHT)
            ).sum()
        )
        for at_top in (False, True)
        for at_right in (False, True)
    }
    at_right, at_top = min(inside, key=lambda corner: inside[corner])
    x = 1 - _MARGIN - length if at_right else _MARGIN
    y = 1 - _BAR_HEIGHT + _MARGIN if at_top else _MARGIN
    place: Any = {"transform": axes.transAxes, "zorder": 4}
    axes.plot([x, x + length], [y, y], color="black", lw=2, solid_capstyle="butt", **place)
    label = "1 mm" if length_um == 1000.0 else "100 µm"
    # A label that is wider than its bar stays inside the map.
    at, align = (x + length, "right") if at_right else (x, "left")
    if length > _LABEL:
        at, align = x + length / 2, "center"
    axes.text(
        at, y + 0.015, label, fontsize=FONT - 1, ha=align, va="bottom",
        bbox={"facecolor": "white", "alpha": 0.6, "edgecolor": "none", "pad": 0.8}, **place,
    )  # fmt: skip


def plain(text: str) -> str:
    """A name as it is, for a figure: matplotlib would set what is between dollars as a formula."""
    return printable(text).replace("$", r"\$")


def wrapped(text: str, width_in: float) -> str:
    """A title in lines that fit this width."""
    lines = textwrap.wrap(printable(text), max(20, int(width_in * _LETTERS_PER_IN)))
    return "\n".join(map(plain, lines))


def hide_frame(axis: Axes) -> None:
    """Leave out the upper and right lines of a plot, which carry no values."""
    axis.tick_params(labelsize=FONT, length=2)
    for side in ("top", "right"):
        axis.spines[side].set_visible(False)
