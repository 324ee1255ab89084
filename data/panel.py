"""Gene panels: the ordered list of genes that a head predicts.

Panels are chosen on training slides only, unless a protocol asks otherwise (`mmap_st.head.runs.request`).

``hest:N`` follows the published code of the HEST-Benchmark (github.com/mahmoodlab/HEST, Jaume et al. 2024),
with the normalised dispersion of Satija et al. 2015 as in scanpy's `highly_variable_genes` (flavour
"seurat").
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray
from scipy import sparse
from scipy.spatial import cKDTree

from mmap_st.data.counts import Counts, is_ensembl, shared_genes, union_of_genes
from mmap_st.data.gene_names import ALL_GENES, NamedGenes, name_genes, plain_rule
from mmap_st.data.targets import LOG1P_10K, NORMALISATIONS
from mmap_st.errors import PanelError, agreeing, counted

# Spots lie on square or hexagonal grids: these are the nearest ones.
_NEIGHBOURS = 6


def neighbour_weights(xy: NDArray[np.float64]) -> sparse.csr_array:
    """(n, n) equal weights of each spot's 6 nearest others (fewer on a tiny slide); rows sum to 1."""
    n = len(xy)
    count = min(_NEIGHBOURS, n - 1)
    if count < 1:
        return sparse.csr_array((n, n), dtype=np.float64)
    # Spots may coincide, so the spot itself is not always the first of its nearest.
    _, nearest = cKDTree(xy).query(xy, k=count + 1)
    own = nearest == np.arange(n)[:, None]
    own[~own.any(axis=1), -1] = True
    columns = nearest[~own]
    rows = np.repeat(np.arange(n), count)
    return sparse.csr_array((np.full(len(rows), 1.0 / count), (rows, columns)), shape=(n, n))


def morans_i(values: sparse.csr_array, weights: sparse.csr_array) -> NDArray[np.float64]:
    """(g,) Moran's I of (n, g) values: the correlation of a gene with itself at neighbouring spots.

    With row sums of 1 it is sum_ij w_ij z_i z_j / sum_i z_i^2, where z are values minus
    their mean (Moran 1950). For a gene that does not vary it is 0.
    """
    n = values.shape[0]
    mean = np.asarray(values.sum(axis=0)).ravel() / max(n, 1)
    around = weights @ values
    column_sum = np.asarray(weights.sum(axis=0)).ravel()
    row_sum = np.asarray(weights.sum(axis=1)).ravel()
    product = np.asarray(values.multiply(around).sum(axis=0)).ravel()
    covariance = (
        product - mean * (values.T @ column_sum) - mean * (values.T @ row_sum) + mean**2 * row_sum.sum()
    )
    variation = np.asarray(values.multiply(values).sum(axis=0)).ravel() - n * mean**2
    varies = variation > 1e-9 * np.maximum(n * mean**2, 1e-12)
    found: NDArray[np.float64] = np.divide(covariance, variation, out=np.zeros(len(mean)), where=varies)
    return found


# A gene counts as detected in a slide if this share of its spots have it.
_DETECTED = 0.10
# Parts of the names of probes that are not genes.
_CONTROLS = ("BLANK", "Control")
_BINS = 20


def hest_panel(number: int, tables: Mapping[str, Counts]) -> tuple[str, ...]:
    """Choose `number` genes, in the order of their names.

    Parameters
    ----------
    number
        How many; the benchmark uses 50.
    tables
        Counts by slide, at least one. The benchmark chooses on all slides of a task, those of its test folds
        included.

    Raises
    ------
    PanelError
        If there are fewer genes to choose from, or a table does not hold counts.
    """
    if any(counts.values != "counts" for counts in tables.values()):
        raise PanelError(f"--genes hest:{number} needs counts, and the tables hold log-normalised values.")
    seen = set.intersection(*map(_detected_genes, tables.values()))
    genes = sorted(gene for gene in seen if not any(word in gene for word in _CONTROLS))
    score = normalised_dispersion(*_moments(genes, tables)) if genes else np.zeros(0)
    ranked = np.sort(score[np.isfinite(score)])[::-1]
    if number > len(ranked):
        raise PanelError(
            f"{counted(number, 'gene is', 'genes are')} requested; only"
            f" {counted(len(ranked), 'varies and is', 'vary and are')} in {_DETECTED:.0%} or more of the"
            " spots of every slide."
        )
    # Ties with the last are broken by name, among all that score at least as much.
    chosen = [gene for gene, value in zip(genes, score, strict=True) if value >= ranked[number - 1]]
    return tuple(chosen[:number])


def normalised_dispersion(mean: NDArray[np.float64], variance: NDArray[np.float64]) -> NDArray[np.float64]:
    """How far each gene's dispersion is above that of genes of about the same mean, in standard deviations.

    Dispersion is log(variance / mean); genes are put into 20 bins of equal width in log1p(mean). A gene that
    is alone in its bin scores 1.

    Parameters
    ----------
    mean, variance
        (g,) of the counts of each gene over spots; at least one gene, all of them with a mean above 0.

    Returns
    -------
    (g,) float64; NaN for a gene that does not vary, and for genes of a bin whose dispersions are all equal.
    """
    with np.errstate(divide="ignore"):
        dispersion = np.log(variance / mean)
    varies = np.isfinite(dispersion)
    level = np.log1p(mean)
    edges = np.linspace(level.min(), level.max(), _BINS + 1)
    # A bin includes its upper edge only; the first includes both.
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


def _detected_genes(counts: Counts) -> set[str]:
    spots, genes = int(counts.measured.sum()), counts.matrix.shape[1]
    seen = np.bincount(counts.matrix.indices[counts.matrix.data > 0], minlength=genes)
    least = np.ceil(_DETECTED * spots)
    return {gene for gene, number in zip(counts.genes, seen, strict=True) if number >= least}


def _moments(
    genes: Sequence[str], tables: Mapping[str, Counts]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Mean and unbiased variance (g,) of counts over the spots of all slides.

    The benchmark applies log1p first, which this flavour of dispersion undoes.
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


DEFAULT_PANEL = "hvg:250"
INTERSECTION, UNION = GENE_SETS = ("intersection", "union")

_NO_SLIDE = "no training slide has counts; a panel is chosen on training slides."


@dataclass(frozen=True)
class Panel:
    """Genes in order, and how they were selected.

    Attributes
    ----------
    genes
        Their names.
    how
        The request, such as ``hvg:250``, or the file.
    slides
        The slides that they were selected on; none where all were named.
    gene_ids
        An Ensembl id of each, or ""; None where no training slide has ids.
    """

    genes: tuple[str, ...]
    how: str
    slides: tuple[str, ...] = ()
    gene_ids: tuple[str, ...] | None = None


def choose_panel(
    text: str,
    training: Mapping[str, Counts],
    normalisation: str = LOG1P_10K,
    gene_set: str = INTERSECTION,
    xy: Mapping[str, NDArray[np.float64]] | None = None,
    *,
    exact: bool = False,
) -> Panel:
    """Choose the genes that ``--genes`` requests.

    Parameters
    ----------
    text
        ``all``: every gene of the set; ``hvg:N``: the N whose targets have the greatest variance over the
        training spots (before any smoothing), greatest first; ``mean:N``: the N with the greatest mean;
        ``svg:N``: the N with the greatest spatial autocorrelation, by Moran's I; ``hest:N``: as in the
        HEST-Benchmark; the path of a file with one gene a line; or the name or id of a gene. Several, with
        commas between them, are joined in that order, each gene once.
    training
        Counts of the slides to choose on, by name: those of training, or all where a protocol says so. Spots
        with an empty library are ignored, except for ``hest:N``.
    normalisation
        Of the targets, see `mmap_st.data.targets`.
    gene_set
        ``intersection``: choose from genes that every training slide has; ``union``: from those that any has.
        Slides without a gene are left out of its statistics. A file alone takes genes that any has.
    xy
        (n, 2) positions of the spots of each training slide, for ``svg:N``.
    exact
        Whether a named gene that is missing is an error, not left out (see `missing_genes`).

    Raises
    ------
    PanelError
        If the request is not one of these, requests more genes than there are, or names only genes that are
        missing.
    """
    rules = _Rules(training, normalisation, gene_set, xy or {})
    if plain_rule(text):
        genes, how, chosen = rules.genes(text), text, True
    else:
        named = _named(text, training, gene_set)
        named.check(exact=exact)
        of_parts = [
            rules.genes(part.text) if part.kind == "rule" else found
            for part, found in zip(named.parts, named.found, strict=True)
        ]
        genes = tuple(dict.fromkeys(gene for found in of_parts for gene in found))
        how, chosen = named.how, any(part.kind == "rule" for part in named.parts)
    if chosen and gene_set != INTERSECTION:
        how = f"{how} of the {gene_set}"
    return Panel(genes, how, tuple(training) if chosen else (), _ids_of(genes, training))


def missing_genes(text: str, training: Mapping[str, Counts], gene_set: str = INTERSECTION) -> list[str]:
    """What to say of the genes that ``--genes`` names and a panel is made without.

    Parameters
    ----------
    text, training, gene_set
        As `choose_panel` takes them.

    Raises
    ------
    PanelError
        If the request is none that can be met.
    """
    return [] if plain_rule(text) else [f"--genes: {note}" for note in _named(text, training, gene_set).notes]


def _named(text: str, training: Mapping[str, Counts], gene_set: str) -> NamedGenes:
    if not training:
        raise PanelError(_NO_SLIDE)
    _check_gene_set(gene_set)
    return name_genes(text, list(training.values()), shared=gene_set == INTERSECTION)


@dataclass(frozen=True)
class _Rules:
    """Genes chosen by rules such as ``hvg:250``; what several rules need is computed once."""

    training: Mapping[str, Counts]
    normalisation: str
    gene_set: str
    xy: Mapping[str, NDArray[np.float64]]

    @cached_property
    def moments(self) -> tuple[tuple[str, ...], NDArray[np.float64], NDArray[np.float64]]:
        return target_moments(self.training, self.normalisation, self.gene_set)

    def genes(self, rule: str) -> tuple[str, ...]:
        kind, _, number = rule.partition(":")
        if kind == "hest":
            if not self.training:
                raise PanelError(_NO_SLIDE)
            if self.gene_set != INTERSECTION:
                raise PanelError(
                    f"--genes {rule} takes genes that every slide has; leave out --gene-set {self.gene_set}."
                )
            return hest_panel(_parse_number(rule, number), self.training)
        genes, mean, variance = self.moments
        if rule == ALL_GENES:
            return genes
        score = {"hvg": variance, "mean": mean}.get(kind)
        if score is None:
            score = mean_morans_i(genes, self.training, self.normalisation, self.xy)
        return _top(genes, score, _parse_number(rule, number))


def _ids_of(genes: Sequence[str], training: Mapping[str, Counts]) -> tuple[str, ...] | None:
    """Ensembl ids of genes, each from the first slide that has one; a name that is an id is its own."""
    known: dict[str, str] = {}
    for counts in training.values():
        for name, gene_id in zip(counts.genes, counts.gene_ids or (), strict=counts.gene_ids is not None):
            if gene_id:
                known.setdefault(name, gene_id)
    ids = tuple(gene if is_ensembl(gene) else known.get(gene, "") for gene in genes)
    return ids if any(ids) else None


def target_moments(
    training: Mapping[str, Counts], normalisation: str = LOG1P_10K, gene_set: str = INTERSECTION
) -> tuple[tuple[str, ...], NDArray[np.float64], NDArray[np.float64]]:
    """Genes of all slides (or any); mean and variance (g,) of their targets over all spots that have them."""
    if not training:
        raise PanelError(_NO_SLIDE)
    _check_gene_set(gene_set)
    tables = [counts.genes for counts in training.values()]
    genes = shared_genes(tables) if gene_set == INTERSECTION else union_of_genes(tables)
    if not genes:
        raise PanelError("the training slides have no gene in common; check their gene names.")
    spots, total, squares = (np.zeros(len(genes)) for _ in range(3))
    for counts in training.values():
        columns, present = counts.columns_of(genes)
        values = NORMALISATIONS[normalisation].scale(counts, columns)
        spots += present * int((counts.library > 0).sum())
        total += values.sum(axis=0)
        squares += values.multiply(values).sum(axis=0)
    mean = total / np.maximum(spots, 1)
    return genes, mean, np.maximum(squares / np.maximum(spots, 1) - mean**2, 0.0)


def _check_gene_set(gene_set: str) -> None:
    if gene_set not in GENE_SETS:
        raise PanelError(f"--gene-set {gene_set}: give {' or '.join(GENE_SETS)}.")


def mean_morans_i(
    genes: Sequence[str],
    training: Mapping[str, Counts],
    normalisation: str,
    xy: Mapping[str, NDArray[np.float64]],
) -> NDArray[np.float64]:
    """(g,) Moran's I of targets: the mean over the slides that have the gene, weighted by their spots."""
    total, spots = np.zeros(len(genes)), np.zeros(len(genes))
    for name, counts in training.items():
        columns, present = counts.columns_of(genes)
        kept = np.flatnonzero(counts.library > 0)
        values = sparse.csr_array(NORMALISATIONS[normalisation].scale(counts, columns)[kept])
        total += present * len(kept) * morans_i(values, neighbour_weights(xy[name][kept]))
        spots += present * len(kept)
    return total / np.maximum(spots, 1)


def _top(genes: Sequence[str], score: NDArray[np.float64], number: int) -> tuple[str, ...]:
    if number > len(genes):
        wanted = counted(number, "gene is", "genes are")
        raise PanelError(
            f"{wanted} requested; there {agreeing(len(genes), 'is', 'are')} {len(genes)} to choose from."
        )
    order = sorted(range(len(genes)), key=lambda i: (-score[i], genes[i]))
    return tuple(genes[i] for i in order[:number])


def _parse_number(text: str, number: str) -> int:
    if not number.isdecimal() or int(number) < 1:
        raise PanelError(f"--genes {text}: give the number of genes after the colon, such as hvg:250.")
    return int(number)
