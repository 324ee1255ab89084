"""Where a slide's prototypes lie: every spot in the colour of its candidate, medoids marked."""

from __future__ import annotations

import numpy as np
from matplotlib.collections import EllipseCollection
from matplotlib.figure import Figure
from numpy.typing import NDArray
from PIL import Image
from sklearn.decomposition import PCA

from mmap_st.prototypes.candidates import Candidates, selection_space
from mmap_st.report.figure import FONT, frame, new_figure, scale_bar, spot_distance


def prototype_map(
    name: str,
    xy: NDArray[np.float64],
    candidates: Candidates,
    background: tuple[Image.Image, float] | None,
    mpp: float | None,
) -> Figure:
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
    """
    extent = np.ptp(xy, axis=0) + 2.4 * spot_distance(xy)
    width = 5.2
    figure = new_figure(width, float(np.clip(extent[1] / extent[0], 0.5, 2.0)) * width + 0.5)
    axes = figure.subplots()
    frame(axes, xy, background)
    shown = candidates.label >= 0
    colours = _colours(candidates)[candidates.label[shown]]
    size = np.full(int(shown.sum()), 0.84 * spot_distance(xy))
    axes.add_collection(
        EllipseCollection(
            size,
            size,
            np.zeros_like(size),
            offsets=xy[shown],
            units="xy",
            offset_transform=axes.transData,
            facecolors=colours,
        )
    )
    medoids = xy[candidates.medoid]
    axes.scatter(
        medoids[:, 0], medoids[:, 1], s=18, marker="o", facecolors="white", edgecolors="black", lw=0.8
    )
    scale_bar(axes, mpp)
    axes.set_title(
        f"{name}: {len(candidates.size)} prototypes; white: the spot nearest to each centre; "
        "near colours are near embeddings",
        fontsize=FONT,
        color="0.3",
    )
    return figure


def _colours(candidates: Candidates) -> NDArray[np.float64]:
    """(K, 3) colours from the first principal components of the centres."""
    points = selection_space(candidates.centre)
    components = min(3, len(points))
    scores = np.full((len(points), 3), 0.5)
    ranks = np.argsort(np.argsort(PCA(components).fit_transform(points), axis=0), axis=0)
    scores[:, :components] = (ranks + 0.5) / len(points)
    colours: NDArray[np.float64] = 0.12 + 0.8 * scores
    return colours
