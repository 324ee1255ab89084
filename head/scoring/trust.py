"""Which genes to trust: how well each is predicted on spots that no fit saw, and whether that is chance."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.spatial.distance import cdist

from mmap_st.data import noise_ceiling
from mmap_st.head.interface import HeldOut, Tensors
from mmap_st.head.scoring.metrics import pearson_per_gene
from mmap_st.head.scoring.uncertainty import FEWEST_PATIENTS

#: Share of the trusted genes that may be there by chance.
FALSE_DISCOVERIES = 0.05
_PREFIX = "trust."
# Of a slide: pairs of spots are compared, and this many tell enough.
_MOST_SPOTS = 400
_DISTANCES = 20
_BLOCK_GENES = 256

Array = NDArray[np.float32]
Vector = NDArray[np.float64]


@dataclass(frozen=True)
class GeneTrust:
    """How well the fits of the inner folds predicted each gene of the panel on spots that they did not see.

    Attributes
    ----------
    pcc
        (G,) float32, correlation within a slide: a mean over patients.
    low, high
        (G,) float32, 95% interval of `pcc`: over patients where there are at least three, else over the spots
        of these very slides.
    ceiling
        (G,) float32, noise ceiling of the same slides; NaN where it is not known.
    p_value, q_value
        (G,) float32, chance of such a correlation of maps that have nothing to do with each other, and the
        same corrected for the number of genes.
    trusted
        (G,) bool, genes that are `above_chance` on enough patients whom fits did not see.
    """

    pcc: Array
    low: Array
    high: Array
    ceiling: Array
    p_value: Array
    q_value: Array
    trusted: NDArray[np.bool_]

    @property
    def above_chance(self) -> NDArray[np.bool_]:
        """(G,) whether the correlation is neither chance nor, as far as its interval tells, 0."""
        return (self.q_value <= FALSE_DISCOVERIES) & (self.low > 0)

    def columns(self) -> dict[str, NDArray[Any]]:
        """(G,) columns of tables of genes, by name."""
        return {
            "cv_pcc": self.pcc,
            "cv_pcc_low": self.low,
            "cv_pcc_high": self.high,
            "ceiling": self.ceiling,
            "p_value": self.p_value,
            "q_value": self.q_value,
            "trusted": self.trusted,
        }

    def tensors(self) -> Tensors:
        """By name, to be saved with a head's weights."""
        return {_PREFIX + key: value for key, value in vars(self).items()}


def is_trust(name: str) -> bool:
    """Whether a saved tensor is of `GeneTrust`, not of the head itself."""
    return name.startswith(_PREFIX)


def saved_trust(tensors: Tensors) -> GeneTrust | None:
    """What was saved with a head; None where there is none."""
    found = {key.removeprefix(_PREFIX): value for key, value in tensors.items() if is_trust(key)}
    return GeneTrust(**found) if found else None


def fit_trust(
    held_out: Sequence[HeldOut], signal: Mapping[str, Vector], *, of_patients: bool
) -> GeneTrust | None:
    """Judge genes by predictions of spots that were not fitted; None without any.

    The p-value is one-sided, of the mean correlation over slides. Neighbouring spots are alike in both maps,
    so that maps that have nothing to do with each other often correlate: the variance of a correlation is
    that of `map_variance`. q-values are those of Benjamini and Hochberg (1995).

    Parameters
    ----------
    held_out
        Predictions and the slides that they are of, with targets.
    signal
        `mmap_st.data.signal_share` by slide; slides that are not in it tell no ceiling.
    of_patients
        Whether fits did not see the patients, three at least; else no gene is trusted.
    """
    from scipy.stats import false_discovery_control, norm, t

    parts = [part for part in held_out if len(part.rows) > 2]
    if not parts:
        return None
    found = [_of_part(part) for part in parts]
    pcc, variance = (np.stack(values) for values in zip(*found, strict=True))
    patients = [part.slide.patient or part.slide.name for part in parts]
    weight = _weights(np.isfinite(pcc), patients)
    mean = (weight * np.nan_to_num(pcc)).sum(axis=0)
    error = np.sqrt((weight**2 * variance).sum(axis=0))
    p_value = np.ones(len(mean))
    known = weight.any(axis=0)
    p_value[known] = norm.sf(mean[known] / error[known])
    by_patient = _by_patient(pcc, patients)
    count = np.isfinite(by_patient).sum(axis=0)
    reach = norm.ppf(0.975) * error
    if len(by_patient) >= FEWEST_PATIENTS:
        free = np.maximum(count - 1, 1)
        apart = np.where(np.isfinite(by_patient), by_patient - mean, 0.0)
        over_patients = t.ppf(0.975, free) * np.sqrt((apart**2).sum(axis=0) / free / np.maximum(count, 1))
        # A gene that too few patients have could be anything.
        reach = np.where(count >= FEWEST_PATIENTS, over_patients, 2.0)
    mean = np.where(known, mean, np.nan)
    shares = [signal[name] for name in dict.fromkeys(part.slide.name for part in parts) if name in signal]
    judged = GeneTrust(
        pcc=_single(mean),
        low=_single(np.maximum(mean - reach, -1.0)),
        high=_single(np.minimum(mean + reach, 1.0)),
        ceiling=_single(noise_ceiling(shares) if shares else np.full(len(mean), np.nan)),
        p_value=_single(p_value),
        q_value=_single(false_discovery_control(p_value)),
        trusted=np.zeros(len(mean), np.bool_),
    )
    return replace(judged, trusted=judged.above_chance & of_patients)


def _single(values: Vector) -> Array:
    return np.asarray(values, np.float32)


def _by_patient(pcc: Vector, patients: Sequence[str]) -> Vector:
    """(P, G) mean correlation of each patient, over slides (S, G); NaN where no slide has the gene."""
    rows = []
    for patient in dict.fromkeys(patients):
        of_patient = pcc[[name == patient for name in patients]]
        known = np.isfinite(of_patient)
        with np.errstate(invalid="ignore"):
            rows.append(np.where(known, of_patient, 0.0).sum(axis=0) / known.sum(axis=0))
    return np.stack(rows)


def _weights(known: NDArray[np.bool_], patients: Sequence[str]) -> Vector:
    """(S, G) weights of slides, patients counting the same, by which genes each has; they add up to 1."""
    slides = np.stack([known[[name == patient for name in patients]].sum(axis=0) for patient in patients])
    weight = np.divide(known, slides, out=np.zeros(known.shape), where=known)
    total = weight.sum(axis=0)
    shares: Vector = np.divide(weight, total, out=np.zeros(known.shape), where=total > 0)
    return shares


def _of_part(part: HeldOut) -> tuple[Vector, Vector]:
    """(G,) correlations on the spots of one slide, and their variances if there were nothing in them."""
    xy = part.slide.xy[part.rows]
    step = -(-len(xy) // _MOST_SPOTS)
    classes = distance_classes(xy[::step])
    correlations, variances = [], []
    for start in range(0, part.predicted.shape[1], _BLOCK_GENES):
        block = slice(start, start + _BLOCK_GENES)
        predicted = np.asarray(part.predicted[:, block], np.float64)
        measured = np.asarray(part.target(block), np.float64)
        found = pearson_per_gene(predicted, measured)
        # A constant map correlates with nothing, which is 0; one that is not measured is not known.
        correlations.append(np.where(np.isfinite(measured).any(axis=0), np.nan_to_num(found), np.nan))
        variances.append(map_variance(predicted[::step], measured[::step], classes))
    return np.concatenate(correlations), np.concatenate(variances)


def distance_classes(xy: NDArray[np.float64]) -> NDArray[np.int64]:
    """(n, n) class of every pair of spots at (n, 2) by their distance: 0 a spot and itself."""
    distance = cdist(xy, xy)
    width = distance.max() / _DISTANCES
    classes = np.ceil(np.divide(distance, width, out=np.zeros_like(distance), where=width > 0))
    return np.asarray(classes, np.int64)


def map_variance(first: Vector, second: Vector, classes: NDArray[np.int64]) -> Vector:
    """(g,) variance that the correlation of two maps has if they have nothing to do with each other.

    Maps of n spots that are each spatially autocorrelated have as much to say as fewer independent spots:
    the variance is the sum over pairs of spots of the products of both autocovariances, each estimated by
    class of distance, over n^2 and both variances (Clifford, Richardson and Hemon 1989, doi 10.2307/2532039).
    It is no less than that of independent spots, 1 / (n - 1).

    Parameters
    ----------
    first, second
        (n, g); NaN is taken for the mean.
    classes
        Of `distance_classes`.
    """
    x, y = (_centred(values) for values in (first, second))
    total = np.zeros(x.shape[1])
    for number in range(int(classes.max()) + 1):
        pairs = (classes == number).astype(np.float64)
        count = pairs.sum()
        if count:
            total += (x * (pairs @ x)).sum(axis=0) * (y * (pairs @ y)).sum(axis=0) / count
    size = (x**2).sum(axis=0) * (y**2).sum(axis=0)
    variance = np.divide(total, size, out=np.zeros_like(total), where=size > 0)
    bounded: Vector = np.maximum(variance, 1.0 / max(len(x) - 1, 1))
    return bounded


def _centred(values: Vector) -> Vector:
    known = np.isfinite(values)
    mean = np.where(known, values, 0.0).sum(axis=0) / np.maximum(known.sum(axis=0), 1)
    centred: Vector = np.where(known, values - mean, 0.0)
    return centred
