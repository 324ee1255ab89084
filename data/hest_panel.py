"""The panel of the HEST-Benchmark: genes seen on every slide that vary more than others of their mean.

As the benchmark's published code chooses it (github.com/mahmoodlab/HEST, Jaume et al. 2024), with the
normalised dispersion of Satija et al. 2015 as scanpy's `highly_variable_genes` has it (flavour "seurat").
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from mmap_st.data.counts import Counts
from mmap_st.errors import PanelError

# A gene counts where it is seen in this share of a slide's spots.
_SEEN = 0.10
# Parts of the names of probes that are no genes.
_CONTROLS = ("BLANK", "Control")
_BINS = 20


def hest_panel(number: int, tables: Mapping[str, Counts]) -> tuple[str, ...]:
    """Choose `number` genes, in the order of their names.

    Parameters
    ----------
    number
        How many; the benchmark has 50.
    tables
        Counts by slide, at least one. The benchmark chooses on all slides of a task, those of its test folds
        included.

    Raises
    ------
    PanelError
        If there are fewer genes to choose from, or a table holds no counts.
    """
    if any(counts.values != "counts" for counts in tables.values()):
        raise PanelError(f"--genes hest:{number} needs counts, and the tables hold log-normalised values.")
    seen = set.intersection(*map(_genes_seen, tables.values()))
    genes = sorted(gene for gene in seen if not any(word in gene for word in _CONTROLS))
    score = normalised_dispersion(*_moments(genes, tables)) if genes else np.zeros(0)
    ranked = np.sort(score[np.isfinite(score)])[::-1]
    if number > len(ranked):
        raise PanelError(
            f"{number} genes are asked for; {len(ranked)} are in at least {_SEEN:.0%} of the spots of every"
            " slide, and vary."
        )
    # Not simply the greatest: of those that are equal to the last, and of all above it, the first by name.
    chosen = [gene for gene, value in zip(genes, score, strict=True) if value >= ranked[number - 1]]
    return tuple(chosen[:number])


def normalised_dispersion(mean: NDArray[np.float64], variance: NDArray[np.float64]) -> NDArray[np.float64]:
    """How far each gene's dispersion is above that of genes of about the same mean, in standard deviations.

    Dispersion is log(variance / mean); genes are put into 20 bins of equal width in log1p(mean). A gene that
    is alone in its bin gets 1.

    Parameters
    ----------
    mean, variance
        (g,) of the counts of each gene over spots; at least one gene, all of them with a mean above 0.

    Returns
    -------
    (g,) float64; NaN for a gene that does not vary, and for genes of a bin where all are alike.
    """
    with np.errstate(divide="ignore"):
        dispersion = np.log(variance / mean)
    varies = np.isfinite(dispersion)
    level = np.log1p(mean)
    edges = np.linspace(level.min(), level.max(), _BINS + 1)
    # A bin has its upper edge and not its lower one; the first has both.
    bin_of = np.maximum(np.searchsorted(edges, level, side="left"), 1) - 1

    def total(values: NDArray[np.float64]) -> NDArray[np.float64]:
        return np.bincount(bin_of[varies], values[varies], minlength=_BINS).astype(np.float64)

    count = total(np.ones(len(mean)))
    with np.errstate(divide="ignore", invalid="ignore"):
        centre = total(dispersion) / count
        spread = np.sqrt(total((dispersion - centre[bin_of]) ** 2) / (count - 1))
        score: NDArray[np.float64] = (dispersion - centre[bin_of]) / spread[bin_of]
    score[varies & (count[bin_of] == 1)] = 1.0
    score[~np.isfinite(score)] = np.nan
    return score


def _genes_seen(counts: Counts) -> set[str]:
    spots, genes = int(counts.measured.sum()), counts.matrix.shape[1]
    seen = np.bincount(counts.matrix.indices[counts.matrix.data > 0], minlength=genes)
    least = np.ceil(_SEEN * spots)
    return {gene for gene, number in zip(counts.genes, seen, strict=True) if number >= least}


def _moments(
    genes: Sequence[str], tables: Mapping[str, Counts]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Mean and unbiased variance (g,) of counts over the spots of all slides.

    The benchmark takes log1p first, which this flavour of dispersion undoes.
    """
    spots = 0
    total, squares = np.zeros(len(genes)), np.zeros(len(genes))
    for counts in tables.values():
        columns = counts.columns_of(genes)[0].astype(np.float64)
        spots += int(counts.measured.sum())
        total += columns.sum(axis=0)
        squares += columns.multiply(columns).sum(axis=0)
    mean = total / spots
    return mean, np.maximum(squares / spots - mean**2, 0.0) * (spots / max(spots - 1, 1))
