"""Metrics exactly as reported in metrics.json; undefined targets are NaN and are left out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

_HVG = 50
# A spread below this share of the values' own size is rounding, not variation.
_RELATIVE_EPS = 1e-6

Array = NDArray[np.floating[Any]]


def pearson_per_gene(predicted: Array, measured: Array) -> NDArray[np.float64]:
    """(g,) correlation over spots of (n, g) arrays.

    NaN where it is undefined: fewer than 2 spots with a target, or either side constant.
    """
    x, y = np.asarray(predicted, np.float64), np.asarray(measured, np.float64)
    use = np.isfinite(x) & np.isfinite(y)
    n = use.sum(axis=0)
    with np.errstate(invalid="ignore", divide="ignore"):
        x0 = np.where(use, x - np.where(use, x, 0.0).sum(axis=0) / n, 0.0)
        y0 = np.where(use, y - np.where(use, y, 0.0).sum(axis=0) / n, 0.0)
        spread_x, spread_y = np.sqrt((x0**2).sum(axis=0)), np.sqrt((y0**2).sum(axis=0))
        size_x = np.sqrt((np.where(use, x, 0.0) ** 2).sum(axis=0))
        size_y = np.sqrt((np.where(use, y, 0.0) ** 2).sum(axis=0))
        correlation = (x0 * y0).sum(axis=0) / (spread_x * spread_y)
    defined = (n >= 2) & (spread_x > _RELATIVE_EPS * size_x) & (spread_y > _RELATIVE_EPS * size_y)
    return np.where(defined, np.clip(correlation, -1.0, 1.0), np.nan)


def mean_pcc(per_gene: NDArray[np.float64]) -> float:
    """Mean over genes, an undefined one counting 0; NaN where there are no genes at all."""
    return float(np.nan_to_num(per_gene).mean()) if len(per_gene) else float("nan")


def slide_metrics(predicted: Array, measured: Array) -> dict[str, float]:
    """``n_spots``, ``pcc``, ``mse``, ``mae`` and ``undefined_genes`` of one slide.

    Genes that the slide lacks (columns all NaN) and spots without a target are left out.
    """
    rows, columns = _defined(measured)
    x, y = (
        np.asarray(predicted, np.float64)[rows][:, columns],
        np.asarray(measured, np.float64)[rows][:, columns],
    )
    per_gene = pearson_per_gene(x, y)
    error = (x - y)[np.isfinite(y)]
    return {
        "n_spots": int(rows.sum()),
        "pcc": mean_pcc(per_gene),
        "mse": float(np.mean(error**2)) if error.size else float("nan"),
        "mae": float(np.mean(np.abs(error))) if error.size else float("nan"),
        "undefined_genes": int(np.isnan(per_gene).sum()),
    }


def summarise(
    predicted: Mapping[str, Array], measured: Mapping[str, Array], hvg50: Sequence[int]
) -> dict[str, Any]:
    """Metrics of all test slides.

    Parameters
    ----------
    predicted, measured
        (n, g) by slide; NaN in `measured` is undefined. A row of `predicted` that is NaN (a window that
        could not be read) is left out too.
    hvg50
        Columns of the 50 genes of greatest variance in training.

    Returns
    -------
    The object ``test`` of metrics.json: ``slides``, ``pcc_slide``, ``pcc_slide_hvg50``, ``pcc_pooled``,
    ``mse``, ``mae``.
    """
    kept = {
        name: np.where(np.isfinite(predicted[name]), np.asarray(measured[name], np.float64), np.nan)
        for name in predicted
    }
    slides = {name: slide_metrics(predicted[name], kept[name]) for name in predicted}
    for name, row in slides.items():
        row["pcc_hvg50"] = slide_metrics(predicted[name][:, hvg50], kept[name][:, hvg50])["pcc"]
    x = np.concatenate([np.asarray(predicted[name], np.float64) for name in predicted])
    y = np.concatenate([kept[name] for name in predicted])
    measured_somewhere = np.isfinite(y).any(axis=0)
    return {
        "slides": slides,
        "pcc_slide": _mean(slide["pcc"] for slide in slides.values()),
        "pcc_slide_hvg50": _mean(slide["pcc_hvg50"] for slide in slides.values()),
        "pcc_pooled": mean_pcc(pearson_per_gene(x[:, measured_somewhere], y[:, measured_somewhere])),
        "mse": _mean(slide["mse"] for slide in slides.values()),
        "mae": _mean(slide["mae"] for slide in slides.values()),
    }


def gene_table(predicted: Mapping[str, Array], measured: Mapping[str, Array]) -> dict[str, list[Any]]:
    """Scores of each gene over the slides that have it.

    Returns
    -------
    Columns of length g: ``slides``, on how many it is measured; ``pcc``, the mean of its correlation over
    each slide's spots, an undefined one counting 0; ``mse`` and ``mae``, means over slides. NaN for a gene
    that no slide has.
    """
    pcc, mse, mae = [], [], []
    for name in measured:
        x, y = np.asarray(predicted[name], np.float64), np.asarray(measured[name], np.float64)
        error = np.where(np.isfinite(x), x - y, np.nan)
        count = np.isfinite(error).sum(axis=0)
        with np.errstate(invalid="ignore"):
            mse.append(np.nansum(error**2, axis=0) / count)
            mae.append(np.nansum(np.abs(error), axis=0) / count)
        pcc.append(np.where(count > 0, np.nan_to_num(pearson_per_gene(x, y)), np.nan))
    slides = np.isfinite(mse).sum(axis=0)
    with np.errstate(invalid="ignore"):
        means = {k: np.nansum(v, axis=0) / slides for k, v in (("pcc", pcc), ("mse", mse), ("mae", mae))}
    return {"slides": slides.tolist(), **{key: value.tolist() for key, value in means.items()}}


def pooled_errors(predicted: Mapping[str, Array], measured: Mapping[str, Array]) -> dict[str, float]:
    """Errors over all test spots together, as the released MMAP code reports them, and as they are.

    Parameters
    ----------
    predicted, measured
        (n, g) by slide; undefined entries are NaN and left out.

    Returns
    -------
    ``mse_pooled`` and ``mae_pooled`` of the values as they are; ``mse_zscored`` and ``mae_zscored`` after
    predictions and targets of each gene were brought to mean 0 and standard deviation 1 over all spots.
    """
    x = np.concatenate([np.asarray(predicted[name], np.float64) for name in predicted])
    y = np.concatenate([np.asarray(measured[name], np.float64) for name in predicted])
    undefined = ~(np.isfinite(x) & np.isfinite(y))
    error = np.where(undefined, np.nan, x - y)
    scaled = _zscored(x, undefined) - _zscored(y, undefined)
    return {
        "mse_pooled": float(np.nanmean(error**2)),
        "mae_pooled": float(np.nanmean(np.abs(error))),
        "mse_zscored": float(np.nanmean(scaled**2)),
        "mae_zscored": float(np.nanmean(np.abs(scaled))),
    }


def _zscored(values: Array, undefined: NDArray[np.bool_]) -> NDArray[np.float64]:
    """Columns of mean 0 and standard deviation 1; constant ones become 0."""
    count = np.maximum((~undefined).sum(axis=0), 1)
    centred = values - np.where(undefined, 0.0, values).sum(axis=0) / count
    spread = np.sqrt((np.where(undefined, 0.0, centred) ** 2).sum(axis=0) / count)
    scaled = np.divide(centred, spread, out=np.zeros_like(centred), where=spread > _RELATIVE_EPS)
    return np.where(undefined, np.nan, scaled)


def most_variable(targets: Sequence[Array], number: int = _HVG) -> list[int]:
    """Columns of greatest variance over all spots pooled, greatest first; ties by index."""
    pooled = np.concatenate([np.asarray(t, np.float64) for t in targets])
    count = np.isfinite(pooled).sum(axis=0)
    mean = np.nansum(pooled, axis=0) / np.maximum(count, 1)
    variance = np.nansum((pooled - mean) ** 2, axis=0) / np.maximum(count, 1)
    return [int(i) for i in np.argsort(-variance, kind="stable")[:number]]


def _defined(measured: Array) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
    finite = np.isfinite(measured)
    return np.asarray(finite.any(axis=1)), np.asarray(finite.any(axis=0))


def _mean(values: Any) -> float:
    """Unweighted mean over slides; those without a single defined target do not count."""
    finite = [float(v) for v in values if np.isfinite(v)]
    return float(np.mean(finite)) if finite else float("nan")
