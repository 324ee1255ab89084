"""How far predictions may be off: a spread for each, and intervals calibrated on spots that no fit saw."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mmap_st.head.base import HeldOut, Tensors

#: Intervals hold the truth this often.
LEVEL = 0.9
# A gene's variance is a line in its prediction, and stays within these shares of its mean squared error.
_LEAST, _MOST = 0.1, 10.0
_ROUNDING = 1e-9
_PREFIX = "spread."

Array = NDArray[np.float32]


@dataclass(frozen=True)
class Spread:
    """Standard deviation of the error of each prediction, and how many of them an interval reaches.

    Attributes
    ----------
    intercept, slope
        (G,) float32: the variance is intercept + slope * prediction.
    typical
        (G,) float32, mean squared error of calibration; the variance stays within a tenth and ten times it.
    factor
        (G,) float32: prediction - factor * spread to prediction + factor * spread holds the truth in 90% of
        calibration spots, every patient counting the same.
    """

    intercept: Array
    slope: Array
    typical: Array
    factor: Array

    def of(self, predicted: Array) -> Array:
        """(n, G) standard deviations of predictions (n, G); NaN where these are NaN."""
        variance = np.clip(
            self.intercept + self.slope * predicted, _LEAST * self.typical, _MOST * self.typical
        )
        spread: Array = np.sqrt(variance).astype(np.float32)
        return spread

    def tensors(self) -> Tensors:
        """By name, to be saved beside a head's weights."""
        return {_PREFIX + key: value for key, value in vars(self).items()}


def saved_spread(tensors: Tensors) -> Spread | None:
    """The spread that was saved with a head; None where there is none."""
    found = {k.removeprefix(_PREFIX): v for k, v in tensors.items() if k.startswith(_PREFIX)}
    return Spread(**found) if found else None


def fit_spread(held_out: Sequence[HeldOut]) -> Spread | None:
    """Calibrate on predictions of spots that were not fitted.

    For each gene, squared errors are regressed on predictions; then the interval's factor is the 90% quantile
    of errors over spreads, every patient weighing the same (split conformal prediction with normalised
    scores, Lei et al. 2018, doi 10.1080/01621459.2017.1307116; patients pooled as in Dunn et al. 2023, doi
    10.1080/01621459.2022.2060112). Targets that are not defined are left out. None without any spot.

    Parameters
    ----------
    held_out
        Predictions and the slides that they are of, with targets.
    """
    held_out = [part for part in held_out if len(part.rows)]
    if not held_out:
        return None
    predicted = np.concatenate([part.predicted for part in held_out]).astype(np.float64)
    error = predicted - np.concatenate([part.target for part in held_out])
    weight = _patient_weights(held_out)
    genes = predicted.shape[1]
    found = {key: np.zeros(genes, np.float32) for key in ("intercept", "slope", "typical", "factor")}
    for gene in range(genes):
        known = np.isfinite(error[:, gene])
        if known.any():
            line = _variance_line(predicted[known, gene], error[known, gene] ** 2, weight[known])
            for key, value in zip(found, line, strict=False):
                found[key][gene] = value
    spread = Spread(**found)
    score = np.abs(error) / np.maximum(spread.of(predicted.astype(np.float32)), np.finfo(np.float32).tiny)
    for gene in range(genes):
        known = np.isfinite(score[:, gene])
        found["factor"][gene] = _quantile(score[known, gene], weight[known], LEVEL)
    return Spread(**found)


def coverage(spread: Spread, predicted: Mapping[str, Array], measured: Mapping[str, Array]) -> dict[str, Any]:
    """How often intervals hold the truth on test slides, and how wide they are.

    Returns
    -------
    ``coverage`` and ``width``, means over slides; ``slides``: the coverage of each, over all its defined
    targets.
    """
    shares, widths = {}, []
    for name, target in measured.items():
        reach = spread.factor * spread.of(predicted[name])
        known = np.isfinite(target) & np.isfinite(predicted[name])
        if known.any():
            shares[name] = float((np.abs(predicted[name] - target) <= reach)[known].mean())
            widths.append(float(2 * reach[known].mean()))
    return {
        "coverage": float(np.mean(list(shares.values()))) if shares else float("nan"),
        "width": float(np.mean(widths)) if widths else float("nan"),
        "slides": shares,
    }


def _variance_line(
    predicted: NDArray[np.float64], squared: NDArray[np.float64], weight: NDArray[np.float64]
) -> tuple[float, float, float]:
    """Intercept, slope and mean of squared errors, by weighted least squares on predictions."""
    share = weight / weight.sum()
    mean, centre = float(share @ squared), float(share @ predicted)
    apart = predicted - centre
    variation = float(share @ apart**2)
    slope = float(share @ (apart * squared)) / variation if variation > 1e-12 else 0.0
    return mean - slope * centre, slope, mean


def _quantile(values: NDArray[np.float64], weight: NDArray[np.float64], level: float) -> float:
    """The least value below which values of this share of the weight lie, itself included; 0 for none."""
    if not len(values):
        return 0.0
    order = np.argsort(values, kind="stable")
    reached = np.cumsum(weight[order]) / weight.sum()
    place = min(int(np.searchsorted(reached, level - _ROUNDING)), len(order) - 1)
    return float(values[order[place]])


def _patient_weights(held_out: Sequence[HeldOut]) -> NDArray[np.float64]:
    """(n,) weights of the spots: 1 in all for each patient; a slide without a patient is its own."""
    patients = [part.slide.patient or part.slide.name for part in held_out]
    spots: Counter[str] = Counter()
    for part, patient in zip(held_out, patients, strict=True):
        spots[patient] += len(part.rows)
    parts = [np.full(len(h.rows), 1.0 / spots[p]) for h, p in zip(held_out, patients, strict=True)]
    return np.concatenate(parts)
