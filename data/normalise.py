"""From counts to targets: what a head is trained to predict."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np
from numpy.typing import NDArray
from scipy import sparse

from mmap_st.data.counts import Counts
from mmap_st.data.spots import some
from mmap_st.data.targets import Targets
from mmap_st.errors import NormalisationError

#: Name of the default normalisation, recorded with every head.
LOG1P_10K = "log1p-10k"
#: Of the released MMAP code: the library is that of the panel alone, and an empty one is 0.
LOG10_PANEL = "log10-10k-panel"
#: Of tables that hold log-normalised values: none.
AS_GIVEN = "lognorm-as-given"

#: What each normalisation is, for people.
UNITS = {
    LOG1P_10K: "log1p of counts scaled to 10,000 a spot over all genes",
    LOG10_PANEL: "log10(x + 1) of counts scaled to 10,000 a spot over the panel's genes",
    AS_GIVEN: "log-normalised values as the table has them",
}

_SCALE = 10_000.0


def log1p_10k(counts: Counts, columns: sparse.csr_array) -> sparse.csr_array:
    """Scale `columns` (n, g) of `counts` to 10,000 a spot over ALL genes and take log1p; stays sparse.

    Rows of spots whose library size is 0 stay empty: their target is undefined, see `targets`.
    """
    library = counts.library
    factor = np.divide(_SCALE, library, out=np.zeros_like(library), where=library > 0)
    scaled = sparse.csr_array(sparse.diags_array(factor) @ columns, dtype=np.float64)
    scaled.data = np.log1p(scaled.data)
    return scaled


def log10_10k_panel(counts: Counts, columns: sparse.csr_array) -> sparse.csr_array:
    """Scale `columns` (n, g) to 10,000 a spot over these genes alone and take log10(x + 1); stays sparse."""
    library = np.asarray(columns.sum(axis=1), np.float64).ravel()
    factor = np.divide(_SCALE, library, out=np.zeros_like(library), where=library > 0)
    scaled = sparse.csr_array(sparse.diags_array(factor) @ columns, dtype=np.float64)
    scaled.data = np.log10(scaled.data + 1.0)
    return scaled


def as_given(counts: Counts, columns: sparse.csr_array) -> sparse.csr_array:
    """`columns` as they are, for values that were log-normalised before."""
    return sparse.csr_array(columns, dtype=np.float64)


NORMALISATIONS: dict[str, Callable[[Counts, sparse.csr_array], sparse.csr_array]] = {
    LOG1P_10K: log1p_10k,
    LOG10_PANEL: log10_10k_panel,
    AS_GIVEN: as_given,
}


def normalisation_of(tables: Mapping[str, Counts]) -> str:
    """Name of the normalisation that suits what the tables of all slides hold.

    Raises
    ------
    NormalisationError
        If some hold counts and others log-normalised values: those are not on one scale.
    """
    kinds = {counts.values for counts in tables.values()}
    if len(kinds) > 1:
        lognorm = [name for name, counts in tables.items() if counts.values == "lognorm"]
        raise NormalisationError(
            f"{len(lognorm)} of {len(tables)} slides hold log-normalised values ({some(lognorm)}) and the"
            " others counts: their targets would be on two scales; use slides of one kind."
        )
    return AS_GIVEN if kinds == {"lognorm"} else LOG1P_10K


def sparse_targets(counts: Counts, genes: Sequence[str], normalisation: str = LOG1P_10K) -> Targets:
    """Return the targets of one slide on the panel `genes`.

    Undefined are a spot whose library size is 0 (under `LOG10_PANEL` it is 0), and a gene that the slide
    lacks.
    """
    columns, present = counts.columns_of(genes)
    values = sparse.csr_array(NORMALISATIONS[normalisation](counts, columns), dtype=np.float32)
    everywhere = normalisation == LOG10_PANEL
    return Targets(values, np.ones(len(counts.ids), np.bool_) if everywhere else counts.library > 0, present)


def targets(counts: Counts, genes: Sequence[str], normalisation: str = LOG1P_10K) -> NDArray[np.float32]:
    """Return `sparse_targets` as (n, len(genes)) float32, NaN where undefined."""
    return sparse_targets(counts, genes, normalisation).dense()
