"""Metrics exactly as they are reported in metrics.json; undefined targets are NaN and are left out.

Everything is computed on blocks of genes, so that a panel of all genes needs no copy of all values.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mmap_st.data import BLOCK_ENTRIES, Targets, noise_ceiling, pooled_moments
from mmap_st.head.scoring.results import NoiseCeiling, PooledErrors, Scores, SlideCeiling, SlideScores

_HVG = 50
# A spread below this share of the values themselves is rounding, not variation.
_RELATIVE_EPS = 1e-6
# A standard deviation up to this is that of a constant column, whatever the size of its values.
_SMALLEST_SPREAD = 1e-6

Array = NDArray[np.floating[Any]]
Vector = NDArray[np.float64]


def pearson_per_gene(predicted: Array, measured: Array) -> Vector:
    """(g,) correlation over spots of (n, g) arrays.

    NaN where it is undefined: fewer than 2 spots with a target, or either side constant.
    """
    x, y = np.asarray(predicted, np.float64), np.asarray(measured, np.float64)
    use = np.isfinite(x) & np.isfinite(y)
    n = use.sum(axis=0)
    with np.errstate(invalid="ignore", divide="ignore"):
        x0 = np.where(use, x - np.where(use, x, 0.0).sum(axis=0) / n, 0.0)
        y0 = np.where(use, y - np.where(use, y, 0.0).sum(axis=0) / n, 0.0)
    spreads = (x0**2).sum(axis=0), (y0**2).sum(axis=0)
    sizes = (np.where(use, x, 0.0) ** 2).sum(axis=0), (np.where(use, y, 0.0) ** 2).sum(axis=0)
    return correlation_of_sums(n, (x0 * y0).sum(axis=0), spreads, sizes)


def correlation_of_sums(
    count: NDArray[np.int64], product: Vector, spreads: tuple[Vector, Vector], sizes: tuple[Vector, Vector]
) -> Vector:
    """(g,) correlation of two sides; NaN where it is undefined, see `pearson_per_gene`.

    Parameters
    ----------
    count
        (g,) spots.
    product
        (g,) sum over them of the product of both sides, each less its mean.
    spreads, sizes
        (g,) sums of the squares of each side, less its mean and as it is.
    """
    (spread_x, spread_y), (size_x, size_y) = map(np.sqrt, spreads), map(np.sqrt, sizes)
    with np.errstate(invalid="ignore", divide="ignore"):
        correlation = product / (spread_x * spread_y)
    defined = (count >= 2) & (spread_x > _RELATIVE_EPS * size_x) & (spread_y > _RELATIVE_EPS * size_y)
    return np.where(defined, np.clip(correlation, -1.0, 1.0), np.nan)


def mean_pcc(per_gene: Vector) -> float:
    """Mean over genes, an undefined one counting 0; NaN where there are no genes at all."""
    return float(np.nan_to_num(per_gene).mean()) if len(per_gene) else float("nan")


@dataclass(frozen=True)
class GeneScores:
    """Scores of one slide, gene by gene.

    Attributes
    ----------
    n_spots
        Spots with at least one value on both sides.
    count
        (g,) spots with a value on both sides; 0 for a gene that is missing on the slide.
    pcc
        (g,) correlation, NaN where it is undefined.
    squared, absolute
        (g,) sums of squared and of absolute errors.
    """

    n_spots: int
    count: NDArray[np.int64]
    pcc: Vector
    squared: Vector
    absolute: Vector

    def summary(self, genes: Sequence[int] | slice = slice(None)) -> SlideScores:
        """Scores over `genes`; those that are missing on the slide are left out. Without `pcc_hvg50`."""
        count, per_gene = self.count[genes], self.pcc[genes]
        entries = int(count.sum())
        per_gene = per_gene[count > 0]
        return SlideScores(
            n_spots=self.n_spots,
            pcc=mean_pcc(per_gene),
            mse=float(self.squared[genes].sum() / entries) if entries else float("nan"),
            mae=float(self.absolute[genes].sum() / entries) if entries else float("nan"),
            undefined_genes=int(np.isnan(per_gene).sum()),
        )


def gene_scores(predicted: Array, measured: Array | Targets, entries: int = BLOCK_ENTRIES) -> GeneScores:
    """Scores of one slide, computed on blocks of about `entries` values."""
    rows = np.zeros(len(predicted), np.bool_)
    count, pcc, squared, absolute = [], [], [], []
    for x, y in _blocks([predicted], [measured], entries):
        error = x - y
        use = np.isfinite(error)
        error = np.where(use, error, 0.0)
        rows |= use.any(axis=1)
        count.append(use.sum(axis=0))
        pcc.append(pearson_per_gene(x, y))
        squared.append((error**2).sum(axis=0))
        absolute.append(np.abs(error).sum(axis=0))
    parts = (np.concatenate(part) for part in (count, pcc, squared, absolute))
    return GeneScores(int(rows.sum()), *parts)


def slide_metrics(predicted: Array, measured: Array | Targets) -> SlideScores:
    """Scores of one slide, without `pcc_hvg50`.

    Genes that are missing on the slide (columns all NaN) and spots without a target are left out.

    Parameters
    ----------
    predicted, measured
        (n, g); NaN where undefined.
    """
    return gene_scores(predicted, measured).summary()


def score_slides(
    predicted: Mapping[str, Array], measured: Mapping[str, Array | Targets], hvg50: Sequence[int]
) -> Scores:
    """Scores of all test slides.

    Parameters
    ----------
    predicted, measured
        (n, g) by slide; NaN in `measured` is undefined. A row of `predicted` that is NaN (a window that
        could not be read) is left out too.
    hvg50
        Columns of the 50 genes of greatest variance in training.
    """
    slides = {}
    for name in predicted:
        scores = gene_scores(predicted[name], measured[name])
        slides[name] = replace(scores.summary(), pcc_hvg50=scores.summary(list(hvg50)).pcc)
    pooled = []
    for x, y in _blocks(list(predicted.values()), [measured[name] for name in predicted]):
        somewhere = (np.isfinite(x) & np.isfinite(y)).any(axis=0)
        pooled.append(pearson_per_gene(x[:, somewhere], y[:, somewhere]))
    return Scores(
        slides=slides,
        pcc_slide=_mean(slide.pcc for slide in slides.values()),
        pcc_slide_hvg50=_mean(slide.pcc_hvg50 for slide in slides.values()),
        pcc_pooled=mean_pcc(np.concatenate(pooled)),
        mse=_mean(slide.mse for slide in slides.values()),
        mae=_mean(slide.mae for slide in slides.values()),
    )


def slide_ceilings(signal: Mapping[str, Vector], hvg50: Sequence[int]) -> NoiseCeiling | None:
    """What a perfect predictor would score on each test slide; None where no slide tells.

    As in a slide's PCC, a gene that does not vary on it counts 0, and one that it does not have is left out.

    Parameters
    ----------
    signal
        `mmap_st.data.signal_share` (G,) by slide.
    hvg50
        See `score_slides`.
    """
    by_gene = {name: noise_ceiling([share]) for name, share in signal.items()}
    return ceiling_of(
        {name: SlideCeiling(_mean(ceiling), _mean(ceiling[list(hvg50)])) for name, ceiling in by_gene.items()}
    )


def ceiling_of(slides: Mapping[str, SlideCeiling]) -> NoiseCeiling | None:
    """The noise ceiling over slides; None where there is none."""
    if not slides:
        return None
    return NoiseCeiling(
        pcc_slide=_mean(slide.pcc for slide in slides.values()),
        pcc_slide_hvg50=_mean(slide.pcc_hvg50 for slide in slides.values()),
        slides=dict(slides),
    )


def gene_table(
    predicted: Mapping[str, Array], measured: Mapping[str, Array | Targets]
) -> dict[str, list[float]]:
    """Scores of each gene over the slides that have it.

    Returns
    -------
    Columns of length g: ``slides``, on how many it is measured; ``pcc``, the mean of its correlation over
    each slide's spots, an undefined one counting 0; ``mse`` and ``mae``, means over slides. NaN for a gene
    that no slide has.
    """
    scores = [gene_scores(predicted[name], measured[name]) for name in measured]
    slides = np.sum([s.count > 0 for s in scores], axis=0)
    with np.errstate(invalid="ignore"):
        pcc = np.sum([np.nan_to_num(s.pcc) for s in scores], axis=0) / slides
        mse = np.sum([s.squared / np.maximum(s.count, 1) for s in scores], axis=0) / slides
        mae = np.sum([s.absolute / np.maximum(s.count, 1) for s in scores], axis=0) / slides
    return {"slides": slides.tolist(), "pcc": pcc.tolist(), "mse": mse.tolist(), "mae": mae.tolist()}


def pooled_errors(predicted: Mapping[str, Array], measured: Mapping[str, Array | Targets]) -> PooledErrors:
    """Errors over all test spots together, as the released MMAP code reports them, and as they are.

    Parameters
    ----------
    predicted, measured
        (n, g) by slide; undefined entries are NaN and left out.
    """
    entries, sums = 0, np.zeros(4)
    for x, y in _blocks(list(predicted.values()), [measured[name] for name in predicted]):
        undefined = ~(np.isfinite(x) & np.isfinite(y))
        error = np.where(undefined, 0.0, x - y)
        scaled = np.where(undefined, 0.0, _zscored(x, undefined) - _zscored(y, undefined))
        sums += [(error**2).sum(), np.abs(error).sum(), (scaled**2).sum(), np.abs(scaled).sum()]
        entries += int((~undefined).sum())
    return PooledErrors(*(float(value / entries) for value in sums))


def _zscored(values: Vector, undefined: NDArray[np.bool_]) -> Vector:
    """Columns of mean 0 and standard deviation 1; 0 if they vary by no more than `_SMALLEST_SPREAD`."""
    count = np.maximum((~undefined).sum(axis=0), 1)
    centred = values - np.where(undefined, 0.0, values).sum(axis=0) / count
    spread = np.sqrt((np.where(undefined, 0.0, centred) ** 2).sum(axis=0) / count)
    scaled: Vector = np.divide(centred, spread, out=np.zeros_like(centred), where=spread > _SMALLEST_SPREAD)
    return scaled


def most_variable(targets: Sequence[Targets], number: int = _HVG) -> list[int]:
    """Columns of greatest variance over all spots pooled, greatest first; ties by index."""
    _, variance = pooled_moments(targets)
    return [int(i) for i in np.argsort(-variance, kind="stable")[:number]]


def _blocks(
    predicted: Sequence[Array], measured: Sequence[Array | Targets], entries: int = BLOCK_ENTRIES
) -> Iterator[tuple[Vector, Vector]]:
    """Blocks of genes of both sides, float64, the spots of all slides below one another."""
    spots, genes = sum(map(len, predicted)), predicted[0].shape[1]
    width = max(1, min(genes, entries // max(spots, 1)))
    sides = (*(_columns(x, width) for x in predicted), *(_columns(y, width) for y in measured))
    for parts in zip(*sides, strict=True):
        x, y = parts[: len(predicted)], parts[len(predicted) :]
        yield np.concatenate(x, dtype=np.float64), np.concatenate(y, dtype=np.float64)


def _columns(values: Array | Targets, width: int) -> Iterator[Array]:
    if isinstance(values, Targets):
        yield from values.column_blocks(width)
    else:
        for start in range(0, values.shape[1], width):
            yield values[:, start : start + width]


def _mean(values: Iterable[float]) -> float:
    """Unweighted mean; what is not defined does not count."""
    finite = [float(v) for v in values if np.isfinite(v)]
    return float(np.mean(finite)) if finite else float("nan")


#: Labels that name no region.
UNDETERMINED = ("", "undetermined", "unknown", "na", "nan")
_COMPONENTS = 20
_FEWEST_SPOTS = 10


def region_agreement(
    predicted: NDArray[np.float32], ids: Sequence[str], labels: Mapping[str, str]
) -> float | None:
    """Adjusted Rand index of clustered predictions and a pathologist's labels.

    Labelled spots are clustered on 20 principal components of their predicted expression by k-means (10
    starts, seed 0) into as many clusters as there are labels, as HisToGene and Hist2ST did; the index is
    Hubert and Arabie's (1985): 1 for the same regions, 0 on average for chance.

    Parameters
    ----------
    predicted
        (n, G); rows of spots that are not valid are NaN.
    ids
        (n,) of the spots.
    labels
        By spot id; spots without one, or whose label names no region, are left out.

    Returns
    -------
    The index; None where fewer than 2 regions or 10 spots are left.
    """
    known = {spot: label for spot, label in labels.items() if label.strip().lower() not in UNDETERMINED}
    rows = [i for i, spot in enumerate(ids) if spot in known and np.isfinite(predicted[i]).all()]
    regions = [known[ids[i]] for i in rows]
    number = len(set(regions))
    if number < 2 or len(rows) < _FEWEST_SPOTS:
        return None
    values = predicted[rows].astype(np.float64)
    if not (np.ptp(values, axis=0) > 0).any():
        return 0.0  # one prediction for all spots: one cluster
    # These take half a second, and most evaluations have no regions.
    from sklearn.cluster import KMeans
    from sklearn.decomposition import PCA
    from sklearn.metrics import adjusted_rand_score

    reduced = PCA(min(_COMPONENTS, *values.shape), svd_solver="full").fit_transform(values)
    clusters = KMeans(number, n_init=10, random_state=0).fit_predict(reduced)
    return float(adjusted_rand_score(regions, clusters))
