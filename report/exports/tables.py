"""Predictions as plain tables: a row a spot, a column a gene."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import polars as pl
from numpy.typing import NDArray

from mmap_st.files import replacing
from mmap_st.head.runs import MEASURED, SPREAD

if TYPE_CHECKING:
    import anndata

#: Columns that say which spot a row is, and where its centre lies in pixels of the image at full resolution.
SPOT, X, Y = "spot", "x_px", "y_px"


#: What is added to the names of files of a prediction's layers.
LAYERS = {"": "predicted", **{f"_{layer}": layer for layer in (SPREAD, MEASURED)}}


def layer_tables(table: anndata.AnnData) -> dict[str, pl.DataFrame]:
    """The tables of a prediction, by what is added to the file's name.

    Parameters
    ----------
    table
        See `mmap_st.head.runs.prediction_table`.

    Returns
    -------
    Under ``""`` the predictions, with all that is known of the spots; ``_spread`` and ``_measured`` where the
    prediction has these. Null where there is no number.
    """
    places = {
        SPOT: list(map(str, table.obs_names)),
        X: np.asarray(table.obsm["spatial"], np.float64)[:, 0],
        Y: np.asarray(table.obsm["spatial"], np.float64)[:, 1],
    }
    known = places | {name: table.obs[name].to_numpy() for name in table.obs if name not in places}
    found = {"": _with_genes(known, table, np.asarray(table.X))}
    for added, layer in LAYERS.items():
        if layer in table.layers:
            found[added] = _with_genes(places, table, np.asarray(table.layers[layer]))
    return found


def _with_genes(
    columns: dict[str, object], table: anndata.AnnData, values: NDArray[np.floating]
) -> pl.DataFrame:
    genes = {}
    for place, gene in enumerate(map(str, table.var_names)):
        name = f"gene {gene}" if gene in columns else gene
        genes[name] = values[:, place].astype(np.float32)
    return pl.DataFrame({**columns, **genes}).with_columns(pl.col(pl.Float32, pl.Float64).fill_nan(None))


def write_csv(path: Path, table: pl.DataFrame) -> None:
    """Write a table as CSV, numbers with six significant digits or more."""
    with replacing(path) as draft:
        table.write_csv(draft)


def write_parquet(path: Path, table: pl.DataFrame) -> None:
    """Write a table as Parquet."""
    with replacing(path) as draft:
        table.write_parquet(draft)
