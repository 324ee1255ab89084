"""From counts to targets: what a head is trained to predict."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import sparse

from mmap_st.data.counts import Counts
from mmap_st.data.neighbours import array_means
from mmap_st.data.spots import some
from mmap_st.data.targets import Targets
from mmap_st.errors import NormalisationError

#: Name of the default normalisation, recorded with every head.
LOG1P_10K = "log1p-10k"
#: Of the HEST-Benchmark: counts as they are.
LOG1P_COUNTS = "log1p-counts"
#: Of the released MMAP code: the library is that of the panel alone.
LOG10_PANEL = "log10-10k-panel"
#: Of TRIPLEX: the same, then smoothed over the array.
LOG10_PANEL_SMOOTHED = "log10-10k-panel-smoothed"
#: Of tables that hold log-normalised values: none.
AS_GIVEN = "lognorm-as-given"

_SCALE = 10_000.0


def log1p_10k(counts: Counts, columns: sparse.csr_array) -> sparse.csr_array:
    """Scale `columns` (n, g) of `counts` to 10,000 a spot over ALL genes and take log1p; stays sparse."""
    scaled = _scaled(columns, counts.library)
    scaled.data = np.log1p(scaled.data)
    return scaled


def log10_10k_panel(counts: Counts, columns: sparse.csr_array) -> sparse.csr_array:
    """Scale `columns` (n, g) to 10,000 a spot over these genes alone and take log10(x + 1); stays sparse."""
    scaled = _scaled(columns, np.asarray(columns.sum(axis=1), np.float64).ravel())
    scaled.data = np.log10(scaled.data + 1.0)
    return scaled


def log1p_counts(counts: Counts, columns: sparse.csr_array) -> sparse.csr_array:
    """Take log1p of `columns` (n, g); stays sparse."""
    logged = sparse.csr_array(columns, dtype=np.float64)
    logged.data = np.log1p(logged.data)
    return logged


def as_given(counts: Counts, columns: sparse.csr_array) -> sparse.csr_array:
    """`columns` as they are, for values that were log-normalised before."""
    return sparse.csr_array(columns, dtype=np.float64)


@dataclass(frozen=True)
class Normalisation:
    """One way from counts to targets.

    Attributes
    ----------
    scale
        (counts of a slide, columns (n, g) of it) to (n, g) float64 values.
    units
        What the values are, for people.
    empty_is_zero
        Whether a spot whose library size is 0 has targets of 0; else they are undefined.
    smoothed
        Whether a spot's targets are then averaged with those of its neighbours on the array.
    """

    scale: Callable[[Counts, sparse.csr_array], sparse.csr_array]
    units: str
    empty_is_zero: bool = False
    smoothed: bool = False


_PANEL_UNITS = "log10(x + 1) of counts scaled to 10,000 a spot over the panel's genes"
NORMALISATIONS = {
    LOG1P_10K: Normalisation(log1p_10k, "log1p of counts scaled to 10,000 a spot over all genes"),
    LOG1P_COUNTS: Normalisation(log1p_counts, "log1p of counts, not scaled", empty_is_zero=True),
    LOG10_PANEL: Normalisation(log10_10k_panel, _PANEL_UNITS, empty_is_zero=True),
    LOG10_PANEL_SMOOTHED: Normalisation(
        log10_10k_panel,
        f"{_PANEL_UNITS}, smoothed: the mean over a spot and its neighbours on the array",
        empty_is_zero=True,
        smoothed=True,
    ),
    AS_GIVEN: Normalisation(as_given, "log-normalised values as the table has them"),
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


def targets(
    counts: Counts,
    genes: Sequence[str],
    normalisation: str = LOG1P_10K,
    xy: NDArray[np.float64] | None = None,
) -> Targets:
    """Return the targets of one slide.

    Undefined are a spot that the count table lacks, a spot whose library size is 0 (some normalisations say 0
    there), and a gene that the slide lacks.

    Parameters
    ----------
    counts
        Of the slide.
    genes
        The panel, in order.
    normalisation
        A key of `NORMALISATIONS`.
    xy
        (n, 2) centres of the spots; a smoothed normalisation needs them.
    """
    chosen = NORMALISATIONS[normalisation]
    columns, present = counts.columns_of(genes)
    scaled = chosen.scale(counts, columns)
    if chosen.smoothed:
        assert xy is not None
        scaled = array_means(xy, counts.measured) @ scaled
    values = sparse.csr_array(scaled, dtype=np.float32)
    defined = counts.measured if chosen.empty_is_zero else counts.library > 0
    return Targets(values, defined, present)


def _scaled(columns: sparse.csr_array, library: NDArray[np.float64]) -> sparse.csr_array:
    """Each row of (n, g) times 10,000 over its library (n,); rows without a library stay empty."""
    factor = np.divide(_SCALE, library, out=np.zeros_like(library), where=library > 0)
    return sparse.csr_array(sparse.diags_array(factor) @ columns, dtype=np.float64)
