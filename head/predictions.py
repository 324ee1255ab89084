"""Predictions as AnnData files that other tools read."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from mmap_st.data.normalise import NORMALISATIONS
from mmap_st.errors import WriteError, first_line
from mmap_st.extract.store import encode_name
from mmap_st.head.slides import HeadSlide
from mmap_st.head.uncertainty import Spread

if TYPE_CHECKING:
    import anndata

UNS = "mmap"
MEASURED, SPREAD = "measured", "spread"
INTERVAL = "interval_90"


def prediction_file(folder: Path, slide: str) -> Path:
    """Where a slide's prediction lies: ``<slide>.h5ad``, the name percent-encoded as in a store."""
    return folder / f"{encode_name(slide)}.h5ad"


def write_prediction(
    path: Path,
    slide: HeadSlide,
    predicted: NDArray[np.float32],
    genes: Sequence[str],
    about: Mapping[str, Any],
    spread: Spread | None = None,
) -> None:
    """Write one slide.

    Parameters
    ----------
    path
        Where to.
    slide
        Its spots become ``obs_names``, their centres ``obsm["spatial"]`` (level-0 px), and its targets, if
        it has them, ``layers["measured"]``.
    predicted
        (n, g) on the targets' scale; NaN for spots that are not valid.
    genes
        ``var_names``.
    about
        Written to ``uns["mmap"]``; holds at least ``normalisation``.
    spread
        Of the predictions: ``layers["spread"]`` is the standard deviation of each one's error, and X plus
        and minus ``var["interval_90"]`` times it holds the truth 9 times in 10. None: neither.
    """
    import anndata
    import pandas as pd

    table = anndata.AnnData(
        X=np.asarray(predicted, np.float32),
        obs=pd.DataFrame({"valid": slide.valid}, index=pd.Index(slide.ids, dtype=object)),
        var=pd.DataFrame(index=pd.Index(list(genes), dtype=object)),
        obsm={"spatial": slide.xy},
        layers={} if slide.target is None else {MEASURED: slide.target.dense()},
    )
    if spread is not None:
        table.layers[SPREAD] = spread.of(np.asarray(predicted, np.float32))
        table.var[INTERVAL] = spread.factor
    known = {key: value for key, value in about.items() if value is not None}
    table.uns[UNS] = {
        "slide": slide.name,
        "units": NORMALISATIONS[str(about["normalisation"])].units,
        "spatial_units": "level-0 pixels of the image, x to the right, y down",
        **known,
    }
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # of anndata's own writers
        draft = path.with_name(f".{path.name}.unfinished")
        try:
            table.write_h5ad(draft, compression="gzip")
            draft.replace(path)
        except OSError as error:
            draft.unlink(missing_ok=True)
            raise WriteError(f"{path} cannot be written ({first_line(error)}); free some space.") from error


def read_prediction(path: Path) -> anndata.AnnData:
    """Read one slide."""
    import anndata

    return anndata.read_h5ad(path)
