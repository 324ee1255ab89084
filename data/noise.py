"""How much of a target's variance is the noise of counting, so that no image can tell it."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from scipy import sparse

from mmap_st.data.counts import Counts
from mmap_st.data.targets import BLOCK_ENTRIES, NORMALISATIONS

# The series alternates, so that it fades out: a mean of its first partial sums with binomial weights (Euler's
# transform). Longer ones are more exact on average, and vary more.
_WEIGHTS = (1.0, 7 / 8, 1 / 2, 1 / 8)
# Above this count the third term is less than a thousandth of the first, and rounding is more.
_MANY = 200.0
# Values at a time: a dozen arrays of them are held.
_BLOCK = BLOCK_ENTRIES // 4

Vector = NDArray[np.float64]


def counting_noise(counts: Vector, factor: Vector) -> Vector:
    """Unbiased estimate of the variance that counting adds to log1p(factor * count).

    For N ~ Poisson(m) and f(N), Var f(N) = sum over k >= 1 of m^k / k! * (E D^k f(N))^2, D being the forward
    difference (Last and Penrose 2011, doi 10.1007/s00440-010-0288-5). Each E of a square, in place
    of the square of an E, turns it into an alternating series, whose terms single counts estimate without
    bias: Var f(N) = E sum over k of (-1)^(k-1) * C(N, k) * (D^k f(N - k))^2. Cut to four terms by
    Euler's transform, the mean is within 1.5% of the variance for factors up to 10.

    Parameters
    ----------
    counts
        (n, ...) whole numbers.
    factor
        (n, ...) or what is broadcast to it.

    Returns
    -------
    (n, ...) float64; single values may be negative, their mean over spots is what counts.
    """
    counts = np.asarray(counts, np.float64)
    orders = len(_WEIGHTS)
    differences = [np.log1p(factor * np.maximum(counts - k, 0.0)) for k in range(orders + 1)]
    noise = np.zeros_like(counts)
    ways = np.ones_like(counts)
    for order, weight in enumerate(_WEIGHTS, start=1):
        differences = [upper - lower for upper, lower in itertools.pairwise(differences)]
        ways *= (counts - order + 1) / order
        if order == 3:
            ways[counts > _MANY] = 0.0
        # C(N, k) is 0 where N < k.
        noise += (-1) ** (order - 1) * weight * np.where(counts >= order, ways, 0.0) * differences[0] ** 2
    return noise


def signal_share(counts: Counts, genes: Sequence[str], normalisation: str) -> Vector | None:
    """How much of the variance of a slide's targets a perfect predictor could explain, gene by gene.

    It knows what count to expect of each gene in each spot, and not the one that was drawn (Poisson; the
    library size is taken as given). What varies between counts of one expectation beyond that, as with
    unequal capture, passes for signal here: the share is an upper bound.

    Parameters
    ----------
    counts
        Of the slide.
    genes
        The panel.
    normalisation
        A key of `NORMALISATIONS`.

    Returns
    -------
    (G,) float64, unbiased: chance can take it below 0 and above 1. 0 for a gene that does not vary, NaN for
    one that the slide does not have. None where targets are not the logarithm of counts of single spots.
    """
    chosen = NORMALISATIONS[normalisation]
    if chosen.factor is None or counts.values != "counts":
        return None
    columns, present = counts.columns_of(genes)
    use = np.flatnonzero(counts.measured if chosen.empty_is_zero else counts.library > 0)
    factor = chosen.factor(counts, columns)[use, None]
    by_gene = sparse.csc_array(columns[use])
    share: Vector = np.where(present, 0.0, np.nan)
    width = max(1, _BLOCK // max(len(use), 1))
    for start in range(0, len(genes) if len(use) > 1 else 0, width):
        block = slice(start, start + width)
        values = by_gene[:, block].toarray().astype(np.float64)
        total = np.log1p(factor * values).var(axis=0, ddof=1)
        signal = total - counting_noise(values, factor).mean(axis=0)
        found = np.divide(signal, total, out=np.zeros_like(total), where=total > 0)
        # What varies less than counting does must not outweigh other slides in a mean.
        share[block] += np.maximum(found, -1.0)
    return share


def noise_ceiling(shares: Sequence[Vector]) -> Vector:
    """(G,) correlation within a slide of a perfect prediction and the measured values.

    Parameters
    ----------
    shares
        `signal_share` of the same genes on each of some slides, of which this takes the mean. NaN for a gene
        that no slide has.
    """
    known = np.isfinite(shares)
    with np.errstate(invalid="ignore"):
        mean = np.where(known, shares, 0.0).sum(axis=0) / known.sum(axis=0)
    ceiling: Vector = np.sqrt(np.clip(mean, 0.0, 1.0))
    return ceiling
