"""How far predictions may be off: a spread for each, and intervals calibrated on spots that no fit saw."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
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
# Variance of levels between patients, as a share of that of errors within them.
_BETWEEN_PATIENTS = 0.75
_ROUNDING = 1e-9
_BLOCK_GENES = 256
_PREFIX = "spread."
# Versions that do not know it pass over a name without the prefix.
_NAMES = {"by_distance": "spread_by_distance"}
# Distances from a whole are smaller than those between its parts, by which this is calibrated: none becomes
# narrower for it.
_LEAST_FACTOR, _MOST_FACTOR = 1.0, 4.0

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
    by_distance
        (2,) float32, a and b: variances are a + b * log(distance) times as large, at least once and at most
        four times, the distance being that of a spot from the training tissue. (1, 0): no such thing.
    """

    intercept: Array
    slope: Array
    typical: Array
    factor: Array
    by_distance: Array = field(default_factory=lambda: np.array([1, 0], np.float32))

    def widened(self, times: float) -> Spread:
        """The same spread, with intervals that are so many times as wide."""
        return replace(self, factor=(self.factor * times).astype(np.float32))

    def of(self, predicted: Array, genes: slice = slice(None), distance: Array | None = None) -> Array:
        """(n, g) standard deviations of predictions (n, g) of some genes; NaN where these are NaN.

        `distance` (n,) is that of the spots from the training tissue, 1 being typical; where it is not known
        they are taken for typical ones.
        """
        variance = _bounded(self.intercept[genes] + self.slope[genes] * predicted, self.typical[genes])
        if distance is not None:
            variance = variance * distance_factor(self.by_distance, distance)[:, None]
        spread: Array = np.sqrt(variance).astype(np.float32)
        return spread

    def tensors(self) -> Tensors:
        """By name, to be saved with a head's weights."""
        return {_NAMES.get(key, _PREFIX + key): value for key, value in vars(self).items()}


def is_spread(name: str) -> bool:
    """Whether a saved tensor is of the spread, not of the head itself."""
    return name.startswith(_PREFIX) or name in _NAMES.values()


def saved_spread(tensors: Tensors) -> Spread | None:
    """The spread that was saved with a head; None where there is none."""
    found = {k.removeprefix(_PREFIX): v for k, v in tensors.items() if k.startswith(_PREFIX)}
    if not found:
        return None
    return Spread(**found, **{key: tensors[name] for key, name in _NAMES.items() if name in tensors})


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
    level differs from patient to patient, and one patient does not tell how far that is. It is taken to vary
    three quarters as much as the errors themselves: being known from k patients, it adds 3/4 (1 + 1/k) to
    their variance of 1, and intervals are 1.58 times as wide with one patient and 1.46 times with two.
    """
    if patients >= FEWEST_PATIENTS:
        return 1.0
    return math.sqrt(1.0 + _BETWEEN_PATIENTS * (1.0 + 1.0 / max(patients, 1)))


def fit_spread(held_out: Sequence[HeldOut], distances: Sequence[Array] | None = None) -> Spread | None:
    """Calibrate on predictions of spots that were not fitted.

    For each gene, squared errors are regressed on predictions; what a spot's squared errors are of that, a
    mean over genes, on the logarithm of its distance from the training tissue. Then the interval's factor is
    the 90% quantile of errors over spreads, every patient weighing the same (split conformal prediction with
    normalised scores, Lei et al. 2018, doi 10.1080/01621459.2017.1307116; patients pooled as in Dunn et al.
    2023, doi 10.1080/01621459.2022.2060112). The regressions are on the same spots: they have two numbers a
    gene, and two. Targets that are not defined are left out. None without any spot.

    Parameters
    ----------
    held_out
        Predictions and the slides that they are of, with targets.
    distances
        (k,) of the spots of each; None: not known.
    """
    used = [number for number, part in enumerate(held_out) if len(part.rows)]
    if not used:
        return None
    held_out = [held_out[number] for number in used]
    weight = _patient_weights(held_out)
    genes = held_out[0].predicted.shape[1]
    found = {key: np.zeros(genes, np.float32) for key in ("intercept", "slope", "typical", "factor")}
    total, count = np.zeros(len(weight)), np.zeros(len(weight))
    for block, predicted, error in _error_blocks(held_out, genes):
        for number in range(error.shape[1]):
            known = np.isfinite(error[:, number])
            if known.any():
                line = _variance_line(predicted[known, number], error[known, number] ** 2, weight[known])
                for key, value in zip(("intercept", "slope", "typical"), line, strict=True):
                    found[key][block.start + number] = value
        variance = Spread(**found).of(predicted.astype(np.float32), block).astype(np.float64) ** 2
        share = np.divide(error**2, variance, out=np.zeros_like(error), where=variance > 0)
        total += np.where(np.isfinite(error), share, 0.0).sum(axis=1)
        count += (np.isfinite(error) & (variance > 0)).sum(axis=1)
    distance = None if distances is None else np.concatenate([distances[number] for number in used])
    by_distance = np.array([1, 0], np.float32)
    if distance is not None:
        by_distance = _fit_distance(distance, total / np.maximum(count, 1), weight * (count > 0))
    spread = Spread(**found, by_distance=by_distance)
    for block, predicted, error in _error_blocks(held_out, genes):
        spreads = spread.of(predicted.astype(np.float32), block, distance).astype(np.float64)
        score = np.divide(np.abs(error), spreads, out=np.zeros_like(error), where=spreads > 0)
        for number in range(error.shape[1]):
            known = np.isfinite(error[:, number])
            if known.any():
                # One more score than there are: that of the spot to come (Lei et al. 2018).
                level = min(1.0, LEVEL * (known.sum() + 1) / known.sum())
                spread.factor[block.start + number] = _quantile(score[known, number], weight[known], level)
    return spread


def _error_blocks(
    held_out: Sequence[HeldOut], genes: int
) -> Iterator[tuple[slice, NDArray[np.float64], NDArray[np.float64]]]:
    """Predictions and errors (n, g) of blocks of genes, the spots of all parts below one another."""
    for start in range(0, genes, _BLOCK_GENES):
        block = slice(start, start + _BLOCK_GENES)
        predicted = np.concatenate([part.predicted[:, block] for part in held_out]).astype(np.float64)
        yield block, predicted, predicted - np.concatenate([part.target(block) for part in held_out])


def distance_factor(by_distance: Array, distance: Array) -> Array:
    """(n,) how many times as large variances are at these distances (n,) from the training tissue."""
    known = np.isfinite(distance) & (distance > 0)
    logarithm = np.log(distance, out=np.zeros(len(distance), np.float32), where=known)
    factor = np.clip(by_distance[0] + by_distance[1] * logarithm, _LEAST_FACTOR, _MOST_FACTOR)
    return np.where(known, factor, 1.0).astype(np.float32)


def _fit_distance(distance: Array, share: NDArray[np.float64], weight: NDArray[np.float64]) -> Array:
    """(2,) a and b of variances that are a + b log(distance) times as large, of spots' shares (n,)."""
    known = np.isfinite(distance) & (distance > 0) & (weight > 0)
    nothing = np.array([1, 0], np.float32)
    if known.sum() < 2:
        return nothing
    logarithm = np.log(distance[known].astype(np.float64))
    intercept, slope, mean = _variance_line(logarithm, share[known], weight[known])
    # Tissue is not predicted better for being strange.
    if slope <= 0 or mean <= 0:
        return nothing
    return np.array([intercept / mean, slope / mean], np.float32)


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


def coverage(
    spread: Spread,
    predicted: Mapping[str, Array],
    measured: Mapping[str, Targets],
    distances: Mapping[str, Array] | None = None,
) -> Coverage:
    """How often intervals hold the measured values of test slides, and how wide they are.

    Parameters
    ----------
    predicted
        (n, G) by slide.
    measured
        By slide; those of `predicted` that are not in it are left out.
    distances
        (n,) of spots from the training tissue, by slide; None: not known.
    """
    shares, widths = {}, []
    for name, targets in measured.items():
        inside, width, count = 0, 0.0, 0
        for number, target in enumerate(targets.column_blocks(_BLOCK_GENES)):
            block = slice(number * _BLOCK_GENES, (number + 1) * _BLOCK_GENES)
            values = predicted[name][:, block]
            reach = spread.factor[block] * spread.of(values, block, (distances or {}).get(name))
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
