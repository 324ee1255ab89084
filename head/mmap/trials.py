"""Trials of a fit: spots of held-out folds, and how well outputs suit them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from mmap_st.head.mmap.preparation import PreparedSlide
from mmap_st.head.mmap.training import SlideTensors

Array = NDArray[np.float32]
Dense = NDArray[np.float64]


@dataclass(frozen=True)
class ValidationSpots:
    """Prepared spots of one slide that a trial is validated on.

    Attributes
    ----------
    prepared, positions
        The slide, and which (k,) of its prepared spots.
    level
        (G,) float32 level of the slide, fitted without the trial's folds.
    measured
        (k, g) float32 targets of the genes that validation uses.
    """

    prepared: PreparedSlide
    positions: NDArray[np.int64]
    level: Array
    measured: Array

    @property
    def rows(self) -> NDArray[np.int64]:
        """(k,) int64, which spots of the slide they are."""
        return self.prepared.rows[self.positions]

    @property
    def weight(self) -> Dense | None:
        """(k,) float64 weight of each; None: 1."""
        return None if self.prepared.weight is None else self.prepared.weight[self.positions]

    @property
    def tensors(self) -> SlideTensors:
        """The input of the network."""
        return self.prepared.tensors.rows(torch.from_numpy(self.positions))


@dataclass(frozen=True)
class Trial:
    """A fit without some folds, validated on the spots of those folds or of separate slides.

    Attributes
    ----------
    without
        Folds that are not fitted.
    mean
        (G,) float32 training mean of the fitted spots.
    validation
        The spots to validate on, slide by slide.
    """

    without: tuple[int, ...]
    mean: Array
    validation: tuple[ValidationSpots, ...]


def axis_errors(trial: Trial, outputs: Sequence[Sequence[Array]]) -> Dense:
    """Squared error of each axis of expression, of several fits.

    Output and targets are centred within each slide, and spots count by their weight.

    Parameters
    ----------
    outputs
        Of each of s fits, (k, r) for each slide of the trial.

    Returns
    -------
    (r, s) float64.
    """
    errors = np.zeros((outputs[0][0].shape[1], len(outputs)))
    for place, spots in enumerate(trial.validation):
        target = _centred(spots.prepared.coordinates.rows(spots.rows), spots.weight)
        for number, output in enumerate(outputs):
            squares = (target - _centred(output[place], spots.weight)) ** 2
            heavy = squares if spots.weight is None else squares * spots.weight[:, None]
            errors[:, number] += np.nansum(heavy, axis=0)
    return errors


def _centred(values: Array, weight: Dense | None) -> Dense:
    """(k, r) values without their mean over the spots, weighted; NaN stays."""
    known = np.isfinite(values).any(axis=1)
    if not known.any():
        return values.astype(np.float64)
    own = None if weight is None else weight[known]
    return np.asarray(values - np.average(values[known], axis=0, weights=own), np.float64)
