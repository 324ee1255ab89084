"""How far predictions may be off: a spread for each, and intervals calibrated on spots that no fit saw."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mmap_st.data import Targets
from mmap_st.errors import counted
from mmap_st.head.interface import HeldOut, Tensors

#: Intervals hold the truth this often.
LEVEL = 0.9
#: Patients that intervals must have been calibrated on to hold for new ones as they are.
FEWEST_PATIENTS = 3
# A gene's variance is a line in its prediction, and stays within these shares of its mean squared error.
_LEAST, _MOST = 0.1, 10.0
_ROUNDING = 1e-9
_BLOCK_GENES = 256
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

    def widened(self, times: float) -> Spread:
        """The same spread, with intervals that are so many times as wide."""
        return replace(self, factor=(self.factor * times).astype(np.float32))

    def of(self, predicted: Array, genes: slice = slice(None)) -> Array:
        """(n, g) standard deviations of predictions (n, g) of some genes; NaN where these are NaN."""
        variance = self.intercept[genes] + self.slope[genes] * predicted
        spread: Array = np.sqrt(_bounded(variance, self.typical[genes])).astype(np.float32)
        return spread

    def tensors(self) -> Tensors:
        """By name, to be saved with a head's weights."""
        return {_PREFIX + key: value for key, value in vars(self).items()}


def is_spread(name: str) -> bool:
    """Whether a saved tensor is of the spread, not of the head itself."""
    return name.startswith(_PREFIX)


def saved_spread(tensors: Tensors) -> Spread | None:
    """The spread that was saved with a head; None where there is none."""
    found = {k.removeprefix(_PREFIX): v for k, v in tensors.items() if is_spread(k)}
    return Spread(**found) if found else None


@dataclass(frozen=True)
class Calibration:
    """What a head's intervals and its judgement of genes rest on.

    Attributes
    ----------
    rule
        How spots were held out.
    patients
        How many patients were predicted by fits that had seen none of their slides.
    widened
        How many times as wide as calibrated intervals are, see `widening`.
    """

    rule: str
    patients: int
    widened: float

    @property
    def of_patients(self) -> bool:
        """Whether enough patients were predicted unseen to tell of new ones."""
        return self.patients >= FEWEST_PATIENTS

    @property
    def condition(self) -> str:
        """What intervals rest on, in words."""
        if self.of_patients:
            return f"calibrated on {counted(self.patients, 'patient')} whom fits did not see"
        return f"not calibrated on patients but by {self.rule}: made {self.widened:.2f} times as wide"


def calibration_of(rule: str, patients: int) -> Calibration:
    """What intervals rest on if `patients` were predicted by fits that had not seen them."""
    return Calibration(rule, patients, widening(patients))


def widening(patients: int) -> float:
    """How many times wider intervals become that were calibrated on so few patients.

    1 from three patients on. Errors on slides or spots of patients whom the fit saw lack how far a gene's
    level differs from patient to patient, and one patient does not tell how far that is. Taken to vary as
    much as the errors themselves, and being known from k patients, it adds 1 + 1/k to their variance of 1:
    intervals are sqrt(2 + 1/k) times as wide, 1.73 with one patient and 1.58 with two.
    """
    return 1.0 if patients >= FEWEST_PATIENTS else math.sqrt(2.0 + 1.0 / max(patients, 1))


def fit_spread(held_out: Sequence[HeldOut]) -> Spread | None:
    """Calibrate on predictions of spots that were not fitted.

    For each gene, squared errors are regressed on predictions; then the interval's factor is the 90% quantile
    of errors over spreads, every patient weighing the same (split conformal prediction with normalised
    scores, Lei et al. 2018, doi 10.1080/01621459.2017.1307116; patients pooled as in Dunn et al. 2023, doi
    10.1080/01621459.2022.2060112). The regression is on the same spots: it has two numbers a gene. Targets
    that are not defined are left out. None without any spot.

    Parameters
    ----------
    held_out
        Predictions and the slides that they are of, with targets.
    """
    held_out = [part for part in held_out if len(part.rows)]
    if not held_out:
        return None
    weight = _patient_weights(held_out)
    genes = held_out[0].predicted.shape[1]
    found = {key: np.zeros(genes, np.float32) for key in ("intercept", "slope", "typical", "factor")}
    for start in range(0, genes, _BLOCK_GENES):
        block = slice(start, start + _BLOCK_GENES)
        predicted = np.concatenate([part.predicted[:, block] for part in held_out]).astype(np.float64)
        error = predicted - np.concatenate([part.target(block) for part in held_out])
        for number in range(error.shape[1]):
            known = np.isfinite(error[:, number])
            if known.any():
                parts = predicted[known, number], error[known, number], weight[known]
                for key, value in zip(found, _calibrated(*parts), strict=True):
                    found[key][start + number] = value
    return Spread(**found)


@dataclass(frozen=True)
class Coverage:
    """How often intervals hold the measured values of test slides, and how wide they are.

    Attributes
    ----------
    coverage, width
        Means over slides.
    slides
        Coverage of each slide, over all its defined targets.
    """

    coverage: float
    width: float
    slides: dict[str, float]


def coverage(spread: Spread, predicted: Mapping[str, Array], measured: Mapping[str, Targets]) -> Coverage:
    """How often intervals hold the measured values of test slides, and how wide they are.

    Parameters
    ----------
    predicted
        (n, G) by slide.
    measured
        By slide; those of `predicted` that are not in it are left out.
    """
    shares, widths = {}, []
    for name, targets in measured.items():
        inside, width, count = 0, 0.0, 0
        for number, target in enumerate(targets.column_blocks(_BLOCK_GENES)):
            block = slice(number * _BLOCK_GENES, (number + 1) * _BLOCK_GENES)
            values = predicted[name][:, block]
            reach = spread.factor[block] * spread.of(values, block)
            known = np.isfinite(target) & np.isfinite(values)
            inside += int((np.abs(values - target) <= reach)[known].sum())
            width += float(2 * reach[known].sum(dtype=np.float64))
            count += int(known.sum())
        if count:
            shares[name] = inside / count
            widths.append(width / count)
    return Coverage(
        coverage=float(np.mean(list(shares.values()))) if shares else float("nan"),
        width=float(np.mean(widths)) if widths else float("nan"),
        slides=shares,
    )


def _calibrated(
    predicted: NDArray[np.float64], error: NDArray[np.float64], weight: NDArray[np.float64]
) -> tuple[float, float, float, float]:
    """Intercept, slope and typical variance of one gene, and the factor of its interval."""
    intercept, slope, typical = _variance_line(predicted, error**2, weight)
    spread = np.sqrt(_bounded(intercept + slope * predicted, typical))
    score = np.divide(np.abs(error), spread, out=np.zeros_like(error), where=spread > 0)
    # One more score than there are: that of the spot to come (Lei et al. 2018).
    level = min(1.0, LEVEL * (len(score) + 1) / len(score))
    return intercept, slope, typical, _quantile(score, weight, level)


def _bounded(variance: Any, typical: Any) -> Any:
    return np.clip(variance, _LEAST * typical, _MOST * typical)


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
    """The least value below which values of this share of the weight lie, itself included."""
    order = np.argsort(values, kind="stable")
    reached = np.cumsum(weight[order]) / weight.sum()
    place = min(int(np.searchsorted(reached, level - _ROUNDING)), len(order) - 1)
    return float(values[order[place]])


def _patient_weights(held_out: Sequence[HeldOut]) -> NDArray[np.float64]:
    """(n,) weights of the spots: 1 in all for each patient; a slide without a patient counts as one."""
    patients = [part.slide.patient or part.slide.name for part in held_out]
    spots: Counter[str] = Counter()
    for part, patient in zip(held_out, patients, strict=True):
        spots[patient] += len(part.rows)
    parts = [np.full(len(h.rows), 1.0 / spots[p]) for h, p in zip(held_out, patients, strict=True)]
    return np.concatenate(parts)
