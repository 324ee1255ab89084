"""Scores of predictions, as they are returned, shown and written."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import TypeAlias

from mmap_st.head.scoring.json_form import OMITTED, fields_of

#: Lower and upper end.
Interval: TypeAlias = tuple[float, float]

#: Metrics that each slide has, by their name in `Scores`: the field of `SlideScores`.
PER_SLIDE: Mapping[str, str] = {
    "pcc_slide": "pcc",
    "pcc_slide_hvg50": "pcc_hvg50",
    "mse": "mse",
    "mae": "mae",
}
_NAN = float("nan")


@dataclass(frozen=True)
class SlideScores:
    """Scores of one slide; of a cross-validation, means over seeds.

    Attributes
    ----------
    n_spots
        Spots with at least one gene that is measured and predicted.
    pcc
        Mean over genes of the Pearson correlation over spots, an undefined one counting 0.
    mse, mae
        Mean squared and mean absolute error on the targets' scale.
    undefined_genes
        Genes whose correlation is undefined.
    pcc_hvg50
        As `pcc`, of the 50 genes of the panel that vary most in training; NaN where the slide has none.
    fold
        The fold that tested the slide; None outside a cross-validation.
    """

    n_spots: int
    pcc: float
    mse: float
    mae: float
    undefined_genes: float
    pcc_hvg50: float = _NAN
    fold: str | None = field(default=None, metadata=OMITTED)


@dataclass(frozen=True)
class PooledErrors:
    """Errors over all test spots together.

    Attributes
    ----------
    mse_pooled, mae_pooled
        Mean squared and mean absolute error of the values as they are.
    mse_zscored, mae_zscored
        After predictions and targets of each gene were brought to mean 0 and standard deviation 1 over all
        spots.
    """

    mse_pooled: float
    mae_pooled: float
    mse_zscored: float
    mae_zscored: float


@dataclass(frozen=True, repr=False)
class Scores:
    """Scores of one predictor on all test slides.

    Attributes
    ----------
    slides
        Of each slide, by name.
    pcc_slide, pcc_slide_hvg50, mse, mae
        Unweighted means over slides of `pcc`, `pcc_hvg50`, `mse` and `mae`.
    pcc_pooled
        Mean over genes of the correlation over all test spots together; of a cross-validation, a mean over
        folds.
    mse_pooled, mae_pooled, mse_zscored, mae_zscored
        See `PooledErrors`; None under protocols that do not report them.
    intervals
        95% interval over patients of each metric of `PER_SLIDE`, None with fewer than 3 patients. None as a
        whole outside a cross-validation.
    spread
        Standard deviation over seeds of each metric of `PER_SLIDE`; None with one seed.
    """

    slides: Mapping[str, SlideScores]
    pcc_slide: float
    pcc_slide_hvg50: float
    pcc_pooled: float
    mse: float
    mae: float
    mse_pooled: float | None = field(default=None, metadata=OMITTED)
    mae_pooled: float | None = field(default=None, metadata=OMITTED)
    mse_zscored: float | None = field(default=None, metadata=OMITTED)
    mae_zscored: float | None = field(default=None, metadata=OMITTED)
    intervals: Mapping[str, Interval | None] | None = field(default=None, metadata=OMITTED)
    spread: Mapping[str, float] | None = field(default=None, metadata=OMITTED)

    def __repr__(self) -> str:
        metrics = (*PER_SLIDE, "pcc_pooled")
        shown = ", ".join(f"{metric}={self.value(metric):.4g}" for metric in metrics)
        return f"Scores({shown}, slides={len(self.slides)})"

    def value(self, metric: str) -> float:
        """A metric by name, such as ``"pcc_slide"``."""
        found: float = getattr(self, metric)
        return found

    def of_slide(self, slide: str, metric: str) -> float:
        """One slide's share of a metric of `PER_SLIDE`; NaN where it is undefined."""
        found: float = getattr(self.slides[slide], PER_SLIDE[metric])
        return found

    def with_pooled(self, errors: PooledErrors) -> Scores:
        """These scores, and errors over all test spots together."""
        return replace(
            self,
            mse_pooled=errors.mse_pooled,
            mae_pooled=errors.mae_pooled,
            mse_zscored=errors.mse_zscored,
            mae_zscored=errors.mae_zscored,
        )

    def interval(self, metric: str) -> Interval | None:
        """Interval over patients of a metric; None where there is none."""
        return (self.intervals or {}).get(metric)

    def json_form(self) -> Mapping[str, object]:
        """Fields in the order of the files, which is another one for a cross-validation."""
        if self.intervals is None:
            return fields_of(self)
        first = ("slides", *PER_SLIDE, "pcc_pooled")
        return {**fields_of(self, *first), **fields_of(self)}


@dataclass(frozen=True)
class PredictionIntervals:
    """How often prediction intervals hold the measured values of test slides.

    Attributes
    ----------
    level
        How often they should, from 0 to 1.
    calibrated_on
        Where their widths are from.
    patients
        How many patients they were calibrated on.
    coverage
        How often they do: a mean over slides.
    width
        Mean width on the targets' scale.
    slides
        Coverage of each slide.
    """

    level: float
    calibrated_on: str
    patients: int
    coverage: float
    width: float
    slides: Mapping[str, float]
