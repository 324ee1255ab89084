"""What all figures share: a canvas that needs no screen, one style, and saving."""

from __future__ import annotations

import io
import textwrap
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.transforms import blended_transform_factory
from numpy.typing import NDArray
from PIL import Image
from scipy.spatial import cKDTree

from mmap_st.data import Thumbnail
from mmap_st.errors import printable
from mmap_st.files import writing

_DPI = 200
_NOTEBOOK_DPI = 100
FONT = 8.0
# How many of a title's letters an inch holds, and where a scale bar is, as a share of the height.
_LETTERS_PER_IN = 17.0
_BAR = -0.03
COLOURS = "viridis"


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
    """Write a PNG and return its path."""
    with writing(path.parent):
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
    margin = 1.2 * spot_distance(xy)
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
    axes.set_xlim(xy[:, 0].min() - margin, xy[:, 0].max() + margin)
    axes.set_ylim(xy[:, 1].max() + margin, xy[:, 1].min() - margin)
    axes.set_aspect("equal")
    axes.set_xticks([])
    axes.set_yticks([])
    for side in axes.spines.values():
        side.set_visible(False)


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


def scale_bar(axes: Axes, mpp: float | None) -> None:
    """Draw a bar of 1 mm (or 100 um on small tissue) below the lower left corner, clear of the spots."""
    if mpp is None:
        return
    left, right = axes.get_xlim()
    length_um = 1000.0 if (right - left) * mpp > 2500 else 100.0
    x0 = left + 0.03 * (right - left)
    below = blended_transform_factory(axes.transData, axes.transAxes)
    ends = [x0, x0 + length_um / mpp]
    axes.plot(ends, [_BAR, _BAR], color="black", lw=2, solid_capstyle="butt", transform=below, clip_on=False)
    axes.set_xlim(left, right)
    label = "1 mm" if length_um == 1000.0 else "100 µm"
    axes.text(x0, _BAR - 0.03, label, fontsize=FONT - 1, va="top", transform=below)


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
