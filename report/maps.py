"""Maps over a slide's thumbnail: measured next to predicted expression."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from matplotlib.axes import Axes
from matplotlib.collections import EllipseCollection
from matplotlib.figure import Figure
from numpy.typing import NDArray

from mmap_st.data import Thumbnail
from mmap_st.head.scoring import pearson_per_gene
from mmap_st.report.figure import (
    COLOURS,
    FONT,
    SPREADS,
    frame,
    new_figure,
    plain,
    relative_height,
    scale_bar,
    spot_distance,
    wrapped,
)

PANEL_IN = 2.3
# Of a map's width what its colour bar takes, and of its height what its title takes.
_BAR_IN, _TITLE_IN = 0.45, 0.22
#: Scales of the colours: of measured and predicted values together, or of each map.
ONE_SCALE, OWN_SCALE = "shared", "own"
_CLIPPED = (1, 99)
SCALES = {
    ONE_SCALE: "one scale for measured and predicted, from the 1st to the 99th percentile",
    OWN_SCALE: "each map's scale from its 1st to its 99th percentile",
}
_SPOT_SHARE = 0.78  # of the distance between spots: neighbours do not touch


@dataclass(frozen=True)
class SlideMap:
    """One slide to draw.

    Attributes
    ----------
    name
        Of the slide.
    xy
        (n, 2) centres in level-0 pixels.
    genes
        (g,) names of the columns.
    predicted, measured
        (n, g); measured is None for a slide that was never sequenced.
    background
        The slide's picture, or None.
    mpp
        Micrometres per level-0 pixel, for the scale bar.
    units
        Of the expression.
    gene_ids
        (g,) an id of each gene, or ""; None where the prediction has none.
    spread
        (n, g) standard deviation of the predictions' errors; None where the head gave none.
    """

    name: str
    xy: NDArray[np.float64]
    genes: tuple[str, ...]
    predicted: NDArray[np.float32]
    measured: NDArray[np.float32] | None
    background: Thumbnail | None
    mpp: float | None
    units: str
    gene_ids: tuple[str, ...] | None = None
    spread: NDArray[np.float32] | None = None

    @property
    def spot_px(self) -> float:
        """Width of a drawn spot in level-0 pixels: neighbours do not touch."""
        return _SPOT_SHARE * spot_distance(self.xy)


def best_genes(slide: SlideMap, number: int) -> list[str]:
    """Genes of the highest correlation on this slide; without measured values, of the greatest spread."""
    if slide.measured is None:
        score = np.nanstd(slide.predicted, axis=0)
    else:
        score = np.nan_to_num(pearson_per_gene(slide.predicted, slide.measured), nan=-1.0)
    return [slide.genes[i] for i in np.argsort(-score, kind="stable")[:number]]


def expression_map(
    slide: SlideMap,
    genes: Sequence[str],
    caption: str = "",
    panel_in: float = PANEL_IN,
    *,
    scale: str = ONE_SCALE,
    spread: bool = False,
) -> Figure:
    """The H&E picture, then one column a gene: measured above predicted, with the PCC between them.

    Parameters
    ----------
    slide
        What to draw.
    genes
        Which genes, from left to right.
    caption
        Added to the title: how the genes were chosen.
    panel_in
        Width of one map in inches.
    scale
        ``shared``: measured and predicted values of a gene have the same colours; ``own``: each map has its
        own. Either ends at the 1st and 99th percentile.
    spread
        Whether to draw the spread of the predictions too, below them.
    """
    layers = {"measured": slide.measured, "predicted": slide.predicted}
    layers |= {"spread": slide.spread} if spread else {}
    shown = {name: values for name, values in layers.items() if values is not None}
    first = 1 if slide.background is not None else 0
    columns = len(genes) + first
    height = relative_height(slide.xy, slide.background) * (panel_in - _BAR_IN)
    figure = new_figure(panel_in * columns + 0.3, (height + _TITLE_IN) * len(shown) + 0.45)
    grid = figure.subplots(len(shown), columns, squeeze=False)
    for column, gene in enumerate(genes, start=first):
        index = slide.genes.index(gene)
        values = {name: of[:, index] for name, of in shown.items()}
        together = ends_of([of for name, of in values.items() if name != "spread"])
        for row, (name, of) in enumerate(values.items()):
            is_spread = name == "spread"
            ends = ends_of([of]) if scale == OWN_SCALE or is_spread else together
            label = "" if column < columns - 1 else "spread" if is_spread else "expression"
            colours = SPREADS if is_spread else COLOURS
            draw_spots(figure, grid[row][column], slide, of, ends, label, colours)
        grid[0][column].set_title(plain(gene), fontsize=FONT + 1, style="italic")
        if slide.measured is not None:
            pcc = pearson_per_gene(values["predicted"][:, None], values["measured"][:, None])[0]
            said = "undefined" if np.isnan(pcc) else f"{pcc:.2f}"
            grid[1][column].set_title(f"PCC {said}", fontsize=FONT)
    for row, layer in enumerate(shown):
        grid[row][first].set_ylabel(layer, fontsize=FONT + 1)
    if first:
        frame(grid[0][0], slide.xy, slide.background, faded=False)
        grid[0][0].set_title("H&E", fontsize=FONT + 1)
        for axes in grid[1:, 0]:
            axes.set_axis_off()
    scale_bar(grid[0][0], slide.mpp, slide.xy)
    scale = scale if slide.measured is not None else OWN_SCALE
    words = "; ".join(filter(None, (f"{slide.name}: {slide.units}", caption, SCALES[scale])))
    figure.suptitle(wrapped(words, figure.get_figwidth()), fontsize=FONT, color="0.3")
    return figure


def ends_of(values: Sequence[NDArray[np.float32]]) -> tuple[float, float]:
    """Values that the colours of maps end at: percentiles, so that single spots do not take the scale."""
    known = np.concatenate([of[np.isfinite(of)] for of in values])
    if not len(known):
        return 0.0, 1.0
    low, high = np.percentile(known, _CLIPPED)
    return float(low), float(high if high > low else low + 1e-6)


def draw_spots(
    figure: Figure,
    axes: Axes,
    slide: SlideMap,
    values: NDArray[np.float32],
    ends: tuple[float, float],
    label: str,
    colours: str = COLOURS,
) -> None:
    """Draw one map: the tissue, spots in the colours of their values (n,), and a bar that says which."""
    frame(axes, slide.xy, slide.background)
    shown = np.isfinite(values)
    size = np.full(int(shown.sum()), slide.spot_px)
    spots = EllipseCollection(
        size,
        size,
        np.zeros_like(size),
        offsets=slide.xy[shown],
        units="xy",
        offset_transform=axes.transData,
        array=values[shown],
        cmap=colours,
    )
    spots.set_clim(*ends)
    axes.add_collection(spots)
    bar = figure.colorbar(spots, ax=axes, shrink=0.7, pad=0.02, aspect=18)
    bar.ax.tick_params(labelsize=FONT - 2, length=2)
    bar.outline.set_visible(False)
    if label:
        bar.set_label(label, fontsize=FONT - 1)
