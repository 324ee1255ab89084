"""The weights of several encoders' predictions: stacking, on spots that no fit saw."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from mmap_st.head.interface import HeldOut, best_of

_BLOCK_GENES = 64
# Of the mean squared error: so that encoders that make the same errors share their weight.
_TIE = 1e-9
# Steps from the weights of least squared error to one encoder alone.
_STEPS = 10
# Sums of squares below this are rounding.
_CONSTANT = 1e-12

Weights = NDArray[np.float64]


def best_weights(held_out: Sequence[Sequence[HeldOut]]) -> Weights:
    """(E,) weights, the same for all genes, that are not negative and add up to 1.

    They are those of the least squared error of the weighted mean (stacking, Breiman 1996, doi
    10.1007/BF00117832), or lie on the way from there to one encoder alone where the per-slide PCC is higher,
    by the rule of all choices (`mmap_st.head.interface.best_of`). For squared errors alone an encoder that
    errs much can be worth its weight for making the others' errors smaller all over, at the cost of the
    pattern.

    Parameters
    ----------
    held_out
        Of each member, predictions of the same spots; all defined targets count the same.
    """
    parts = [_Products.of(of_part) for of_part in zip(*held_out, strict=True)]
    errors = sum((part.errors for part in parts), np.zeros((len(held_out), len(held_out))))
    count = max(sum(part.count for part in parts), 1)
    least = least_on_simplex(errors)
    candidates = [least]
    for alone in np.eye(len(held_out)):
        candidates += [least + (alone - least) * step / _STEPS for step in range(1, _STEPS + 1)]
    rows = [
        {
            "number": number,
            "validation_pcc": float(np.mean([part.pcc(weights) for part in parts])),
            "validation_mse": float(weights @ errors @ weights) / count,
        }
        for number, weights in enumerate(candidates)
    ]
    return candidates[int(best_of(rows)["number"])]


def least_on_simplex(products: Weights) -> Weights:
    """(E,) weights w >= 0 of sum 1 that minimise w' P w, for products P (E, E) of errors."""
    from scipy.optimize import nnls

    count = len(products)
    mean = float(np.trace(products)) / count
    if not mean > 0:
        return np.full(count, 1 / count)
    # Up to scale they minimise w' P w / 2 - sum(w), which is non-negative least squares on a root of P.
    root = np.linalg.cholesky(products / mean + _TIE * np.eye(count)).T
    found, _ = nnls(root, np.linalg.solve(root.T, np.ones(count)))
    weights: Weights = found / found.sum()
    return weights


@dataclass(frozen=True)
class _Products:
    """All that scores of any weighted mean of E predictions of one slide depend on.

    Attributes
    ----------
    errors, count
        (E, E) products of errors, summed over defined targets, and how many these are.
    among, measured
        (g, E, E) products of predictions less their means, by gene that the slide has, and (g, E) those with
        measured values.
    variation
        (g,) of the measured values.
    """

    errors: Weights
    count: int
    among: NDArray[np.float64]
    measured: NDArray[np.float64]
    variation: NDArray[np.float64]

    @classmethod
    def of(cls, parts: Sequence[HeldOut]) -> _Products:
        """Of the predictions of several members of the same spots."""
        errors, count = np.zeros((len(parts), len(parts))), 0
        by_gene = []
        for start in range(0, parts[0].predicted.shape[1], _BLOCK_GENES):
            block = slice(start, start + _BLOCK_GENES)
            target = parts[0].target(block).astype(np.float64)
            known = np.isfinite(target)
            predicted = np.stack([part.predicted[:, block] for part in parts]).astype(np.float64)
            # The error of a weighted mean is the weighted mean of errors.
            apart = np.where(known, predicted - target, 0.0).reshape(len(parts), -1)
            errors += apart @ apart.T
            count += int(known.sum())
            x, y = _centred(predicted, known), _centred(target, known)
            among = np.einsum("eng,fng->gef", x, x, optimize=True)
            measured = np.einsum("eng,ng->ge", x, y, optimize=True)
            present = known.any(axis=0)
            by_gene.append((among[present], measured[present], (y**2).sum(axis=0)[present]))
        return cls(errors, count, *(np.concatenate(of_blocks) for of_blocks in zip(*by_gene, strict=True)))

    def pcc(self, weights: Weights) -> float:
        """Mean over genes of the correlation of the weighted mean with measured values; 0 where undefined."""
        variance = self.among @ weights @ weights
        defined = (variance > _CONSTANT) & (self.variation > _CONSTANT)
        length = np.sqrt(np.where(defined, variance * self.variation, 1.0))
        return float(np.where(defined, self.measured @ weights / length, 0.0).mean())


def _centred(values: NDArray[np.float64], known: NDArray[np.bool_]) -> NDArray[np.float64]:
    """Values (..., n, g) less their means over known spots; 0 where not known."""
    mean = np.where(known, values, 0.0).sum(axis=-2, keepdims=True) / np.maximum(known.sum(axis=0), 1)
    centred: NDArray[np.float64] = np.where(known, values - mean, 0.0)
    return centred
