"""Intervals and tests over patients: slides of one patient are not independent."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

LEVEL = 0.95
RESAMPLES = 10_000
#: With fewer patients there are no intervals, and with fewer than the second no p-values.
FEWEST_FOR_INTERVAL, FEWEST_FOR_TEST = 3, 6

Values = NDArray[np.float64]


@dataclass(frozen=True)
class Difference:
    """How far one row of results lies above another on the same slides.

    Attributes
    ----------
    mean
        Over slides; NaN where no slide has both.
    interval
        95% over patients; None with fewer than 3 patients.
    p_value
        Of the two-sided Wilcoxon signed-rank test over patients' means; None with fewer than 6 patients.
    patients
        How many there are.
    """

    mean: float
    interval: tuple[float, float] | None
    p_value: float | None
    patients: int


@dataclass(frozen=True)
class CorrectedDifference(Difference):
    """A difference that is one of several.

    Attributes
    ----------
    p_holm
        The p-value after Holm's correction for all that were compared; None where there is none.
    """

    p_holm: float | None = None


def interval_over_patients(
    values: Sequence[float] | Values, patients: Sequence[str | None], seed: int = 0
) -> tuple[float, float] | None:
    """Bootstrap interval of a mean over slides, patients drawn whole.

    Each of 10,000 resamples draws as many patients as there are, with replacement, and takes the mean over
    all their slides; the interval is from the 2.5th to the 97.5th percentile (cluster bootstrap, Davison and
    Hinkley 1997, section 3.8). None with fewer than 3 patients, or where one is not known.

    Parameters
    ----------
    values
        One a slide; those that are not finite are left out.
    patients
        Of each slide; None: not known.
    """
    total, count = _by_patient(values, patients)
    if len(count) < FEWEST_FOR_INTERVAL:
        return None
    rng = np.random.default_rng(seed)
    drawn = rng.multinomial(len(count), np.full(len(count), 1 / len(count)), RESAMPLES)
    means = (drawn @ total) / (drawn @ count)
    tail = 100 * (1 - LEVEL) / 2
    low, high = np.percentile(means, [tail, 100 - tail])
    return float(low), float(high)


def paired_difference(
    first: Sequence[float], second: Sequence[float], patients: Sequence[str | None]
) -> Difference:
    """How far `first` lies above `second`, slide by slide.

    Parameters
    ----------
    first, second
        A metric on the same slides, in the same order; a slide with only one of them is left out.
    patients
        Of each slide; None: not known. Then there is neither interval nor p-value.
    """
    apart = np.asarray(first, np.float64) - np.asarray(second, np.float64)
    total, count = _by_patient(apart, patients)
    p_value = None
    if len(count) >= FEWEST_FOR_TEST:
        from scipy.stats import wilcoxon  # takes a quarter of a second

        means = total / count
        p_value = float(wilcoxon(means).pvalue) if np.any(means) else 1.0
    known = apart[np.isfinite(apart)]
    mean = float(known.mean()) if len(known) else float("nan")
    return Difference(mean, interval_over_patients(apart, patients), p_value, len(count))


def holm(p_values: Sequence[float | None]) -> list[float | None]:
    """p-values of several tests, corrected so that any is falsely small as rarely as one alone would be.

    The step-down procedure of Holm (1979): the smallest of m is multiplied by m, the next by m - 1, and none
    is less than the one before; at most 1. None stays None, and is not counted.
    """
    known = [number for number, value in enumerate(p_values) if value is not None]
    given = np.array([p_values[number] for number in known], np.float64)
    order = np.argsort(given, kind="stable")
    factors = np.arange(len(given), 0, -1)
    stepped = np.minimum(np.maximum.accumulate(given[order] * factors), 1.0)
    corrected: list[float | None] = [None] * len(p_values)
    for place, value in zip(order, stepped, strict=True):
        corrected[known[place]] = float(value)
    return corrected


def _by_patient(values: Sequence[float] | Values, patients: Sequence[str | None]) -> tuple[Values, Values]:
    """Sum and number of the finite values of each patient who has any; none where a patient is not known."""
    given = np.asarray(values, np.float64)
    use = np.isfinite(given)
    whose = [patient for patient, used in zip(patients, use, strict=True) if used]
    if None in whose:
        return np.zeros(0), np.zeros(0)
    names, of = np.unique(np.array(whose, dtype=np.str_), return_inverse=True)
    total = np.bincount(of, given[use], minlength=len(names)).astype(np.float64)
    return total, np.bincount(of, minlength=len(names)).astype(np.float64)
