"""What a page shows of one slide: its spots, and values of each gene."""

from __future__ import annotations

import base64
import io
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from mmap_st.data import Thumbnail
from mmap_st.report.page.slide_prototypes import SlidePrototypes

#: Values are told apart in so many steps from a gene's least to its greatest, and the byte 255 is for none.
#: Spreads need fewer, and then take less of the page.
LEVELS, SPREAD_LEVELS = 120, 40
_NONE = 255
#: A gene's colours end at these percentiles of its values, as in the figures.
CLIPPED = (1.0, 99.0)
_JPEG_QUALITY = 82

Array = NDArray[np.float32]


@dataclass(frozen=True)
class SlideLayers:
    """One predicted slide.

    Attributes
    ----------
    name, units
        Of the slide, and of its values.
    xy
        (n, 2) centres of the spots in level-0 pixels.
    diameter_px
        Width of a spot in level-0 pixels.
    ids
        (n,) names of the spots.
    genes
        (g,) in the order of the panel.
    gene_ids
        (g,) an id of each gene, or ""; None where the prediction has none.
    predicted, spread, measured
        (n, g) values, NaN where there is none; None where the slide has no such layer.
    distance
        (n,) of the spots from the training tissue, 1 being typical; None where it is not known.
    thumbnail
        Of the slide, or None.
    mpp
        Micrometres per level-0 pixel, or None.
    verdict
        Whether it is like the slides of training, in words; empty where that is not known.
    prototypes
        That its spots attended to; None of a head that uses none.
    """

    name: str
    units: str
    xy: NDArray[np.float64]
    diameter_px: float
    ids: tuple[str, ...]
    genes: tuple[str, ...]
    gene_ids: tuple[str, ...] | None
    predicted: Array
    spread: Array | None
    measured: Array | None
    distance: Array | None
    thumbnail: Thumbnail | None
    mpp: float | None
    verdict: str
    prototypes: SlidePrototypes | None = None

    @property
    def n_layers(self) -> int:
        """How many layers it has."""
        return sum(values is not None for values in (self.predicted, self.spread, self.measured))

    def only(self, genes: Sequence[str]) -> SlideLayers:
        """The slide with these genes, in this order; NaN for one that it does not have."""
        place = {gene: i for i, gene in enumerate(self.genes)}
        chosen = [place.get(gene, 0) for gene in genes]
        has = np.array([gene in place for gene in genes], np.bool_)
        layers = {
            name: None if values is None else np.where(has, values[:, chosen], np.nan)
            for name, values in (
                ("predicted", self.predicted),
                ("spread", self.spread),
                ("measured", self.measured),
            )
        }
        ids = self.gene_ids
        if ids is not None:
            ids = tuple(ids[place[gene]] if gene in place else "" for gene in genes)
        return replace(self, genes=tuple(genes), gene_ids=ids, **layers)  # type: ignore[arg-type]


def pack_layer(values: Array, levels: int = LEVELS) -> dict[str, object]:
    """A layer (n, g) for the page's script: a byte a value, gene by gene, compressed and in base64.

    ``low`` and ``high`` (g,) are the values that the bytes 0 and ``levels`` stand for; 255 is none.
    """
    with np.errstate(invalid="ignore"):
        known = np.isfinite(values)
        low = np.where(known, values, np.inf).min(axis=0, initial=np.inf)
        high = np.where(known, values, -np.inf).max(axis=0, initial=-np.inf)
        low, high = (np.where(np.isfinite(end), end, 0.0) for end in (low, high))
        step = np.where(high > low, high - low, 1.0)
        shares = np.rint((values - low) / step * levels)
    packed = np.where(known, shares, _NONE).astype(np.uint8)
    data = zlib.compress(np.ascontiguousarray(packed.T).tobytes(), 9)
    return {
        "low": [round(float(v), 5) for v in low],
        "high": [round(float(v), 5) for v in high],
        "levels": levels,
        "data": base64.b64encode(data).decode("ascii"),
    }


def unpack_layer(packed: Mapping[str, object], spots: int) -> Array:
    """(n, g) values of what `pack_layer` gives, as the page's script reads them."""
    low, high = (np.asarray(packed[end], np.float64) for end in ("low", "high"))
    raw = zlib.decompress(base64.b64decode(str(packed["data"])))
    steps = np.frombuffer(raw, np.uint8).reshape(len(low), spots).T
    values = low + steps / int(str(packed["levels"])) * (high - low)
    return np.where(steps == _NONE, np.nan, values).astype(np.float32)


def as_data_uri(pixels: NDArray[np.uint8], quality: int = _JPEG_QUALITY) -> str:
    """A picture (h, w, 3) as a JPEG that is written into the page."""
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "JPEG", quality=quality, optimize=True)
    return "data:image/jpeg;base64," + base64.b64encode(buffer.getvalue()).decode("ascii")
