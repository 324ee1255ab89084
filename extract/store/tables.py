"""Embeddings of a slide as a table that other tools read."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from mmap_st.extract.store.magnification import Magnification

if TYPE_CHECKING:
    import anndata


def embeddings_as_anndata(
    slide: str,
    ids: Sequence[str],
    xy: NDArray[np.float64],
    encoder: str,
    magnifications: Sequence[Magnification],
) -> anndata.AnnData:
    """Embeddings at one or several magnifications, next to each other.

    Parameters
    ----------
    slide, encoder
        Names, for ``uns["mmap"]``.
    ids
        (n,) of the spots.
    xy
        (n, 2) their centres in level-0 pixels.
    magnifications
        Whose embeddings, all of width d.

    Returns
    -------
    ``X`` (n, M * d) float32; ``var`` with ``mpp`` and ``dimension``; ``obs`` with ``valid`` (at every
    magnification); ``obsm["spatial"]``; what it is of in ``uns["mmap"]``.
    """
    import anndata
    import pandas as pd

    var = pd.concat(
        [
            pd.DataFrame(
                {"mpp": m.mpp, "dimension": np.arange(m.width)},
                index=[f"{m.mpp:g}_{number}" for number in range(m.width)],
            )
            for m in magnifications
        ]
    )
    valid = np.logical_and.reduce([m.valid() for m in magnifications])
    table = anndata.AnnData(
        X=np.concatenate([m.embedding() for m in magnifications], axis=1),
        obs=pd.DataFrame({"valid": valid}, index=pd.Index(ids, dtype=object)),
        var=var,
        obsm={"spatial": xy},
    )
    table.uns["mmap"] = {
        "slide": slide,
        "encoder": encoder,
        "mpp": [m.mpp for m in magnifications],
        "recipe_sha256": [m.recipe_sha256 for m in magnifications],
        "spatial_units": "level-0 pixels of the image, x to the right, y down",
    }
    return table
