"""What a page shows of a prediction's file, and of the image that it names."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

from mmap_st.extract.slides import close_ups
from mmap_st.head.runs import ATTENTION, ATTENTION_OF, SPREAD, UNS
from mmap_st.report.figure import spot_distance
from mmap_st.report.page import SlideLayers, SlidePrototypes, find_prototypes
from mmap_st.report.prototype_figure import WINDOW_PX, WINDOW_UM
from mmap_st.report.run_report import image_of, map_of

if TYPE_CHECKING:
    import anndata


def layers_of(table: anndata.AnnData, most_spots: int, most_windows: int) -> SlideLayers:
    """What a page shows of a prediction.

    Parameters
    ----------
    table
        As `mmap predict` writes it.
    most_spots
        Of a slide with more, every second spot is shown, or every third...
    most_windows
        How many prototypes are shown as pictures, those of the most spots first.
    """
    if len(table) > most_spots:
        table = table[:: -(-len(table) // most_spots)]
    shown, about = map_of(table), table.uns[UNS]
    domain = about.get("domain", {})
    distance = table.obs["distance"].to_numpy(np.float32) if "distance" in table.obs else None
    diameter = float(about["spot_diameter_px"]) if "spot_diameter_px" in about else shown.spot_px
    return SlideLayers(
        name=shown.name,
        units=shown.units,
        xy=shown.xy,
        diameter_px=diameter,
        ids=tuple(map(str, table.obs_names)),
        genes=shown.genes,
        gene_ids=shown.gene_ids,
        predicted=shown.predicted,
        spread=np.asarray(table.layers[SPREAD], np.float32) if SPREAD in table.layers else None,
        measured=shown.measured,
        distance=distance,
        thumbnail=shown.background,
        mpp=shown.mpp,
        verdict=": ".join(filter(None, (str(domain.get("verdict", "")), str(domain.get("reasons", ""))))),
        prototypes=prototypes_of(table, most_windows),
    )


def prototypes_of(table: anndata.AnnData, most_windows: int) -> SlidePrototypes | None:
    """The prototypes that a slide's spots attended to, with pictures where its image can be read.

    Parameters
    ----------
    table, most_windows
        See `layers_of`.

    Returns
    -------
    None of a head without prototypes, or of a version that did not keep their attention.
    """
    if ATTENTION not in table.obsm:
        return None
    about = table.uns[UNS]
    found = find_prototypes(
        np.asarray(table.obsm[ATTENTION]),
        np.asarray(table.X, np.float32),
        [str(gene) for gene in table.var_names],
        str(about.get(ATTENTION_OF, about["encoder"])),
    )
    image = image_of(table)
    if found is None or image is None:
        return found
    xy, mpp = np.asarray(table.obsm["spatial"], np.float64), about.get("source_mpp")
    width = 2 * spot_distance(xy) if mpp is None else WINDOW_UM / float(mpp)
    largest = found.largest(most_windows)
    shown = close_ups(image, xy[found.shown_by[largest]], width, WINDOW_PX)
    if shown is None:
        return found
    windows = {int(number): shown[place] for place, number in enumerate(largest)}
    return replace(found, windows=windows, window_um=None if mpp is None else WINDOW_UM)
