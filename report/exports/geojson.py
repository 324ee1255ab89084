"""Predictions as GeoJSON (RFC 7946), as QuPath 0.4 and later reads objects with measurements."""

from __future__ import annotations

import json
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from mmap_st.files import replacing
from mmap_st.head.runs import MEASURED, SPREAD, UNS

if TYPE_CHECKING:
    import anndata

_CORNERS = 24
#: Of the objects' ids: the same spot of the same slide is the same object in every export.
_NAMESPACE = uuid.uuid5(uuid.NAMESPACE_URL, "https://arxiv.org/abs/2510.11344")
_DIGITS = 5


def write_geojson(path: Path, table: anndata.AnnData, diameter_px: float) -> None:
    """Write the spots of a prediction as detections with a measurement of each gene.

    Coordinates are pixels of the image at full resolution, x to the right and y down, as QuPath has them. A
    measurement is called as its gene, and ``GENE (spread)`` and ``GENE (measured)``; one that is no number is
    left out, since JSON has none.

    Parameters
    ----------
    table
        Of the genes that are to be written.
    diameter_px
        Width of a spot.

    Raises
    ------
    OSError
        If it cannot be written.
    """
    with replacing(path) as draft, draft.open("w", encoding="utf-8") as file:
        file.write('{"type": "FeatureCollection", "features": [')
        for number, feature in enumerate(_features(table, diameter_px)):
            file.write(",\n" if number else "\n")
            json.dump(feature, file, ensure_ascii=False, allow_nan=False)
        file.write("\n]}\n")


def _features(table: anndata.AnnData, diameter_px: float) -> Iterator[dict[str, object]]:
    slide = str(table.uns[UNS]["slide"])
    genes = [str(gene) for gene in table.var_names]
    layers = {"": np.asarray(table.X)}
    for name in (SPREAD, MEASURED):
        if name in table.layers:
            layers[f" ({name})"] = np.asarray(table.layers[name])
    for spot, (name, centre) in enumerate(zip(table.obs_names, table.obsm["spatial"], strict=True)):
        measurements = {
            f"{gene}{what}": _rounded(values[spot, place])
            for what, values in layers.items()
            for place, gene in enumerate(genes)
            if np.isfinite(values[spot, place])
        }
        if "distance" in table.obs and np.isfinite(table.obs["distance"].iloc[spot]):
            measurements["distance from the training tissue"] = _rounded(table.obs["distance"].iloc[spot])
        yield {
            "type": "Feature",
            "id": str(uuid.uuid5(_NAMESPACE, f"{slide}\n{name}")),
            "geometry": {"type": "Polygon", "coordinates": [circle(centre, diameter_px)]},
            "properties": {"objectType": "detection", "name": str(name), "measurements": measurements},
        }


def circle(centre: NDArray[np.float64], diameter: float) -> list[list[float]]:
    """Corners of a circle, from its right side towards greater y, the first once more at the end.

    That is counter-clockwise as RFC 7946 wants it of an outer ring, where y is taken as it is there.
    """
    turns = np.linspace(0, 2 * np.pi, _CORNERS, endpoint=False)
    corners = np.asarray(centre) + diameter / 2 * np.column_stack([np.cos(turns), np.sin(turns)])
    ring = [[round(float(x), 2), round(float(y), 2)] for x, y in corners]
    return [*ring, ring[0]]


def _rounded(value: float) -> float:
    return float(f"{value:.{_DIGITS}g}")
