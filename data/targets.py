"""Targets: what a head is trained to predict, and how they are made from counts."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray
from scipy import sparse

from mmap_st.data.arrays import array_means
from mmap_st.data.counts import Counts
from mmap_st.data.spots import some
from mmap_st.errors import NormalisationError, agreeing

#: Default number of entries of a dense block of columns: 32 MiB as float64.
BLOCK_ENTRIES = 1 << 22

Index = slice | NDArray[np.int64] | NDArray[np.bool_]
ALL = slice(None)


@dataclass(frozen=True)
class Targets:
    """Targets of one slide on a panel of G genes.

    Attributes
    ----------
    values
        (n, G) CSR, float32. An entry that is not stored is 0, or undefined; undefined ones are never stored.
    defined
        (n,) spots that have a target: under most normalisations, those whose library is not empty.
    present
        (G,) genes that the slide has.
    """

    values: sparse.csr_array
    defined: NDArray[np.bool_]
    present: NDArray[np.bool_]

    @classmethod
    def of_dense(cls, values: NDArray[np.float32]) -> Targets:
        """Targets from (n, G) values in which whole rows and whole columns may be NaN.

        Raises
        ------
        ValueError
            If a single entry is NaN: a gene is measured on all spots of a slide or on none.
        """
        finite = np.isfinite(values)
        defined, present = (np.asarray(finite.any(axis=axis)) for axis in (1, 0))
        if not (finite == np.outer(defined, present)).all():
            raise ValueError("targets may be NaN for whole spots and whole genes, not for single entries")
        return cls(sparse.csr_array(np.where(finite, values, 0), dtype=np.float32), defined, present)

    def __len__(self) -> int:
        return len(self.defined)

    @property
    def genes(self) -> int:
        """Length G of the panel."""
        return len(self.present)

    @property
    def measured(self) -> NDArray[np.bool_]:
        """(n,) spots with at least one defined target."""
        return self.defined & self.present.any()

    def rows(self, keep: Index) -> Targets:
        """The targets of these spots."""
        return replace(
            self, values=sparse.csr_array(self.values[_positions(keep)]), defined=self.defined[keep]
        )

    def dense(self, rows: Index = ALL, columns: Index = ALL) -> NDArray[np.float32]:
        """(k, g) float32 block, NaN where undefined."""
        part = self.values[_positions(rows)]
        if not _is_all(columns):
            part = part[:, _positions(columns)]
        values: NDArray[np.float32] = part.toarray()
        values[~self.defined[rows]] = np.nan
        values[:, ~self.present[columns]] = np.nan
        return values

    def column_blocks(self, width: int) -> Iterator[NDArray[np.float32]]:
        """(n, width) float32 blocks of all spots, from the first gene on; NaN where undefined."""
        by_column = sparse.csc_array(self.values)
        for start in range(0, self.genes, width):
            values = by_column[:, start : start + width].toarray()
            values[~self.defined] = np.nan
            values[:, ~self.present[start : start + width]] = np.nan
            yield values

    def total(self, use: NDArray[np.bool_]) -> NDArray[np.float64]:
        """(G,) float64 sum over the defined spots among `use`."""
        weight = (use & self.defined).astype(np.float64)
        total: NDArray[np.float64] = self.values.T.astype(np.float64) @ weight
        return total


def pooled_moments(parts: Sequence[Targets]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """(G,) mean and variance of each gene over the defined spots of all parts; 0 for a gene that has none."""
    count = sum(part.present * float(part.defined.sum()) for part in parts)
    total = sum(part.total(part.defined) for part in parts)
    mean = np.asarray(total / np.maximum(count, 1))
    squares = np.zeros(len(mean))
    for part in parts:
        values = part.values.tocoo()
        stored = np.bincount(values.col, minlength=len(mean))
        deviation = (values.data - mean[values.col]) ** 2
        squares += np.bincount(values.col, deviation, minlength=len(mean))
        squares += (part.present * float(part.defined.sum()) - stored) * mean**2
    return mean, squares / np.maximum(count, 1)


def _is_all(index: Index) -> bool:
    return isinstance(index, slice) and index == ALL


def _positions(index: Index) -> slice | NDArray[np.int64]:
    if isinstance(index, slice):
        return index
    return np.flatnonzero(index) if index.dtype == np.bool_ else np.asarray(index, np.int64)


#: Name of the default normalisation, recorded with every head.
LOG1P_10K = "log1p-10k"
#: Of the HEST-Benchmark: counts are not scaled.
LOG1P_COUNTS = "log1p-counts"
#: Of the released MMAP code: the library size is over the panel alone.
LOG10_PANEL = "log10-10k-panel"
#: Of TRIPLEX: the same, then smoothed over the array.
LOG10_PANEL_SMOOTHED = "log10-10k-panel-smoothed"
#: For tables that hold log-normalised values: no normalisation.
AS_GIVEN = "lognorm-as-given"

_SCALE = 10_000.0
# Spots whose targets are made at once.
_BLOCK_SPOTS = 1 << 16


def per_10k(counts: Counts, columns: sparse.csr_array) -> NDArray[np.float64]:
    """(n,) factor that brings each spot to 10,000 counts over ALL genes; 0 for an empty one."""
    return _per_10k(counts.library)


def per_10k_of_panel(counts: Counts, columns: sparse.csr_array) -> NDArray[np.float64]:
    """(n,) factor that brings each spot to 10,000 counts over these genes (n, g); 0 for an empty one."""
    return _per_10k(np.asarray(columns.sum(axis=1), np.float64).ravel())


def unscaled(counts: Counts, columns: sparse.csr_array) -> NDArray[np.float64]:
    """(n,) ones."""
    return np.ones(columns.shape[0])


def log1p_10k(counts: Counts, columns: sparse.csr_array) -> sparse.csr_array:
    """Scale `columns` (n, g) of `counts` to 10,000 per spot over ALL genes and take log1p; stays sparse."""
    scaled = _scaled(columns, per_10k(counts, columns))
    scaled.data = np.log1p(scaled.data)
    return scaled


def log10_10k_panel(counts: Counts, columns: sparse.csr_array) -> sparse.csr_array:
    """Scale `columns` (n, g) to 10,000 per spot over these genes only, take log10(x + 1); stays sparse."""
    scaled = _scaled(columns, per_10k_of_panel(counts, columns))
    scaled.data = np.log10(scaled.data + 1.0)
    return scaled


def log1p_counts(counts: Counts, columns: sparse.csr_array) -> sparse.csr_array:
    """Take log1p of `columns` (n, g); stays sparse."""
    logged = sparse.csr_array(columns, dtype=np.float64)
    logged.data = np.log1p(logged.data)
    return logged


def as_given(counts: Counts, columns: sparse.csr_array) -> sparse.csr_array:
    """`columns` unchanged, for values that are already log-normalised."""
    return sparse.csr_array(columns, dtype=np.float64)


@dataclass(frozen=True)
class Normalisation:
    """One way from counts to targets.

    Attributes
    ----------
    scale
        (counts of a slide, columns (n, g) of it) to (n, g) float64 values.
    units
        What the values are, in words.
    empty_is_zero
        Whether the targets of a spot whose library size is 0 are 0 (else undefined).
    smoothed
        Whether a spot's targets are then averaged with those of its neighbours on the array.
    factor
        Where targets are, up to a constant, log1p(factor * count): (counts, columns (n, g)) to (n,). None:
        they are something else.
    """

    scale: Callable[[Counts, sparse.csr_array], sparse.csr_array]
    units: str
    empty_is_zero: bool = False
    smoothed: bool = False
    factor: Callable[[Counts, sparse.csr_array], NDArray[np.float64]] | None = None


_PANEL_UNITS = "log10(x + 1) of counts scaled to 10,000 a spot over the panel's genes"
NORMALISATIONS = {
    LOG1P_10K: Normalisation(
        log1p_10k, "log1p of counts scaled to 10,000 a spot over all genes", factor=per_10k
    ),
    LOG1P_COUNTS: Normalisation(
        log1p_counts, "log1p of counts, not scaled", empty_is_zero=True, factor=unscaled
    ),
    LOG10_PANEL: Normalisation(log10_10k_panel, _PANEL_UNITS, empty_is_zero=True, factor=per_10k_of_panel),
    LOG10_PANEL_SMOOTHED: Normalisation(
        log10_10k_panel,
        f"{_PANEL_UNITS}, smoothed: the mean over a spot and its neighbours on the array",
        empty_is_zero=True,
        smoothed=True,
    ),
    AS_GIVEN: Normalisation(as_given, "log-normalised values as the table has them"),
}


def normalisation_of(tables: Mapping[str, Counts]) -> str:
    """Name of the normalisation that suits the values of all slides.

    Raises
    ------
    NormalisationError
        If some hold counts and others log-normalised values.
    """
    kinds = {counts.values for counts in tables.values()}
    if len(kinds) > 1:
        lognorm = [name for name, counts in tables.items() if counts.values == "lognorm"]
        raise NormalisationError(
            f"{len(lognorm)} of {len(tables)} slides {agreeing(len(lognorm), 'holds', 'hold')} log-normalised"
            f" values ({some(lognorm)}) and the others counts: their targets would be on different scales;"
            " use slides of one kind."
        )
    return AS_GIVEN if kinds == {"lognorm"} else LOG1P_10K


def targets_from_counts(
    counts: Counts,
    genes: Sequence[str],
    normalisation: str = LOG1P_10K,
    xy: NDArray[np.float64] | None = None,
) -> Targets:
    """Make the targets of one slide.

    Targets are undefined for a spot that is not in the count table, for a spot whose library size is 0
    (under some normalisations they are 0), and for a gene that the slide does not have.

    Parameters
    ----------
    counts
        Counts of the slide.
    genes
        The panel, in order.
    normalisation
        A key of `NORMALISATIONS`.
    xy
        (n, 2) centres of the spots; a smoothed normalisation needs them.
    """
    chosen = NORMALISATIONS[normalisation]
    if len(counts.ids) > _BLOCK_SPOTS and not chosen.smoothed:
        return _targets_in_blocks(counts, genes, normalisation)
    columns, present = counts.columns_of(genes)
    scaled = chosen.scale(counts, columns)
    if chosen.smoothed:
        assert xy is not None
        scaled = array_means(xy, counts.measured) @ scaled
    values = sparse.csr_array(scaled, dtype=np.float32)
    defined = counts.measured if chosen.empty_is_zero else counts.library > 0
    return Targets(values, defined, present)


def _targets_in_blocks(counts: Counts, genes: Sequence[str], normalisation: str) -> Targets:
    """Targets of blocks of spots, put together: of all spots at once there would be several copies."""
    used = 0
    values = np.empty(counts.matrix.nnz, np.float32)
    columns = np.empty(counts.matrix.nnz, np.int32)
    starts = [np.zeros(1, np.int64)]
    defined = []
    for start in range(0, len(counts.ids), _BLOCK_SPOTS):
        part = targets_from_counts(counts.block(slice(start, start + _BLOCK_SPOTS)), genes, normalisation)
        end = used + part.values.nnz
        values[used:end], columns[used:end] = part.values.data, part.values.indices
        starts.append(used + part.values.indptr[1:])
        defined.append(part.defined)
        used = end
    # Pointers of 64 bits would have indices of 64 bits made.
    pointers = np.concatenate(starts).astype(np.int32 if used < 2**31 else np.int64)
    shape = len(counts.ids), len(genes)
    joined = sparse.csr_array((values[:used], columns[:used], pointers), shape=shape)
    return Targets(joined, np.concatenate(defined), part.present)


def _per_10k(library: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.divide(_SCALE, library, out=np.zeros_like(library), where=library > 0)


def _scaled(columns: sparse.csr_array, factor: NDArray[np.float64]) -> sparse.csr_array:
    """Each row of (n, g) times its factor (n,)."""
    return sparse.csr_array(sparse.diags_array(factor) @ columns, dtype=np.float64)
