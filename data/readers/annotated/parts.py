"""The parts of an AnnData that are needed, from a file or in memory."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

from mmap_st.data.readers.annotated.features import Features, features_of

if TYPE_CHECKING:
    from anndata import AnnData
    from pandas import DataFrame

#: Keys of ``obsm`` under which positions are found.
POSITIONS = ("spatial", "X_spatial")


@dataclass(frozen=True)
class GeneMatrix:
    """A matrix (spots, features) of a file, read on demand.

    Attributes
    ----------
    name
        Where it is, such as ``layers['counts']``.
    features
        Which of its columns are genes, and their names.
    load
        Reads the values.
    """

    name: str
    features: Features
    load: Callable[[], Any]


@dataclass(frozen=True)
class SpotTable:
    """The parts of an AnnData that are needed here.

    Attributes
    ----------
    source
        The file, for messages.
    obs
        One row per spot; its index holds the ids.
    spatial
        Positions as the file has them, an array or a data frame with a row for each of `obs`; None if it
        has none.
    spatial_info
        ``uns["spatial"]``.
    matrices
        In the order in which counts are looked for: X, layers, raw.
    """

    source: str
    obs: DataFrame
    spatial: Any
    spatial_info: Mapping[str, object]
    matrices: tuple[GeneMatrix, ...]

    @property
    def libraries(self) -> dict[str, Mapping[str, object]]:
        """What ``uns["spatial"]`` says of each library."""
        return {str(name): about for name, about in self.spatial_info.items() if isinstance(about, Mapping)}


def table_of(adata: AnnData, source: str) -> SpotTable:
    """The parts of an AnnData that is in memory."""
    features = features_of(adata.var)
    matrices = [GeneMatrix("X", features, lambda: adata.X)]
    matrices += [
        GeneMatrix(f"layers['{key}']", features, partial(adata.layers.__getitem__, key))
        for key in count_layers(adata.layers)
    ]
    if adata.raw is not None:
        matrices.append(GeneMatrix("raw", features_of(adata.raw.var), lambda: adata.raw.X))
    spatial = next((adata.obsm[key] for key in POSITIONS if key in adata.obsm), None)
    info = adata.uns.get("spatial", {})
    return SpotTable(source, adata.obs, spatial, info if isinstance(info, Mapping) else {}, tuple(matrices))


def count_layers(layers: Any) -> list[str]:
    """Names of the layers that are likely to hold counts, likeliest first."""
    return [key for key in ("counts", "raw_counts", "raw", "umi") if key in layers]
